"""Stable-baselines3's replay buffers over the platform's: their sampling, our memory and checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer as LibraryBuffer

from agents.sb3.loop_env import LoopEnv
from mbrl.data.buffer import ReplayBuffer


class RingReplay(LibraryBuffer):
    """Keeps the rows in :attr:`ring`, one a step and slot, in order of time; the library's arrays are views of it.

    So the library samples as it always does, and a checkpoint writes only the rows that are new. A row's action is
    the one that the library stores (before it is scaled to the environment and back).
    """

    def __init__(self, *args: Any, source: LoopEnv, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        extra: dict[str, tuple[int, ...]] = {"done": (), "timeout": ()}
        self._discrete = source.spec.action.discrete
        self._source = source
        self.ring = ReplayBuffer(self.buffer_size * self.n_envs, extra | ({"choice": (1,)} if self._discrete else {}))

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        rows = self._source.transitions
        assert rows is not None
        cut = [self.handle_timeout_termination and info["TimeLimit.truncated"] for info in infos]
        extra = {"done": torch.from_numpy(done).float(), "timeout": torch.tensor(cut).float()}
        stored = torch.from_numpy(action)
        if self._discrete:
            extra["choice"], stored = stored.reshape(-1, 1).float(), rows.action
        self.ring.extend(dataclasses.replace(rows, action=stored, sim_state=None, extra=extra))
        self.refresh()

    def refresh(self) -> None:
        """Look at the ring anew: its memory is allocated by the first rows, or when a checkpoint is read."""
        steps = self.ring.total_added // self.n_envs
        self.pos, self.full = steps % self.buffer_size, steps >= self.buffer_size
        if not self.ring.columns:
            return
        self.observations, self.next_observations = self._view("obs"), self._view("next_obs")
        self.actions = self._view("extra.choice" if self._discrete else "action")
        self.rewards, self.dones, self.timeouts = map(self._view, ("reward", "extra.done", "extra.timeout"))

    def _view(self, column: str) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self.ring.columns[column].numpy()
        return rows.reshape(self.buffer_size, self.n_envs, *rows.shape[1:])


class NStepRingReplay(RingReplay, NStepReplayBuffer):
    """The same with rewards summed over several steps when rows are sampled."""
