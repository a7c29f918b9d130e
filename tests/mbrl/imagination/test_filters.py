"""Each filter on rows whose outcome can be said in advance."""

from __future__ import annotations

import math

import pytest
import torch
import walks
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.imagination.filters import (
    ChooseBest,
    Drop,
    Filter,
    Move,
    ScoreStop,
    Stop,
    UncertaintyPenalty,
    UncertaintyStop,
)
from mbrl.imagination.rollout import imagine
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble


def moved_far(state: State, action: Tensor, step: Step) -> Tensor:
    """Score: where the first entry got to."""
    return step.state.obs[:, 0]


def test_penalty_is_taken_from_the_reward_and_stored() -> None:
    filters = [UncertaintyPenalty("std_of_means", 0.25)]
    rows = imagine(walks.Walk(), walks.Constant(1.0), walks.starts(1, first=2.0), 3, filters, seed=0)
    assert rows.extra["uncertainty"].tolist() == [2.0, 3.0, 4.0]  # this model is as unsure as its first entry is large
    assert rows.reward.tolist() == [0.5, 0.25, 0.0]


def test_penalty_is_the_models_own_uncertainty() -> None:
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(walks.spec_of(), members=3, hidden=8)
    filters = [UncertaintyPenalty("largest_std", 2.0)]
    plain = imagine(model, walks.Random(), walks.starts(20), 1, seed=0)
    rows = imagine(model, walks.Random(), walks.starts(20), 1, filters, seed=0)
    expected = model.uncertainty(State(rows.obs), rows.action, "largest_std")
    assert torch.equal(rows.extra["uncertainty"], expected)
    assert torch.equal(rows.reward, plain.reward - 2.0 * expected)


@pytest.mark.parametrize("stop", ["drop", "terminal", "truncated"])
def test_uncertainty_stop_ends_rows_in_the_way_that_is_said(stop: Stop) -> None:
    filters = [UncertaintyStop("std_of_means", 1.5, stop)]
    rows = imagine(walks.Walk(), walks.Constant(1.0), walks.starts(2), 5, filters, seed=0)
    depth = 2 if stop == "drop" else 3  # uncertainties are 0, 1, 2: the third step is above the threshold
    assert rows.step.tolist() == [t for t in range(depth) for _ in range(2)]
    ended = torch.zeros(2 * depth, dtype=torch.bool)
    ended[4:] = True
    assert torch.equal(rows.terminated, ended if stop == "terminal" else ended & False)
    assert torch.equal(rows.truncated, ended if stop == "truncated" else ended & False)


def test_a_stop_that_never_acts_changes_nothing() -> None:
    filters = [UncertaintyStop("std_of_means", 1e9, "terminal")]
    rows = imagine(walks.Walk(), walks.Constant(1.0), walks.starts(2), 5, filters, seed=0)
    assert len(rows) == 10
    assert not rows.terminated.any()


def test_uncertainty_is_asked_for_once_a_step() -> None:
    asked: list[str] = []

    class Counting(walks.Walk):
        def uncertainty(self, state: State, action: Tensor, kind: str) -> Tensor:  # type: ignore[override]
            asked.append(kind)
            return state.obs[:, 0].clone()

    filters: list[Filter] = [UncertaintyPenalty("std_of_means", 1.0), UncertaintyStop("std_of_means", 9.0, "drop")]
    imagine(Counting(), walks.Constant(), walks.starts(2), 3, filters, seed=0)
    assert asked == ["std_of_means"] * 3


def test_two_kinds_of_uncertainty_need_two_columns() -> None:
    model, act, start = walks.Walk(), walks.Constant(), walks.starts(2)
    one = UncertaintyPenalty("std_of_means", 1.0)
    with pytest.raises(UserError, match="another column"):
        imagine(model, act, start, 1, [one, UncertaintyStop("largest_std", 1.0, "drop")], seed=0)
    rows = imagine(model, act, start, 1, [one, UncertaintyStop("largest_std", 1.0, "drop", "std")], seed=0)
    assert {"uncertainty", "std"} <= set(rows.extra)


def test_a_model_without_uncertainty_is_refused() -> None:
    class Sure(DynamicsModel):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            over = torch.zeros(len(action), dtype=torch.bool)
            return Step(state, action[:, 0], over, over)

    model = Sure(walks.spec_of())
    with pytest.raises(UserError, match="does not offer HasDistribution"):
        imagine(model, walks.Constant(), walks.starts(2), 1, [UncertaintyPenalty("std_of_means", 1.0)], seed=0)


def test_the_best_of_k_is_kept() -> None:
    """The mean of the largest of ten normal numbers is 1.54; a row's other entries come from the same candidate."""
    model, act, start = walks.Walk(noise=1.0), walks.Constant(0.0), walks.starts(2000)
    plain = imagine(model, act, start, 1, [ChooseBest(1, moved_far)], seed=0)
    assert torch.equal(plain.next_obs, imagine(model, act, start, 1, seed=0).next_obs)
    best = imagine(model, act, start, 1, [ChooseBest(10, moved_far)], seed=0)
    assert abs(float(best.next_obs[:, 0].mean()) - 1.54) < 0.06
    assert torch.equal(best.next_obs[:, 1], best.obs[:, 1])
    assert torch.equal(best.extra["score"], best.next_obs[:, 0])
    assert (best.next_obs[:, 0] >= plain.next_obs[:, 0]).all()


def test_a_candidate_that_is_no_number_is_not_kept() -> None:
    def score(state: State, action: Tensor, step: Step) -> Tensor:
        far = step.state.obs[:, 0]
        return torch.where(far > 0, torch.nan, far)

    rows = imagine(walks.Walk(noise=1.0), walks.Constant(0.0), walks.starts(500), 1, [ChooseBest(20, score)], seed=0)
    assert (rows.next_obs[:, 0] < 0).all()


def test_a_temperature_draws_from_the_softmax() -> None:
    class Coin(walks.Walk):
        """Moves to 0 or to 1."""

        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            step = super().step(state, action, generator)
            side = (torch.rand(len(action), generator=generator) < 0.5).float()
            return Step(State(torch.stack([side, state.obs[:, 1]], 1)), step.reward, step.terminated, step.truncated)

    filters = [ChooseBest(2, moved_far, temperature=1.0)]
    rows = imagine(Coin(), walks.Constant(0.0), walks.starts(8000), 1, filters, seed=0)
    weight = math.e / (1 + math.e)  # of the 1, where the candidates differ, which half of the rows do
    assert abs(float(rows.next_obs[:, 0].mean()) - (0.25 + 0.5 * weight)) < 0.02


@pytest.mark.parametrize("stop", ["drop", "terminal", "truncated"])
def test_choose_best_then_stop_below(stop: Stop) -> None:
    """What MOREC does: the best of several candidates, and an end where even that one is poor."""
    model, start = walks.Walk(noise=1.0), walks.starts(500)
    filters: list[Filter] = [ChooseBest(3, moved_far), ScoreStop(0.0, stop)]
    rows = imagine(model, walks.Constant(0.0), start, 1, filters, seed=0)
    poor = rows.extra["score"] < 0
    assert int(poor.sum()) == 0 if stop == "drop" else abs(int(poor.sum()) / 500 - 1 / 8) < 0.05
    assert torch.equal(rows.terminated, poor if stop == "terminal" else poor & False)
    assert torch.equal(rows.truncated, poor if stop == "truncated" else poor & False)


def test_score_stop_with_a_score_of_its_own() -> None:
    rows = imagine(walks.Walk(), walks.Constant(-1.0), walks.starts(1), 9, [ScoreStop(-3.0, "drop", moved_far)], seed=0)
    assert rows.extra["score"].tolist() == [-1.0, -2.0, -3.0]
    with pytest.raises(UserError, match="no filter before this one"):
        imagine(walks.Walk(), walks.Constant(), walks.starts(1), 1, [ScoreStop(0.0, "drop")], seed=0)


def test_rows_that_fail_a_test_are_dropped() -> None:
    odd = Drop(lambda state, action, step: state.obs[:, 1] % 2 == 1)
    rows = imagine(walks.Walk(), walks.Constant(), walks.starts(5), 2, [odd], seed=0)
    assert rows.episode.tolist() == [0, 2, 4, 0, 2, 4]


def test_what_replaces_the_next_state_stands_first() -> None:
    filters = [UncertaintyPenalty("std_of_means", 1.0), ChooseBest(2, moved_far)]
    with pytest.raises(UserError, match="must stand before"):
        imagine(walks.Walk(), walks.Constant(), walks.starts(1), 1, filters, seed=0)


def test_a_new_filter_is_one_small_class() -> None:
    class ClipReward(Filter):
        def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
            move.step.reward = move.step.reward.clamp(max=0.5)
            return move

    rows = imagine(walks.Walk(), walks.Constant(1.0), walks.starts(2), 1, [ClipReward()], seed=0)
    assert rows.reward.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: UncertaintyPenalty("std", 1.0),  # type: ignore[arg-type]
        lambda: UncertaintyStop("std_of_means", 1.0, "end"),  # type: ignore[arg-type]
        lambda: ScoreStop(1.0, "end"),  # type: ignore[arg-type]
        lambda: ChooseBest(0, moved_far),
        lambda: ChooseBest(2, moved_far, temperature=-1.0),
    ],
)
def test_bad_arguments_are_refused(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]
