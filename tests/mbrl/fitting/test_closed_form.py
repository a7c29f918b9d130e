"""The closed-form fitter: what it trains on, what it holds out, what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.transitions import Transitions
from mbrl.fitting import ClosedFormFitter
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.koopman.dictionaries import GaussianRBF, Monomials
from mbrl.models.koopman.edmd import EDMD

SPEC = EnvSpec(
    "Spring-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), reward_complete=True, termination=never
)


def episodes(count: int, length: int, seed: int = 0) -> Transitions:
    """``[count * length]`` rows of a hard spring that is pushed at random."""
    generator = torch.Generator().manual_seed(seed)
    x, rows = 2 * torch.rand(count, 2, generator=generator) - 1, []
    ids = torch.arange(count)
    for step in range(length):
        u = 2 * torch.rand(count, 1, generator=generator) - 1
        v = x[:, 1:] + 0.1 * (u - x[:, :1] ** 3)
        after, none = torch.cat([x[:, :1] + 0.1 * v, v], 1), ids < 0
        rows.append(Transitions(x, u, x[:, 0] * 0, after, none, none, ids, ids * 0 + step, ids * 0))
        x = after
    return Transitions.cat(rows)


def luck(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


class Noting(EDMD):
    """Remembers which rows it was given for what."""

    def fit_closed_form(self, train: Transitions, held: Transitions, generator: Generator) -> dict[str, float]:
        self.train_rows, self.held_rows = train, held
        return super().fit_closed_form(train, held, generator)

    def calibrate(self, held: Transitions, generator: Generator) -> dict[str, float]:
        self.calibrated_on = held
        return super().calibrate(held, generator)


def noting(**options: Any) -> Noting:
    return Noting(SPEC, [partial(Monomials, degree=3)], validation_steps=4, **options)


def keys(rows: Transitions) -> set[tuple[int, int]]:
    return set(zip(rows.episode.tolist(), rows.step.tolist(), strict=True))


def test_all_rows_are_trained_on_or_held_and_the_period_hears_the_held() -> None:
    model, data = noting(), episodes(10, 100)
    report = ClosedFormFitter(holdout=0.25).fit(model, data, luck())
    assert keys(model.train_rows) | keys(model.held_rows) == keys(data)
    assert not keys(model.train_rows) & keys(model.held_rows)
    assert keys(model.calibrated_on) == keys(model.held_rows)
    assert report["judged_steps"] == 4  # held stretches are long enough for windows
    assert report["rows"] == 1000
    assert report["gradient_steps"] == 0
    assert report["error_reencoded"] < 0.01
    assert report["reencode_every"] == model.reencode_every


def test_held_stretches_stay_held_as_rows_come() -> None:
    """The control draws single rows anew, as a model without windows and rows without ids of their own would."""
    fitter, model, trained = ClosedFormFitter(holdout=0.25), noting(), set[tuple[int, int]]()
    for length in (60, 100, 160):
        fitter.fit(model, episodes(10, length), luck(length))
        assert not trained & keys(model.held_rows)
        assert model.held_rows.obs.shape[0] > 0
        trained |= keys(model.train_rows)
    _, held = fitter.split(episodes(10, 160).map(lambda x: x * 0), luck(), 1)
    assert keys(episodes(10, 160)[held]) & trained
    assert fitter.state_dict() == {"fits": 3}
    other = ClosedFormFitter()
    other.load_state_dict(fitter.state_dict())
    assert other.fits == 3


def test_without_a_holdout_all_rows_train_and_the_period_hears_them_too() -> None:
    model, data = noting(), episodes(5, 40)
    ClosedFormFitter(holdout=0.0).fit(model, data, luck())
    assert keys(model.train_rows) == keys(model.calibrated_on) == keys(data)
    assert len(model.held_rows) == 0


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_few_rows_are_enough(rows: int) -> None:
    model = EDMD(SPEC, [partial(GaussianRBF, centres=20)])
    report = ClosedFormFitter().fit(model, episodes(1, rows), luck())
    assert report["rows"] == rows
    obs = episodes(1, rows).obs
    assert model.step(model.encode(obs), torch.zeros(rows, 1), None).state.obs.isfinite().all()


def test_a_fit_is_decided_by_rows_and_generator() -> None:
    reports = [
        ClosedFormFitter().fit(EDMD(SPEC, [partial(GaussianRBF, centres=20)]), episodes(10, 50), luck(seed))
        for seed in (0, 0, 1)
    ]
    assert reports[0] == reports[1] != reports[2]


def test_what_cannot_be_is_refused() -> None:
    fitter, model = ClosedFormFitter(), noting()
    with pytest.raises(UserError, match="gradient"):
        fitter.check(ProbabilisticEnsemble(SPEC, members=1, hidden=4))
    with pytest.raises(UserError, match="collect transitions"):
        fitter.fit(model, episodes(1, 1)[:0], luck())
    with pytest.raises(UserError, match="weights"):
        fitter.fit(model, episodes(1, 5), luck(), torch.ones(5))
    bad = episodes(2, 20)
    bad.next_obs[7] = torch.nan
    before = model.transition.clone()
    with pytest.raises(UserError, match="row 7"):
        fitter.fit(model, bad, luck())
    assert torch.equal(model.transition, before)
