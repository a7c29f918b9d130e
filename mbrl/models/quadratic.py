"""Costs that a controller can solve for in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions


@dataclass
class QuadraticForm(Record):
    """``cost = o' P o + p' o + a' R a + r' a + constant``; ``o`` the raw next observation, ``a`` in [-1, 1]; float64.

    ``P`` and ``R`` are symmetric and positive semidefinite. The reward is minus the cost.
    """

    p_matrix: Tensor
    """``[D, D]``"""
    p_vector: Tensor
    """``[D]``"""
    r_matrix: Tensor
    """``[A, A]``"""
    r_vector: Tensor
    """``[A]``"""
    constant: Tensor
    """``[]``"""


class QuadraticReward(nn.Module):
    """A quadratic form fitted to rewards that were seen, and how much of them it explains."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.register_buffer("r2", torch.full((), -torch.inf, dtype=torch.float64))

    def fit(self, data: Transitions) -> None:
        """Least squares on ``data [N]``, then made convex."""
