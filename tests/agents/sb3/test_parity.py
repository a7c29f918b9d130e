"""Through the platform's loop an algorithm does to the bit what the library's own ``learn`` does."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.boundary import BoundaryEnv
from envs.registry import make_env
from experiments.config import resolve
from experiments.metrics import read_records
from experiments.session import Session, seed_everything
from mbrl.seeding import derive_seed

SEED = 4
SMALL = {"policy_kwargs": {"net_arch": [16]}, "batch_size": 16}
FALLING = {"start": 1e-3, "end": 1e-4}
OFF_POLICY = SMALL | {"learning_rate": FALLING, "learning_starts": 40}
NATIVE: dict[str, Any] = {
    "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
    "clip_range": LinearSchedule(0.3, 0.1, 1.0),
    "normal": lambda size: NormalActionNoise(np.zeros(size), np.full(size, 0.1)),
    "ornstein-uhlenbeck": lambda size: OrnsteinUhlenbeckActionNoise(np.zeros(size), np.full(size, 0.2)),
}


@dataclass(frozen=True)
class Case:
    """``native`` replaces what the recipe writes in another form than the library's constructor."""

    env: str
    kwargs: dict[str, Any]
    native: dict[str, Any] = field(default_factory=lambda: {"learning_rate": NATIVE["learning_rate"]})
    slots: int = 1
    steps: int = 120

    @property
    def direct(self) -> dict[str, Any]:
        return copy.deepcopy(self.kwargs | self.native)  # a constructor writes into what it is given


NOISY = NATIVE["normal"](1)
PPO = {"n_steps": 32, "n_epochs": 3, "learning_rate": FALLING, "clip_range": {"start": 0.3, "end": 0.1}} | SMALL
DQN = {"train_freq": 2, "target_update_interval": 20, "exploration_fraction": 0.5, "gradient_steps": -1}
CASES = {
    "sac": Case("Pendulum-v1", OFF_POLICY),
    "ppo": Case("InvertedPendulum-v5", PPO, {name: NATIVE[name] for name in ("learning_rate", "clip_range")}, slots=2),
    "dqn": Case("CartPole-v1", OFF_POLICY | DQN, slots=2),
    "td3": Case(
        "Pendulum-v1",
        OFF_POLICY | {"action_noise": {"kind": "ornstein-uhlenbeck", "std": 0.2}},
        {"learning_rate": NATIVE["learning_rate"], "action_noise": NATIVE["ornstein-uhlenbeck"](1)},
        slots=2,
    ),
    "ddpg": Case(
        "InvertedPendulum-v5",
        OFF_POLICY | {"action_noise": {"kind": "normal", "std": 0.1}, "train_freq": [1, "episode"]},
        {"learning_rate": NATIVE["learning_rate"], "action_noise": NOISY, "train_freq": (1, "episode")},
    ),
    "tqc": Case("InvertedPendulum-v5", OFF_POLICY | {"buffer_size": 60, "n_steps": 3}, slots=2),
    "crossq": Case("Pendulum-v1", OFF_POLICY | {"use_sde": True}),
}

QUICK = ("sac", "ppo", "dqn")


class Trace(Logger):
    """Every value of a schedule, in order."""

    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self.seen: list[tuple[str, float]] = []

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        if key.endswith(("learning_rate", "exploration_rate", "clip_range")):
            self.seen.append((key, float(value)))


class PerEpisodeSeeds(gym.Wrapper[Any, Any, Any, Any]):
    """Begins each episode with the seed that the platform gives it; keeps the returns of those that ended."""

    def __init__(self, env: BoundaryEnv, slot: int, returns: list[float]) -> None:
        super().__init__(env)
        self.slot, self.returns, self.episode, self.total = slot, returns, 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.total = self.episode + 1, 0.0
        return self.env.reset(seed=derive_seed(SEED, "env", self.slot, self.episode - 1), options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(np.float32(reward))
        if terminated or truncated:
            self.returns.append(self.total)
        return obs, reward, terminated, truncated, info


Outcome = tuple[list[float], list[tuple[str, float]], dict[str, torch.Tensor]]
"""Episode returns, values of schedules, final weights."""


def directly(name: str, case: Case, pieces: int = 1) -> Outcome:
    """The library's own ``learn``, with every random state seeded as the platform does."""
    returns: list[float] = []
    env = DummyVecEnv(
        [
            lambda slot=slot: PerEpisodeSeeds(make_env(case.env, max_episode_steps=30), slot, returns)
            for slot in range(case.slots)
        ]
    )
    spelled = {"sac": "SAC", "ppo": "PPO", "dqn": "DQN", "td3": "TD3", "ddpg": "DDPG", "tqc": "TQC", "crossq": "CrossQ"}
    cls = getattr(stable_baselines3, spelled[name], None) or getattr(sb3_contrib, spelled[name])
    torch.manual_seed(derive_seed(SEED, "init"))
    model = cls("MlpPolicy", env, device="cpu", **case.direct)
    model.action_space.seed(derive_seed(SEED, "agent"))
    seed_everything(SEED)
    trace = Trace()
    model.set_logger(trace)
    for piece in range(pieces):
        model.learn(case.steps // pieces, reset_num_timesteps=piece == 0, log_interval=None)
    return returns, trace.seen, model.policy.state_dict()


def through_the_loop(name: str, case: Case, out: Path) -> Outcome:
    """With evaluations and checkpoints on the way, which must leave no trace."""
    overrides = {
        "seed": SEED,
        "steps": case.steps,
        "num_envs": case.slots,
        "env.max_episode_steps": 30,
        "evaluation": {"every": 50, "episodes": 2, "num_envs": 2},
        "checkpoint.every": 60,
        "agent.init_args.kwargs": case.kwargs,
    }
    session = Session(resolve(f"sb3-{name}", list(overrides.items()), case.env))
    trace = Trace()
    model: Any = session.agent.model  # type: ignore[attr-defined]
    model.set_logger(trace)
    with session.loop(session.create(str(out), []), quiet=True) as loop:
        loop.run()
    session.close()
    returns = [record["return"] for record in read_records(out / "metrics.jsonl") if record["event"] == "episode"]
    return returns, trace.seen, model.policy.state_dict()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n not in QUICK)])
def test_the_loop_equals_the_library(name: str, tmp_path: Path) -> None:
    ours, theirs = through_the_loop(name, CASES[name], tmp_path / "run"), directly(name, CASES[name])
    assert len(ours[0]) > 3
    assert ours[0] == theirs[0]
    assert len({value for _, value in ours[1]}) > 2
    assert ours[1] == theirs[1]
    assert ours[2].keys() == theirs[2].keys()
    assert all(torch.equal(ours[2][key], theirs[2][key]) for key in ours[2])


@pytest.mark.parametrize("name", QUICK)
def test_learning_in_pieces_is_something_else(name: str) -> None:
    """The control: ``learn`` called again begins the schedules anew, which the comparison above would notice."""
    whole, pieces = directly(name, CASES[name]), directly(name, CASES[name], pieces=2)
    assert whole[1] != pieces[1]
    assert whole[0] != pieces[0] or any(not torch.equal(whole[2][key], pieces[2][key]) for key in whole[2])
