"""Terms, constraints and what counts as a score."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.models.base import DynamicsModel, Estimator, State, Step, Trajectory
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import (
    INFEASIBLE,
    ActionCost,
    ConstraintTerm,
    Objective,
    ObjectiveTerm,
    QuadraticState,
    RewardTerm,
    TerminalValue,
    UncertaintyTerm,
)


def sum_of_first(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[:, 0].abs() + 0.1 * action[:, 0].abs()


class Table(DynamicsModel):
    """Never asked to step: terms are tested on trajectories that are written down."""

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        raise AssertionError

    def predict(self, state: State, action: Tensor) -> Any:
        raise AssertionError

    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        assert kind == "largest_std"
        return state.obs[:, 1] + 10 * action[:, 0]


@pytest.fixture
def model(toy_spec: Any) -> Table:
    return Table(
        toy_spec(2, layout={"x": slice(0, 1), "v": slice(1, 2), "all": slice(0, 2)}, costs={"far": sum_of_first})
    )


def path(ended: bool = False) -> tuple[Trajectory, Tensor]:
    """Two steps, one particle, two rows; with ``ended``, row 1 ends at its first step."""
    obs = torch.tensor([[[0.0, 0.0], [5.0, 5.0]], [[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]).unsqueeze(1)
    reward = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).unsqueeze(1)
    terminated = torch.zeros(2, 1, 2, dtype=torch.bool)
    terminated[0, 0, 1] = ended
    actions = torch.tensor([[[0.5], [-0.5]], [[1.0], [0.0]]])
    return Trajectory(State(obs), reward, terminated, torch.zeros_like(terminated)), actions


@pytest.mark.parametrize(
    ("term", "lasting", "ending"),
    [
        (RewardTerm(), [11.0, 22.0], [11.0, 2.0]),
        (RewardTerm(discount=0.5), [6.0, 12.0], [6.0, 2.0]),
        (QuadraticState({"x": 2.0}), [-52.0, -116.0], [-52.0, -18.0]),
        (QuadraticState({0: 2.0, "1": 1.0}, {0: 1.0}, coef=0.5), [-36.0, -80.0], [-36.0, -12.0]),
        (QuadraticState({"all": 1.0}, discount=0.5), [-35.5, -81.5], [-35.5, -25.0]),
        (ActionCost(2.0), [-2.5, -0.5], [-2.5, -0.5]),
        (UncertaintyTerm("largest_std", 0.5), [8.5, 2.0], [8.5, 0.0]),
        (TerminalValue(2.0, 0.5, {"x": 1.0}), [-12.5, -24.5], [-12.5, 0.0]),
    ],
)
def test_terms(model: Table, term: ObjectiveTerm, lasting: list[float], ending: list[float]) -> None:
    for ended, expected in ((False, lasting), (True, ending)):
        trajectory, actions = path(ended)
        torch.testing.assert_close(term(model, trajectory, actions)[0], torch.tensor(expected))
        both = Objective([RewardTerm(), term]).score(model, trajectory, actions)
        torch.testing.assert_close(both, torch.tensor(expected) + Objective().score(model, trajectory, actions))


def test_value_function_comes_at_run_time(model: Table) -> None:
    trajectory, actions = path(ended=True)
    objective = Objective([TerminalValue(3.0, 0.5)])
    with pytest.raises(UserError, match="value function"):
        objective.score(model, trajectory, actions)
    valued = objective.with_value(lambda state: state.obs.sum(-1))
    torch.testing.assert_close(valued.score(model, trajectory, actions), torch.tensor([3 * 0.25 * 11.0, 0.0]))
    with pytest.raises(UserError):  # the original is left as it was
        objective.score(model, trajectory, actions)


def test_particles_are_averaged(model: Table) -> None:
    trajectory, actions = path()
    other = copy.deepcopy(trajectory)
    other.reward += 1.0
    both = Trajectory.cat([trajectory, other], 1)
    torch.testing.assert_close(Objective().score(model, both, actions), torch.tensor([12.0, 23.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["reward", "obs"])
def test_what_is_not_finite_scores_minus_infinity(model: Table, bad: float, where: str) -> None:
    for ended, expected in ((False, [11.0, -math.inf]), (True, [11.0, 2.0])):
        trajectory, actions = path(ended)
        tensor = trajectory.reward if where == "reward" else trajectory.states.obs[1:, ..., 0]
        tensor[1, 0, 1] = bad  # after the end, if there is one: nothing there counts
        assert Objective().score(model, trajectory, actions).tolist() == expected
    trajectory, actions = path(ended=True)
    trajectory.states.obs[1, 0, 1, 1] = bad  # the ending step itself counts
    assert Objective().score(model, trajectory, actions).tolist() == [11.0, -math.inf]


def test_infeasible_candidates_rank_below_feasible_ones(model: Table) -> None:
    obs = torch.tensor([0.0, 1.0, 3.0, 2.0, 9.0]).view(1, 1, 5, 1).expand(2, 1, 5, 2)
    reward = torch.tensor([-1e9, 5.0, 1e9, 1.0, torch.nan]).view(1, 1, 5)
    no = torch.zeros(1, 1, 5, dtype=torch.bool)
    trajectory = Trajectory(State(obs), reward, no, no)
    objective = Objective(constraints=[ConstraintTerm("far", 1.0)])
    score = objective.score(model, trajectory, torch.zeros(1, 5, 1))
    assert score[:2].tolist() == [-1e9, 5.0]
    assert score.argsort(descending=True).tolist() == [1, 0, 3, 2, 4]
    torch.testing.assert_close(score[2:4], torch.tensor([INFEASIBLE * 3, INFEASIBLE * 2]))
    assert score[4] == -math.inf
    twice = Objective(constraints=[ConstraintTerm("far", 1.0), ConstraintTerm("far", 2.0)])
    torch.testing.assert_close(
        twice.score(model, trajectory, torch.zeros(1, 5, 1))[2:4], torch.tensor([INFEASIBLE * 4, INFEASIBLE * 2])
    )


def test_constraint_judges_mean_or_worst_particle(model: Table) -> None:
    trajectory, actions = path()
    other = copy.deepcopy(trajectory)
    other.states.obs.zero_()
    both = Trajectory.cat([trajectory, other], 1)
    cost = torch.tensor([6.15, 10.05])
    for particles, factor in (("mean", 0.5), ("worst", 1.0)):
        term = ConstraintTerm("far", 0.0, particles)  # type: ignore[arg-type]
        free = torch.tensor([0.075, 0.025]) if particles == "mean" else 0.0  # the other particle pays for its actions
        torch.testing.assert_close(term.violation(model, both, actions), cost * factor + free)


def test_planner_obeys_a_constraint(linear: type[Any], toy_spec: Any) -> None:
    model = linear(toy_spec(costs={"far": sum_of_first}))
    state = State(torch.tensor([[-1.0, 0.0]]))
    planner, costs, rewards = ICEM(model.spec, horizon=8, particles=1, iterations=6), [], []
    for limit in (None, 5.5, -1.0):
        objective = Objective(constraints=[] if limit is None else [ConstraintTerm("far", limit)])
        plan = planner.plan(model, objective, state, None, generator=torch.Generator().manual_seed(0))
        trajectory = model.rollout(state, plan.actions, None)
        costs.append(ConstraintTerm("far", 0.0).violation(model, trajectory, plan.actions).item())
        rewards.append(trajectory.reward.sum().item())
    free, bound, impossible = costs
    assert free > 6.0
    assert 4.5 < bound <= 5.5  # kept, and not by more than is useful
    assert rewards[0] > rewards[1] > rewards[2]
    assert impossible < 5.0  # no plan is feasible: the least violating one wins over reward
    assert plan.value < INFEASIBLE


@pytest.mark.parametrize(
    "build",
    [
        lambda: Objective([]),
        lambda: QuadraticState({}),
        lambda: QuadraticState({"x": math.nan}),
        lambda: QuadraticState({"x": 1.0}, {"y": 1.0}),
        lambda: QuadraticState({"x": 1.0}, coef=math.inf),
        lambda: RewardTerm(discount=0.0),
        lambda: UncertaintyTerm("magic"),  # type: ignore[arg-type]
        lambda: ConstraintTerm("far", math.nan),
        lambda: ConstraintTerm("far", 0.0, "some"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(build: Any) -> None:
    with pytest.raises(UserError):
        build()


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (QuadraticState({"angel": 1.0}), "names these observation parts: x, v, all"),
        (QuadraticState({2: 1.0}), "2 observation entries"),
        (QuadraticState({-1: 1.0}), "2 observation entries"),
        (TerminalValue(weight={"5": 1.0}), "2 observation entries"),
    ],
)
def test_entries_that_are_not_there(model: Table, term: ObjectiveTerm, said: str) -> None:
    trajectory, actions = path()
    with pytest.raises(UserError, match=said):
        Objective([term]).score(model, trajectory, actions)


def test_unknown_cost(model: Table) -> None:
    trajectory, actions = path()
    with pytest.raises(UserError, match="knows these constraint costs: far"):
        Objective(constraints=[ConstraintTerm("fare", 0.0)]).score(model, trajectory, actions)


def test_uncertainty_of_a_model_without_any(linear: type[Any]) -> None:
    model = linear()
    trajectory = model.rollout(State(torch.zeros(1, 2)), torch.zeros(3, 1, 1), None)
    with pytest.raises(UserError, match="HasDistribution"):
        Objective([UncertaintyTerm()]).score(model, trajectory, torch.zeros(3, 1, 1))


def test_written_in_a_recipe(model: Table) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    text = {
        "terms": [
            {"class_path": "RewardTerm", "init_args": {"discount": 0.5}},
            {"class_path": "QuadraticState", "init_args": {"weight": {"x": 1.0, 1: 2.0}, "target": {"x": 1.0}}},
            {"class_path": "TerminalValue", "init_args": {"weight": {"x": 1.0}}},
        ],
        "constraints": [
            {"class_path": "mbrl.planning.objective.ConstraintTerm", "init_args": {"cost": "far", "limit": 99.0}}
        ],
    }
    written = {"class_path": "mbrl.planning.objective.Objective", "init_args": text}
    built = parser.instantiate(parser.parse_object({"objective": written})).objective
    by_hand = Objective(
        [RewardTerm(0.5), QuadraticState({0: 1.0, "v": 2.0}, {0: 1.0}), TerminalValue(weight={0: 1.0})],
        [ConstraintTerm("far", 99.0)],
    )
    trajectory, actions = path()
    torch.testing.assert_close(built.score(model, trajectory, actions), by_hand.score(model, trajectory, actions))
