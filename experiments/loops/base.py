"""What all loops share: rounds of learning between evaluations and checkpoints, and a state that continues exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from agents.base import Agent
from experiments.checkpoint import CheckpointStore, global_random_states, set_global_random_states
from experiments.config import RunConfig
from experiments.evaluation import Evaluator
from experiments.reporter import Reporter
from mbrl import seeding
from mbrl.clock import Clock


class Loop(ABC):
    """Trains ``agent`` for ``config.steps`` steps; the first round that reaches them is the last.

    What it does between two checkpoints depends on nothing but the first of them.
    """

    watcher: ClassVar[Callable[[Loop], None] | None] = None
    """Told of each evaluation when it is on disk; it may save the loop, and end the process."""

    def __init__(
        self, config: RunConfig, agent: Agent, evaluator: Evaluator, checkpoints: CheckpointStore, reporter: Reporter
    ) -> None:
        self.config, self.agent, self.evaluator = config, agent, evaluator
        self.checkpoints, self.reporter = checkpoints, reporter
        self.clock = Clock()
        self.best = -np.inf
        self.started = False
        self.finished = False

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many of the run's steps are done."""

    @abstractmethod
    def due(self, every: int) -> bool:
        """Whether the last round reached or passed a multiple of ``every`` steps; never when that is 0."""

    @abstractmethod
    def begin(self) -> None:
        """What comes before the first step."""

    @abstractmethod
    def advance(self) -> None:
        """One round."""

    def run(self) -> dict[str, Any]:
        """Train to the end; the final evaluation's values."""
        if not self.started:
            self.started = True
            self.begin()
            self.save()
        while self.steps < self.config.steps:
            self.advance()
            if self.steps < self.config.steps:
                self.between()
        result = self.conclude()
        self.finished = True
        self.save()
        return result

    def between(self) -> None:
        """Evaluate and save where it is time to."""
        if self.due(self.config.evaluation.every):
            self.evaluate()
        if self.due(self.config.checkpoint.every):
            self.save()

    def conclude(self) -> dict[str, Any]:
        """The last evaluation."""
        return self.evaluate()

    def learn(self) -> None:
        """Have the agent learn what is due, and report it."""
        for event, values in self.agent.update(self.clock).items():
            self.reporter.record(event, self.clock, values)

    def evaluate(self) -> dict[str, Any]:
        values = self.measure()
        self.reporter.record("evaluation", self.clock, values)
        if values["return_mean"] > self.best:
            self.best = values["return_mean"]
            self.checkpoints.save_best(self.weights())
        if self.config.checkpoint.policies:
            self.checkpoints.save_policy(self.steps, self.weights())
        if Loop.watcher is not None:
            Loop.watcher(self)
        return values

    def measure(self) -> dict[str, Any]:
        """The values of one evaluation."""
        return self.evaluator.evaluate(self.agent, seeding.generator(self.config.seed, "evaluate", self.steps))

    def weights(self) -> dict[str, Any]:
        """What an evaluation needs of a checkpoint."""
        return {"agent": self.agent.state_dict(), "clock": self.clock.state_dict()}

    def save(self) -> None:
        """Write a checkpoint: everything that the rest of the run depends on."""
        self.checkpoints.save(self.steps, self.state_dict(), self.agent.buffers)
        self.reporter.flush()

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "agent": self.agent.state_dict(),
            "global": global_random_states(),
            "best": float(self.best),
            "finished": self.finished,
            **self.reporter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; last of all the global random states, which building may have used."""
        self.clock.load_state_dict(state["clock"])
        self.agent.load_state_dict(state["agent"])
        self.checkpoints.restore_buffers(state, self.agent.buffers)
        self.load_own_state(state)
        self.best, self.finished, self.started = state["best"], state["finished"], True
        set_global_random_states(state["global"])

    def load_own_state(self, state: dict[str, Any]) -> None:
        """What a kind of loop adds to the state."""

    def close(self) -> None:
        """Close the environments that the loop made itself."""
