"""Real and made-up transitions for tests of datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs import make_env
from mbrl.data.buffer import flatten
from mbrl.data.transitions import Transitions

BOOLS, IDS = ("terminated", "truncated"), ("episode", "step", "policy_version")


def play(id: str, episodes: int = 4, limit: int = 25, **env_options: Any) -> Transitions:
    """Random episodes; episode ``e`` begins with ``reset(seed=e)``."""
    env, luck = make_env(id, max_episode_steps=limit, **env_options), np.random.default_rng(0)
    size, discrete = env.env_spec.action.size, env.env_spec.action.discrete
    columns: dict[str, list[Any]] = {}
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        done, step = False, 0
        while not done:
            index = int(luck.integers(size))
            action = np.eye(size, dtype=np.float32)[index] if discrete else luck.uniform(-1, 1, size).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(index if discrete else action)
            row = {"obs": obs, "action": action, "reward": reward, "next_obs": after, "terminated": terminated}
            row |= {"truncated": truncated, "episode": episode, "step": step, "policy_version": episode // 2}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
            obs, done, step = after, terminated or truncated, step + 1
    env.close()
    return Transitions(**{name: torch.as_tensor(np.array(column)).to(kind(name)) for name, column in columns.items()})


def kind(name: str) -> torch.dtype:
    return torch.bool if name in BOOLS else torch.int64 if name in IDS else torch.float32


def odd_rows() -> Transitions:
    """What a buffer may hold: interleaved episodes, a late first step, a gap, a next_obs that is not the next row's
    obs, an episode that is cut off, and all optional columns.
    """
    luck = torch.Generator().manual_seed(0)
    episode = torch.tensor([7, 3, 7, 3, 7, 3, 7, 3, 7, 7, 5, 5, 5])
    step = torch.tensor([4, 0, 5, 1, 6, 2, 9, 3, 10, 11, 0, 1, 2])
    count = len(episode)
    path = torch.randn(20, 20, 3, generator=luck)
    next_obs = path[episode, step + 1]
    next_obs[3] += 1.0  # noise that only one of the two observations has
    terminated = torch.zeros(count, dtype=torch.bool)
    terminated[7] = True
    truncated = torch.zeros(count, dtype=torch.bool)
    truncated[[7, 9]] = True
    return Transitions(
        obs=path[episode, step],
        action=torch.rand(count, 2, generator=luck) * 2 - 1,
        reward=torch.randn(count, generator=luck),
        next_obs=next_obs,
        terminated=terminated,
        truncated=truncated,
        episode=episode,
        step=step,
        policy_version=torch.arange(count),
        task=episode % 2,
        sim_state=torch.randn(count, 4, generator=luck, dtype=torch.float64),
        extra={"log_prob": torch.randn(count, generator=luck), "params": torch.randn(count, 2, generator=luck)},
    )


def differences(one: Transitions, other: Transitions) -> list[str]:
    """Names of the columns that are not the same to the bit, dtype and shape; empty for equal rows."""
    mine, theirs = flatten(one), flatten(other)
    odd = sorted(set(mine) ^ set(theirs))
    both = [name for name in mine if name in theirs]
    return odd + [name for name in both if not _same_bits(mine[name], theirs[name])]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
