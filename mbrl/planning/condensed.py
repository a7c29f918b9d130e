"""Condensed model-predictive control: the latents eliminated, a quadratic program in the actions alone.

Korda, Mezić, "Linear predictors for nonlinear dynamical systems: Koopman operator meets model predictive control",
Automatica 2018. The program's size is ``H * A``, whatever the size of the lift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbrl.models.base import LinearParts
from mbrl.models.quadratic import QuadraticForm

RIDGE = 1e-9
"""Times the mean curvature, added to a Hessian: directions that cost nothing get the smallest actions."""


class Condensed:
    """Observations after each of ``H`` actions as an affine function of them, and what they cost; float64.

    ``y = free + response u`` with ``free = C A^(k+1) z + offset`` and blocks ``response[k, j] = C A^(k-j) B_j``. An
    action matrix of its own for every step, ``B_j``, says a bilinear model along a path (see :func:`action_matrix`).
    """

    def __init__(self, parts: LinearParts, stage: QuadraticForm, terminal: QuadraticForm | None, horizon: int) -> None:
        self.parts, self.stage, self.terminal, self.horizon = parts, stage, terminal, horizon
        observed = [parts.c]
        for _ in range(horizon):
            observed.append(observed[-1] @ parts.a)
        self.observed = torch.stack(observed)  # C A^k, [H + 1, D, N]
        matrices, vectors = stage.p_matrix.repeat(horizon, 1, 1), stage.p_vector.repeat(horizon, 1)
        if terminal is not None:
            matrices[-1] += terminal.p_matrix
            vectors[-1] += terminal.p_vector
        self.p_matrix, self.p_vector = matrices, vectors  # [H, D, D], [H, D]

    def free(self, latent: Tensor) -> Tensor:
        """``[B, H, D]``: what is observed after ``latent [B, N]`` when every action is zero."""
        return torch.einsum("hdn,bn->bhd", self.observed[1:], latent) + self.parts.offset

    def response(self, b: Tensor) -> Tensor:
        """``[..., H, D, H, A]`` for action matrices ``b [..., N, A]``, or one for each step ``[..., H, N, A]``."""
        steps = torch.arange(self.horizon)
        lag = steps[:, None] - steps
        if b.dim() == 2:
            blocks = (self.observed[:-1] @ b)[lag.clamp(min=0)]  # [k, j, D, A]
        else:
            blocks = torch.einsum("mdn,...jna->...mjda", self.observed[:-1], b)[..., lag.clamp(min=0), steps, :, :]
        return (blocks * (lag >= 0)[:, :, None, None]).transpose(-3, -2)

    def hessian(self, response: Tensor) -> Tensor:
        """``[..., H * A, H * A]``: ``2 (M' P M + R)``."""
        m = response.flatten(-2)  # [..., H, D, H * A]
        curved = 2.0 * (m.mT @ (self.p_matrix @ m)).sum(-3)
        curved = curved + 2.0 * torch.block_diag(*[self.stage.r_matrix] * self.horizon)
        mean = curved.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-6)
        ridged: Tensor = curved + RIDGE * mean * torch.eye(curved.shape[-1], dtype=curved.dtype)
        return ridged

    def gradient(self, response: Tensor, free: Tensor) -> Tensor:
        """``[B, H * A]`` at zero actions: ``M' (2 P free + p) + r``."""
        slope = 2.0 * torch.einsum("hde,bhe->bhd", self.p_matrix, free) + self.p_vector
        equation = "hdja,bhd->bja" if response.dim() == 4 else "bhdja,bhd->bja"
        return (torch.einsum(equation, response, slope) + self.stage.r_vector).flatten(1)

    def cost(self, obs: Tensor, plan: Tensor) -> Tensor:
        """``[B]``: what ``obs [B, H, D]``, seen after each action of ``plan [B, H, A]``, cost in all."""
        total = self.stage.cost(obs, plan).sum(1)
        if self.terminal is not None:
            total = total + self.terminal.cost(obs[:, -1], torch.zeros_like(plan[:, -1]))
        return total


def predicted(response: Tensor, free: Tensor, plan: Tensor) -> Tensor:
    """Observations ``[B, H, D]`` after each action of ``plan [B, H, A]``."""
    equation = "hdja,bja->bhd" if response.dim() == 4 else "bhdja,bja->bhd"
    return free + torch.einsum(equation, response, plan)


def action_matrix(parts: LinearParts, latent: Tensor) -> Tensor:
    """``B(z) = B + [N_1 z ... N_A z]``, ``[..., N, A]`` at ``latent [..., N]``."""
    if parts.bilinear is None:
        return parts.b
    return parts.b + torch.einsum("anm,...m->...na", parts.bilinear, latent)


def follow(parts: LinearParts, latent: Tensor, plan: Tensor) -> Tensor:
    """Latents ``[B, H + 1, N]`` along ``plan [B, H, A]``, from ``latent [B, N]`` on, bilinear terms included."""
    path = [latent]
    for action in plan.unbind(1):
        z = path[-1]
        path.append(z @ parts.a.T + (action_matrix(parts, z) @ action[:, :, None])[:, :, 0])
    return torch.stack(path, 1)
