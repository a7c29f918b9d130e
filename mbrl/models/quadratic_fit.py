"""Least squares with convex quadratic forms: ``y ~ o' P o + p' o + a' R a + r' a + c`` with P, R semidefinite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FULL_MATRIX_FEATURES = 300
"""A wider observation gets a diagonal P: the Gram matrix of all its products would not be cheap any more."""
ITERATIONS = 100
RIDGE = 1e-9

Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""P ``[D, D]``, p ``[D]``, R ``[A, A]``, r ``[A]``, c ``[]``."""


def fit_convex(obs: Tensor, action: Tensor, target: Tensor) -> tuple[Parts, float]:
    """The form for ``obs [N, D]``, ``action [N, A]``, ``target [N]``, all float64, and the variance it explains.

    Plain least squares first. Where a matrix is not semidefinite, it is projected, and projected gradient steps
    (accelerated: Beck, Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems",
    2009) go on from there; all that is not in the matrices is refitted exactly. Matrices are found in standardised
    coordinates, in which the off-diagonal features carry a factor √2, so that projecting is orthogonal.
    """
    mean, std = obs.mean(0), obs.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1.0), std, torch.ones_like(std))
    z = (obs - mean) / std
    of_obs, of_action = _Matrix(obs.shape[1], FULL_MATRIX_FEATURES), _Matrix(action.shape[1], FULL_MATRIX_FEATURES)
    curved = torch.cat([of_obs.features(z), of_action.features(action)], 1)
    flat = torch.cat([z, action, torch.ones_like(target)[:, None]], 1)

    def project(weight: Tensor) -> Tensor:
        first, second = weight.split([of_obs.size, of_action.size])
        return torch.cat([of_obs.project(first), of_action.project(second)])

    curved_weight = _projected_least_squares(*_without(flat, curved, target), project)
    flat_weight = _solve(flat.T @ flat, flat.T @ (target - curved @ curved_weight))
    r2 = _explained(target, curved @ curved_weight + flat @ flat_weight)
    p, r = curved_weight.split([of_obs.size, of_action.size])
    parts = of_obs.matrix(p), flat_weight[: len(mean)], of_action.matrix(r), flat_weight[len(mean) : -1]
    return _raw(*parts, flat_weight[-1], mean, std), r2


class _Matrix:
    """A symmetric matrix as a vector of the same norm: its diagonal, then √2 times what is above it."""

    def __init__(self, dim: int, most: int) -> None:
        self.dim, self.full = dim, dim * (dim + 1) // 2 <= most
        self.rows, self.columns = torch.triu_indices(dim, dim, 1) if self.full else torch.zeros(2, 0, dtype=torch.long)
        self.size = dim + len(self.rows)

    def features(self, x: Tensor) -> Tensor:
        """``[N, size]``, whose product with the vector is ``x' M x``."""
        return torch.cat([x.square(), 2**0.5 * x[:, self.rows] * x[:, self.columns]], 1)

    def matrix(self, vector: Tensor) -> Tensor:
        above = vector.new_zeros(self.dim, self.dim)
        above[self.rows, self.columns] = vector[self.dim :] / 2**0.5
        return torch.diag(vector[: self.dim]) + above + above.T

    def project(self, vector: Tensor) -> Tensor:
        """The nearest semidefinite matrix."""
        values, vectors = torch.linalg.eigh(self.matrix(vector))
        nearest = (vectors * values.clamp(min=0.0)) @ vectors.T
        return torch.cat([nearest.diagonal(), 2**0.5 * nearest[self.rows, self.columns]])


def _without(flat: Tensor, curved: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix and right-hand side of ``curved`` after the best use of ``flat``, per row."""
    inner = flat.T @ torch.cat([curved, target[:, None]], 1)
    known = _solve(flat.T @ flat, inner)
    gram = curved.T @ curved - inner[:, :-1].T @ known[:, :-1]
    right = curved.T @ target - inner[:, :-1].T @ known[:, -1]
    return (gram + gram.T) / (2 * len(flat)), right / len(flat)


def _projected_least_squares(gram: Tensor, right: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    free = _solve(gram, right)
    now = project(free)
    if torch.allclose(now, free, rtol=1e-7, atol=1e-9):
        return now  # rounding aside, it was convex by itself
    step = 1.0 / torch.linalg.matrix_norm(gram, 2).clamp(min=1e-12)
    ahead, momentum = now, 1.0
    for _ in range(ITERATIONS):
        before, now = now, project(ahead - step * (gram @ ahead - right))
        grown = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        ahead, momentum = now + (momentum - 1.0) / grown * (now - before), grown
    return now


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """With a ridge that only decides between equally good solutions (cos² + sin² is constant, say)."""
    scale = gram.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(gram + RIDGE * scale * eye, right)
    return solution


def _explained(target: Tensor, fitted: Tensor) -> float:
    total = (target - target.mean()).square().sum()
    return float(1.0 - (target - fitted).square().sum() / total) if total > 0.0 else 0.0


def _raw(
    p_matrix: Tensor, p: Tensor, r_matrix: Tensor, r: Tensor, constant: Tensor, mean: Tensor, std: Tensor
) -> Parts:
    """The form of ``z = (o - mean) / std`` as one of ``o``."""
    p_matrix, p = p_matrix / std[:, None] / std, p / std
    return (
        p_matrix,
        p - 2.0 * (p_matrix @ mean),
        r_matrix,
        r,
        constant + mean @ p_matrix @ mean - p @ mean,
    )
