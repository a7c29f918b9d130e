"""The contract of a fitter: which rows it trains on, which it holds out, and what it remembers between fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel

BLOCK_WINDOWS = 5
"""A model that is judged over windows is held out whole stretches of an episode, this many windows long."""


class ModelFitter(ABC):
    """Trains a model on all data so far, again and again as data comes.

    Args:
        holdout: share of rows held out; 0 trains on everything.
        max_holdout: at most this many rows are held out.
        fresh_holdout: draw the held rows anew at every fit.
    """

    def __init__(self, holdout: float, max_holdout: int, fresh_holdout: bool = False) -> None:
        check_shares(holdout=holdout)
        check_counts(max_holdout=max_holdout)
        self.holdout, self.max_holdout, self.fresh_holdout = holdout, max_holdout, fresh_holdout
        self.fits = 0

    @abstractmethod
    def check(self, model: DynamicsModel) -> None:
        """Raise ``UserError`` when ``model`` cannot be trained so; needs no data."""

    @abstractmethod
    def fit(
        self, model: DynamicsModel, data: Transitions, generator: Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Train on ``data [N]``; ``weights [N]`` weigh the rows. Returns what to log, ``gradient_steps`` among it."""

    def split(self, data: Transitions, generator: Generator, window: int = 1) -> tuple[Tensor, Tensor]:
        """Row numbers to train on (shuffled) and to hold out.

        A row's episode and step decide, once and for ever; where rows do not have their own (made by hand, say) they
        are drawn anew. With a ``window`` of several steps whole stretches of an episode are held out, so that there
        are windows whose every row is.
        """
        order = torch.randperm(len(data), generator=generator, device=generator.device)
        held = min(int(self.holdout * len(data)), self.max_holdout)
        if not held or (self.fresh_holdout and window == 1):
            return order[held:], order[:held]
        rank = fixed_rank(data.episode, data.step // (BLOCK_WINDOWS * window) if window > 1 else data.step)
        if window == 1 and len(rank.unique()) < len(data):
            return order[held:], order[:held]
        inside = rank[order] < self._line(rank)
        if bool(inside.all()) or not bool(inside.any()):  # too few rows for the line to part them
            return order[held:], order[:held]
        return order[~inside], order[inside]

    def _line(self, rank: Tensor) -> int:
        """Rows of lower rank are held out. It is drawn in the ranks, not at a number of rows, so that it does not move
        as rows come; until they are too many.
        """
        line = round((2.0 * self.holdout - 1.0) * 2.0**63)
        return min(line, int(rank.kthvalue(min(self.max_holdout + 1, len(rank))).values))

    def state_dict(self) -> dict[str, Any]:
        return {"fits": self.fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fits = state["fits"]


def fixed_rank(episode: Tensor, step: Tensor) -> Tensor:
    """``[N]`` int64, even over their range, from each row's episode and step alone (the finaliser of splitmix64)."""

    def shifted(x: Tensor, bits: int) -> Tensor:
        moved: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)  # with zeros coming in, as of an unsigned number
        return moved

    mixed = episode * -7046029254386353131 + step
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ shifted(mixed, shift)) * factor
    return mixed ^ shifted(mixed, 31)


def check_rows(data: Transitions) -> None:
    """Rows there are, and every number in them is finite."""
    if not len(data):
        raise UserError("training data", "no rows", "collect transitions before fitting")
    finite = data.reward.isfinite()
    for column in (data.obs, data.action, data.next_obs):
        finite = finite & column.isfinite().all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise UserError(f"training data, row {row}", "NaN or infinity", "remove the row or mend the environment")


def check_weights(weights: Tensor, rows: int) -> None:
    """One finite weight a row, none negative, not all zero."""
    if weights.shape != (rows,):
        raise UserError("weights", tuple(weights.shape), f"give one weight for each of the {rows} rows")
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise UserError("weights", "NaN, infinity, negative or all zero", "give weights >= 0 of which one is positive")


def check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise UserError(name, share, "give a share in [0, 1)")


def check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(name, count, "give a whole number of at least 1")
