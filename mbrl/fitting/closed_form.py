"""Models that are solved for, not trained."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.fitting.base import ModelFitter, check_rows, check_weights
from mbrl.models.base import DynamicsModel


@runtime_checkable
class ClosedForm(Protocol):
    """Models that solve for their parameters from additive statistics of all rows."""

    def fit_closed_form(self, train: Transitions, held: Transitions, generator: Generator) -> dict[str, float]:
        """Solve on ``train [N]``, choosing what is to be chosen by the error on ``held [M]`` (maybe no rows)."""


class ClosedFormFitter(ModelFitter):
    """Fits a model in one pass over all data so far.

    Args:
        holdout: share of rows held out, to choose regularisation and periods on; 0 trains on everything.
        max_holdout: at most this many rows are held out.
    """

    def __init__(self, holdout: float = 0.2, max_holdout: int = 5000) -> None:
        super().__init__(holdout, max_holdout)

    def check(self, model: DynamicsModel) -> None:
        if not isinstance(model, ClosedForm):
            fix = "it is trained by gradient: name Fitter as the fitter; EDMD is solved for in closed form"
            raise UserError("fitter", type(model).__name__, fix)

    def fit(
        self, model: DynamicsModel, data: Transitions, generator: Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        check_rows(data)
        if weights is not None:
            check_weights(weights, len(data))
            raise UserError("weights", "given", "a closed-form fit weighs all rows alike; leave them out")
        self.check(model)
        assert isinstance(model, ClosedForm)
        train, held = self.split(data, generator, model.window)
        report = model.fit_closed_form(data[train], data[held], generator)
        self.fits += 1
        report |= {"gradient_steps": 0.0, "rows": float(len(data))}
        return report | model.calibrate(data[held if len(held) else train], generator)
