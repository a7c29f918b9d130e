"""What happens to a learner between its updates: resets, perturbations, averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from envs.errors import UserError

if TYPE_CHECKING:
    from agents.actor_critic.learner import ActorCritic

Parts = Literal["all", "policy", "critic"]


class Callback(ABC):
    """Called after every update of the critics. It draws random numbers only through the learner."""

    @abstractmethod
    def after(self, learner: ActorCritic) -> None:
        """The learner has made its update number ``learner.updates``."""

    def policy_vector(self) -> Tensor | None:
        """The flat policy to act with when there is no exploration; None: the learner's own."""
        return None

    def after_reset(self, parts: Parts) -> None:
        """A :class:`Reset` has drawn these networks anew: what was gathered of the old ones is of no use."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


class Reset(Callback):
    """Draws networks anew, target networks with them, and starts their optimiser again.

    Nikishin et al., "The Primacy Bias in Deep Reinforcement Learning", 2022: fully for SAC. Nauman et al., "Bigger,
    Regularized, Optimistic", 2024 (BRO): fully, at 15, 50, 250, 500, 750 and 1,000 thousand steps.

    Args:
        at: counts of critic updates.
        parts: which networks.
        last_layers: only so many linear layers, counted from the output; null resets all.
    """

    def __init__(self, at: Sequence[int], parts: Parts = "all", last_layers: int | None = None) -> None:
        if any(count < 1 for count in at):
            raise UserError("at", list(at), "give counts of updates of at least 1")
        if last_layers is not None and last_layers < 1:
            raise UserError("last_layers", last_layers, "give a whole number of at least 1, or leave it out")
        self.at, self.parts, self.last_layers = frozenset(at), parts, last_layers

    def after(self, learner: ActorCritic) -> None:
        if learner.updates in self.at:
            learner.redraw(self.parts, self.last_layers)
            for callback in learner.callbacks:
                callback.after_reset(self.parts)


class ShrinkPerturb(Callback):
    """``theta <- keep * theta + (1 - keep) * fresh``; Ash, Adams, "On Warm-Starting Neural Network Training", 2020.

    Target critics move towards the same fresh weights as the critics.

    Args:
        every: critic updates between two perturbations.
        keep: share of the old weights, in [0, 1].
        parts: which networks.
    """

    def __init__(self, every: int, keep: float = 0.8, parts: Parts = "all") -> None:
        if every < 1 or not 0.0 <= keep <= 1.0:
            raise UserError("every, keep", (every, keep), "every is at least 1 and keep lies in [0, 1]")
        self.every, self.keep, self.parts = every, keep, parts

    def after(self, learner: ActorCritic) -> None:
        if learner.updates % self.every == 0:
            learner.redraw(self.parts, keep=self.keep)


class PolicyAverage(Callback):
    """Exponentially weighted average of the actor's weights, without bias towards the first ones; evaluation acts with
    it, exploration does not. A :class:`Reset` of the policy starts it anew.

    The average's form is that of Hilton, Cobbe, Schulman, "Batch size-invariance for policy optimization", 2022.

    Args:
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError("decay", decay, "give a number in [0, 1)")
        self.decay, self.weight = decay, 0.0
        self.vector: Tensor | None = None

    def after(self, learner: ActorCritic) -> None:
        now = learner.vectors["policy"]
        if self.vector is None:
            self.vector = torch.zeros_like(now)
        self.weight = self.decay * self.weight + 1.0
        self.vector.lerp_(now, 1.0 / self.weight)

    def policy_vector(self) -> Tensor | None:
        return self.vector

    def after_reset(self, parts: Parts) -> None:
        if parts != "critic":
            self.weight, self.vector = 0.0, None

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "vector": None if self.vector is None else self.vector.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.vector = state["weight"], state["vector"]
