"""Networks whose weights lie in one flat vector for each member, so that a step, a clip or a penalty is one operation.

Weights come from outside: from a hypernetwork, from a shared trunk and a task's head, from frozen columns.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Layers = list[tuple[Tensor, Tensor]]
"""Weight ``[E, I, O]`` and bias ``[E, 1, O]`` of each layer."""


@dataclass(frozen=True)
class Layout:
    """Which tensors a flat vector ``[..., size]`` holds, by name and shape, one after another."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views ``[..., *shape]`` of ``flat [..., size]``."""
        parts = flat.split(list(self.sizes.values()), -1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }  # fmt: skip

    def initial(self, members: int, generator: Generator | None, device: torch.device | None = None) -> Tensor:
        """``[E, size]`` starting values; what a name means, :func:`_initial` says. None: the global random state."""
        values = [_initial(name, (members, *shape), generator) for name, shape in self.shapes.items()]
        return torch.cat([torch.zeros(members, 0), *(value.flatten(1) for value in values)], 1).to(device)


def _initial(name: str, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Weights as in the ensemble (truncated normal of std 1 / (2 sqrt(inputs))), embeddings N(0, 1), zero biases."""
    if name.startswith("weight"):
        std = 1 / (2 * math.sqrt(shape[-2]))
        return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)
    if name == "embedding":
        return torch.randn(shape, generator=generator)
    if name == "bounds":  # of the log-variance: lowest, then highest
        return torch.tensor([-10.0, 0.5])[:, None].expand(shape).clone()
    return torch.zeros(shape)


def net_shapes(sizes: Sequence[int], first: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's layers; ``first`` numbers the first of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes), first):
        shapes |= {f"weight{i}": (inputs, outputs), f"bias{i}": (1, outputs)}
    return shapes


def layers_of(parts: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The layers among ``parts``, in order."""
    for name, weight in parts.items():
        if name.startswith("weight"):
            yield weight, parts["bias" + name.removeprefix("weight")]


def forward(layers: Layers, inputs: Tensor) -> Tensor:
    """``[E, B, I] -> [E, B, O]``, SiLU between layers, as in the ensemble."""
    x = inputs
    for i, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
    return x
