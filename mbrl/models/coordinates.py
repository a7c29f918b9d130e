"""Coordinates in which every change of an observation is a plain addition.

Entries of an observation that show an angle as a cos/sin pair become one angle; entries that are a raw angle stay.
A model predicts *differences* of coordinates (the state is advanced by rotation and cannot leave the unit circle) and
sees angles as cos/sin. Measured on cart-pole swing-up: predicting the change of cos and sin instead fails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from envs.spec import EnvSpec


class Coordinates(nn.Module):
    """Maps observations ``[..., D]`` to coordinates ``[..., Z]`` (plain entries first, then angles) and back."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        pairs = [(a.cos, a.sin) for a in spec.angles if a.cos is not None and a.sin is not None]
        raws = [a.raw for a in spec.angles if a.raw is not None]
        special = {i for pair in pairs for i in pair} | set(raws)
        plain = [i for i in range(spec.obs_size) if i not in special]
        self.plain, self.pairs, self.raws = len(plain), len(pairs), len(raws)
        self.angles = self.pairs + self.raws
        self.size = self.plain + self.angles
        self.feature_size = self.plain + 2 * self.angles
        order = plain + [c for c, _ in pairs] + [s for _, s in pairs] + raws
        folded = [True] * len(pairs) + [a.wrapped for a in spec.angles if a.raw is not None]
        self._index("cos", [c for c, _ in pairs])
        self._index("sin", [s for _, s in pairs])
        self._index("simple", plain)
        self._index("raw", raws)
        self._index("folded", [self.plain + i for i, fold in enumerate(folded) if fold])
        self._index("back", [order.index(i) for i in range(spec.obs_size)])

    def _index(self, name: str, values: list[int]) -> None:
        self.register_buffer(f"_{name}", torch.tensor(values, dtype=torch.long), persistent=False)

    def from_obs(self, obs: Tensor) -> Tensor:
        """``[..., D] -> [..., Z]``"""
        if not self.angles:
            return obs
        angle = torch.atan2(self._pick(obs, "sin"), self._pick(obs, "cos"))
        return torch.cat([self._pick(obs, "simple"), angle, self._pick(obs, "raw")], -1)

    def to_obs(self, z: Tensor) -> Tensor:
        """``[..., Z] -> [..., D]``"""
        if not self.angles:
            return z
        pair = z[..., self.plain : self.plain + self.pairs]
        parts = [z[..., : self.plain], pair.cos(), pair.sin(), z[..., self.plain + self.pairs :]]
        obs = torch.cat(parts, -1).index_select(-1, self.get_buffer("_back"))
        if self.raws and len(self.get_buffer("_folded")) > self.pairs:
            obs = self._fold_raw(obs)
        return obs

    def _fold_raw(self, obs: Tensor) -> Tensor:
        """Raw angles that the environment shows in (-pi, pi] are shown so."""
        fold = self.get_buffer("_raw")[self.get_buffer("_folded")[self.pairs :] - self.plain - self.pairs]
        return obs.index_copy(-1, fold, _wrap(obs.index_select(-1, fold)))

    def features(self, z: Tensor, *beside: Tensor) -> Tensor:
        """What a network sees, ``[..., F]``: plain coordinates, cos and sin of angles, what goes ``beside``."""
        if not self.angles:
            return torch.cat([z, *beside], -1)
        angle = z[..., self.plain :]
        return torch.cat([z[..., : self.plain], angle.cos(), angle.sin(), *beside], -1)

    def difference(self, z: Tensor, next_z: Tensor) -> Tensor:
        """``next_z - z`` the short way round for folded angles."""
        return self.fold(next_z - z)

    def fold(self, z: Tensor) -> Tensor:
        """Coordinates with their folded angles in [-pi, pi), however often they have gone round."""
        fold = self.get_buffer("_folded")
        return z.index_copy(-1, fold, _wrap(z.index_select(-1, fold))) if len(fold) else z

    def _pick(self, obs: Tensor, name: str) -> Tensor:
        return obs.index_select(-1, self.get_buffer(f"_{name}"))


def _wrap(angle: Tensor) -> Tensor:
    return (angle + math.pi).remainder(2 * math.pi) - math.pi
