"""A point that is pushed to the origin, and an agent that pushes harder the more it has seen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions

ID = "PointOfTheTests-v0"


class Point(gym.Env[Any, Any]):
    """It drifts outwards; beyond 3 the episode is over."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = np.clip(1.2 * self.x + 0.3 * np.asarray(action, np.float32), -10, 10).astype(np.float32)
        return self.x, 4.0 - abs(float(self.x[0])), bool(abs(self.x[0]) > 3.0), False, {}


def register() -> None:
    if ID not in gym.registry:
        gym.register(ID, entry_point=Point, max_episode_steps=20)


class Pusher(Agent):
    """Random for ``warmup`` steps; its gain then grows to 1 by ``by`` env steps. One that does not learn pushes out."""

    def __init__(self, spec: EnvSpec, warmup: int = 100, by: int = 400, learns: bool = True) -> None:
        super().__init__(spec)
        self.warmup, self.by, self.learns = warmup, by, learns
        self.gain = torch.tensor(0.0 if learns else -1.0)
        self.buffers["real"] = ReplayBuffer(1000)

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        noise = torch.rand(len(obs), 1, generator=generator) * 2.0 - 1.0
        if mode == "explore" and self.buffers["real"].total_added < self.warmup:
            return noise, actor_state, {}
        action = -self.gain * obs / 0.6 + (0.1 * noise if mode == "explore" else 0.0)
        return action.clamp(-1.0, 1.0), actor_state, {}

    def observe(self, transitions: Transitions) -> None:
        self.buffers["real"].extend(transitions)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        if self.learns:
            self.gain = torch.tensor(min(1.0, max(0, clock.env_steps - self.warmup) / (self.by - self.warmup)))
        clock.updates += 1
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"gain": self.gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gain = state["gain"]
