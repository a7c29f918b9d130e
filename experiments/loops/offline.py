"""The offline loop: learn from a dataset, evaluate in its environment, and be ready to be killed at any moment."""

from __future__ import annotations

from typing import Any

import torch

from agents.offline.base import OfflineAgent
from experiments.checkpoint import CheckpointStore
from experiments.config import RunConfig
from experiments.evaluation import Evaluator
from experiments.given_data import GivenData
from experiments.loops.base import Loop
from experiments.reporter import Reporter
from mbrl.data.buffer import ReplayBuffer


class OfflineLoop(Loop):
    """Trains ``agent`` on ``data`` for ``config.steps`` gradient steps; ``clock.env_steps`` stays 0.

    Evaluations say besides the return its normalised ``score`` in per cent, where the dataset names the returns of a
    random and an expert policy. Records of updates that have ``q`` say the range that a value can lie in by the
    rewards in the data, and whether ``q`` lies outside. The dataset is no part of a checkpoint; what it was is.
    """

    agent: OfflineAgent

    def __init__(
        self,
        config: RunConfig,
        agent: OfflineAgent,
        data: GivenData,
        evaluator: Evaluator,
        checkpoints: CheckpointStore,
        reporter: Reporter,
    ) -> None:
        super().__init__(config, agent, evaluator, checkpoints, reporter)
        self.data = data
        self.clock.phase = "offline"
        agent.expect(config.steps)
        self.previous_updates = 0
        self.value_range = attainable(data.buffer, getattr(agent.learner, "gamma", None))

    @property
    def steps(self) -> int:
        return self.clock.updates

    def due(self, every: int) -> bool:
        return every > 0 and self.clock.updates // every > self.previous_updates // every

    def begin(self) -> None:
        """Hand over the data."""
        self.agent.load(self.data.buffer)

    def advance(self) -> None:
        self.previous_updates = self.clock.updates
        for event, values in self.agent.update(self.clock).items():
            self.reporter.record(event, self.clock, values | (self._range(values) if event == "update" else {}))
        self.reporter.progress(self.clock)

    def _range(self, values: dict[str, Any]) -> dict[str, Any]:
        """Whether the critics' mean is a value that a policy can have at all: the first sign of one that runs away."""
        if "q" not in values or self.value_range is None:
            return {}
        low, high = self.value_range
        return {"value_low": low, "value_high": high, "q_outside": not low <= values["q"] <= high}

    def measure(self) -> dict[str, Any]:
        values = super().measure()
        score = self.data.score(values["return_mean"])
        return values if score is None else values | {"score": score}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data": self.data.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.verify(state.get("data"))
        super().load_state_dict(state)

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.agent.load(self.data.buffer)


def attainable(data: ReplayBuffer, gamma: float | None) -> tuple[float, float] | None:
    """Lowest and highest discounted return of a stream of the data's rewards; None without a discount below 1.

    An episode that terminates earns nothing from then on: where one does, rewards of 0 count as well.
    """
    if gamma is None or not gamma < 1.0:
        return None
    rewards = data.columns["reward"].double()
    low, high = float(rewards.min()), float(rewards.max())
    if bool(torch.any(data.columns["terminated"])):
        low, high = min(low, 0.0), max(high, 0.0)
    return low / (1.0 - gamma), high / (1.0 - gamma)
