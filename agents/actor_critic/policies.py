"""Policy heads: how the actor network's outputs become actions, their log-probabilities, and expectations over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec

LOG_STD_BOUNDS = (-20.0, 2.0)
"""As in the public SAC code; the papers do not name them."""


@dataclass(frozen=True)
class ActionNoise:
    """Noise of a deterministic policy, as standard deviations of actions in [-1, 1].

    Args:
        exploration: while exploring.
        target: on the target's action; 0 is DDPG.
        clip: bound on the target's noise.

    Raises:
        UserError: a number that is negative or not finite.
    """

    exploration: float = 0.1
    target: float = 0.2
    clip: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value < math.inf:
                raise UserError(f"noise.{name}", value, "give a finite number of at least 0")


class Choice(NamedTuple):
    """What a policy would do in ``B`` states: one sampled action each, or all ``A`` discrete ones with their odds."""

    action: Tensor | None
    """``[B, A]``; None: every discrete action at once"""
    log_prob: Tensor | None
    """``[B]``, or ``[B, A]`` of every discrete action; None for a deterministic policy"""
    prob: Tensor | None = None
    """``[B, A]`` of discrete actions"""

    def mean(self, value: Tensor) -> Tensor:
        """``[B]`` expectation of ``value`` (``[B]``, or ``[B, A]`` of every discrete action)."""
        return value if self.prob is None else (self.prob * value).sum(-1)


class Head(Protocol):
    """Works on the actor network's outputs ``[B, outputs]``; noise is standard normal ``[B, A]`` drawn outside."""

    outputs: int
    noise_size: int
    """Columns of noise a row needs while learning; 0: none"""
    entropic: bool
    """Whether the policy has an entropy that enters the losses"""

    def choose(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        """The reparameterised choice that the actor's loss differentiates."""

    def choose_next(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        """The choice in the next state, inside the critics' target."""

    def explore(self, out: Tensor, generator: Generator) -> Tensor:
        """Actions to collect data with, ``[B, A]``."""

    def mode(self, out: Tensor) -> Tensor:
        """Actions without noise, ``[B, A]``."""


class SquashedGaussian:
    """``a = tanh(mean + std * noise)``; Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018."""

    entropic = True

    def __init__(self, spec: EnvSpec) -> None:
        self.noise_size, self.outputs = spec.action.size, 2 * spec.action.size

    def choose(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        """``weights [A]`` weigh the dimensions of the log-probability; None: all 1."""
        mean, log_std = out.chunk(2, -1)
        log_std = log_std.clamp(*LOG_STD_BOUNDS)
        before = mean + log_std.exp() * noise
        # log(1 - tanh(x)^2) written so that it stays finite for large |x|
        slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        each = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi) - slope
        return Choice(torch.tanh(before), (each if weights is None else each * weights).sum(-1))

    choose_next = choose

    def explore(self, out: Tensor, generator: Generator) -> Tensor:
        mean, log_std = out.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(mean + log_std.clamp(*LOG_STD_BOUNDS).exp() * noise)

    def mode(self, out: Tensor) -> Tensor:
        return torch.tanh(out.chunk(2, -1)[0])


class Deterministic:
    """``a = tanh(out)``; Fujimoto, van Hoof, Meger, "Addressing Function Approximation Error in Actor-Critic Methods",
    2018 (TD3): noise while exploring, clipped noise on the target's action.
    """

    entropic = False

    def __init__(self, spec: EnvSpec, std: ActionNoise) -> None:
        self.noise_size = self.outputs = spec.action.size
        self.std = std

    def choose(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        return Choice(torch.tanh(out), None)

    def choose_next(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        smoothing = (self.std.target * noise).clamp(-self.std.clip, self.std.clip)
        return Choice((torch.tanh(out) + smoothing).clamp(-1.0, 1.0), None)

    def explore(self, out: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(out.shape, generator=generator, device=out.device)
        return (torch.tanh(out) + self.std.exploration * noise).clamp(-1.0, 1.0)

    def mode(self, out: Tensor) -> Tensor:
        return torch.tanh(out)


class Categorical:
    """Softmax over discrete actions, expectations in closed form; Christodoulou, "Soft Actor-Critic for Discrete Action
    Settings", 2019.
    """

    entropic, noise_size = True, 0

    def __init__(self, spec: EnvSpec) -> None:
        self.outputs = spec.action.size

    def choose(self, out: Tensor, noise: Tensor, weights: Tensor | None) -> Choice:
        log_prob = F.log_softmax(out, -1)
        return Choice(None, log_prob, log_prob.exp())

    choose_next = choose

    def explore(self, out: Tensor, generator: Generator) -> Tensor:
        # the largest of logit + Gumbel noise is a draw from the softmax
        uniform = torch.rand(out.shape, generator=generator, device=out.device).clamp(min=1e-20)
        return self.mode(out - torch.log(-torch.log(uniform)))

    def mode(self, out: Tensor) -> Tensor:
        return F.one_hot(out.argmax(-1), self.outputs).to(out.dtype)
