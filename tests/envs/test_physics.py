"""Batched physics against ``env.step``."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.access import sim_state
from envs.errors import UserError
from envs.physics import Physics, physics_for
from envs.physics.kinematics import Chain

CLASSIC = ("Pendulum-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1")
SIMULATED = tuple(f"{n}-v5" for n in ["InvertedPendulum", "Pusher", "Swimmer", "HalfCheetah", "Hopper", "Walker2d"])
# Body positions are shown as of the last Runge-Kutta stage, and a rail's force is not part of the state.
LAGGING = ("Reacher-v5", "InvertedDoublePendulum-v5")
STARTABLE = (*CLASSIC, "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5", "HalfCheetah-v5", "Hopper-v5")
HORIZON = 10


class Path:
    """One sequence of ``env.step`` from a random visited state, cut where the episode ends."""

    def __init__(self, env: gym.Env[Any, Any], seed: int, horizon: int = HORIZON) -> None:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(1 + seed % 4 * 7):
            if env.step(self._action(env))[2]:
                env.reset()
                env.step(self._action(env))
        self.start = torch.as_tensor(sim_state(env))
        self.actions = [self._action(env) for _ in range(horizon)]
        self.obs: list[NDArray[Any]] = []
        self.rewards: list[float] = []
        self.ended: list[bool] = []
        for action in self.actions:
            obs, reward, ended, _, _ = env.step(action)
            self.obs.append(np.array(obs, dtype=np.float64))
            self.rewards.append(float(reward))
            self.ended.append(bool(ended))
            if ended:
                break

    @staticmethod
    def _action(env: gym.Env[Any, Any]) -> Any:
        action = env.action_space.sample()
        # float64, as Gymnasium computes the control cost in the action's own precision
        return action.astype(np.float64) if isinstance(env.action_space, gym.spaces.Box) else action


def errors(id: str, env: gym.Env[Any, Any], physics: Physics, paths: int = 12) -> tuple[Tensor, float, int, int]:
    """Largest error of each observation entry and of the reward; wrong terminations; number of terminations."""
    steps = [Path(env, seed) for seed in range(paths)]
    actions = torch.as_tensor(np.array([p.actions for p in steps])).transpose(0, 1)
    states = physics.rollout(torch.stack([p.start for p in steps]), actions)
    before, after = states[:-1], states[1:]
    obs, reward = physics.observe(after), physics.reward(before, actions, after)
    ended = physics.terminated(before, actions, after)
    worst, off, wrong, ends = torch.zeros(obs.shape[-1]).double(), 0.0, 0, 0
    for row, path in enumerate(steps):
        for t, seen in enumerate(path.obs):
            worst = torch.maximum(worst, (obs[t, row] - torch.as_tensor(seen)).abs())
            off = max(off, abs(float(reward[t, row]) - path.rewards[t]))
            wrong += bool(ended[t, row]) != path.ended[t]
            ends += path.ended[t]
    return worst, off, wrong, ends


@pytest.mark.parametrize("id", CLASSIC)
def test_classic_rollouts_equal_the_environment(id: str) -> None:
    env = gym.make(id).unwrapped
    worst, off, wrong, ends = errors(id, env, physics_for(env), paths=20)
    assert worst.max() < 1e-6  # observations are rounded to float32
    assert off < 1e-9
    assert wrong == 0
    assert ends > 0 or id != "CartPole-v1"


@pytest.mark.parametrize("id", SIMULATED)
def test_mujoco_rollouts_equal_the_environment(id: str) -> None:
    env = gym.make(id).unwrapped
    worst, off, wrong, ends = errors(id, env, physics_for(env))
    assert worst.max() < 1e-9
    assert off < 1e-9
    assert wrong == 0
    assert ends > 0 or id not in ("InvertedPendulum-v5", "Hopper-v5")


@pytest.mark.parametrize("id", LAGGING)
def test_mujoco_rollouts_with_bodies_equal_the_environment_up_to_the_last_stage(id: str) -> None:
    env = gym.make(id).unwrapped
    worst, off, wrong, _ = errors(id, env, physics_for(env))
    assert worst[:8].max() < 1e-9
    assert off < 1e-2
    assert wrong == 0


@pytest.mark.parametrize("id", LAGGING)
def test_the_last_stage_is_all_that_bodies_differ_by(id: str) -> None:
    env: Any = gym.make(id).unwrapped
    physics = physics_for(env)
    path = Path(env, 0, horizon=1)
    action = torch.as_tensor(path.actions[0])
    mujoco.mj_kinematics(env.model, env.data)  # now the environment shows its bodies at its own qpos
    after = torch.as_tensor(sim_state(env))
    if id == "Reacher-v5":
        expected, _ = env._get_rew(path.actions[0])
    else:
        x, _, y = env.data.site_xpos[0]
        expected, _ = env._get_rew(x, y, bool(y <= 1))
    assert abs(float(physics.reward(path.start, action, after)) - expected) < 1e-12
    assert np.abs(physics.observe(after).numpy() - env._get_obs()).max() < 1e-12


def test_the_fingertip_is_exact_where_mujoco_has_just_evaluated_it() -> None:
    env = gym.make("Reacher-v5").unwrapped
    physics = physics_for(env)
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        shown = physics.observe(torch.as_tensor(sim_state(env)))
        assert np.abs(shown.numpy() - obs).max() < 1e-12


@pytest.mark.parametrize("id", ["Pusher-v5", "Reacher-v5", "InvertedDoublePendulum-v5", "Walker2d-v5"])
def test_kinematics_equal_mujocos(id: str) -> None:
    env: Any = gym.make(id).unwrapped
    model, data = env.model, env.data
    body = model.nbody - 1 if id != "Pusher-v5" else model.body("tips_arm").id
    generator = torch.Generator().manual_seed(0)
    qpos = torch.randn(50, model.nq, generator=generator, dtype=torch.float64)
    ours = Chain(model, body).position(qpos)
    for row in range(50):
        data.qpos[:] = qpos[row].numpy()
        mujoco.mj_kinematics(model, data)
        assert np.abs(ours[row].numpy() - data.xpos[body]).max() < 1e-12


def test_kinematics_refuse_free_joints() -> None:
    env: Any = gym.make("Ant-v5").unwrapped
    with pytest.raises(ValueError, match="hinge"):
        Chain(env.model, 1)


CHANGES: dict[str, tuple[str, dict[str, float]]] = {
    "pendulum": ("Pendulum-v1", {"m": 1.7, "l": 0.6, "g": 4.0}),
    "cartpole": ("CartPole-v1", {"gravity": 3.0, "length": 0.9, "force_mag": 5.0, "total_mass": 2.0}),
    "car": ("MountainCarContinuous-v0", {"power": 0.003}),
    "acrobot": ("Acrobot-v1", {"LINK_MASS_2": 2.0, "LINK_LENGTH_1": 0.7, "LINK_COM_POS_1": 0.3}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_classic_parameters_are_respected(name: str) -> None:
    id, changes = CHANGES[name]
    env: Any = gym.make(id).unwrapped
    plain = physics_for(env)
    for attribute, value in changes.items():
        setattr(env, attribute, value)
    assert errors(id, env, physics_for(env))[0].max() < 1e-6
    assert errors(id, env, plain)[0].max() > 1e-3


def test_the_semi_implicit_cartpole_and_its_other_reward() -> None:
    env: Any = gym.make("CartPole-v1", sutton_barto_reward=True).unwrapped
    env.kinematics_integrator = "semi-implicit euler"
    worst, off, wrong, ends = errors("CartPole-v1", env, physics_for(env), paths=20)
    assert worst.max() < 1e-6
    assert (off, wrong) == (0.0, 0)
    assert ends > 0


def test_the_other_acrobot_equations() -> None:
    env: Any = gym.make("Acrobot-v1").unwrapped
    env.book_or_nips = "nips"
    assert errors("Acrobot-v1", env, physics_for(env))[0].max() < 1e-6


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5"])
def test_changed_models_are_copied_and_survive_pickling(id: str) -> None:
    env: Any = gym.make(id).unwrapped
    plain = physics_for(env)
    env.model.body_mass[1] *= 1.5
    env.model.opt.gravity[2] = -5.0
    env.model.dof_damping[-1] *= 2.0
    changed = pickle.loads(pickle.dumps(physics_for(env)))
    worst, off, wrong, _ = errors(id, env, changed)
    assert max(float(worst.max()), off) < 1e-9
    assert wrong == 0
    assert errors(id, env, plain)[0].max() > 1e-4


@pytest.mark.parametrize("id", [*CLASSIC, *SIMULATED, *LAGGING])
def test_physics_pickle_after_use_with_equal_results(id: str) -> None:
    env = gym.make(id).unwrapped
    physics, path = physics_for(env), Path(env, 3)
    start, actions = path.start[None], torch.as_tensor(np.array(path.actions))[:, None]
    first = physics.rollout(start, actions)
    again = pickle.loads(pickle.dumps(physics)).rollout(start, actions)
    assert first.shape == (HORIZON + 1, 1, physics.state_size)
    assert first.dtype == torch.float64
    assert torch.equal(first, again)


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Reacher-v5"])
def test_rows_chunks_and_threads_do_not_change_results(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = gym.make(id).unwrapped
    paths = [Path(env, seed) for seed in range(7)]
    start = torch.stack([p.start for p in paths])
    actions = torch.as_tensor(np.array([p.actions for p in paths])).transpose(0, 1)
    physics = physics_for(env)
    together = physics.rollout(start, actions)
    alone = [physics.rollout(start[i : i + 1], actions[:, i : i + 1]) for i in range(7)]
    assert torch.equal(together, torch.cat(alone, 1))
    assert torch.equal(together, physics_for(env, threads=2).rollout(start, actions))
    monkeypatch.setattr("envs.physics.mujoco._ROLLOUT_NUMBERS", 3000)
    assert torch.equal(together, physics.rollout(start, actions))


def test_an_empty_horizon_returns_the_start() -> None:
    env = gym.make("Hopper-v5").unwrapped
    env.reset(seed=0)
    start = torch.as_tensor(sim_state(env))[None]
    assert torch.equal(physics_for(env).rollout(start, torch.zeros(0, 1, 3)), start[None])


@pytest.mark.parametrize("id", STARTABLE)
def test_a_state_from_an_observation_moves_as_the_environment(id: str) -> None:
    env = gym.make(id).unwrapped
    physics = physics_for(env)
    assert physics.can_start_from_obs
    for seed in range(8):
        path = Path(env, seed, horizon=4)
        if len(path.obs) < 4:
            continue
        start = physics.state_from_obs(torch.as_tensor(path.obs[0])[None])
        actions = torch.as_tensor(np.array(path.actions[1:]))[:, None]
        seen = physics.observe(physics.rollout(start, actions))[1:, 0, :8]
        tolerance = 1e-5 if id in CLASSIC else 1e-9
        assert np.abs(seen.numpy() - np.array(path.obs[1:])[:, :8]).max() < tolerance


def test_continuous_actions_out_of_bounds_act_as_in_the_environment() -> None:
    for id in ("Pendulum-v1", "HalfCheetah-v5"):
        env = gym.make(id).unwrapped
        env.reset(seed=0)
        start, action = torch.as_tensor(sim_state(env))[None], np.full(env.action_space.shape or (), 7.0)
        obs, reward, _, _, _ = env.step(action)
        physics, wide = physics_for(env), torch.as_tensor(action)[None]
        states = physics.rollout(start, wide[None])
        assert np.abs(physics.observe(states[1])[0].numpy() - obs).max() < 1e-6
        assert abs(float(physics.reward(states[0], wide, states[1])) - float(reward)) < 1e-9


@pytest.mark.parametrize("id", ["Walker2d-v5", "Pusher-v5"])
def test_undetermined_states_are_refused(id: str) -> None:
    env = gym.make(id)
    physics = physics_for(env)
    assert not physics.can_start_from_obs
    with pytest.raises(UserError, match=r"not\s+determined"):
        physics.state_from_obs(torch.zeros(1, *(env.observation_space.shape or ())))


@pytest.mark.parametrize("id", ["Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Hopper-v4"])
def test_environments_without_physics_are_named(id: str) -> None:
    with pytest.raises(UserError, match="HalfCheetah") as caught:
        physics_for(gym.make(id))
    assert id in str(caught.value)


def test_noisy_acrobots_are_refused() -> None:
    env: Any = gym.make("Acrobot-v1")
    env.unwrapped.torque_noise_max = 1.0
    with pytest.raises(UserError, match="torque_noise_max"):
        physics_for(env)
