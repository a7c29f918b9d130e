"""Known pieces shared by several tasks: small frozen callables, so that they pickle, compare and print by value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[float, float]
Entries = tuple[int, int]


@dataclass(frozen=True)
class ControlCost:
    """``-weight * sum(action^2)``, ``[B]``."""

    weight: float

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return -self.weight * action.square().sum(-1)


@dataclass(frozen=True)
class ForwardVelocity:
    """``weight * (x' - x) / dt``, ``[B]``: only where the position is part of the observation."""

    weight: float
    index: int
    dt: float

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.weight * (next_obs[..., self.index] - obs[..., self.index]) / self.dt


@dataclass(frozen=True)
class NegativeDistance:
    """``-weight * ||next_obs[first] - next_obs[second]||``, ``[B]``; without ``second`` the norm of ``first``."""

    weight: float
    first: Entries
    second: Entries | None = None

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        offset = next_obs[..., slice(*self.first)]
        if self.second is not None:
            offset = offset - next_obs[..., slice(*self.second)]
        distance: Tensor = torch.linalg.vector_norm(offset, dim=-1)
        return -self.weight * distance


@dataclass(frozen=True)
class ContactCost:
    """``-clip(weight * sum(forces^2))``, ``[B]``, of the external forces ``next_obs[start:]``."""

    weight: float
    start: int
    limits: Range = (-float("inf"), float("inf"))

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return -(self.weight * next_obs[..., self.start :].square().sum(-1)).clamp(*self.limits)


@dataclass(frozen=True)
class Proportional:
    """``scale * next_obs[index]``, ``[B]``."""

    scale: float
    index: int

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.scale * next_obs[..., self.index]


@dataclass(frozen=True)
class Constant:
    """The same reward on every step, ``[B]``."""

    value: float

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.full_like(next_obs[..., 0], self.value)


@dataclass(frozen=True)
class Inside:
    """Whether ``low < next_obs[index] < high`` (``<=`` when ``closed``) for every bound, and ``finite`` entries are.

    The healthy set of the walking tasks. ``every`` bounds all entries of a range at once.
    """

    bounds: tuple[tuple[int, Range], ...]
    closed: bool = False
    every: tuple[Entries, Range] | None = None
    finite: int | None = None
    """Leading entries that must be finite."""

    def __call__(self, next_obs: Tensor) -> Tensor:
        inside = torch.ones(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)
        for index, limits in self.bounds:
            inside = inside & self._within(next_obs[..., index], limits)
        if self.every is not None:
            entries, limits = self.every
            inside = inside & self._within(next_obs[..., slice(*entries)], limits).all(-1)
        if self.finite is not None:
            inside = inside & next_obs[..., : self.finite].isfinite().all(-1)
        return inside

    def _within(self, value: Tensor, limits: Range) -> Tensor:
        low, high = limits
        return (low <= value) & (value <= high) if self.closed else (low < value) & (value < high)


@dataclass(frozen=True)
class HealthyReward:
    """``weight`` on every step that ends inside ``box``, ``[B]``."""

    weight: float
    box: Inside

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.weight * self.box(next_obs).to(next_obs.dtype)


@dataclass(frozen=True)
class Unhealthy:
    """Termination on leaving ``box``, ``[B]`` bool."""

    box: Inside

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return ~self.box(next_obs)
