"""Extra terms of the critics' loss: what many papers add to the same learner."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.errors import UserError


@dataclass(frozen=True)
class CriticContext:
    """What a term sees: one batch, and the critics whose parameters are being differentiated."""

    evaluate: Callable[[Tensor, Tensor], Tensor]
    """``(obs [B, D] or [N, B, D], action [B, A] or [N, B, A]) -> [N, B]``"""
    obs: Tensor
    action: Tensor
    predicted: Tensor
    """``[N, B]`` values of the batch's own actions"""
    target: Tensor
    """``[B]``, no gradient"""


class CriticTerm(ABC):
    """Added to the sum over critics of the mean squared error."""

    @abstractmethod
    def __call__(self, context: CriticContext) -> Tensor:
        """A 0-dim loss. It is traced by torch.compile, so it is made of tensor operations only."""


class GradientDiversity(CriticTerm):
    """``eta / (N - 1)`` times the batch's mean of the sum over pairs ``i != j`` of the cosine between the critics'
    gradients with respect to the action.

    An, Moon, Kim, Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", 2021 (EDAC).
    For one critic it is 0. Continuous actions only.

    Args:
        eta: the weight; published values lie between 0 and 10 (1 for most offline MuJoCo tasks).
    """

    def __init__(self, eta: float = 1.0) -> None:
        if not 0.0 <= eta < math.inf:
            raise UserError("eta", eta, "give a finite number of at least 0")
        self.eta = eta

    def __call__(self, context: CriticContext) -> Tensor:
        critics = context.predicted.shape[0]
        if critics == 1:
            return context.predicted.new_zeros(())
        # a copy of the actions for each critic: one gradient of the sum serves all of them
        actions = context.action.expand(critics, *context.action.shape)
        gradient = torch.func.grad(lambda action: context.evaluate(context.obs, action).sum())(actions)
        unit = F.normalize(gradient, dim=-1, eps=1e-10)
        # the sum over all pairs is |sum of unit vectors|^2, of which every |unit vector|^2 is no pair
        pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
        return self.eta * pairs.mean() / (critics - 1)
