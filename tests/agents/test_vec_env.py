"""Gymnasium's vector environments as stable-baselines3's: the same data as its own collection of environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.sb3.vec_env import VectorEnvAdapter
from envs.errors import UserError
from envs.registry import env_spec
from mbrl.imagination.model_env import ModelEnv, ModelVectorEnv
from mbrl.models.simulator import Simulator

SPEC = env_spec("CartPole-v1")
STARTS = 0.05 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


class Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Puts the count of steps into the infos: a number, sometimes a text, and what a reset says."""

    count = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return self.env.reset(**kwargs)[0], {"begun": float(kwargs.get("seed") or -1)}

    def step(self, action: Any) -> Any:
        self.count += 1
        obs, reward, terminated, truncated, _ = self.env.step(action)
        info: dict[str, Any] = {"count": self.count, "deep": {"twice": 2 * self.count}}
        return obs, reward, terminated, truncated, info | ({"odd": "yes"} if self.count % 2 else {})


def make_cartpole() -> Any:
    return Telling(gym.make("CartPole-v1", max_episode_steps=12))


def plain(info: dict[str, Any]) -> dict[str, Any]:
    """The info in Python's numbers and lists."""
    return {k: plain(v) if isinstance(v, dict) else v.tolist() if hasattr(v, "tolist") else v for k, v in info.items()}


def record(env: Any, steps: int = 40) -> list[Any]:
    """All that an SB3 environment shows under fixed random actions."""
    rng = np.random.default_rng(0)
    env.seed(5)
    seen: list[Any] = [env.reset().tolist(), [plain(info) for info in env.reset_infos]]
    for _ in range(steps):
        obs, reward, done, infos = env.step(rng.integers(2, size=env.num_envs))
        seen.append((obs.tolist(), reward.tolist(), done.tolist(), [plain(info) for info in infos]))
        seen.append([plain(info) for info in env.reset_infos])
    return seen


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_adapter_is_what_sb3_does_itself(mode: AutoresetMode) -> None:
    """Observations, rewards, ends, every entry of every info, and what resets say."""
    theirs = record(DummyVecEnv([make_cartpole] * 3))
    assert record(VectorEnvAdapter(SyncVectorEnv([make_cartpole] * 3, autoreset_mode=mode))) == theirs
    infos = [info for step in theirs[2::2] for info in step[3]]
    assert {info["TimeLimit.truncated"] for info in infos} == {True, False}
    assert any("terminal_observation" in info for info in infos)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_model_under_sb3(mode: AutoresetMode) -> None:
    """One call of the model for all rows gives what SB3 makes of as many environments."""
    model = Simulator(SPEC)
    theirs = record(DummyVecEnv([lambda: ModelEnv(model, STARTS, 15)] * 3))
    ours = record(VectorEnvAdapter(ModelVectorEnv(model, STARTS, 3, 15, mode)))
    assert ours == theirs
    assert any(True in step[2] for step in ours[2::2])


def test_seeding_again_repeats_and_resetting_goes_on() -> None:
    env = VectorEnvAdapter(ModelVectorEnv(Simulator(SPEC), STARTS, 3, 15))
    first = record(env)
    assert record(env) == first
    assert env.reset().tolist() != first[0]


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_sb3_trains_inside_a_model(algorithm: type[PPO] | type[SAC]) -> None:
    model = Simulator(env_spec("Pendulum-v1"))
    starts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    env = VectorEnvAdapter(ModelVectorEnv(model, starts, 4, 20))
    options: dict[str, Any] = {"n_steps": 16, "batch_size": 32} if algorithm is PPO else {"learning_starts": 20}
    learner = algorithm("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]}, **options)
    learner.learn(100)
    assert learner.num_timesteps >= 100
    assert len(learner.ep_info_buffer or []) == 0  # nobody monitors here


def test_attributes_and_wrappers() -> None:
    single = VectorEnvAdapter(SyncVectorEnv([make_cartpole] * 2))
    assert single.env_is_wrapped(Telling) == [True, True]
    assert single.env_is_wrapped(gym.wrappers.RecordVideo, indices=[0]) == [False]
    assert single.get_attr("count", indices=[1]) == [0]
    single.set_attr("count", 4)
    assert single.get_attr("count") == [4, 4]
    assert single.env_method("reset", seed=1, indices=0)[0][1] == {"begun": 1.0}
    with pytest.raises(UserError):
        single.set_attr("count", 4, indices=0)
    many = VectorEnvAdapter(ModelVectorEnv(Simulator(SPEC), STARTS, 2, 7))
    assert many.get_attr("max_episode_steps") == [7, 7]
    assert many.env_is_wrapped(Telling) == [False, False]
    assert not many.has_attr("count")
    with pytest.raises(UserError, match="no single environments"):
        many.env_method("reset")


def test_options_are_passed_on_when_all_rows_have_the_same() -> None:
    env = VectorEnvAdapter(SyncVectorEnv([make_cartpole] * 2))
    env.seed(0)
    env.set_options({"low": -0.001, "high": 0.001})
    assert np.abs(env.reset()).max() <= 0.001
    env.set_options([{"low": -0.001, "high": 0.001}, {}])
    with pytest.raises(UserError, match="one set of options"):
        env.reset()
