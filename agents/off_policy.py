"""Model-free: an actor-critic that learns from what happened, and nothing else. The honest control of every model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from agents.actor_critic.learner import ActorCritic
from agents.actor_critic.representation import draw_windows
from agents.base import ActorState, Agent, Mode
from agents.common import RunningMean, random_action, updates_owed
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_buffer import mixed_batches

MOST_UPDATES = 64
"""Updates whose batches are drawn at once: a bound on memory."""


class OffPolicyAgent(Agent):
    """Acts with the learner's policy, keeps every transition, learns from uniform batches.

    Args:
        spec: the environment.
        learner: factory of the actor-critic.
        warmup_steps: env steps of uniformly random actions first, without learning.
        updates_per_step: critic updates for each env step after the warm-up (several environments side by side
            make several env steps).
        batch_size: rows of a batch.
        capacity: transitions kept.
        log_every: env steps between two records of the learner's metrics.
        device: where it learns and keeps the transitions.
    """

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], ActorCritic],
        warmup_steps: int = 1000,
        updates_per_step: int = 1,
        batch_size: int = 256,
        capacity: int = 1_000_000,
        log_every: int = 250,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, device)
        if warmup_steps < 0:
            raise UserError("warmup_steps", warmup_steps, "give a whole number of at least 0")
        if min(updates_per_step, batch_size, log_every) < 1:
            seen = (updates_per_step, batch_size, log_every)
            raise UserError("updates_per_step, batch_size, log_every", seen, "each is at least 1")
        self.learner = learner(spec).to(self.device)
        self.warmup_steps, self.updates_per_step, self.batch_size = warmup_steps, updates_per_step, batch_size
        self.log_every = log_every
        self.buffers["real"] = ReplayBuffer(capacity, device=self.device)
        self.generator = torch.Generator(self.device)
        self.metrics = RunningMean()
        self.slots = 1

    def seed(self, run_seed: int) -> None:
        self.generator.manual_seed(seeding.derive_seed(run_seed, "agent"))
        self.learner.seed(seeding.derive_seed(run_seed, "learner"))

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """Random while warming up, sampled while exploring, the policy's mode while evaluated."""
        if mode == "evaluate":
            return self.learner.act(obs, None), actor_state, {}
        if self.warming_up:
            return random_action(self.spec.action, len(obs), generator), actor_state, {}
        return self.learner.act(obs, generator), actor_state, {}

    @property
    def warming_up(self) -> bool:
        return self.buffers["real"].total_added < self.warmup_steps

    def observe(self, transitions: Transitions) -> None:
        self.slots = len(transitions)
        self.buffers["real"].extend(transitions)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        owed = updates_owed(clock, self.warmup_steps, self.updates_per_step)
        for done in range(0, owed, MOST_UPDATES):
            count = min(MOST_UPDATES, owed - done)
            self.metrics.add(self.learn_representation(count))
            self.metrics.add(self.learner.update(self.draw(count), self.generator))
        clock.updates += owed
        found = self.metrics.pop() if clock.due(self.log_every) else {}
        return {"update": found} if found else {}

    def draw(self, count: int) -> Transitions:
        """``[count, batch_size, ...]``: what the next updates learn from."""
        return mixed_batches(self.buffers["real"], None, 1.0, count, self.batch_size, self.generator)

    def learn_representation(self, count: int) -> dict[str, float]:
        """Before the next ``count`` updates: those of the representation that are due, on windows of real data."""
        part = self.learner.representation
        if part is None or not (due := part.owed(self.learner.updates, count)):
            return {}
        lead = (due, part.batch_size)
        windows = draw_windows(self.buffers["real"], self.slots, lead, part.horizon, self.generator)
        return {} if windows is None else part.update(windows)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "learner": self.learner.state_dict(),
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.learner.load_state_dict(state["learner"])
        self.metrics.load_state_dict(state["metrics"])
