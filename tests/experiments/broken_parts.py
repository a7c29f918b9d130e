"""Parts of a user that are broken in ways which only show on a worker, in the middle of a run."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from mbrl.imagination.filters import Filter, Move
from mbrl.models.base import DynamicsModel


class Raises(gym.Env[Any, Any]):
    """Every step from the 50th of the process on."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    max_episode_steps = 200
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps >= 50:
            self.break_down()
        return self.look(), 1.0, False, False, {}

    def look(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def break_down(self) -> None:
        raise ZeroDivisionError("the motor of this user is broken")


class Dies(Raises):
    """Takes its process with it, as a fault in native code would."""

    def break_down(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class BrokenFilter(Filter):
    """Fails at work, not when it is made."""

    def __call__(self, model: DynamicsModel, move: Move, generator: torch.Generator) -> Move:
        raise ZeroDivisionError("the filter of this user is broken")
