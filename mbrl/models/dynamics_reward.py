"""How much a transition looks like the real system's: a reward for dynamics, learned by adversarial imitation.

Luo, Xu, Cao, Yu, "Reward-Consistent Dynamics Models are Strongly Generalizable for Offline Reinforcement Learning",
2024 (MOREC). The authors released discriminators, not their training; this is a recipe that ranks transitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.normalizer import Normalizer
from mbrl.data.transitions import Transitions
from mbrl.models.base import State, Step
from mbrl.models.discriminator import Discriminator, History, mlp

LOG_STD_BOUNDS = (-6.0, 2.0)
"""Of the generator's standardised changes"""
ODDS_FLOOR = 1e-9
"""Keeps the logarithm finite where a snapshot is certain."""


class Adversary(Protocol):
    """Makes the transitions that the discriminators learn to tell from real ones."""

    def __call__(self, obs: Tensor, action: Tensor, generator: Generator) -> Tensor:
        """Next observations ``[B, D]`` for ``obs [B, D]`` and ``action [B, A]``; differentiable if it is to learn."""


class GaussianGenerator(nn.Module):
    """A Gaussian over the standardised change of the observation, from random weights.

    It imitates an expert whose "state" is ``(s, a)`` and whose "action" is the next state.

    Args:
        obs_size: ``D``.
        action_size: ``A``.
        hidden: width of its hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, obs_size: int, action_size: int, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.input_norm, self.change_norm = Normalizer(obs_size + action_size), Normalizer(obs_size)
        self.net = mlp(obs_size + action_size, hidden, layers, 2 * obs_size)

    def fit_statistics(self, data: Transitions) -> None:
        self.input_norm.fit(torch.cat([data.obs, data.action], -1))
        self.change_norm.fit(data.next_obs - data.obs)

    def forward(self, obs: Tensor, action: Tensor, generator: Generator) -> Tensor:
        mean, log_std = self.net(self.input_norm.normalize(torch.cat([obs, action], -1))).chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return obs + self.change_norm.denormalize(mean + log_std.clamp(*LOG_STD_BOUNDS).exp() * noise)


class DynamicsReward(nn.Module):
    """``r^D(s, a, s') = -log(1 - mean_t D_t(s, a, s'))`` over the retained discriminators ``D_t`` of one training.

    At the game's equilibrium every ``D_t`` is 1/2 and ``r^D = log 2 = 0.693``: a threshold for stopping lies just
    below, at 0.6 as published. The ranking comes from the history: early discriminators know the large errors of an
    untrained generator, late ones the small errors of a trained one. A discriminator trained against a model that was
    fitted beforehand has seen one kind of error only and ranks nothing.

    It is the score of :class:`~mbrl.imagination.filters.ChooseBest` and :class:`~mbrl.imagination.filters.ScoreStop`.

    Args:
        spec: the environment that the data is from.
        hidden: width of the discriminator's hidden layers.
        generator_hidden: width of the generator's.
        steps: joint gradient steps of the training.
        snapshot_every: steps between two snapshots of the discriminator.
        keep: snapshots retained, the newest. Each scores every candidate, so imagination's cost grows with it.
        batch_size: rows of a batch.
        lr: Adam's step size of the discriminator.
        generator_lr: that of the generator, smaller, so that the game changes slowly.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 128,
        generator_hidden: int = 64,
        steps: int = 3000,
        snapshot_every: int = 100,
        keep: int = 30,
        batch_size: int = 256,
        lr: float = 3e-4,
        generator_lr: float = 1e-4,
    ) -> None:
        super().__init__()
        if min(steps, snapshot_every, batch_size) < 1 or steps < snapshot_every:
            seen = (steps, snapshot_every, batch_size)
            raise UserError("steps, snapshot_every, batch_size", seen, "each is at least 1; steps reach a snapshot")
        if not (0.0 < lr < math.inf and 0.0 < generator_lr < math.inf):
            raise UserError("lr, generator_lr", (lr, generator_lr), "give finite numbers above 0")
        sizes = (spec.obs_size, spec.action.size)
        self.discriminator = Discriminator((*sizes, spec.obs_size), hidden)
        self.generator = GaussianGenerator(*sizes, generator_hidden)
        self.history = History(self.discriminator, keep)
        self.steps, self.snapshot_every, self.batch_size = steps, snapshot_every, batch_size
        self.lr, self.generator_lr = lr, generator_lr

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, data: Transitions, generator: Generator, rival: Adversary | None = None) -> dict[str, float]:
        """Play the game on ``data [N]`` from fresh networks; what to log.

        ``rival`` takes the generator's place and does not learn: it is the control that shows what the game is for.
        """
        if not len(data):
            raise UserError("dynamics reward", "no rows", "give data to learn it from")
        self._begin(data, generator)
        adversary = self.generator if rival is None else rival
        optimizers = [
            torch.optim.Adam(part.parameters(), lr=lr)
            for part, lr in ((self.discriminator, self.lr), (self.generator, self.generator_lr))
        ]
        metrics = torch.zeros(2, device=data.obs.device)
        for step in range(1, self.steps + 1):
            picked = torch.randint(len(data), (self.batch_size,), generator=generator, device=generator.device)
            metrics = self._play(data[picked], adversary, optimizers, generator)
            if step % self.snapshot_every == 0:
                self.history.add()
        real, made = metrics.tolist()
        return {"dynamics_reward_steps": float(self.steps), "called_real": real, "made_called_real": made}

    def _begin(self, data: Transitions, generator: Generator) -> None:
        with seeding.seeded(generator):
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        self.discriminator.fit_statistics(data.obs, data.action, data.next_obs - data.obs)
        self.generator.fit_statistics(data)
        self.history.stacked = {}

    def _play(
        self, rows: Transitions, adversary: Adversary, optimizers: list[torch.optim.Adam], generator: Generator
    ) -> Tensor:
        """One step of the discriminator, and one of an adversary that learns; ``[2]`` mean ``D`` of real and made."""
        made = adversary(rows.obs, rows.action, generator)
        real_logit = self._logit(rows.obs, rows.action, rows.next_obs)
        made_logit = self._logit(rows.obs, rows.action, made.detach())
        _descend(self.discriminator.loss(real_logit, made_logit), optimizers[0])
        if adversary is self.generator:
            # non-saturating: the generator raises log D of what it makes
            _descend(F.softplus(-self._logit(rows.obs, rows.action, made)).mean(), optimizers[1])
        return torch.stack([real_logit.sigmoid().mean(), made_logit.sigmoid().mean()]).detach()

    def _logit(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        logit: Tensor = self.discriminator(obs, action, next_obs - obs)
        return logit

    # -- judging -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """``r^D [B]``. Raises ``UserError`` before :meth:`fit`."""
        real = self.history.logits(obs, action, next_obs - obs).sigmoid().mean(0)
        return -(1.0 - real + ODDS_FLOOR).log()

    def __call__(self, state: State, action: Tensor, step: Step) -> Tensor:
        """The score of imagined steps, ``[B]``."""
        return self.reward(state.obs, action, step.state.obs)

    # -- state -------------------------------------------------------------------------------------------------------

    def learned_state(self) -> dict[str, Any]:
        """The snapshots and the statistics of their inputs: all that judging needs."""
        return {"norm": self.discriminator.norm.state_dict(), "history": self.history.state_dict()}

    def load_learned_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`learned_state`, bit for bit."""
        self.discriminator.norm.load_state_dict(state["norm"])
        self.history.load_state_dict(state["history"])


def _descend(loss: Tensor, optimizer: torch.optim.Adam) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
