"""Networks as plain functions of one flat parameter vector; any number of copies side by side in one batched product.

No ``nn.Module``: a gradient step on small networks is bound by calls, so parameters are views into one vector that
the optimiser and the target average treat in one call each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

BatchNorm = Literal["none", "batch", "renorm"]

VARIANCE_FLOOR = 1e-3
LARGEST_RATIO, LARGEST_SHIFT = 3.0, 5.0
"""Bounds ``r_max`` and ``d_max`` of batch renormalisation, as in CrossQ's published code."""


@dataclass(frozen=True)
class Slot:
    """One parameter tensor inside a flat vector: drawn uniformly from ``constant ± bound``."""

    shape: tuple[int, ...]
    constant: float
    bound: float
    layer: int
    matrix: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Regularization:
    """What keeps critics in shape.

    Args:
        layer_norm: LayerNorm in the critics.
        batch_norm: ``batch`` or ``renorm`` normalises batches in actor and critics; it needs the joint forward pass.
        renorm_warmup: critic updates before batch renormalisation begins; plain batch normalisation until then.
        spectral_norm: spectral normalisation of the critics' hidden-to-hidden matrices.
        dropout: share of hidden units of the critics, targets included, dropped while learning.
    """

    layer_norm: bool = False
    batch_norm: BatchNorm = "none"
    renorm_warmup: int = 100_000
    spectral_norm: bool = False
    dropout: float = 0.0


PLAIN = Regularization()


class BatchStatistics:
    """Batch normalisation's running mean and variance during one forward pass of one network.

    With ``train`` the batch's own statistics normalise, and are kept in ``seen``; else the running ones do. ``renorm``
    is a 0-dim tensor: 1 where batch renormalisation (Ioffe, "Batch Renormalization", 2017) has begun.
    """

    def __init__(self, running: Sequence[Tensor], train: bool, renorm: Tensor | None = None) -> None:
        self.running, self.train, self.renorm = running, train, renorm
        self.seen: list[Tensor] = []

    def normalize(self, x: Tensor, place: int) -> Tensor:
        """``x [..., B, F]`` at the ``place``-th normalisation of the network."""
        mean, var = self.running[2 * place], self.running[2 * place + 1]
        if not self.train:
            return (x - mean) * (var + VARIANCE_FLOOR).rsqrt()
        own_var, own_mean = torch.var_mean(x, -2, correction=0, keepdim=True)
        self.seen += [own_mean.detach(), own_var.detach()]
        unit = (x - own_mean) * (own_var + VARIANCE_FLOOR).rsqrt()
        if self.renorm is None:
            return unit
        std = (var + VARIANCE_FLOOR).sqrt()
        ratio = ((own_var.detach() + VARIANCE_FLOOR).sqrt() / std).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        shift = ((own_mean.detach() - mean) / std).clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
        return unit * (1.0 + self.renorm * (ratio - 1.0)) + self.renorm * shift

    def flat(self) -> Tensor:
        """What was seen, as one vector."""
        return torch.cat([part.reshape(-1) for part in self.seen])


class Network:
    """A multilayer perceptron with ReLU; ``copies`` of it side by side, or a single one (``copies=None``).

    A hidden layer is Linear, Dropout, LayerNorm, ReLU (Hiraoka et al., "Dropout Q-Functions for Doubly Efficient
    Reinforcement Learning", 2022) or, with batch normalisation, Linear, ReLU, BatchNorm after a BatchNorm of the input
    (Bhatt et al., "CrossQ", 2024). Spectral normalisation divides the hidden-to-hidden matrices by their largest
    singular value (Gogianu et al., "Spectral Normalisation for Deep Reinforcement Learning", 2021, do so with the
    penultimate layer, which is the same for two hidden layers).

    Weights and biases are drawn uniformly from ``± 1 / sqrt(inputs of the layer)``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        layers: int,
        copies: int | None = None,
        regularization: Regularization = PLAIN,
    ) -> None:
        self.copies, self.hidden, self.layers = copies, hidden, layers
        self.layer_norm, self.spectral_norm = regularization.layer_norm, regularization.spectral_norm
        self.batch_norm = regularization.batch_norm != "none"
        self.widths = [inputs, *[hidden] * layers, outputs]
        self._lead = () if copies is None else (copies,)
        self.slots = self._make_slots()
        self.sizes = [slot.size for slot in self.slots]
        self.size = sum(self.sizes)
        self._statistics = [(*self._lead, 1, width) for width in self.widths[:-1] for _ in range(2)]

    def _make_slots(self) -> list[Slot]:
        slots = self._affine(self.widths[0], 0) if self.batch_norm else []
        for layer, (before, after) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            bound = 1.0 / math.sqrt(before)
            slots += [Slot((*self._lead, before, after), 0.0, bound, layer, matrix=True)]
            slots += [Slot(self._row(after), 0.0, bound, layer)]
            if layer < self.layers and (self.layer_norm or self.batch_norm):
                slots += self._affine(after, layer)
        return slots

    def _row(self, width: int) -> tuple[int, ...]:
        return (width,) if self.copies is None else (self.copies, 1, width)

    def _affine(self, width: int, layer: int) -> list[Slot]:
        return [Slot(self._row(width), constant, 0.0, layer) for constant in (1.0, 0.0)]

    def draw(self, generator: Generator) -> Tensor:
        """A new flat parameter vector ``[size]``."""
        device = generator.device
        parts = [
            slot.constant + slot.bound * (2.0 * torch.rand(slot.size, generator=generator, device=device) - 1.0)
            for slot in self.slots
        ]
        return torch.cat(parts)

    def last_layers(self, count: int | None) -> Tensor:
        """``[size]`` bool: parameters of the last ``count`` linear layers (None: all of them)."""
        first = 0 if count is None else self.layers + 1 - count
        return torch.cat([torch.full((slot.size,), slot.layer >= first) for slot in self.slots])

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parameters inside a flat vector."""
        parts = vector.split(self.sizes)
        return [part.view(slot.shape) for part, slot in zip(parts, self.slots, strict=True)]

    def initial_statistics(self) -> Tensor:
        """Running mean 0 and variance 1 of every batch normalisation, in turns, as one vector."""
        return torch.cat([torch.full(shape, float(i % 2)).reshape(-1) for i, shape in enumerate(self._statistics)])

    def statistics_views(self, vector: Tensor) -> list[Tensor]:
        """Running means and variances inside one vector, in turns."""
        parts = vector.split([math.prod(shape) for shape in self._statistics])
        return [part.view(shape) for part, shape in zip(parts, self._statistics, strict=True)]

    def __call__(
        self,
        params: Sequence[Tensor],
        x: Tensor,
        statistics: BatchStatistics | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Outputs ``[(copies,) B, outputs]`` of ``x [B, inputs]`` (with copies also ``[copies, B, inputs]``).

        ``keep [layers, (copies,) B, hidden]`` holds the dropout factors, 0 or ``1 / (1 - p)``.
        """
        todo = list(params)[::-1]
        copies = 1 if self.copies is None else todo[-1].shape[0]
        if self.copies is not None and x.dim() == 2:
            x = x.expand(copies, *x.shape)
        if statistics is not None:
            x = _affine(statistics.normalize(x, 0), todo)
        for layer in range(self.layers):
            x = self._linear(x, todo)
            if keep is not None:
                x = x * keep[layer]
            if self.layer_norm:
                x = _affine(F.layer_norm(x, (self.hidden,)), todo)
            x = F.relu(x)
            if statistics is not None:
                x = _affine(statistics.normalize(x, layer + 1), todo)
        return self._linear(x, todo)

    def _linear(self, x: Tensor, todo: list[Tensor]) -> Tensor:
        weight, bias = todo.pop(), todo.pop()
        return torch.addmm(bias, x, weight) if self.copies is None else torch.baddbmm(bias, x, weight)

    # -- spectral normalisation ------------------------------------------------------------------------------------

    def draw_left(self, generator: Generator) -> Tensor:
        """First left singular vectors ``[layers - 1, copies, 1, hidden]``, one a hidden matrix."""
        shape = (self.layers - 1, *self._lead, 1, self.hidden)
        return F.normalize(torch.randn(shape, generator=generator, device=generator.device), dim=-1)

    def normalized(self, params: Sequence[Tensor], left: Tensor) -> tuple[list[Tensor], Tensor]:
        """Parameters with the spectral norm of hidden matrices brought to 1, and ``left`` after one power iteration.

        The gradient flows through the norm, not through the singular vectors.
        """
        scaled, found = list(params), []
        hidden = [i for i, slot in enumerate(self.slots) if slot.matrix and 0 < slot.layer < self.layers]
        for i, u in zip(hidden, left.unbind(), strict=True):
            weight = params[i].detach()
            v = F.normalize(torch.matmul(u, weight), dim=-1)
            u = F.normalize(torch.matmul(v, weight.mT), dim=-1)
            scaled[i] = params[i] / (torch.matmul(u, params[i]) * v).sum(-1, keepdim=True)
            found.append(u)
        return scaled, torch.stack(found)


def _affine(x: Tensor, todo: list[Tensor]) -> Tensor:
    scale, shift = todo.pop(), todo.pop()
    return x * scale + shift
