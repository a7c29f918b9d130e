"""Linear-quadratic regulation of lifted models against what is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from envs.spec import ActionSpec, EnvSpec
from mbrl.models.base import DynamicsModel, LinearParts, State
from mbrl.models.quadratic import QuadraticForm
from mbrl.models.simulator import Simulator
from mbrl.planning.base import Plan, Planner
from mbrl.planning.cem import CEM
from mbrl.planning.lqr import LQRPlanner
from mbrl.planning.objective import ActionCost, Objective, QuadraticState, TerminalValue
from tests.mbrl.planning.lifted_models import LiftedModel, bilinear, integrator, make_spec

GOAL = Objective([QuadraticState({0: 1.0, 1: 0.1}), ActionCost(0.5)])


def plan_for(planner: Planner, model: DynamicsModel, obs: Tensor, objective: Objective = GOAL) -> Plan:
    state = State(obs)
    return planner.plan(model, objective, state, planner.initial(len(obs)), generator=Generator().manual_seed(0))


def exact_parts(env: str) -> tuple[Simulator, LinearParts]:
    """The matrices of a linear environment, read off its own steps."""
    model = Simulator(env_spec(env))
    size = model.spec.obs_size

    def move(obs: Tensor, action: Tensor) -> Tensor:
        return model.step(model.encode(obs), action, None).state.obs

    a = move(torch.eye(size).double(), torch.zeros(size, 1).double()).T
    b = move(torch.zeros(1, size).double(), torch.ones(1, 1).double()).T
    return model, LinearParts(a, b, torch.eye(size).double(), torch.zeros(size).double())


def test_the_infinite_horizon_is_the_algebraic_riccati_gain() -> None:
    model, obs = integrator(), torch.tensor([[0.1, 0.05]])
    a, b = model.parts.a.numpy(), model.parts.b.numpy()
    q, r = np.diag([1.0, 0.1]), np.array([[0.5]])
    x = solve_discrete_are(a, b, q, r)
    gain = np.linalg.solve(r + b.T @ x @ b, b.T @ x @ a)
    plan = plan_for(LQRPlanner(model.spec, infinite=True), model, obs)
    assert plan.actions[0, 0].item() == pytest.approx(-(gain @ obs[0].numpy()).item(), abs=1e-6)
    assert plan.stats["riccati"] == 1
    short = plan_for(LQRPlanner(model.spec, 3), model, obs)
    assert abs(short.actions[0, 0] - plan.actions[0, 0]) > 1e-2  # the control: three steps see too little


def test_a_finite_horizon_is_the_minimum(generator: Generator) -> None:
    model, planner = integrator(), LQRPlanner(make_spec(), 12)
    objective = Objective([*GOAL.terms, TerminalValue(weight={0: 5.0}, target={0: 0.2})])
    plan = plan_for(planner, model, torch.tensor([[0.3, -0.1]]), objective)
    assert plan.actions.abs().max() < 1.0
    noise = 0.05 * torch.randn(12, 200, 1, generator=generator)
    tried = torch.cat([plan.actions, plan.actions + noise], 1).double()
    path = model.rollout(State(torch.tensor([[0.3, -0.1]]).double().expand(201, 2)), tried, None)
    scores = objective.score(model, path, tried)
    assert scores.argmax() == 0
    assert scores[0].item() == pytest.approx(plan.value.item(), rel=1e-5)


@pytest.mark.parametrize("env", ["mbrl/DoubleIntegrator-v0", "mbrl/MassSpringDamper-v0"])
def test_linear_environments_have_a_known_value(env: str) -> None:
    """Least average cost: nothing for the mass on a line, that of holding the springs for the other."""
    simulator, parts = exact_parts(env)
    spec, model = simulator.spec, LiftedModel(simulator.spec, parts)
    planner, obs = LQRPlanner(spec, 400, infinite=True), 0.1 * torch.ones(1, spec.obs_size)
    plan = plan_for(planner, model, obs, Objective())
    assert plan.stats["riccati"] == 1
    assert plan.stats["quadratic"] == 1
    path = simulator.rollout(simulator.encode(obs), plan.actions, None)
    last = path.states.obs[-1, 0, 0].double()
    form = QuadraticForm.declared(spec)
    assert form is not None
    # u held for ever: x = (I - A)^-1 B u; its cost over u is one parabola
    rest = torch.linalg.lstsq(torch.eye(spec.obs_size).double() - parts.a, parts.b).solution[:, 0]
    held = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    if env.startswith("mbrl/Mass"):
        assert form.cost(last, plan.actions[-1, 0]).item() == pytest.approx(
            form.cost(held * rest, held).min().item(), abs=1e-5
        )
    else:
        x = solve_discrete_are(parts.a.numpy(), parts.b.numpy(), np.diag([1.0, 0.1]), np.array([[0.1]]))
        start = obs[0].double().numpy()
        assert -path.reward.sum().item() == pytest.approx(start @ x @ start, rel=1e-4)
        assert -plan.value.item() == pytest.approx(start @ (x - np.diag([1.0, 0.1])) @ start, rel=1e-4)


def test_a_constant_in_the_lift_is_taken_out() -> None:
    """Gravity acts through a constant 1, which no action moves: the plan holds against it."""
    model = integrator(constant=True, gravity=0.02)
    plan = plan_for(LQRPlanner(model.spec, 300, infinite=True), model, torch.tensor([[0.5, 0.0]]))
    assert plan.stats["riccati"] == 1
    assert plan.actions[-1, 0].item() == pytest.approx(0.2, abs=1e-3)  # 0.1 u = 0.02
    finite = plan_for(LQRPlanner(model.spec, 200), model, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(plan.actions[0], finite.actions[0], atol=1e-3, rtol=0)


def test_what_cannot_be_steered_gets_a_long_horizon() -> None:
    model = integrator()
    model.parts.a = torch.block_diag(model.parts.a, torch.tensor([[1.2]], dtype=torch.float64))
    model.parts.b = torch.cat([model.parts.b, torch.zeros(1, 1, dtype=torch.float64)])
    model.parts.c = torch.cat([model.parts.c, torch.tensor([[0.1], [0.0]], dtype=torch.float64)], 1)
    model.constant = True  # a third coordinate, which grows by itself
    plan = plan_for(LQRPlanner(model.spec, infinite=True), model, torch.tensor([[0.1, 0.0]]))
    assert plan.stats["riccati"] == 0
    assert plan.actions.isfinite().all()
    steerable = integrator()
    assert plan_for(LQRPlanner(steerable.spec, infinite=True), steerable, torch.zeros(1, 2)).stats["riccati"] == 1


def test_a_bilinear_model_is_linearised_about_the_goal() -> None:
    objective = Objective([QuadraticState({0: 1.0, 1: 1.0}, {1: 0.5}), ActionCost(0.1)])
    model, obs = bilinear(), torch.tensor([[0.1, 0.5]])
    planner = LQRPlanner(model.spec, 5)
    plan = plan_for(planner, model, obs, objective)
    model.parts.b, model.parts.bilinear = torch.tensor([[0.175], [0.05]], dtype=torch.float64), None  # 0.1 + 0.15 / 2
    torch.testing.assert_close(plan.actions[0], plan_for(LQRPlanner(model.spec, 5), model, obs, objective).actions[0])
    elsewhere = plan_for(LQRPlanner(model.spec, 5, goal=[0.0, -0.5]), bilinear(), obs, objective)
    assert (elsewhere.actions[0] - plan.actions[0]).abs().max() > 1e-3


def test_actions_are_clipped_and_rows_independent() -> None:
    model, planner = integrator(), LQRPlanner(make_spec(), 10, action_limit=0.5)
    obs = torch.tensor([[5.0, 0.0], [0.01, 0.0], [-5.0, 0.0]])
    plan = plan_for(planner, model, obs)
    assert plan.actions.abs().max() <= 0.5
    assert plan.actions[0, :, 0].tolist() == pytest.approx([-0.5, plan.actions[0, 1, 0].item(), 0.5])
    alone = plan_for(LQRPlanner(make_spec(), 10, action_limit=0.5), model, obs[1:2])
    torch.testing.assert_close(alone.actions, plan.actions[:, 1:2])


def cem(spec: EnvSpec) -> Planner:
    return CEM(spec, 3, 10, 1, particles=1)


@pytest.mark.parametrize(("fallback", "kind"), [(None, None), (cem, CEM)])
def test_the_fallback_is_a_planner_of_its_own(fallback: Callable[[EnvSpec], Planner] | None, kind: type | None) -> None:
    planner = LQRPlanner(make_spec(), fallback=fallback)
    assert (planner.fallback is None) if kind is None else isinstance(planner.fallback, kind)
    assert planner.initial(4).plan.shape == (4, 40, 1)


def test_discrete_actions_are_refused() -> None:
    spec = EnvSpec("T", "0", "0", 1, ActionSpec("discrete", 2))
    with pytest.raises(UserError, match="discrete"):
        LQRPlanner(spec)
