"""Residual dynamic mode decomposition: how far each mode of a dictionary is from evolving linearly.

Of snapshot pairs (x, x') with features ``Phi_X, Phi_Y [M, N]``, EDMD needs the matrices G = Phi_X* Phi_X and
A = Phi_X* Phi_Y. One more, L = Phi_Y* Phi_Y, gives for any candidate eigenpair the true error of its linear evolution,

    res(lambda, v)^2 = v* (L - lambda A* - conj(lambda) A + |lambda|^2 G) v / v* G v
                     = |Phi_Y v - lambda Phi_X v|^2 / |Phi_X v|^2,

and for any z of the plane the smallest residual that any function of the dictionary has there (the pseudospectrum).

G, A and L square the condition number of the features, so that residuals below 1e-8 drown in round-off. What is kept
here is the triangular factor of ``[Phi_X, Phi_Y]``: the same statistic, as additive over parts of the data, unsquared.

Source: Colbrook, Townsend, "Rigorous data-driven computation of spectral properties of Koopman operators for dynamical
systems", 2023; Colbrook, Mezić, Stepanenko, "Limits and Powers of Koopman Learning", 2024. The bound of
:func:`forecast_bound` is derived here, from the triangle inequality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.errors import UserError
from mbrl.data.record import Record

CUTOFF = 1e-12
"""Directions of the features are dropped below this share of the strongest one's root mean square."""
SQUARED_FLOOR = 1e-6
"""Singular values below this share of the largest are computed anew without squaring"""


@dataclass
class Snapshots(Record):
    """All that these questions need of ``M`` pairs of feature vectors; ``+`` puts parts of the data together."""

    root: Tensor
    """``[2N, 2N]`` upper triangular, ``R* R = [Phi_X, Phi_Y]* W [Phi_X, Phi_Y]``; float64, complex128 where features
    are complex"""
    rows: Tensor
    """``[]`` int64: M"""
    weight: Tensor
    """``[]`` float64: sum of the weights"""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Snapshots:
        """Features ``x [M, N]`` and those of the successors ``y [M, N]``; ``weight [M]`` is not negative (default 1).

        Raises ``UserError`` where a feature or a weight is not finite, or a weight is negative.
        """
        if x.shape != y.shape or x.dim() != 2:
            raise UserError("features", (tuple(x.shape), tuple(y.shape)), "give [M, N] twice")
        wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        both = torch.cat([x.to(wide), y.to(wide)], -1)
        worth = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.to(torch.float64)
        if not bool(both.isfinite().all()) or not bool((worth.isfinite() & (worth >= 0)).all()):
            raise UserError("features, weight", "not finite, or a negative weight", "leave such rows out")
        return cls(_triangle(both * worth.sqrt()[:, None]), torch.tensor(len(x)), worth.sum())

    @classmethod
    def gather(cls, parts: Iterable[tuple[Tensor, Tensor]]) -> Snapshots:
        """The sum over batches of ``(x, y)``: memory is that of one batch."""
        found: Snapshots | None = None
        for x, y in parts:
            found = cls.of(x, y) if found is None else found + cls.of(x, y)
        if found is None:
            raise UserError("parts", "none", "give at least one batch of rows")
        return found

    def __add__(self, other: Snapshots) -> Snapshots:
        """Both parts' data together, up to round-off in any order: workers' parts are summed like this."""
        if self.root.shape != other.root.shape:
            sizes = (self.size, other.size)
            raise UserError("snapshots", sizes, "parts that are put together have features of one dictionary")
        root = _triangle(torch.cat([self.root, other.root]))
        return Snapshots(root, self.rows + other.rows, self.weight + other.weight)

    @property
    def size(self) -> int:
        """N"""
        return len(self.root) // 2

    @property
    def x(self) -> Tensor:
        """``[2N, N]``: stands for W^1/2 Phi_X in every norm and product."""
        return self.root[:, : self.size]

    @property
    def y(self) -> Tensor:
        """``[2N, N]``: stands for W^1/2 Phi_Y."""
        return self.root[:, self.size :]

    @property
    def gram(self) -> Tensor:
        """``[N, N]``: G, a weighted mean over rows."""
        return self.x.mH @ self.x / self.weight

    @property
    def cross(self) -> Tensor:
        """``[N, N]``: A."""
        return self.x.mH @ self.y / self.weight

    @property
    def image(self) -> Tensor:
        """``[N, N]``: L."""
        return self.y.mH @ self.y / self.weight


def _triangle(matrix: Tensor) -> Tensor:
    """``[K, K]`` R of ``matrix [M, K]``, rows of zeros where M < K."""
    root = torch.linalg.qr(matrix, mode="r").R
    short = matrix.shape[1] - len(root)
    return torch.cat([root, root.new_zeros(short, matrix.shape[1])]) if short else root


def residuals(held: Snapshots, values: Tensor, vectors: Tensor) -> Tensor:
    """``[K]``: res of the pairs (``values [K]``, columns of ``vectors [N, K]``), wherever they come from.

    On the rows that the pairs were computed from residuals are misleadingly low; give others. A function that is zero
    on all rows has none: NaN.
    """
    wide = held.root.to(torch.complex128)
    size = held.size
    own, next_own = wide[:, :size] @ vectors, wide[:, size:] @ vectors
    norm = torch.linalg.vector_norm(own, dim=0)
    res = torch.linalg.vector_norm(next_own - values * own, dim=0) / norm
    return torch.where(norm > 0, res, torch.nan)


@dataclass(frozen=True)
class Compressed:
    """A dictionary in orthonormal coordinates of its own: what is below the cut-off is left out.

    For a function with coordinates ``q``: ``res(z, q)^2 = |(operator - z) q|^2 + |rest q|^2`` for ``|q| = 1``.
    """

    operator: Tensor
    """``[r, r]``: the EDMD matrix G^-1 A in these coordinates"""
    rest: Tensor
    """``[r, r]``: the part of each image that is outside of the dictionary's span"""
    basis: Tensor
    """``[N, r]``: coefficients in the dictionary of each coordinate's function"""
    condition: float
    """of G over all N directions, before the cut; inf where the features depend on each other"""
    cutoff: float

    @property
    def rank(self) -> int:
        return self.basis.shape[1]


def compress(snapshots: Snapshots, cutoff: float = CUTOFF, most: int | None = None) -> Compressed:
    """The ``most`` strongest directions of the features (by root mean square), of those above ``cutoff``."""
    left, strength, right = torch.linalg.svd(snapshots.x, full_matrices=False)
    if not float(strength[0]) > 0.0:
        raise UserError("features", "all zero", "give features that say something")
    kept = int((strength > cutoff * strength[0]).sum())
    kept = kept if most is None else min(kept, most)
    basis = right.mH[:, :kept] / strength[:kept]
    image, own = snapshots.y @ basis, left[:, :kept]
    operator = own.mH @ image
    weakest = float(strength[-1] / strength[0])
    condition = weakest**-2 if weakest > 1e-15 else math.inf
    return Compressed(operator, torch.linalg.qr(image - own @ operator, mode="r").R, basis, condition, cutoff)


@dataclass(frozen=True)
class Pairs:
    """Candidate eigenpairs, smallest residual first."""

    values: Tensor
    """``[K]`` complex"""
    vectors: Tensor
    """``[N, K]`` complex: coefficients in the dictionary"""
    residual: Tensor
    """``[K]``, on the rows that were asked"""

    def kept(self, threshold: float) -> Pairs:
        """Those with a residual of at most that: what is left of the spectrum once it is pruned."""
        keep = self.residual <= threshold
        return Pairs(self.values[keep], self.vectors[:, keep], self.residual[keep])


def edmd_pairs(train: Snapshots, held: Snapshots, cutoff: float = CUTOFF) -> Pairs:
    """Eigenpairs of EDMD on ``train``, their residuals on ``held``."""
    small = compress(train, cutoff)
    values, inner = torch.linalg.eig(small.operator)
    vectors = small.basis.to(inner.dtype) @ inner
    found = residuals(held, values, vectors)
    order = found.nan_to_num(torch.inf).argsort()
    return Pairs(values[order], vectors[:, order], found[order])


def pseudospectrum(small: Compressed, points: Tensor, chunk: int = 64) -> Tensor:
    """``points.shape`` float64: tau(z), the smallest residual that any function of the dictionary has at ``z``.

    tau(z) is the smallest singular value of ``[operator - z; rest]``; ``{z: tau(z) < eps}`` is the eps-pseudospectrum.
    Computed squared, as that is several times faster, and anew without squaring where it is too small for that.
    The minimum is over the rows that ``small`` is of: with few rows for each direction it is too low.
    """
    flat = points.flatten().to(torch.complex128)
    return torch.cat([_smallest(small, part) for part in flat.split(chunk)]).view(points.shape)


def _smallest(small: Compressed, points: Tensor) -> Tensor:
    stacked = torch.cat([small.operator, small.rest]).to(torch.complex128)
    shift = torch.zeros_like(stacked)
    shift[: small.rank] = torch.eye(small.rank, dtype=stacked.dtype)
    pencil = stacked - points[:, None, None] * shift
    squares = torch.linalg.eigvalsh(pencil.mH @ pencil)
    tau: Tensor = squares[:, 0].clamp(min=0.0).sqrt()
    low = squares[:, 0] < SQUARED_FLOOR**2 * squares[:, -1]
    if bool(low.any()):
        tau[low] = torch.linalg.svdvals(pencil[low])[:, -1]
    return tau


def grid(real: tuple[float, float], imag: tuple[float, float], across: int) -> Tensor:
    """``[rows, across]`` complex points, evenly spaced alike in both directions; the last row is the lowest."""
    width, height = real[1] - real[0], imag[1] - imag[0]
    down = max(2, round((across - 1) * height / width) + 1)
    x = torch.linspace(*real, across, dtype=torch.float64)
    y = torch.linspace(imag[1], imag[0], down, dtype=torch.float64)
    return torch.complex(x.expand(down, -1), y[:, None].expand(-1, across))


def filtered(points: Tensor, tau: Tensor, threshold: float) -> Tensor:
    """``[K]``: the points of a grid in the pseudospectrum, surest first. Pruning eigenpairs can miss spectrum that
    this finds.
    """
    inside = tau < threshold
    found: Tensor = points[inside]
    return found[tau[inside].argsort()]


def forecast_bound(residual: Tensor, values: Tensor, steps: int) -> Tensor:
    """``[K]``: error after ``steps`` steps at most, relative to the mode's size: res * sum_{i < steps} |lambda|^i.

    Holds where the data's distribution is about invariant under the dynamics.
    """
    powers = values.abs().double()[..., None] ** torch.arange(steps, dtype=torch.float64)
    bound: Tensor = residual * powers.sum(-1)
    return bound
