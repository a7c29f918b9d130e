"""The platform's own environments: equations, equality of environment and true model, pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import UserError, make_env, make_physics
from envs.acrobot import AcrobotContinuous
from envs.cartpole import CartPoleSwingUp
from envs.integrators import rk4
from envs.linear import DoubleIntegrator, MassSpringDamper
from envs.navigation import PointGoal
from envs.oscillator import VanDerPol
from envs.registry import OWN
from envs.torch_env import TorchEnv, TorchPhysics


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("id", OWN)
def test_environment_and_physics_are_one(id: str) -> None:
    env, rng = make_env(id), np.random.default_rng(0)
    obs, _ = env.reset(seed=3)
    actions = rng.uniform(-1, 1, (40, env.env_spec.action.size)).astype(np.float32)
    states, observations, rewards, ends = [env.sim_state()], [obs], [], []
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        states.append(env.sim_state())
        observations.append(obs)
        rewards.append(reward)
        ends.append(terminated)
    physics, controls = make_physics(id), f64(actions)
    start = f64(np.array(states[0])).expand(5, -1)
    reached = physics.rollout(start, controls[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(reached[:, 4], f64(np.array(states)), rtol=0, atol=1e-12)
    path = reached[:, 0]
    torch.testing.assert_close(physics.observe(path), f64(np.array(observations)), rtol=0, atol=1e-12)
    torch.testing.assert_close(physics.reward(path[:-1], controls, path[1:]), f64(rewards), rtol=0, atol=1e-12)
    assert physics.terminated(path[:-1], controls, path[1:]).tolist() == ends
    from_obs = physics.observe(physics.state_from_obs(physics.observe(path)))
    torch.testing.assert_close(from_obs, physics.observe(path), rtol=0, atol=1e-12)


@pytest.mark.parametrize("id", OWN)
def test_every_parameter_matters(id: str) -> None:
    """A parameter that changes neither motion nor reward would be a wrong name for nothing."""
    spec, base = make_env(id).env_spec, make_physics(id)
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(64, base.state_size, generator=generator, dtype=torch.float64)
    actions = torch.rand(3, 64, spec.action.size, generator=generator, dtype=torch.float64)
    usual = base.rollout(state, actions)
    for name, value in spec.params.items():
        changed = make_physics(id, params={name: 1.5 * value + 0.1}).rollout(state, actions)
        assert not torch.equal(usual, changed), name


@pytest.mark.parametrize("id", OWN)
def test_pictures_show_the_state(id: str) -> None:
    env = make_env(id, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(10):
        env.step(np.ones(env.env_spec.action.size))
    frames.append(env.render())
    assert frames[0].shape == (400, 600, 3)
    assert frames[0].dtype == np.uint8
    assert not np.array_equal(*frames)
    env.close()
    blind = make_env(id)
    blind.reset(seed=0)
    assert blind.render() is None


def test_bars_are_drawn_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CartPoleSwingUp, "draw", TorchEnv.draw)
    env = CartPoleSwingUp(render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None
    assert (frame != 255).any()


def test_cartpole_swing_up_is_the_published_task() -> None:
    env = make_env("mbrl/CartPoleSwingUp-v0")
    spec = env.env_spec
    assert (spec.max_episode_steps, spec.dt, spec.obs_size) == (150, 0.04, 5)
    assert dict(spec.params) == {"gravity": 9.81, "mass_cart": 1.0, "mass_pole": 0.1, "half_length": 0.5, "force": 10.0}
    obs, _ = env.reset(seed=0)
    assert obs[2] < -0.99
    next_obs, reward, terminated, _, _ = env.step(np.array([0.5], np.float32))
    assert not terminated
    assert reward == pytest.approx(next_obs[2] - 0.1 * next_obs[0] ** 2 - 0.01 * 0.25, abs=1e-12)


def cartpole_motion(state: Tensor, push: float) -> Tensor:
    """Cart and pole from the Lagrangian: mass matrix times accelerations equals forces, solved as a linear system."""
    _, x_dot, theta, theta_dot = state.tolist()
    m, big, half, g = 0.1, 1.0, 0.5, 9.81
    sin, cos = np.sin(theta), np.cos(theta)
    mass = np.array([[big + m, m * half * cos], [m * half * cos, 4.0 / 3.0 * m * half**2]])
    x_acc, theta_acc = np.linalg.solve(mass, [push + m * half * theta_dot**2 * sin, m * g * half * sin])
    return f64([x_dot, x_acc, theta_dot, theta_acc])


@pytest.mark.parametrize("push", [-1.0, 0.3])
def test_cartpole_accelerations_follow_from_the_lagrangian(push: float) -> None:
    state, params = f64([0.3, -0.5, 2.0, 1.5]), f64(list(CartPoleSwingUp.defaults.values()))
    after = CartPoleSwingUp.dynamics(state, f64([push]), params)
    h, expected = 0.02, state
    for _ in range(2):
        motion = cartpole_motion(expected, 10.0 * push)
        rates = expected[[1, 3]] + h * motion[[1, 3]]
        places = expected[[0, 2]] + h * rates
        expected = torch.stack([places[0], rates[0], places[1], rates[1]])
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)


def test_cartpole_balance_ends_when_it_falls() -> None:
    env = make_env("mbrl/CartPoleBalance-v0")
    env.reset(seed=0)
    terminated, steps = False, 0
    while not terminated:
        obs, _, terminated, _, _ = env.step(np.ones(1))
        steps += 1
    assert 1 < steps < 30
    assert obs[2] < np.cos(np.deg2rad(24.0)) or abs(obs[0]) > 2.4


def acrobot_energy(state: Tensor) -> Tensor:
    theta1, theta2, rate1, rate2 = state.unbind(-1)
    both, spin = theta1 + theta2, rate1 + rate2
    vx = rate1 * theta1.cos() + 0.5 * spin * both.cos()
    vy = rate1 * theta1.sin() + 0.5 * spin * both.sin()
    kinetic = rate1**2 / 6 + 0.5 * (vx**2 + vy**2) + spin**2 / 24
    return kinetic - 9.81 * (1.5 * theta1.cos() + 0.5 * both.cos())


def test_acrobot_keeps_its_energy_without_friction_and_torque() -> None:
    physics = AcrobotContinuous.physics({"friction": 0.0})
    path = physics.rollout(f64([[0.8, 0.5, 0.3, -0.2]]), torch.zeros(40, 1, 1, dtype=torch.float64))[:, 0]
    energy = acrobot_energy(path)
    assert (path[:, 0].max() - path[:, 0].min()) > 1.0
    assert (energy - energy[0]).abs().max() < 0.02
    damped = AcrobotContinuous.physics({"friction": 0.5}).rollout(path[:1], torch.zeros(40, 1, 1, dtype=torch.float64))
    assert acrobot_energy(damped[-1, 0]) < energy[0] - 0.5


def test_double_integrator_is_exact() -> None:
    physics = DoubleIntegrator.physics({"mass": 2.0, "force": 3.0})
    path = physics.rollout(f64([[1.0, -0.5]]), torch.ones(10, 1, 1, dtype=torch.float64))[:, 0]
    t = 0.1 * torch.arange(11, dtype=torch.float64)
    torch.testing.assert_close(path[:, 0], 1.0 - 0.5 * t + 0.5 * 1.5 * t**2)
    torch.testing.assert_close(path[:, 1], -0.5 + 1.5 * t)


@pytest.mark.parametrize("kind", [DoubleIntegrator, MassSpringDamper])
def test_quadratic_cost_is_minus_the_reward(kind: type[TorchEnv]) -> None:
    cost, generator = kind.quadratic, torch.Generator().manual_seed(0)
    assert cost is not None
    obs = torch.randn(50, kind.state_size, generator=generator, dtype=torch.float64)
    action = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    q, r, error = f64(cost.q), f64(cost.r), obs - f64(cost.goal)
    expected = -torch.einsum("bi,ij,bj->b", error, q, error) - torch.einsum("bi,ij,bj->b", action, r, action)
    torch.testing.assert_close(kind.reward_fn(obs, action, obs), expected)


@pytest.mark.parametrize("kind", [DoubleIntegrator, MassSpringDamper])
def test_linear_tasks_are_linear(kind: type[TorchEnv]) -> None:
    physics, generator = kind.physics(), torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 8, kind.state_size, generator=generator, dtype=torch.float64)
    u, v = torch.randn(2, 1, 8, 1, generator=generator, dtype=torch.float64)
    total = physics.rollout(x + 2 * y, u + 2 * v)[-1]
    torch.testing.assert_close(total, physics.rollout(x, u)[-1] + 2 * physics.rollout(y, v)[-1])


def test_mass_spring_rests_under_a_constant_force() -> None:
    physics = MassSpringDamper.physics({"damping": 2.0})
    path = physics.rollout(torch.zeros(1, 4, dtype=torch.float64), f64(0.5).expand(400, 1, 1))
    torch.testing.assert_close(path[-1, 0], f64([0.5, 0.0, 0.5, 0.0]), atol=1e-4, rtol=0)


def test_van_der_pol_reaches_its_limit_cycle() -> None:
    start = f64([[0.1, 0.0], [3.0, 0.0]])
    path = VanDerPol.physics().rollout(start, torch.zeros(400, 2, 1, dtype=torch.float64))
    largest = path[-100:, :, 0].abs().amax(0)
    torch.testing.assert_close(largest, f64([2.0, 2.0]), atol=0.03, rtol=0)


def test_point_goal_is_kept_out_of_the_pillar_and_inside_the_walls() -> None:
    start = f64([[-0.8, 0.0, 0.0, 0.0, 0.8, 0.0], [0.8, 0.0, 0.0, 0.0, 0.8, 0.0]])
    push = f64([[1.0, 0.0]]).expand(100, 2, 2)
    path = PointGoal.physics().rollout(start, push)
    assert path[:, 0, :2].norm(dim=-1).min() > 0.2
    assert path[-1, 0, 0] < -0.2
    assert path[:, 1, 0].max() < 1.1
    torch.testing.assert_close(path[:, :, 4:], start[:, 4:].expand(101, 2, 2))


def test_rk4_is_of_fourth_order() -> None:
    exact = float(np.exp(-1.0))
    errors = [abs(float(rk4(lambda x: -x, f64([1.0]), 1.0, n)) - exact) for n in (4, 8)]
    assert 14.0 < errors[0] / errors[1] < 18.0


def test_parameters_may_differ_from_row_to_row() -> None:
    params = f64(list(CartPoleSwingUp.defaults.values())).repeat(2, 1)
    params[1, 0] = 5.0
    state = f64([[0.0, 0.0, 2.0, 0.0]]).expand(2, 4)
    after = CartPoleSwingUp.dynamics(state, torch.zeros(2, 1, dtype=torch.float64), params)
    light = CartPoleSwingUp.physics({"gravity": 5.0}).rollout(state[:1], torch.zeros(1, 1, 1))[-1, 0]
    torch.testing.assert_close(after[1], light)
    assert not torch.equal(after[0], after[1])


def test_a_state_that_observations_hide_is_refused() -> None:
    class Hidden(DoubleIntegrator):
        state_from_obs = None

    physics = TorchPhysics(Hidden, {})
    assert not physics.can_start_from_obs
    with pytest.raises(UserError, match="sim_state"):
        physics.state_from_obs(torch.zeros(1, 2))
