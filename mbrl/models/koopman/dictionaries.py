"""Functions of a scaled observation that a lifted model adds to the observation itself.

A dictionary sees observations whose range in the data is [-1, 1], entry by entry, so that one width suits all entries.
The constant and the observation are no part of it: the model always has them.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec

CentresFrom = Literal["points", "kmeans"]
"""Centres are observations drawn from the data, or the means of k clusters of it (Lloyd, k-means++ start)."""
KMEANS_ROWS = 10_000
"""k-means looks at so many rows at most."""


class RangeScale(nn.Module):
    """Maps each entry's range in the data to [-1, 1]; entries that never change keep scale 1. Float64 inside."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("half_range", torch.ones(size, dtype=torch.float64))

    def fit(self, data: Tensor) -> None:
        """Take the range of ``data [N, D]``."""
        low, high = data.double().amin(0), data.double().amax(0)
        middle, half = (low + high) / 2, (high - low) / 2
        constant = half <= 1e-6 * middle.abs().clamp(min=1.0)
        self.get_buffer("middle").copy_(middle)
        self.get_buffer("half_range").copy_(torch.where(constant, torch.ones_like(half), half))

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.get_buffer("middle").to(obs.dtype)) / self.get_buffer("half_range").to(obs.dtype)

    def inverse(self, scaled: Tensor) -> Tensor:
        return scaled * self.get_buffer("half_range").to(scaled.dtype) + self.get_buffer("middle").to(scaled.dtype)


class Dictionary(nn.Module, ABC):
    """``F`` functions of a scaled observation; all that :meth:`fit` settles lies in buffers of fixed size."""

    size: int
    """``F``"""

    def fit(self, scaled_obs: Tensor, generator: Generator) -> None:
        """Settle what depends on data ``[N, D]`` or on chance; the same rows and generator give the same functions."""

    @abstractmethod
    def forward(self, scaled_obs: Tensor) -> Tensor:
        """``[..., D] -> [..., F]``, in the input's dtype."""


class Monomials(Dictionary):
    """Products of 2 to ``degree`` entries, with repetition.

    Args:
        spec: the environment.
        degree: the highest total degree, at least 2.
    """

    def __init__(self, spec: EnvSpec, degree: int = 2) -> None:
        super().__init__()
        if degree < 2:
            raise UserError("degree", degree, "give 2 or more; the constant and the observation are always there")
        self.degrees = range(2, degree + 1)
        for d in self.degrees:
            factors = list(itertools.combinations_with_replacement(range(spec.obs_size), d))
            self.register_buffer(f"_factors{d}", torch.tensor(factors), persistent=False)
        self.size = sum(len(self.get_buffer(f"_factors{d}")) for d in self.degrees)

    def forward(self, scaled_obs: Tensor) -> Tensor:
        return torch.cat([scaled_obs[..., self.get_buffer(f"_factors{d}")].prod(-1) for d in self.degrees], -1)


class _Radial(Dictionary):
    """Functions of the distance to centres that are taken from the data."""

    def __init__(self, spec: EnvSpec, centres: int, centres_from: CentresFrom) -> None:
        super().__init__()
        if centres < 1:
            raise UserError("centres", centres, "give a whole number of at least 1")
        if centres_from not in get_args(CentresFrom):
            raise UserError("centres_from", centres_from, "give points or kmeans", get_args(CentresFrom))
        self.size, self.centres_from = centres, centres_from
        self.register_buffer("centres", torch.zeros(centres, spec.obs_size, dtype=torch.float64))

    def fit(self, scaled_obs: Tensor, generator: Generator) -> None:
        """Choose the centres; where there are fewer rows than centres, rows serve more than once."""
        pick = torch.randperm(len(scaled_obs), generator=generator, device=generator.device)
        rows = scaled_obs.double()[pick.to(scaled_obs.device)]
        if self.centres_from == "kmeans" and len(rows) > self.size:
            chosen = _cluster_means(rows[: max(KMEANS_ROWS, self.size + 1)], self.size, generator)
        else:
            chosen = rows[torch.arange(self.size, device=rows.device) % len(rows)]
        self.get_buffer("centres").copy_(chosen)

    def squared_distance(self, x: Tensor) -> Tensor:
        """``[..., F]``"""
        centres = self.get_buffer("centres").to(x.dtype)
        across = x @ centres.T
        beside = x.square().sum(-1, keepdim=True) + centres.square().sum(-1)
        return (beside - 2 * across).clamp(min=0.0)


class GaussianRBF(_Radial):
    """``exp(-r^2 / (2 width^2))``, ``r`` the distance of the scaled observation to a centre.

    Args:
        spec: the environment.
        centres: how many functions.
        width: their standard deviation, where the observation's range is [-1, 1].
        centres_from: rows drawn from the data (``points``), or means of its clusters (``kmeans``).
    """

    def __init__(
        self, spec: EnvSpec, centres: int = 200, width: float = 0.5, centres_from: CentresFrom = "points"
    ) -> None:
        super().__init__(spec, centres, centres_from)
        _check_positive("width", width)
        self.width = width

    def forward(self, scaled_obs: Tensor) -> Tensor:
        return (self.squared_distance(scaled_obs) * (-0.5 / self.width**2)).exp()


class ThinPlate(_Radial):
    """``r^2 log r``, as in Korda and Mezić, "Linear predictors for nonlinear dynamical systems", 2018.

    They draw centres uniformly; here they come from the data.

    Args:
        spec: the environment.
        centres: how many functions.
        centres_from: rows drawn from the data (``points``), or means of its clusters (``kmeans``).
    """

    def __init__(self, spec: EnvSpec, centres: int = 100, centres_from: CentresFrom = "points") -> None:
        super().__init__(spec, centres, centres_from)

    def forward(self, scaled_obs: Tensor) -> Tensor:
        squared = self.squared_distance(scaled_obs)
        value: Tensor = 0.5 * torch.special.xlogy(squared, squared)
        return value


class FourierFeatures(Dictionary):
    """``cos(w . x + b)`` with normal ``w`` and uniform ``b``: random features of a Gaussian kernel.

    Rahimi, Recht, "Random Features for Large-Scale Kernel Machines", 2007.

    Args:
        spec: the environment.
        count: how many functions.
        scale: standard deviation of ``w``: the kernel's width is ``1 / scale``.
    """

    def __init__(self, spec: EnvSpec, count: int = 200, scale: float = 2.0) -> None:
        super().__init__()
        if count < 1:
            raise UserError("count", count, "give a whole number of at least 1")
        _check_positive("scale", scale)
        self.size, self.scale = count, scale
        self.register_buffer("frequency", torch.zeros(spec.obs_size, count, dtype=torch.float64))
        self.register_buffer("phase", torch.zeros(count, dtype=torch.float64))

    def fit(self, scaled_obs: Tensor, generator: Generator) -> None:
        frequency, phase = self.get_buffer("frequency"), self.get_buffer("phase")
        frequency.copy_(self.scale * _draw(torch.randn, frequency.shape, generator))
        phase.copy_(2 * math.pi * _draw(torch.rand, phase.shape, generator))

    def forward(self, scaled_obs: Tensor) -> Tensor:
        phase = self.get_buffer("phase").to(scaled_obs.dtype)
        return (scaled_obs @ self.get_buffer("frequency").to(scaled_obs.dtype) + phase).cos()


class Combined(Dictionary):
    """Several dictionaries side by side; each is fitted with random numbers that follow those of the one before."""

    def __init__(self, parts: Sequence[Dictionary]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.size = sum(part.size for part in parts)

    def fit(self, scaled_obs: Tensor, generator: Generator) -> None:
        for part in self.parts:
            assert isinstance(part, Dictionary)
            part.fit(scaled_obs, generator)

    def forward(self, scaled_obs: Tensor) -> Tensor:
        if not self.size:
            return scaled_obs[..., :0]
        return torch.cat([part(scaled_obs) for part in self.parts], -1)


def _cluster_means(rows: Tensor, count: int, generator: Generator) -> Tensor:
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    means, _ = kmeans2(rows.cpu().numpy(), count, minit="++", rng=np.random.default_rng(seed))
    return torch.from_numpy(means).to(rows.device)


def _draw(function: object, shape: torch.Size, generator: Generator) -> Tensor:
    assert callable(function)
    drawn: Tensor = function(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise UserError(name, value, "give a finite number above 0")
