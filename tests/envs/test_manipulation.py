"""The arm's tasks, and Gymnasium's robots with other bodies: true models, physics, and that they can be solved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs import UserError, check_env, make_env, make_physics
from envs.arm import LINKS, jacobian, move, tip
from envs.door import door_expert
from envs.pushing import GOAL, push_expert
from envs.registry import OWN_MUJOCO
from envs.tasks import Task, make_tasks
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import Objective

Act = Callable[[NDArray[np.float64]], NDArray[np.float64]]
ARM: list[tuple[str, Act]] = [
    ("push-density", push_expert),
    ("push-friction", push_expert),
    ("door-handles", door_expert),
]
CHANGED: dict[str, dict[str, float]] = {
    "mbrl/ReacherLinks-v0": {"link_1": 0.07, "link_2": 0.13},
    "mbrl/HalfCheetahBodies-v0": {"shin": 1.25, "tilt": 0.2},
    "mbrl/ArmPush-v0": {"density_left": 100.0, "friction": 0.1},
    "mbrl/ArmDoor-v0": {"lever": 0.1, "handle_high": 1.57},
}


def random_actions(size: int, seed: int) -> Act:
    rng = np.random.default_rng(seed)
    return lambda obs: rng.uniform(-1, 1, size)


def first_success(task: Task, act: Act, seed: int) -> int | None:
    """Steps until the task first succeeds within its episode, or None."""
    env = task.make()
    obs, _ = env.reset(seed=seed)
    for step in range(task.spec.max_episode_steps or 0):
        obs, _, _, _, info = env.step(act(obs))
        if info["is_success"]:
            return step + 1
    return None


@pytest.mark.parametrize("id", OWN_MUJOCO)
def test_they_pass_the_check_with_other_physics(id: str) -> None:
    report = check_env(id, steps=300, render=False, params=CHANGED[id])
    assert [f.line() for f in report.findings if f.status != "ok"] == []
    assert report.restorability == ("exact" if "Arm" in id else "replayable")


@pytest.mark.parametrize(("name", "expert"), ARM)
def test_every_task_is_solved_by_an_expert_and_not_by_chance(name: str, expert: Act) -> None:
    for task in make_tasks(name):
        reached = [first_success(task, expert, seed) for seed in (0, 1)]
        assert all(step is not None and step <= 60 for step in reached), (task.name, reached)
        assert first_success(task, random_actions(task.spec.action.size, 0), 0) is None, task.name


def test_a_finger_that_does_not_hold_on_opens_no_door() -> None:
    """The control of the test above: the same motion without grip."""
    task = make_tasks("door-handles").task(0)
    assert first_success(task, lambda obs: np.append(door_expert(obs)[:3], -1.0), 0) is None


@pytest.mark.parametrize(
    ("id", "expert"),
    [("mbrl/ArmPush-v0", push_expert), ("mbrl/ArmDoor-v0", door_expert), ("mbrl/HalfCheetahBodies-v0", None)],
)
def test_the_true_model_follows_the_environment_through_contact(id: str, expert: Act | None) -> None:
    env = make_env(id, params=CHANGED[id])
    act = expert or random_actions(env.env_spec.action.size, 0)
    obs, _ = env.reset(seed=1)
    start, actions, seen, rewards = env.sim_state(), [], [obs], []
    for _ in range(25):
        actions.append(act(obs).astype(np.float32))  # as the environment receives them
        obs, reward, *_ = env.step(actions[-1])
        seen.append(obs)
        rewards.append(reward)
    physics = make_physics(id, params=CHANGED[id])
    control = env.env_spec.action.to_env(torch.tensor(np.array(actions), dtype=torch.float64))[:, None]
    states = physics.rollout(torch.as_tensor(start)[None], control)
    shown, expected = physics.observe(states)[:, 0], torch.tensor(np.array(seen))
    assert float((shown - expected).abs().max()) < 1e-6
    earned = physics.reward(states[:-1], control, states[1:])[:, 0]
    assert float((earned - torch.tensor(rewards)).abs().max()) < 1e-5  # control costs are computed in float32 there
    other = make_physics(id).rollout(torch.as_tensor(start)[None], control)
    assert float((physics.observe(other)[:, 0] - expected).abs().max()) > 1e-3  # the parameters matter


@pytest.mark.parametrize("id", [id for id in OWN_MUJOCO if id != "mbrl/ArmPush-v0"])
def test_states_follow_from_observations(id: str) -> None:
    physics = make_physics(id, params=CHANGED[id])
    env = make_env(id, params=CHANGED[id])
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.ones(env.env_spec.action.size))
    obs = physics.observe(torch.as_tensor(env.sim_state())[None])
    again = physics.state_from_obs(obs)
    assert again.shape[-1] == physics.state_size
    torch.testing.assert_close(physics.observe(again), obs, rtol=0, atol=1e-12)


def test_the_simulator_serves_the_tasks() -> None:
    task = make_tasks("push-density").task(1)
    model, env = Simulator(task.spec), task.make()
    obs, _ = env.reset(seed=0)
    here = torch.as_tensor(obs, dtype=torch.float32)[None]
    with pytest.raises(UserError, match="sim_state"):
        model.encode(here)
    state = model.encode(here, sim_state=torch.as_tensor(env.sim_state())[None])
    after, reward, *_ = env.step(np.full(3, 0.5))
    step = model.step(state, torch.full((1, 3), 0.5), None)
    torch.testing.assert_close(step.state.obs[0], torch.as_tensor(after, dtype=torch.float32))  # type: ignore[attr-defined]
    assert float(step.reward) == pytest.approx(reward, abs=1e-5)


def slide(params: dict[str, float]) -> Tensor:
    """Where a block at 0.5 m/s comes to rest, ``(x, y, yaw)`` relative to its start."""
    env: Any = make_env("mbrl/ArmPush-v0", params=params).unwrapped
    env.reset(seed=0)
    env.data.qpos[3:6] = (0.0, 0.5, 0.0)
    for _ in range(3):
        env.step(np.zeros(3))  # the halves settle on the table
    before = env.data.qpos[3:6].copy()
    env.data.qvel[4] = 0.5
    for _ in range(20):
        env.step(np.zeros(3))
    return torch.as_tensor(env.data.qpos[3:6] - before)


@pytest.mark.parametrize("friction", [0.1, 0.2, 0.4])
def test_the_block_slides_as_far_as_coulomb_says(friction: float) -> None:
    """``v^2 / (2 mu g)``, whatever the density."""
    expected = 0.5**2 / (2.0 * friction * 9.81)
    for density in (200.0, 1000.0):
        far = slide({"friction": friction, "density_left": density, "density_right": density})
        assert float(far[1]) == pytest.approx(expected, rel=0.1)


def pushed_yaw(left: float, right: float) -> float:
    """How far the block turns when it is pushed in its middle."""
    env: Any = make_env("mbrl/ArmPush-v0", params={"density_left": left, "density_right": right}).unwrapped
    env.reset(seed=0)
    env.data.qpos[3:6] = (tip(env.data.qpos[:3])[0], 0.45, 0.0)
    for _ in range(14):
        env.step(move(env.data.qpos[:3], np.array([0.0, 0.15])))
    return float(env.data.qpos[5])


def test_the_heavier_half_stays_behind() -> None:
    assert pushed_yaw(100.0, 500.0) < -0.1
    assert pushed_yaw(500.0, 100.0) > 0.1
    assert abs(pushed_yaw(500.0, 500.0)) < 0.05


def test_a_handle_turns_only_to_its_side() -> None:
    turned = {}
    for name in ("pull", "lever, turns back", "lever, turns out"):
        task = next(task for task in make_tasks("door-handles") if task.name == name)
        env = task.make()
        obs, _ = env.reset(seed=0)
        angles = []
        for _ in range(40):
            obs, *_ = env.step(door_expert(obs))
            angles.append(obs[9])
        turned[name] = (min(angles), max(angles))
    assert max(map(abs, turned["pull"])) < 0.1
    assert turned["lever, turns out"][1] > 0.4
    assert turned["lever, turns back"][1] < 0.1


@pytest.mark.parametrize(
    ("id", "params", "said"),
    [
        ("mbrl/ArmPush-v0", {"density_left": 0.0}, "density_left.*from 10"),
        ("mbrl/ArmPush-v0", {"densty_left": 500.0}, "Did you mean density_left"),
        ("mbrl/ArmDoor-v0", {"handle_low": 0.3}, "handle_low.*to 0"),
        ("mbrl/ReacherLinks-v0", {"link_1": -0.1}, "link_1.*from 0.02"),
        ("mbrl/HalfCheetahBodies-v0", {"foot": 100.0}, "foot.*to 5"),
    ],
)
def test_senseless_parameters_are_refused(id: str, params: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_env(id, params=params)


def test_parameters_of_one_episode_go_away() -> None:
    env = make_env("mbrl/ArmPush-v0")
    inner: Any = env.unwrapped
    mass = inner.model.body("left").mass[0]
    _, info = env.reset(seed=0, options={"params": {"density_left": 1000.0}})
    assert info["params"]["density_left"] == 1000.0
    assert inner.model.body("left").mass[0] == pytest.approx(2.0 * mass)
    env.reset(seed=0)
    assert inner.model.body("left").mass[0] == pytest.approx(mass)


def test_kinematics_of_the_arm() -> None:
    rng = np.random.default_rng(0)
    joints = rng.uniform(-2, 2, 3)
    slope = [(tip(joints + h) - tip(joints - h)) / 2e-6 for h in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(jacobian(joints), np.array(slope).T, atol=1e-8)
    assert tip(np.zeros(3))[0] == pytest.approx(sum(LINKS))
    env = make_env("mbrl/ArmDoor-v0")
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(obs[6:8], tip(obs[:3]), atol=1e-12)
    assert np.abs(move(obs[:3], np.array([5.0, 0.0]))).max() == pytest.approx(1.0)
    assert np.hypot(*GOAL) < sum(LINKS)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("door-handles", 4),
        *(pytest.param("push-density", id, marks=pytest.mark.slow) for id in (1, 2)),
        *(pytest.param("door-handles", id, marks=pytest.mark.slow) for id in (0, 1, 2, 3)),
    ],
)
def test_planning_with_the_true_dynamics_solves_them(name: str, id: int) -> None:
    task = make_tasks(name).task(id)
    model, env, generator = Simulator(task.spec), task.make(), torch.Generator().manual_seed(0)
    planner = ICEM(task.spec, horizon=15, candidates=32, iterations=3, elites=6, particles=1)
    obs, _ = env.reset(seed=0)
    memory: Any = None
    for _ in range(30):
        here = torch.as_tensor(obs, dtype=torch.float32)[None]
        state = model.encode(here, sim_state=torch.as_tensor(env.sim_state())[None])
        plan = planner.plan(model, Objective(), state, memory, generator=generator)
        memory = plan.warm_start
        obs, _, _, _, info = env.step(plan.actions[0, 0].numpy())
        if info["is_success"]:
            return
    pytest.fail("not solved in 30 steps")
