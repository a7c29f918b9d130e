"""What all agents that learn from a dataset share: the data, rounds of updates, acting with what was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from agents.common import RunningMean
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.labels import need_actions
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_buffer import mixed_batches


@runtime_checkable
class Learner(Protocol):
    """Learns a policy from batches: :class:`~agents.actor_critic.learner.ActorCritic` and others of its shape."""

    def seed(self, seed: int) -> None: ...
    def to(self, device: torch.device | str) -> Self: ...
    def act(self, obs: Tensor, generator: Generator | None) -> Tensor:
        """Actions ``[B, A]`` for raw ``obs [B, D]``; without a generator the policy's mode."""

    def update(self, batches: Transitions, generator: Generator) -> dict[str, float]:
        """One update for each of ``U`` batches ``[U, B, ...]``; means over them, to be logged."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Scheduled(Protocol):
    """A learner that may follow a schedule over the whole run."""

    def expect(self, updates: int) -> None:
        """Say how many updates there will be."""


class OfflineAgent(Agent):
    """Learns from a fixed dataset by gradient steps on uniform batches; never acts to learn.

    The dataset is given by :meth:`load`, is not part of the checkpoint and is not changed; it may lie in main memory
    while ``device`` is a GPU: batches are gathered where the rows are. Each :meth:`update` is a round of
    ``round_updates`` gradient steps, counted by ``clock.updates``: a run's ``steps`` are these.

    Args:
        spec: the environment that the data is from.
        learner: factory of what learns the policy.
        batch_size: rows of a batch.
        round_updates: gradient steps of a round; evaluations and checkpoints lie between rounds.
        log_every: gradient steps between two records of the learner's metrics.
        device: where it learns.
    """

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], Learner],
        batch_size: int = 256,
        round_updates: int = 50,
        log_every: int = 1000,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, device)
        if min(batch_size, round_updates, log_every) < 1:
            seen = (batch_size, round_updates, log_every)
            raise UserError("batch_size, round_updates, log_every", seen, "each is at least 1")
        self.learner = learner(spec).to(self.device)
        self.batch_size, self.round_updates, self.log_every = batch_size, round_updates, log_every
        self.generator = torch.Generator(self.device)
        self.metrics = RunningMean()
        self.run_seed = 0
        self._data: ReplayBuffer | None = None
        self._expected: int | None = None

    @property
    def data(self) -> ReplayBuffer:
        """The dataset."""
        if self._data is None:
            raise UserError("data", None, f"{type(self).__name__} learns from data: give --data PATH")
        return self._data

    def check(self, data: ReplayBuffer) -> None:
        """Raise ``UserError`` where this agent cannot learn from ``data``. A run asks before anything is on disk."""
        need_actions(data, type(self).__name__)

    def load(self, data: ReplayBuffer) -> None:
        """Take the dataset: once, before the first update, and again after a checkpoint has been loaded.

        Raises ``UserError`` as :meth:`check` does.
        """
        self.check(data)
        self._data = data

    def expect(self, updates: int) -> None:
        """Say how many gradient steps the run has, before the first one.

        It takes no more, and a learner's step size may follow them.
        """
        self._expected = updates
        if isinstance(self.learner, Scheduled):
            self.learner.expect(updates)

    def seed(self, run_seed: int) -> None:
        self.generator.manual_seed(seeding.derive_seed(run_seed, "agent"))
        self.learner.seed(seeding.derive_seed(run_seed, "learner"))
        self.run_seed = run_seed

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """The policy's mode while evaluated, sampled otherwise."""
        return self.learner.act(obs, None if mode == "evaluate" else generator), actor_state, {}

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """One round; of the last one what is left of the run."""
        before, count = clock.updates, self.round_updates
        if self._expected is not None and self._expected > before:
            count = min(count, self._expected - before)
        self.metrics.add(self.learn(self.draw(count)))
        clock.updates += count
        due = clock.updates // self.log_every > before // self.log_every
        return {"update": self.metrics.pop()} if due else {}

    def draw(self, count: int) -> Transitions:
        """``[count, batch_size, ...]``: what the next updates learn from."""
        return mixed_batches(self.data, None, 1.0, count, self.batch_size, self.generator)

    def learn(self, batches: Transitions) -> dict[str, float]:
        """The updates of a round, on ``[U, B, ...]``."""
        return self.learner.update(batches.to(self.device), self.generator)

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
