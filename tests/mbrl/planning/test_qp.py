"""Model-predictive control by quadratic programs: solutions, bounds, warm starts, bilinear models, fallbacks."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import csc_matrix
from torch import Generator, Tensor

from agents.mpc import MPCAgent
from envs.errors import UserError
from envs.registry import env_spec
from envs.spec import EnvSpec
from mbrl.data.record import from_dict
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State
from mbrl.models.koopman.edmd import EDMD
from mbrl.planning.base import Plan, Planner
from mbrl.planning.cem import CEM
from mbrl.planning.lifted import LiftedMemory
from mbrl.planning.lqr import LQRPlanner
from mbrl.planning.objective import (
    ActionCost,
    ConstraintTerm,
    NotQuadratic,
    Objective,
    ObjectiveTerm,
    QuadraticState,
    RewardTerm,
    TerminalValue,
    UncertaintyTerm,
)
from mbrl.planning.qp import QPPlanner, QuadraticProgram, solve
from tests.mbrl.planning.lifted_models import LiftedModel, bilinear, integrator, make_spec

GOAL = Objective([QuadraticState({0: 1.0, 1: 0.1}), ActionCost(0.05)])


def plan_for(
    planner: Planner, model: DynamicsModel, obs: Tensor, objective: Objective = GOAL, warm_start: Any = None
) -> Plan:
    return planner.plan(model, objective, State(obs), warm_start, generator=Generator().manual_seed(0))


def closed_loop(
    planner: Planner, model: LiftedModel, obs: Tensor, steps: int, objective: Objective = GOAL
) -> tuple[Tensor, list[Plan]]:
    """Observations ``[steps + 1, B, D]`` and the plans on the way; the model is the plant."""
    path, plans, memory = [obs], list[Plan](), planner.initial(len(obs))
    for _ in range(steps):
        plans.append(plan_for(planner, model, path[-1], objective, memory))
        memory = plans[-1].warm_start
        path.append(model.step(State(path[-1]), plans[-1].actions[0], None).state.obs)
    return torch.stack(path), plans


# -- one program ---------------------------------------------------------------------------------------------------


def test_the_solver_agrees_with_another(generator: Generator) -> None:
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64).numpy()
    hessian, gradient = root @ root.T + 0.1 * np.eye(6), torch.randn(6, generator=generator).double().numpy() * 5
    box = QuadraticProgram(hessian, gradient, csc_matrix(np.eye(6)), -np.ones(6) * 0.3, np.ones(6) * 0.3)
    found = solve(box, np.zeros(6), np.zeros(6))
    other = minimize(
        lambda x: 0.5 * x @ hessian @ x + gradient @ x,
        np.zeros(6),
        jac=lambda x: hessian @ x + gradient,
        bounds=[(-0.3, 0.3)] * 6,
        tol=1e-12,
    )
    assert found.solved
    assert found.iterations > 0
    np.testing.assert_allclose(found.primal, other.x, atol=1e-4)
    again = solve(box, found.primal, found.dual)
    assert again.iterations < found.iterations


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    closed_loop(QPPlanner(make_spec()), integrator(), torch.tensor([[3.0, 0.0]]), 10)
    seen = capfd.readouterr()
    assert seen.out + seen.err == ""


# -- the planner ---------------------------------------------------------------------------------------------------


def test_without_active_bounds_it_is_the_regulator() -> None:
    model, obs = integrator(constant=True, gravity=0.02), torch.tensor([[0.1, 0.05], [-0.1, 0.0]])
    objective = Objective([*GOAL.terms, TerminalValue(weight={0: 3.0}, target={0: 0.1})])
    plan = plan_for(QPPlanner(model.spec, 25), model, obs, objective)
    regulated = plan_for(LQRPlanner(model.spec, 25), model, obs, objective)
    assert plan.actions.abs().max() < 1.0
    torch.testing.assert_close(plan.actions, regulated.actions, atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.value, regulated.value)
    assert plan.actions.shape == (25, 2, 1)
    assert model.lifts <= 3  # one for each planner, one for the regulator's goal


def test_its_value_is_the_score_of_its_actions() -> None:
    model, obs = integrator(), torch.tensor([[1.5, 0.3], [0.1, 0.0]])
    plan = plan_for(QPPlanner(model.spec, 20), model, obs)
    assert plan.stats["iterations"][0] > 0
    path = model.rollout(State(obs.double()), plan.actions.double(), None)
    torch.testing.assert_close(GOAL.score(model, path, plan.actions.double()).float(), plan.value, rtol=1e-4, atol=0)


def test_action_bounds_are_kept_and_better_than_clipping() -> None:
    model, obs = integrator(), torch.tensor([[1.0, -1.0]])  # it has to brake early
    planner = QPPlanner(model.spec, 60, action_limit=0.2)
    plan = plan_for(planner, model, obs)
    clipped = plan_for(LQRPlanner(model.spec, 60, action_limit=0.2), model, obs)
    assert plan.actions.abs().max() <= 0.2 + 1e-6
    assert plan.value > clipped.value + 1e-2


def test_observation_bounds_are_kept() -> None:
    model, obs = integrator(make_spec(layout={"x": slice(0, 1), "speed": slice(1, 2)})), torch.tensor([[1.0, 0.0]])
    free = closed_loop(QPPlanner(model.spec, 25), model, obs, 40)[0]
    bounded, plans = closed_loop(QPPlanner(model.spec, 25, observation_bounds={"speed": (-0.3, None)}), model, obs, 40)
    assert free[..., 1].min() < -0.5
    assert bounded[..., 1].min() > -0.301
    assert bounded[..., 1].min() < -0.29
    assert not any(plan.stats["infeasible"].any() for plan in plans)


def test_where_no_plan_keeps_the_bounds_the_last_one_goes_on() -> None:
    model = integrator()
    planner = QPPlanner(model.spec, 10, observation_bounds={0: (-1.0, 1.0)})
    memory = plan_for(planner, model, torch.tensor([[0.9, 0.0], [0.5, 0.0]])).warm_start
    assert isinstance(memory, LiftedMemory)
    plan = plan_for(planner, model, torch.tensor([[5.0, 0.0], [0.5, 0.0]]), warm_start=memory)
    assert plan.stats["infeasible"].tolist() == [True, False]
    torch.testing.assert_close(plan.actions[:, 0].double(), memory.plan[0], atol=1e-6, rtol=0)
    assert plan.value.isfinite().all()


def test_a_warm_start_saves_iterations_and_is_all_that_is_remembered() -> None:
    model, obs = integrator(), torch.tensor([[1.0, -1.0]])

    def planner() -> QPPlanner:
        return QPPlanner(model.spec, 40, action_limit=0.5)

    path, plans = closed_loop(planner(), model, obs, 15)
    warm = sum(plan.stats["iterations"].item() for plan in plans[1:])
    cold = sum(plan_for(planner(), model, here).stats["iterations"].item() for here in path[1:15])
    assert 0 < warm < 0.5 * cold
    saved = from_dict(plans[3].warm_start.to_dict())  # as a checkpoint holds it
    resumed = plan_for(planner(), model, path[4], warm_start=saved)
    torch.testing.assert_close(resumed.actions, plans[4].actions, atol=0, rtol=0)


def test_rows_do_not_meet() -> None:
    model, planner = integrator(), QPPlanner(make_spec(), 15)
    obs = torch.tensor([[2.0, 0.0], [-0.1, 0.3], [-2.0, 0.0]])
    together, alone = plan_for(planner, model, obs), plan_for(planner, model, obs[:1])
    torch.testing.assert_close(together.actions[:, :1], alone.actions, atol=1e-6, rtol=0)


def test_an_unfitted_model_gives_finite_plans() -> None:
    model = integrator()
    model.parts = model.parts.map(torch.zeros_like)
    for objective in (GOAL, Objective(), Objective([QuadraticState({0: 1.0})])):
        for planner in (QPPlanner(model.spec), LQRPlanner(model.spec), LQRPlanner(model.spec, infinite=True)):
            plan = plan_for(planner, model, torch.tensor([[1.0, 0.0]]), objective)
            assert plan.actions.abs().max() < 1e-6
            assert plan.value.isfinite().all()


def test_a_model_that_overflows_is_not_solved() -> None:
    model = integrator()
    model.parts.a = 1e30 * torch.eye(2, dtype=torch.float64)
    plan = plan_for(QPPlanner(model.spec), model, torch.tensor([[1.0, 0.0]]))
    assert plan.stats["infeasible"].all()
    assert (plan.actions == 0).all()


def test_a_refit_is_noticed() -> None:
    model, planner, obs = integrator(), QPPlanner(make_spec(), 10), torch.tensor([[0.2, 0.0]])
    before = plan_for(planner, model, obs)
    model.parts.b.mul_(-1.0)  # in place, as buffers are refitted
    torch.testing.assert_close(plan_for(planner, model, obs).actions, -before.actions)


def test_bounds_that_make_no_sense() -> None:
    with pytest.raises(UserError, match=r"observation_bounds\.0"):
        QPPlanner(make_spec(), observation_bounds={0: (1.0, -1.0)})
    with pytest.raises(UserError, match="observation_bounds: 'spede'"):
        QPPlanner(make_spec(layout={"speed": slice(0, 2)}), observation_bounds={"spede": (0.0, 1.0)})
    with pytest.raises(UserError, match="relinearize"):
        QPPlanner(make_spec(), relinearize=-1)


# -- bilinear models -----------------------------------------------------------------------------------------------


def total_cost(planner: Planner) -> float:
    objective = Objective([QuadraticState({0: 1.0, 1: 0.02}), ActionCost(0.01)])
    model, obs = bilinear(), torch.tensor([[0.3, -1.0], [-0.3, -1.5]])  # pushing works the other way round here
    path, plans = closed_loop(planner, model, obs, 40, objective)
    actions = torch.stack([plan.actions[0] for plan in plans])
    return float((path[1:, :, 0].square() + 0.02 * path[1:, :, 1].square() + 0.01 * actions[..., 0].square()).sum())


def test_a_bilinear_model_wants_to_be_relinearised() -> None:
    spec = make_spec()
    linear, once = (total_cost(QPPlanner(spec, 20, relinearize=k)) for k in (0, 1))
    assert once < 0.5 * linear


def test_passes_along_the_path_predict_what_happens() -> None:
    objective, obs = Objective([QuadraticState({0: 1.0}), ActionCost(0.1)]), torch.tensor([[0.3, 0.5]])

    def gap(passes: int) -> float:
        model = bilinear(0.5)
        plan = plan_for(QPPlanner(model.spec, 10, relinearize=passes), model, obs, objective)
        path = model.rollout(State(obs.double()), plan.actions.double(), None)
        return abs(objective.score(model, path, plan.actions.double()).item() - plan.value.item())

    assert gap(6) < 0.05 * gap(1)


# -- which quadratic, and who plans without one --------------------------------------------------------------------


def transitions(obs: Tensor, reward: Tensor) -> Transitions:
    no, ids = torch.zeros(len(obs), dtype=torch.bool), torch.arange(len(obs))
    return Transitions(obs, torch.zeros(len(obs), 1), reward, obs, no, no, ids, ids, ids)


def cem(spec: EnvSpec) -> Planner:
    return CEM(spec, 5, 30, 2, particles=1)


def test_a_reward_that_is_quadratic_is_planned_for(generator: Generator) -> None:
    model, obs = integrator(), torch.tensor([[0.5, 0.0]])
    seen = torch.randn(500, 2, generator=generator)
    model.reward_form.fit(transitions(seen, -((seen[:, 0] - 0.2).square() + 0.1 * seen[:, 1].square())))
    objective = Objective([RewardTerm(), ActionCost(0.05)])
    plan = plan_for(QPPlanner(model.spec, 30), model, obs, objective)
    declared = Objective([QuadraticState({0: 1.0, 1: 0.1}, {0: 0.2}), ActionCost(0.05)])
    assert plan.stats["quadratic"] == 2
    wanted = plan_for(QPPlanner(model.spec, 30), model, obs, declared)
    assert wanted.stats["quadratic"] == 1
    torch.testing.assert_close(plan.actions, wanted.actions, atol=1e-3, rtol=0)


def test_a_reward_that_is_not_falls_back(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    model, obs = integrator(), torch.tensor([[0.5, 0.0], [0.1, 0.0]])
    seen = torch.randn(500, 2, generator=generator)
    model.reward_form.fit(transitions(seen, (3 * seen[:, 0]).sin()))
    planner = QPPlanner(model.spec, 30, fallback=cem)
    with caplog.at_level(logging.WARNING):
        plan = plan_for(planner, model, obs, Objective())
        plan = plan_for(planner, model, obs, Objective(), plan.warm_start)
    (message,) = [record.getMessage() for record in caplog.records]  # once
    assert "QPPlanner" in message
    assert "CEM" in message
    assert f"explains {float(model.reward_form.r2):.3f}" in message
    assert "QuadraticState" in message
    assert plan.stats["quadratic"] == 0
    assert plan.actions.shape == (5, 2, 1)
    assert isinstance(plan.warm_start, LiftedMemory)
    with pytest.raises(UserError, match=r"(?s)min_r2.*fallback"):
        plan_for(QPPlanner(model.spec), model, obs, Objective())
    assert plan_for(QPPlanner(model.spec, min_r2=-1.0), model, obs, Objective()).stats["quadratic"] == 2


def test_the_fallback_remembers_as_if_alone(generator: Generator) -> None:
    """Its memory travels inside the planner's own, untouched."""
    model, obs = integrator(), torch.tensor([[0.5, 0.0]])
    model.reward_form.fit(transitions(seen := torch.randn(99, 2, generator=generator), (3 * seen[:, 0]).sin()))
    planner, other = QPPlanner(model.spec, fallback=cem), cem(model.spec)
    inside = plan_for(planner, model, obs, Objective(), planner.initial(1))
    alone = plan_for(other, model, obs, Objective(), other.initial(1))
    for _ in range(2):
        torch.testing.assert_close(inside.actions, alone.actions, atol=0, rtol=0)
        inside = plan_for(planner, model, obs, Objective(), inside.warm_start)
        alone = plan_for(other, model, obs, Objective(), alone.warm_start)


def test_a_model_that_is_not_lifted_falls_back(linear: type[DynamicsModel]) -> None:
    model = linear()  # type: ignore[call-arg]
    obs = torch.tensor([[0.5, 0.0]])
    with pytest.raises(UserError, match="LatentLinear"):
        plan_for(QPPlanner(model.spec), model, obs)
    assert plan_for(QPPlanner(model.spec, fallback=cem), model, obs).stats["quadratic"] == 0


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (Objective([RewardTerm()]), "RewardTerm"),
        (Objective([QuadraticState({0: 1.0}), UncertaintyTerm()]), "UncertaintyTerm"),
        (Objective([QuadraticState({0: 1.0}), TerminalValue()]), "TerminalValue"),
        (Objective([QuadraticState({0: 1.0}, discount=0.9)]), "discount"),
        (Objective([TerminalValue(weight={0: 1.0}, discount=0.9)]), "discount"),
        (Objective([QuadraticState({0: 1.0}, coef=-1.0)]), "no lowest cost"),
        (Objective([QuadraticState({0: 1.0})], [ConstraintTerm("speed", 1.0)]), "speed"),
    ],
)
def test_what_is_not_quadratic_is_named(objective: Objective, named: str) -> None:
    with pytest.raises(NotQuadratic, match=named):
        objective.quadratic(make_spec())


def test_the_sum_of_terms_is_minus_their_score(generator: Generator) -> None:
    spec = env_spec("mbrl/DoubleIntegrator-v0")
    terms: list[ObjectiveTerm] = [QuadraticState({0: 2.0, 1: 1.0}, {0: 0.5}, coef=0.3), ActionCost(0.2)]
    objective = Objective([*terms, TerminalValue(coef=2.0, weight={1: 1.5}, target={1: -1.0})])
    stage, terminal = objective.quadratic(spec)
    assert terminal is not None
    model = integrator(spec)
    actions = torch.rand(6, 3, 1, generator=generator, dtype=torch.float64) * 2 - 1
    path = model.rollout(State(torch.randn(3, 2, generator=generator).double()), actions, None)
    obs = path.states.obs[1:, 0]
    cost = stage.cost(obs, actions).sum(0) + terminal.cost(obs[-1], torch.zeros(3, 1))
    torch.testing.assert_close(-cost, objective.score(model, path, actions))


# -- in an agent ---------------------------------------------------------------------------------------------------


def test_it_serves_the_agent() -> None:
    """A lifted model that was never fitted acts too; slots start and go on side by side."""
    spec = env_spec("Pendulum-v1")
    agent = MPCAgent(spec, EDMD, lambda spec: QPPlanner(spec, 10, fallback=cem))
    obs, first = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.5]]), torch.tensor([True, True])
    state, generator = agent.initial_actor_state(2), Generator().manual_seed(0)
    for is_first in (first, torch.tensor([False, True])):
        action, state, extras = agent.act(obs, state, is_first, "evaluate", generator)
        assert action.shape == (2, 1)
        assert action.isfinite().all()
        assert extras["plan_value"].isfinite().all()


def test_a_mistyped_objective_is_not_handed_to_the_fallback() -> None:
    spec = env_spec("Pendulum-v1")
    model = EDMD(spec, dictionaries=[])
    planner = QPPlanner(spec, horizon=3, fallback=lambda spec: CEM(spec, horizon=3))
    state = model.encode(torch.zeros(1, 3))
    wrong = Objective([QuadraticState({"foo": 1.0})])
    with pytest.raises(UserError, match="foo"):
        planner.plan(model, wrong, state, planner.initial(1), generator=torch.Generator())
    assert not planner._told  # nobody was told that the fallback plans
