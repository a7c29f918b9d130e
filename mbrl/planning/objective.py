"""What a planner maximises: signed terms over imagined trajectories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mbrl.models.base import DynamicsModel, Trajectory


class ObjectiveTerm(ABC):
    """One signed summand of an objective."""

    @abstractmethod
    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        """Value ``[P, B]`` of each particle's trajectory under ``actions [H, B, A]``, to be *maximised*."""


class RewardTerm(ObjectiveTerm):
    """Discounted sum of predicted rewards; after a predicted termination it adds nothing."""

    def __init__(self, discount: float = 1.0) -> None:
        self.discount = discount

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        reward = trajectory.reward * trajectory.alive()
        if self.discount != 1.0:
            powers = torch.arange(len(reward), device=reward.device, dtype=reward.dtype)
            reward = reward * (self.discount**powers).view(-1, 1, 1)
        return reward.sum(0)


class Objective:
    """Sum of terms, averaged over particles. A candidate whose score is not finite scores -inf.

    Args:
        terms: what to add to the reward (default: the reward alone).
    """

    def __init__(self, terms: Sequence[ObjectiveTerm] | None = None) -> None:
        self.terms = list(terms) if terms is not None else [RewardTerm()]

    def score(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        """``[B]`` score of candidates ``actions [H, B, A]`` from the trajectory they led to."""
        total = sum(term(model, trajectory, actions) for term in self.terms)
        assert isinstance(total, Tensor)
        value = total.mean(0)
        return torch.where(value.isfinite(), value, torch.full_like(value, -torch.inf))
