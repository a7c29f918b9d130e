"""How much likelier a simulator finds a transition than the real system does, learned from samples of both.

Eysenbach, Asawa, Chaudhari, Levine, Salakhutdinov, "Off-Dynamics Reinforcement Learning: Training for Transfer with
Domain Classifiers", 2021, and its use in Niu, Sharma, Qiu, Li, Zhou, Hu, Zhan, "When to Trust Your Simulator:
Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning", 2022 (H2O).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.discriminator import Discriminator

SMALLEST_GAP, LARGEST_GAP = 1e-37, 10.0
SMALLEST_WEIGHT = 1e-5
"""Bounds of the gap, and of the importance weight, whose upper bound is 1. They are as published, but for the smallest
gap: 1e-45 is 0 where denormal numbers are flushed, and its logarithm is taken."""


class DynamicsRatio(nn.Module):
    """``l(s, a, s') = log p_sim(s'|s, a) - log p_real(s'|s, a)`` from two discriminators.

    One is shown ``(s, a)``, the other ``(s, a, s' - s)``. The logit of the second is added to that of the first, so
    that it learns what the next state adds, which is the ratio of the dynamics wherever both sources were. The
    difference says what ``s'`` says, but what other physics change is a small part of a state and a large part of its
    difference: shown ``s'`` as in the released code, the second learns several times as slowly.

    The released code bounds each class's score by ``2 tanh`` and blurs inputs by noise of 0.1; both shrink large
    gaps to a half of themselves. ``squash=2`` and ``noise=0.1`` are that variant. It also takes the spread of
    next states over a buffer that is mostly zeros; here it is that of the real rows.

    Args:
        spec: the environment.
        hidden: width of the discriminators' hidden layers.
        layers: number of hidden layers.
        squash: bound of a class's score (default: none, calibrated).
        noise: standard deviation of noise on the standardised inputs while training.
        lr: Adam's step size.
        smoothing: noise on the next state when gaps are measured, in standard deviations of the real next states. The
            published formula says 1, the released buffer made it less; where dynamics have little noise of their own,
            1 leads to states that neither system reaches, and the gap says nothing (Pendulum with gravity 10 and 15:
            correlation with the true gap -0.05, 0.48, 0.83 and 0.93 at 1, 0.3, 0.1 and 0.03).
    """

    spread: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 128,
        layers: int = 2,
        squash: float | None = None,
        noise: float = 0.0,
        lr: float = 3e-4,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        if not (0.0 < lr < math.inf and 0.0 <= smoothing < math.inf):
            raise UserError("lr, smoothing", (lr, smoothing), "give finite numbers, lr above 0, smoothing at least 0")
        sizes = (spec.obs_size, spec.action.size)
        self.sa = Discriminator(sizes, hidden, layers, squash, noise)
        self.sas = Discriminator((*sizes, spec.obs_size), hidden, layers, squash, noise)
        self.register_buffer("spread", torch.ones(spec.obs_size))
        self.lr, self.smoothing = lr, smoothing
        self._optimizer: torch.optim.Adam | None = None

    @property
    def optimizer(self) -> torch.optim.Adam:
        """Made when it is first asked for, on the device where the parameters are then."""
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        return self._optimizer

    def fit_statistics(self, real: Transitions) -> None:
        """Standardise by real rows ``[N]``, and take the spread of their next states."""
        self.sa.fit_statistics(real.obs, real.action)
        self.sas.fit_statistics(real.obs, real.action, real.next_obs - real.obs)
        self.spread.copy_(real.next_obs.std(0, correction=0))

    def update(self, real: Transitions, simulated: Transitions, generator: Generator) -> dict[str, float]:
        """One step of Adam for both discriminators on a batch of each source, of as many rows."""
        first = [self._both(rows, generator) for rows in (real, simulated)]
        loss = self.sa.loss(first[0][0], first[1][0])
        # the first logit is given to the second discriminator, which does not teach it
        second = [sa.detach() + added for sa, added in first]
        loss = loss + self.sas.loss(*second)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"ratio_loss": float(loss.detach())}

    def _both(self, rows: Transitions, generator: Generator) -> tuple[Tensor, Tensor]:
        sa = self.sa(rows.obs, rows.action, generator=generator)
        return sa, self.sas(rows.obs, rows.action, rows.next_obs - rows.obs, generator=generator)

    @torch.no_grad()
    def log_ratio(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """``l [...]`` in nats; positive where the simulator finds the transition likelier than the real system."""
        # log P(real|sas)/P(sim|sas) - log P(real|sa)/P(sim|sa) is the second logit alone, and l is minus that
        added: Tensor = self.sas(obs, action, next_obs - obs)
        return -added

    def gap(self, rows: Transitions, generator: Generator, draws: int = 10) -> Tensor:
        """``u [...]``: mean of ``l`` over draws of Gaussian noise on the next state, ``smoothing`` times its spread."""
        shape = (draws, *rows.next_obs.shape)
        noise = self.smoothing * self.spread * torch.randn(shape, generator=generator, device=rows.next_obs.device)
        near = rows.next_obs + noise
        obs, action = rows.obs.expand(shape), rows.action.expand(draws, *rows.action.shape)
        return self.log_ratio(obs, action, near).mean(0).clamp(SMALLEST_GAP, LARGEST_GAP)

    def weight(self, rows: Transitions) -> Tensor:
        """``w [...] = p_real / p_sim`` of simulated rows, at most 1."""
        return (-self.log_ratio(rows.obs, rows.action, rows.next_obs)).exp().clamp(SMALLEST_WEIGHT, 1.0)

    def learning_state(self) -> dict[str, Any]:
        """What training goes on from: copies of networks, statistics, optimiser."""
        networks = {name: value.clone() for name, value in self.state_dict().items()}
        return {"networks": networks, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_learning_state(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
