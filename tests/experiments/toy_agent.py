"""A small agent that exercises everything a checkpoint must hold: a network, an optimiser, a buffer that wraps and has
weights, recurrent actor state, its own random stream, and the global ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.seeding import derive_seed


@dataclass
class ToyState(ActorState):
    memory: Tensor


class ToyAgent(Agent):
    """Predicts the reward; acts by a random network of observation and memory."""

    def __init__(self, spec: EnvSpec, capacity: int = 300, every: int = 20) -> None:
        super().__init__(spec)
        self.every = every
        self.net = torch.nn.Linear(spec.obs_size + spec.action.size, spec.action.size)
        self.optimizer = torch.optim.Adam(self.net.parameters())
        self.buffers["real"] = ReplayBuffer(capacity, extra={"memory": (spec.action.size,)})
        self.generator = torch.Generator()

    def seed(self, run_seed: int) -> None:
        self.generator.manual_seed(derive_seed(run_seed, "agent"))

    def initial_actor_state(self, slots: int) -> ToyState:
        return ToyState(torch.zeros(slots, self.spec.action.size))

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        assert isinstance(actor_state, ToyState)
        memory = torch.where(is_first[:, None], 0.0, actor_state.memory)
        memory = 0.9 * memory + torch.tanh(self.net(torch.cat([obs, memory], 1)))
        noise = torch.randn(memory.shape, generator=generator) if mode == "explore" else 0.0
        return (memory + noise).clamp(-1, 1), ToyState(memory), {"memory": memory}

    def observe(self, transitions: Transitions) -> None:
        self.buffers["real"].extend(transitions)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        if not clock.due(self.every):
            return {}
        buffer = self.buffers["real"]
        ids = buffer.sample_ids(32, self.generator, weighted=True)
        rows = buffer[ids]
        loss = (self.net(torch.cat([rows.obs, rows.action], 1)).mean(1) - rows.reward).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        buffer.set_weights(ids, torch.rand(len(ids), generator=self.generator) + 0.1)
        clock.updates += 1
        luck = [random.random(), float(np.random.rand()), float(torch.rand(())), float(np.random.normal())]
        return {"update": {"loss": float(loss.detach()), "luck": luck, "empty": float("nan")}}

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
