"""Least squares from sums over rows: sums of parts are the sum of the whole, wherever the parts were computed.

Normal equations square the condition number of the features. So all sums are float64, features are brought to one
scale before solving, a ridge bounds the smallest eigenvalue, and the condition number is reported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.errors import UserError
from mbrl.data.record import Record

CHUNK_ROWS = 4096
"""Rows that are lifted and summed at once."""


@dataclass
class Gram(Record):
    """Sums over rows of features ``x [F]`` and targets ``y [T]``, float64."""

    xx: Tensor
    """``[F, F]``: sum of ``x x'``"""
    xy: Tensor
    """``[F, T]``: sum of ``x y'``"""
    yy: Tensor
    """``[T]``: sum of ``y^2``"""
    count: Tensor
    """``[]``: rows"""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Gram:
        """Of rows ``x [N, F]`` and ``y [N, T]``."""
        x, y = x.double(), y.double()
        return cls(x.T @ x, x.T @ y, y.square().sum(0), x.new_full((), float(len(x))))

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.count + other.count)

    def ridge(self) -> Ridge:
        """Factorised once, solved for as many ridges as wanted.

        Raises:
            UserError: there are no rows.
        """
        if not float(self.count) > 0:
            raise UserError("statistics", "no rows", "collect transitions before fitting")
        scale = (self.xx.diagonal() / self.count).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        values, vectors = torch.linalg.eigh(self.xx / (self.count * torch.outer(scale, scale)))
        projected = vectors.T @ (self.xy / (self.count * scale[:, None]))
        return Ridge(values.clamp(min=0.0), vectors, projected, scale)

    def error(self, weights: Tensor) -> Tensor:
        """``[T]``: mean squared error of ``x @ weights [F, T]`` on the summed rows."""
        total = self.yy - 2 * (weights * self.xy).sum(0) + (weights * (self.xx @ weights)).sum(0)
        return total.clamp(min=0.0) / self.count


@dataclass(frozen=True)
class Ridge:
    """Eigenvalues and vectors of the mean of ``x x'``, features at root mean square 1."""

    values: Tensor
    vectors: Tensor
    projected: Tensor
    scale: Tensor

    def solve(self, ridge: float) -> Tensor:
        """Weights ``[F, T]`` that minimise mean squared error plus ``ridge`` times their squares (at unit scale)."""
        return self.vectors @ (self.projected / (self.values + ridge)[:, None]) / self.scale[:, None]

    def condition(self, ridge: float) -> float:
        """Condition number of what is inverted."""
        return float((self.values[-1] + ridge) / (self.values[0] + ridge))


def total(pieces: Iterable[Gram]) -> Gram:
    """The sum of at least one, of which two at a time are held in memory."""
    return functools.reduce(Gram.__add__, pieces)


Pieces = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives all rows, some at a time: features ``[n, F]`` and labels ``[n]`` in {0, 1}. Asked once a pass."""


def logistic(pieces: Pieces, size: int, ridge: float, passes: int = 30) -> Tensor:
    """Weights ``[size]`` of a logistic regression by damped Newton steps; the first feature is the constant.

    Every step needs only sums over rows. Rows of one class alone give a constant logit, half a row of the other class
    assumed. ``ridge`` as in :meth:`Ridge.solve`; the constant is free of it.
    """
    rows, ones, squares = 0, 0.0, torch.zeros(size, dtype=torch.float64)
    for x, y in pieces():
        rows, ones, squares = rows + len(x), ones + float(y.sum()), squares + x.double().square().sum(0)
    scale = torch.where(squares > 0, (squares / rows).sqrt(), torch.ones_like(squares))
    weights = torch.zeros(size, dtype=torch.float64)
    weights[0] = torch.tensor((ones + 0.5) / (rows - ones + 0.5), dtype=torch.float64).log()
    penalty = torch.full((size,), ridge, dtype=torch.float64).index_fill(0, torch.tensor([0]), 0.0)
    if 0.0 < ones < rows:
        weights = _newton(lambda w: _log_loss(pieces, w, scale, penalty, rows), weights, passes)
    return weights / scale


Loss = Callable[[Tensor], tuple[float, Tensor, Tensor]]
"""Value, gradient and Hessian at some weights."""


def _newton(loss: Loss, weights: Tensor, passes: int) -> Tensor:
    """Newton's method; a step that does not lower the loss is halved. ``passes`` bounds the evaluations."""
    value, gradient, hessian = loss(weights)
    step = torch.linalg.lstsq(hessian, gradient).solution
    for _ in range(passes):
        tried, *slopes = loss(weights - step)
        if not tried <= value:
            step = step / 2
            continue
        weights, gained, value = weights - step, value - tried, tried
        if gained < 1e-10:
            break
        step = torch.linalg.lstsq(slopes[1], slopes[0]).solution
    return weights


def _log_loss(
    pieces: Pieces, weights: Tensor, scale: Tensor, penalty: Tensor, rows: int
) -> tuple[float, Tensor, Tensor]:
    value = 0.5 * float((penalty * weights.square()).sum())
    gradient, hessian = penalty * weights, torch.diag(penalty)
    for x, y in pieces():
        x, y = x.double() / scale, y.double()
        logit = x @ weights
        chance = logit.sigmoid()
        value += float((torch.nn.functional.softplus(logit) - y * logit).sum()) / rows
        gradient = gradient + x.T @ (chance - y) / rows
        hessian = hessian + (x * (chance * (1 - chance))[:, None]).T @ x / rows
    return value, gradient, hessian
