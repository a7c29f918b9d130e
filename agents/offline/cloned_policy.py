"""The policy of learners that clone actions of the data: what it does, and how much an action surprises it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from agents.actor_critic.networks import Network
from envs.errors import UserError
from envs.spec import EnvSpec

PolicyKind = Literal["gaussian", "deterministic"]
LOG_STD_BOUNDS = (-5.0, 2.0)
"""As in IQL's public code; the paper does not name them."""


class ClonedPolicy:
    """An actor that is trained on actions of others: ``tanh`` of a network, around it a Gaussian or nothing.

    The Gaussian has one standard deviation for each dimension in all states and is not squashed, so that the data's
    actions at the bounds have a finite likelihood (Kostrikov, Nair, Levine, 2021). Discrete actions have a softmax.

    Args:
        spec: the environment.
        kind: what lies around ``tanh``; with discrete actions ``gaussian`` stands for the softmax.
        hidden: width of the hidden layers.
        layers: their number.
    """

    def __init__(self, spec: EnvSpec, kind: PolicyKind, hidden: int, layers: int) -> None:
        self.kind: PolicyKind | Literal["softmax"] = "softmax" if spec.action.discrete else kind
        if spec.action.discrete and kind == "deterministic":
            raise UserError("policy", kind, f"{spec.id} has discrete actions; leave the policy at gaussian")
        self.network, self.actions = Network(spec.obs_size, spec.action.size, hidden, layers), spec.action.size

    def draw(self, generator: Generator) -> Tensor:
        """Fresh parameters as one vector, the last ``A`` of them log standard deviations."""
        return torch.cat([self.network.draw(generator), torch.zeros(self.actions)])

    def views(self, vector: Tensor) -> list[Tensor]:
        """The network's parameters, then the log standard deviations ``[A]``."""
        network, log_std = vector.split([self.network.size, self.actions])
        return [*self.network.views(network), log_std]

    def mode(self, params: list[Tensor], obs: Tensor) -> Tensor:
        """``[B, A]``"""
        out = self.network(params[:-1], obs)
        return F.one_hot(out.argmax(-1), self.actions).to(out.dtype) if self.kind == "softmax" else torch.tanh(out)

    def sample(self, params: list[Tensor], obs: Tensor, generator: Generator) -> Tensor:
        """``[B, A]``; a deterministic policy's mode."""
        if self.kind == "softmax":
            odds = self.network(params[:-1], obs).softmax(-1)
            chosen = torch.multinomial(odds, 1, generator=generator).squeeze(-1)
            return F.one_hot(chosen, self.actions).to(odds.dtype)
        mode = self.mode(params, obs)
        if self.kind == "deterministic":
            return mode
        noise = torch.randn(mode.shape, generator=generator, device=mode.device)
        return (mode + params[-1].clamp(*LOG_STD_BOUNDS).exp() * noise).clamp(-1.0, 1.0)

    def surprise(self, params: list[Tensor], obs: Tensor, action: Tensor) -> Tensor:
        """``[B]`` what to minimise: ``-log pi(a|s)``, or ``|pi(s) - a|^2`` of a deterministic policy."""
        out = self.network(params[:-1], obs)
        if self.kind == "softmax":
            return -(out.log_softmax(-1) * action).sum(-1)
        gap = torch.tanh(out) - action
        if self.kind == "deterministic":
            return gap.square().sum(-1)
        log_std = params[-1].clamp(*LOG_STD_BOUNDS)
        return (0.5 * (gap / log_std.exp()).square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)
