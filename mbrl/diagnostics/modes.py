"""Which modes of a lifted linear model can be trusted, on rows that it has not seen.

For a left eigenvector w_j of A (``w_j* A = lambda_j w_j*``) the function ``xi_j(x) = w_j* lift(x)`` should obey
``xi_j(x') = lambda_j xi_j(x) + w_j* (B u + sum_i u_i N_i z)``. Its residual is how far it does not:

    rho_j^2 = mean |xi_j(x') - lambda_j xi_j(x) - w_j* (B u + sum_i u_i N_i z)|^2 / mean |xi_j(x)|^2.

With the model's own action terms taken from the successors' features this is the residual of
:mod:`mbrl.diagnostics.resdmd`, and so is the rest of it. Residuals are norms under the distribution of the rows: a mode
may look fine there and fail where a planner goes. Where to call a residual small is our choice (see the constants).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mbrl.data.transitions import Transitions
from mbrl.diagnostics.resdmd import Compressed, Snapshots, compress, residuals
from mbrl.diagnostics.rows import device_of
from mbrl.models.base import DynamicsModel, LatentLinear, LinearParts, require
from mbrl.models.koopman.base import KoopmanModel, KoopmanState

TRUSTED, SPURIOUS = 0.1, 0.5
"""Residuals up to which a mode can be trusted, and from which it is none: half of it is lost in one step"""
EXACT, BETTER = 1e-5, 0.5
"""Between these a residual must also be below half of what the mode changes by in one step: with a short time step a
function that is no mode at all changes little"""
CONSTANT = 0.05
"""A function whose standard deviation is below this share of its root mean square tells no states apart"""
ROWS_PER_DIRECTION = 4
"""Fewer rows than that for each direction of the features, and the pseudospectrum, a minimum over them, is too low"""
WORST = 10.0
"""Error of a window, in root mean square changes, at which it counts as diverged; larger ones are counted as that"""

Trust = Literal["trust", "doubt", "spurious", "constant", "unseen"]


@dataclass(frozen=True)
class Modes:
    """``K = N`` modes of a model, smallest residual first; conjugate pairs are two. All float64."""

    values: Tensor
    """``[N]`` complex: eigenvalues of A"""
    residual: Tensor
    """``[N]``: rho, relative to the mode's root mean square; NaN where the mode is zero on all rows"""
    change: Tensor
    """``[N]``: what predicting no change of the mode would get"""
    spread: Tensor
    """``[N]``: standard deviation of the mode over its root mean square"""
    closure: float
    """``|Z' - A Z - B U - ...| / |Z' - Z|``: below 1 it is better than no change"""
    condition: float
    """of the eigenvectors of A, each of length 1: from about 1e6 on single eigenvalues mean little"""
    features: Compressed
    """The features on these rows"""
    held: Snapshots
    rows: int
    bilinear: bool
    """Modes are driven by one another through the action, so errors over several steps have no bound of their own"""

    @property
    def radius(self) -> float:
        """Largest modulus of an eigenvalue."""
        return float(self.values.abs().max())

    @property
    def enough_rows(self) -> bool:
        """Whether there are enough of them for a pseudospectrum."""
        return self.rows >= ROWS_PER_DIRECTION * self.features.rank

    def trust(self) -> list[Trust]:
        """For each mode, whether to go by it."""
        columns = (self.residual.tolist(), self.change.tolist(), self.spread.tolist())
        return [_trust(*entry) for entry in zip(*columns, strict=True)]


def _trust(residual: float, change: float, spread: float) -> Trust:
    if not math.isfinite(residual):
        return "unseen"
    if spread < CONSTANT:
        return "constant"
    if residual >= SPURIOUS:
        return "spurious"
    beats = residual <= EXACT or residual < BETTER * change
    return "trust" if residual <= TRUSTED and beats else "doubt"


@torch.no_grad()
def modes(model: DynamicsModel, rows: Transitions) -> Modes | None:
    """Judge the modes of a :class:`LatentLinear` model on ``rows [M]``; None where its matrices are not finite.

    Raises ``UserError`` for a model that is not linear in a lifted state, or whose features are not finite.
    """
    parts = require(model, LatentLinear).linear_parts().to("cpu").map(torch.Tensor.double)
    matrices = [parts.a, parts.b] + ([] if parts.bilinear is None else [parts.bilinear])
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        return None
    z, left = free_pairs(model, rows, parts)
    values, vectors = torch.linalg.eig(parts.a.T)  # its right eigenvectors are conjugates of A's left ones
    held = Snapshots.of(z, left)
    rho = residuals(held, values, vectors)
    order = rho.nan_to_num(math.inf).argsort(stable=True)
    values, vectors = values[order], vectors[:, order]
    return Modes(
        values,
        rho[order],
        residuals(held, torch.ones_like(values), vectors),
        spreads(z, vectors),
        closure_error(z, left, lifted(model, rows.next_obs), parts),
        float(torch.linalg.cond(vectors)),
        compress(held),
        held,
        len(rows),
        parts.bilinear is not None,
    )


def free_pairs(model: DynamicsModel, rows: Transitions, parts: LinearParts) -> tuple[Tensor, Tensor]:
    """``(z [M, N], z' - B u - sum_i u_i N_i z)``: what A alone has to explain."""
    z, u = lifted(model, rows.obs), rows.action.cpu().double()
    pushed = u @ parts.b.T
    if parts.bilinear is not None:
        pushed = pushed + torch.einsum("ma,anj,mj->mn", u, parts.bilinear, z)
    return z, lifted(model, rows.next_obs) - pushed


def lifted(model: DynamicsModel, obs: Tensor) -> Tensor:
    """``[..., N]`` float64 on the CPU."""
    lift = require(model, LatentLinear).lift
    return lift(obs.to(device_of(model))).cpu().double()


def spreads(z: Tensor, vectors: Tensor) -> Tensor:
    """``[K]``: of the functions with coefficients ``vectors [N, K]``, standard deviation over root mean square."""
    value = z.to(vectors.dtype) @ vectors
    rms = value.abs().square().mean(0).sqrt()
    return torch.where(rms > 0, (value - value.mean(0)).abs().square().mean(0).sqrt() / rms, 0.0)


def closure_error(z: Tensor, left: Tensor, next_z: Tensor, parts: LinearParts) -> float:
    """Error of one step over that of no change, Frobenius norms over all rows and features."""
    return float(torch.linalg.matrix_norm(left - z @ parts.a.T) / torch.linalg.matrix_norm(next_z - z))


@dataclass(frozen=True)
class Drift:
    """How the closure error grows over ``H`` steps: after h steps, ``|z_h - lift(x_h)| / |lift(x_h) - lift(x_0)|``."""

    closure: dict[int, Tensor]
    """``[H]`` by period of re-encoding; 0 is never"""
    diverged: dict[int, float]
    """Share of windows whose error has reached :data:`WORST` in the end"""


@torch.no_grad()
def drift(model: KoopmanModel, lived: Transitions, periods: Sequence[int]) -> Drift:
    """On windows ``lived [W, H]``, with the latent lifted anew after every so many steps."""
    lived = lived.to(device_of(model))
    actions, truth = lived.action.transpose(0, 1), lifted(model, lived.next_obs).transpose(0, 1)
    away = (truth - lifted(model, lived.obs[:, 0])).square().sum(-1).mean(1)  # [H]
    start, closure, diverged = model.encode(lived.obs[:, 0]), {}, {}
    for period in periods:
        states = model.rollout(start, actions, None, reencode_every=period).states
        assert isinstance(states, KoopmanState)
        said = states.latent[1:, 0].cpu().double()
        miss = ((said - truth).square().sum(-1) / away[:, None]).nan_to_num(math.inf).clamp(max=WORST**2)
        closure[period] = miss.mean(1).sqrt()
        diverged[period] = float((miss[-1] >= WORST**2).double().mean())
    return Drift(closure, diverged)
