"""Standardisation with statistics that travel with the module."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Per-dimension mean and standard deviation, float64 inside, applied in the input's dtype.

    A dimension that (nearly) never changes keeps scale 1, so that its noise is not blown up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, smallest_std: float = 1e-6) -> None:
        super().__init__()
        self.smallest_std = smallest_std
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("std", torch.ones(size, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, data: Tensor, weight: Tensor | None = None) -> Tensor:
        """Statistics of ``data [N, size]``, rows weighted by ``weight [N]``; returns ``[size]`` which ones vary."""
        data = data.double()
        weight = data.new_ones(len(data)) if weight is None else weight.double()
        share = (weight / weight.sum())[:, None]
        self.mean.copy_((share * data).sum(0))
        std = (share * (data - self.mean).square()).sum(0).sqrt()
        constant = std <= self.smallest_std * self.mean.abs().clamp(min=1.0)
        self.std.copy_(torch.where(constant, torch.ones_like(std), std))
        return ~constant

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)
