"""Networks that tell rows of two sources apart, and the history of such a network through its training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from envs.errors import UserError
from mbrl.data.normalizer import Normalizer


class Discriminator(nn.Module):
    """Says how much more likely a row is to be *real* than made by something else.

    Its logit estimates ``log p(real | row) - log p(made | row)``. With as many real rows as made ones in its batches
    that is the log-ratio of their densities, in nats: it is calibrated as long as nothing bounds or blurs it, so by
    default nothing does.

    Args:
        sizes: entries of each input; a row is all of them side by side.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        squash: bound on the scores of the two classes, ``c * tanh(score)``, so that the logit stays within ``±2c``.
        noise: standard deviation of Gaussian noise on the inputs while training, in standard deviations of the input.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        hidden: int = 128,
        layers: int = 2,
        squash: float | None = None,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if min(*sizes, hidden, layers) < 1:
            raise UserError("sizes, hidden, layers", (tuple(sizes), hidden, layers), "each is at least 1")
        if squash is not None and not 0.0 < squash < math.inf:
            raise UserError("squash", squash, "give a finite number above 0, or leave it out")
        if not 0.0 <= noise < math.inf:
            raise UserError("noise", noise, "give a finite number of at least 0")
        self.sizes, self.squash, self.noise = tuple(sizes), squash, noise
        self.norm = Normalizer(sum(sizes))
        self.net = mlp(sum(sizes), hidden, layers, 2)

    def fit_statistics(self, *inputs: Tensor) -> None:
        """Standardise with the statistics of these rows from now on, each ``[N, size]``."""
        self.norm.fit(torch.cat(inputs, -1))

    def forward(self, *inputs: Tensor, generator: Generator | None = None) -> Tensor:
        """Logits ``[...]`` of inputs ``[..., size]`` each; differentiable. The generator draws the training noise."""
        return self.logit(self.rows(*inputs), generator)

    def rows(self, *inputs: Tensor) -> Tensor:
        """Inputs ``[..., size]`` side by side, standardised."""
        seen = tuple(x.shape[-1] for x in inputs)
        if seen != self.sizes:
            raise UserError("inputs", seen, f"this discriminator reads inputs of {self.sizes} entries")
        return self.norm.normalize(torch.cat(inputs, -1))

    def logit(self, rows: Tensor, generator: Generator | None = None) -> Tensor:
        """As :meth:`forward`, on what :meth:`rows` gives."""
        if self.noise and generator is not None:
            rows = rows + self.noise * torch.randn(rows.shape, generator=generator, device=rows.device)
        return self.difference(self.net(rows))

    def difference(self, scores: Tensor) -> Tensor:
        """Logits ``[...]`` from the network's scores ``[..., 2]`` of the two classes."""
        if self.squash is not None:
            scores = self.squash * torch.tanh(scores)
        return scores[..., 0] - scores[..., 1]

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """Cross-entropy of the logits of real and of made rows, each half of it whatever their numbers."""
        return 0.5 * (F.softplus(-real).mean() + F.softplus(made).mean())


class History:
    """What a discriminator was at some moments of its training: the newest ``keep`` snapshots, asked all at once.

    Args:
        discriminator: the network; snapshots share its shape and its input statistics.
        keep: snapshots kept; the oldest make room.
    """

    def __init__(self, discriminator: Discriminator, keep: int) -> None:
        if keep < 1:
            raise UserError("keep", keep, "keep at least one snapshot")
        self.discriminator, self.keep = discriminator, keep
        self.stacked: dict[str, Tensor] = {}
        """``{name of a parameter: [K, ...]}``, oldest first"""

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values()), ()))

    def add(self) -> None:
        """Remember the discriminator as it is now."""
        for name, parameter in self.discriminator.net.named_parameters():
            now = parameter.detach().clone()[None]
            kept = torch.cat([self.stacked[name], now]) if name in self.stacked else now
            self.stacked[name] = kept[-self.keep :]

    @torch.no_grad()
    def logits(self, *inputs: Tensor) -> Tensor:
        """``[K, B]`` logits of every snapshot. Raises ``UserError`` when there is none."""
        if not self.stacked:
            raise UserError("history", "no snapshots", "train the discriminator before it is asked")
        net, rows = self.discriminator.net, self.discriminator.rows(*inputs)
        scores = vmap(lambda parameters: functional_call(net, parameters, (rows,)))(self.stacked)
        return self.discriminator.difference(scores)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.stacked.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = next(self.discriminator.parameters()).device
        self.stacked = {name: value.to(device) for name, value in state.items()}


def mlp(inputs: int, hidden: int, layers: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with SiLU between them, and dropout behind every SiLU where it is asked for."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise([inputs, *[hidden] * layers]):
        parts += [nn.Linear(before, after), nn.SiLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))
