"""What every sampling planner promises, whatever its method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl import seeding
from mbrl.models.base import DynamicsModel, State, Step, Trajectory
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.planning.base import Plan
from mbrl.planning.cem import CEM, ICEM
from mbrl.planning.mppi import MPPI
from mbrl.planning.objective import Objective, RewardTerm
from mbrl.planning.random_shooting import RandomShooting
from mbrl.planning.search import Belief, SamplingPlanner

Maker = Callable[..., SamplingPlanner]
SMALL: dict[str, dict[str, Any]] = {
    "RandomShooting": {"candidates": 64},
    "CEM": {"candidates": 40},
    "ICEM": {"candidates": 32},
    "MPPI": {"candidates": 40, "gamma": 10.0, "sigma": 0.5},
}
KINDS = {kind.__name__: kind for kind in (RandomShooting, CEM, ICEM, MPPI)}
SEARCHES = [name for name in KINDS if name != "RandomShooting"]


def seed(number: int = 0) -> Generator:
    return torch.Generator().manual_seed(number)


def small(name: str, model: DynamicsModel, **options: Any) -> SamplingPlanner:
    return KINDS[name](model.spec, **{"horizon": 8, "particles": 1} | SMALL[name] | options)


def starts(count: int) -> State:
    return State(torch.randn(count, 2, generator=seed(5)) * 0.5)


def lqr_cost(model: Any, start: Tensor, horizon: int) -> Tensor:
    """Optimal finite-horizon cost by the Riccati recursion; states are paid after the step, the first one is not."""
    a, b, q, r = (matrix.double() for matrix in (model.A, model.B, model.Q, model.R))
    p = torch.zeros_like(q)
    for _ in range(horizon):
        s = q + p
        gain = torch.linalg.solve(r + b.T @ s @ b, b.T @ s @ a)
        p = a.T @ s @ (a - b @ gain)
    return ((start.double() @ p) * start).sum(-1)


@pytest.mark.parametrize(
    ("name", "options", "fraction"),
    [
        ("RandomShooting", {"candidates": 1000}, 0.35),
        ("CEM", {"candidates": 200, "epsilon": 0.0, "iterations": 8}, 0.97),
        ("ICEM", {"candidates": 128, "iterations": 6}, 0.85),
        ("MPPI", {"candidates": 350, "iterations": 5, "sigma": 0.3}, 0.88),
    ],
)
def test_approaches_lqr(linear: type[Any], name: str, options: dict[str, Any], fraction: float) -> None:
    model, state = linear(), starts(16)
    best = lqr_cost(model, state.obs, 15).sum()
    plan = small(name, model, horizon=15, **options).plan(model, Objective(), state, None, generator=seed())
    cost = -model.rollout(state, plan.actions, None).reward.sum()
    assert best / cost >= fraction
    random = torch.rand(15, 16, 1, generator=seed()) * 2 - 1
    assert best / -model.rollout(state, random, None).reward.sum() < 0.2  # chance is far below every bar


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("chunk_rows", [50, None])
def test_a_plan_does_not_depend_on_its_neighbours(linear: type[Any], name: str, chunk_rows: int | None) -> None:
    model, state = linear(noise=0.05), starts(16)
    planner = small(name, model, horizon=5, particles=2, chunk_rows=chunk_rows)
    first = planner.plan(model, Objective(), state, None, generator=seed(1))
    together = planner.plan(model, Objective(), state, first.warm_start, generator=seed(2))
    assert first.warm_start is not None
    for i in range(16):
        alone = planner.plan(model, Objective(), state[i : i + 1], first.warm_start[i : i + 1], generator=seed(2))
        torch.testing.assert_close(alone.actions[:, 0], together.actions[:, i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-4, atol=1e-5)
    other = planner.plan(model, Objective(), state, first.warm_start, generator=seed(3))
    assert not torch.equal(other.actions, together.actions)


@pytest.mark.parametrize("propagation", ["trajectory", "step"])
def test_sixteen_in_one_call_plan_as_one_by_one_with_an_ensemble(toy_spec: Any, propagation: Any) -> None:
    with seeding.seeded(seed()):
        model = ProbabilisticEnsemble(toy_spec(2, 2), hidden=32).bind()
    planner, state = ICEM(model.spec, horizon=10, candidates=40, propagation=propagation), starts(16)
    together = planner.plan(model, Objective(), state, None, generator=seed(1))
    for i in range(16):
        alone = planner.plan(model, Objective(), state[i : i + 1], None, generator=seed(1))
        torch.testing.assert_close(alone.actions[:, 0], together.actions[:, i], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_chunks_are_of_about_the_asked_size(linear: type[Any], name: str) -> None:
    model = linear()
    small(name, model, particles=2, chunk_rows=50).plan(model, Objective(), starts(7), None, generator=seed())
    searched = [rows for rows in model.rows if rows != 14]  # 7 x 2: the mean's own value
    assert max(searched) <= 50
    assert min(searched) >= 30


@pytest.mark.parametrize("name", KINDS)
def test_reset_isolates_episodes(linear: type[Any], name: str) -> None:
    model, state = linear(), starts(3)
    planner = small(name, model)
    memory = planner.plan(model, Objective(), starts(3), None, generator=seed(1)).warm_start
    assert isinstance(memory, Belief)
    first = torch.tensor([False, True, False])
    mixed = planner.initial(3).where(first, memory)
    plan = planner.plan(model, Objective(), state, mixed, generator=seed(2))
    fresh = planner.plan(model, Objective(), state, None, generator=seed(2))
    carried = planner.plan(model, Objective(), state, memory, generator=seed(2))
    torch.testing.assert_close(plan.actions[:, 1], fresh.actions[:, 1])
    torch.testing.assert_close(plan.actions[:, [0, 2]], carried.actions[:, [0, 2]])
    if name != "RandomShooting":  # which remembers nothing that matters here
        assert not torch.equal(carried.actions[:, 1], fresh.actions[:, 1])


@pytest.mark.parametrize("name", KINDS)
def test_warm_start_is_shifted(linear: type[Any], name: str) -> None:
    model = linear()
    planner = small(name, model, **({} if name == "RandomShooting" else {"execute": "mean"}))
    plan = planner.plan(model, Objective(), starts(2), None, generator=seed())
    assert isinstance(plan.warm_start, Belief)
    last = torch.zeros_like(plan.actions[:1]) if name == "CEM" else plan.actions[-1:]
    expected = torch.cat([plan.actions[1:], last]).transpose(0, 1)
    torch.testing.assert_close(plan.warm_start.mean, expected)
    torch.testing.assert_close(plan.warm_start.std, planner.initial(2).std)


def test_kept_elites_are_shifted_and_come_back(linear: type[Any]) -> None:
    model = linear()
    planner = small("ICEM", model)
    plan = planner.plan(model, Objective(), starts(2), None, generator=seed())
    memory = plan.warm_start
    assert isinstance(memory, Belief)
    assert memory.elites.shape == (2, 3, 8, 1)  # 30 % of 10
    torch.testing.assert_close(memory.elites[:, 0, :-1], plan.actions[1:].transpose(0, 1))
    candidates = planner._sample(memory, 0, seed())
    torch.testing.assert_close(candidates[:-1, :, -3:], memory.elites.permute(2, 0, 1, 3)[:-1])
    assert not torch.equal(candidates[-1, :, -3:], memory.elites.permute(2, 0, 1, 3)[-1])  # a new last action is drawn


class Pitfall(DynamicsModel):
    """Reward -1 - a^2 a step, except that actions above 0.5 make the model diverge."""

    fell = 0

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        bad = action[..., 0] > 0.5
        self.fell += int(bad.sum())
        reward = torch.where(bad, torch.nan, -1 - action[..., 0].square())
        never = torch.zeros_like(bad)
        return Step(State(torch.where(bad[:, None], torch.nan, state.obs)), reward, never, never)


class Forgiving(Objective):
    """The control: what is not finite counts as zero."""

    def score(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        return RewardTerm()(model, trajectory, actions).nan_to_num(0.0).mean(0)


@pytest.mark.parametrize("name", KINDS)
def test_candidates_that_diverge_never_win(linear: type[Any], name: str) -> None:
    model = Pitfall(linear().spec)
    planner = small(name, model, horizon=3)
    plan = planner.plan(model, Objective(), starts(4), None, generator=seed())
    assert plan.actions.max() <= 0.5
    assert plan.value.isfinite().all()
    assert model.fell > 0
    fooled = planner.plan(model, Forgiving(), starts(4), None, generator=seed())
    assert fooled.actions.max() > 0.5


@pytest.mark.parametrize("name", KINDS)
def test_nothing_finite_keeps_the_mean(linear: type[Any], name: str) -> None:
    model = linear()
    planner = small(name, model)
    memory = planner.plan(model, Objective(), starts(3), None, generator=seed()).warm_start
    assert isinstance(memory, Belief)
    state = starts(3)
    state.obs[1] = torch.nan
    plan = planner.plan(model, Objective(), state, memory, generator=seed())
    assert plan.stats["fallback"].tolist() == [False, True, False]
    assert plan.value[1] == -torch.inf
    torch.testing.assert_close(plan.actions[:, 1], memory.mean[1])
    assert plan.actions.isfinite().all()
    again = planner.plan(model, Objective(), starts(3), plan.warm_start, generator=seed())
    assert again.value.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("limit", [1.0, 0.15])
def test_actions_stay_in_bounds(linear: type[Any], name: str, limit: float) -> None:
    model, state = linear(), State(torch.tensor([[10.0, 10.0]]))  # far away: wants more than it may
    planner = small(name, model, action_limit=limit)
    plan = planner.plan(model, Objective(), state, None, 5 * torch.ones(8, 2, 1, 1), generator=seed())
    assert plan.actions.abs().max() <= limit
    assert plan.actions.abs().max() > 0.5 * limit
    plan = planner.plan(model, Objective(), state, plan.warm_start, generator=seed())
    assert plan.actions.abs().max() <= limit


@pytest.mark.parametrize("name", ["RandomShooting", "CEM", "ICEM"])
def test_an_excellent_proposal_wins(linear: type[Any], name: str) -> None:
    model, state = linear(), starts(2)
    expert = small("CEM", model, candidates=400, epsilon=0.0, iterations=10)
    proposal = expert.plan(model, Objective(), state, None, generator=seed(9))
    planner = small(name, model, **({} if name == "RandomShooting" else {"execute": "best", "iterations": 1}))
    without = planner.plan(model, Objective(), state, None, generator=seed())
    given = planner.plan(model, Objective(), state, None, proposal.actions.unsqueeze(1), generator=seed())
    assert (without.value < proposal.value - 1e-4).all()
    torch.testing.assert_close(given.actions, proposal.actions)
    with pytest.raises(UserError, match="proposals"):
        planner.plan(model, Objective(), state, None, proposal.actions[1:].unsqueeze(1), generator=seed())


class Slow(DynamicsModel):
    """A model that takes its time."""

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        time.sleep(0.005)
        never = torch.zeros(len(action), dtype=torch.bool)
        return Step(state, -action[..., 0].square(), never, never)


@pytest.mark.parametrize("name", SEARCHES)
def test_deadline(linear: type[Any], name: str) -> None:
    model = Slow(linear().spec)
    plans = {
        seconds: small(name, model, horizon=4, iterations=5, deadline=seconds, execute="best").plan(
            model, Objective(), starts(1), None, generator=seed()
        )
        for seconds in (1e-6, 0.03, None)
    }
    assert plans[1e-6].stats["iterations"] == 1
    assert 1 <= plans[0.03].stats["iterations"] <= 3
    assert plans[None].stats["iterations"] == 5
    assert all(plan.value.isfinite().all() for plan in plans.values())


@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_executed(linear: type[Any], name: str) -> None:
    model, state = linear(), starts(4)
    plans = {
        execute: small(name, model, execute=execute).plan(model, Objective(), state, None, generator=seed())
        for execute in ("best", "mean", "elite")
    }
    for plan in plans.values():  # the value is that of the returned actions
        torch.testing.assert_close(plan.value, model.rollout(state, plan.actions, None).reward.sum(0)[0])
    assert (plans["best"].value >= plans["elite"].value).all()
    assert not torch.equal(plans["best"].actions, plans["mean"].actions)


def test_elites_are_drawn_by_value(linear: type[Any]) -> None:
    model = linear()
    planner = small("ICEM", model, execute="elite")
    memory = planner.plan(model, Objective(), starts(1), None, generator=seed()).warm_start
    assert isinstance(memory, Belief)
    values = torch.tensor([[4.0, 3.0, 2.0, 1.0, -torch.inf]])
    belief = Belief(memory.mean, memory.std, torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 8, 1), values)
    source = seed()
    drawn = torch.cat([planner._choose(belief, source)[0][0, 0] for _ in range(2000)])
    expected = (values / values[:, :4].std(correction=0)).softmax(1)[0]
    torch.testing.assert_close(drawn.long().bincount(minlength=5) / 2000, expected, rtol=0, atol=0.04)


def test_caller_pays_one_draw_per_call(linear: type[Any]) -> None:
    model, states = linear(), []
    for name in KINDS:
        source = seed(4)
        small(name, model).plan(model, Objective(), starts(2), None, generator=source)
        states.append(source.get_state())
    assert all(torch.equal(states[0], state) for state in states[1:])


@pytest.mark.parametrize("name", ["RandomShooting", "CEM", "ICEM"])
def test_discrete_actions(corridor: type[Any], name: str) -> None:
    model = corridor()
    planner = small(name, model, horizon=2 if name == "RandomShooting" else 4)
    state = State(torch.zeros(3, 1))
    plan: Plan = planner.plan(model, Objective(), state, None, generator=seed())
    assert plan.actions.sum(-1).eq(1).all()
    assert set(plan.actions.unique().tolist()) == {0.0, 1.0}
    right = torch.tensor([0.0, 0.0, 1.0]).expand_as(plan.actions)
    assert torch.equal(plan.actions, right)
    assert isinstance(plan.warm_start, Belief)
    if name != "RandomShooting":
        torch.testing.assert_close(plan.warm_start.mean.sum(-1), torch.ones(3, planner.horizon))
    # the remembered certainty does not stop a change of mind
    turned = Objective([Backwards()])
    after = planner.plan(model, turned, state, plan.warm_start, generator=seed())
    assert torch.equal(after.actions, right.flip(-1))


class Backwards(RewardTerm):
    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        return -super().__call__(model, trajectory, actions)


def test_mppi_refuses_discrete_actions(corridor: type[Any]) -> None:
    with pytest.raises(UserError, match="ICEM"):
        MPPI(corridor().spec)


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("CEM", {"horizon": 0}, "horizon"),
        ("CEM", {"candidates": 0}, "candidates"),
        ("CEM", {"elite_ratio": 0.0}, "elite_ratio"),
        ("CEM", {"elite_ratio": 1.5}, "elite_ratio"),
        ("CEM", {"alpha": -0.1}, "alpha"),
        ("CEM", {"epsilon": math.nan}, "epsilon"),
        ("CEM", {"execute": "worst"}, "execute"),
        ("CEM", {"propagation": "magic"}, "propagation"),
        ("CEM", {"action_limit": 1.5}, "action_limit"),
        ("CEM", {"action_limit": 0.0}, "action_limit"),
        ("CEM", {"deadline": 0.0}, "deadline"),
        ("CEM", {"chunk_rows": 0}, "chunk_rows"),
        ("ICEM", {"elites": 0}, "elites"),
        ("ICEM", {"keep": 1.5}, "keep"),
        ("ICEM", {"decay": 0.5}, "decay"),
        ("ICEM", {"beta": -1.0}, "beta"),
        ("ICEM", {"init_std": 0.0}, "init_std"),
        ("MPPI", {"gamma": 0.0}, "gamma"),
        ("MPPI", {"sigma": -1.0}, "sigma"),
        ("MPPI", {"beta": 0.0}, "beta"),
        ("RandomShooting", {"particles": 0}, "particles"),
    ],
)
def test_bad_arguments(linear: type[Any], name: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        KINDS[name](linear().spec, **options)
    assert caught.value.field == field


def test_foreign_warm_start(linear: type[Any]) -> None:
    model = linear()
    with pytest.raises(UserError, match="warm_start"):
        small("CEM", model).plan(model, Objective(), starts(1), starts(1), generator=seed())
