"""Linear-quadratic regulation of a lifted model: gains by Riccati recursion, or by the algebraic Riccati equation.

Unconstrained; actions are clipped. Lifted in the sense of Korda, Mezić, "Linear predictors for nonlinear dynamical
systems: Koopman operator meets model predictive control", Automatica 2018: the state's cost is ``C' P C``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.models.quadratic import QuadraticForm
from mbrl.planning.base import Plan
from mbrl.planning.condensed import action_matrix
from mbrl.planning.lifted import Lifted, LiftedMemory, LiftedPlanner, PlannerFactory, shifted

LONG = 500
"""Steps of the recursion that stands in where the algebraic equation has no solution."""
LARGEST = 1e12
"""A value function grown beyond this multiple of the stage cost has left what float64 can subtract."""


@dataclass(frozen=True)
class System:
    """``z' = a z + b u + drift``; a step costs ``z'' Q z' + q' z' + u' R u + r' u`` of the state after it."""

    a: Tensor
    b: Tensor
    drift: Tensor
    q_matrix: Tensor
    q_vector: Tensor
    r_matrix: Tensor
    r_vector: Tensor


@dataclass(frozen=True)
class Gains:
    """``u = -feedback z - offset``."""

    feedback: Tensor
    """``[A, N]``"""
    offset: Tensor
    """``[A]``"""


def riccati_step(system: System, w_matrix: Tensor, w_vector: Tensor) -> tuple[Gains, Tensor, Tensor]:
    """The best action where what comes after it costs ``z' W z + w' z``, and what the state before it then costs.

    With ``G = R + B'WB``: ``u = -G^-1 B'WA z - 1/2 G^-1 (B'(w + 2 W drift) + r)``.
    """
    a, b = system.a, system.b
    wb = w_matrix @ b
    curved = system.r_matrix + b.T @ wb
    curved = curved + 1e-12 * curved.diagonal().mean().clamp(min=1e-6) * torch.eye(len(curved), dtype=curved.dtype)
    slope = w_vector + 2.0 * w_matrix @ system.drift
    right = torch.cat([wb.T @ a, 0.5 * (b.T @ slope + system.r_vector)[:, None]], 1)
    solved = torch.linalg.solve(curved, right)
    gains = Gains(solved[:, :-1], solved[:, -1])
    s_matrix = a.T @ w_matrix @ a - right[:, :-1].T @ gains.feedback
    s_vector = a.T @ slope - 2.0 * right[:, :-1].T @ gains.offset
    return gains, (s_matrix + s_matrix.T) / 2, s_vector


def finite_horizon(system: System, terminal: tuple[Tensor, Tensor] | None, horizon: int) -> list[Gains]:
    """Gains of each step, first to last; the last state costs ``terminal`` (matrix, vector) beside its stage cost."""
    s_matrix, s_vector = terminal or (torch.zeros_like(system.q_matrix), torch.zeros_like(system.q_vector))
    gains = []
    for _ in range(horizon):
        one, s_matrix, s_vector = riccati_step(system, system.q_matrix + s_matrix, system.q_vector + s_vector)
        gains.append(one)
    return gains[::-1]


def stationary(system: System) -> Gains | None:
    """Gains of the infinite horizon (least average cost); None where the algebraic equation has no solution.

    That is so where a mode that grows cannot be steered, or one that neither grows nor fades costs nothing.
    """
    a, b, q, r = (x.numpy() for x in (system.a, system.b, system.q_matrix, system.r_matrix))
    try:
        # the state is charged after the step: the equation's own solution X counts the current state too, W = X
        w_matrix = torch.from_numpy(solve_discrete_are(a, b, q, r))
    except (np.linalg.LinAlgError, ValueError):
        return None
    gains, _, _ = riccati_step(system, w_matrix, torch.zeros_like(system.q_vector))
    closed = system.a - system.b @ gains.feedback
    if not w_matrix.isfinite().all() or torch.linalg.eigvals(closed).abs().max() >= 1.0:
        return None
    # w = q + s with s = closed' (w + 2 W drift) - K' r
    constant = system.q_vector + 2.0 * closed.T @ (w_matrix @ system.drift) - gains.feedback.T @ system.r_vector
    w_vector = torch.linalg.solve(torch.eye(len(a), dtype=torch.float64) - closed.T, constant)
    return riccati_step(system, w_matrix, w_vector)[0]


def long_horizon(system: System, steps: int) -> Gains:
    """First gains of the longest horizon up to ``steps`` whose value function stays within float64."""
    s_matrix, s_vector = torch.zeros_like(system.q_matrix), torch.zeros_like(system.q_vector)
    if not len(system.a):  # nothing moves: an unfitted model
        return Gains(torch.zeros_like(system.b.T), torch.zeros_like(system.r_vector))
    largest = LARGEST * system.q_matrix.abs().max().clamp(min=1e-12)
    best = Gains(torch.zeros_like(system.b.T), torch.zeros_like(system.r_vector))
    for _ in range(steps):
        gains, s_matrix, s_vector = riccati_step(system, system.q_matrix + s_matrix, system.q_vector + s_vector)
        if not s_matrix.abs().max() < largest or not gains.feedback.isfinite().all():
            break
        best = gains
    return best


class LQRPlanner(LiftedPlanner):
    """The linear-quadratic regulator of a lifted model; the gains are computed once for a fitted model.

    Finite horizon: the exact minimiser of the objective without bounds, by Riccati recursion with affine terms.
    Infinite horizon: the gains of least average cost. Coordinates of the lift that never change (the constant 1) cannot
    be steered; they are taken out first and act as a drift. What still has no solution (lifted modes that grow and
    cannot be steered) gets the first gains of a long finite horizon; ``stats["riccati"]`` is 1 for the algebraic
    equation, 0 for such a recursion.

    A bilinear model is linearised once, about the observation that costs least: regulation there is what it is for.

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead; with ``infinite`` the length of what is returned only.
        infinite: solve for the infinite horizon.
        action_limit: |action| is clipped here, at most 1.
        goal: the observation ``[D]`` to linearise a bilinear model about (null: the one that costs least).
        min_r2: least explained variance of a fitted reward.
        fallback: factory of the planner that plans where this one cannot.
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 40,
        infinite: bool = False,
        action_limit: float = 1.0,
        goal: list[float] | None = None,
        min_r2: float = 0.9,
        fallback: PlannerFactory | None = None,
    ) -> None:
        super().__init__(spec, horizon, action_limit, min_r2, fallback)
        if goal is not None and len(goal) != spec.obs_size:
            raise UserError("goal", goal, f"an observation of {spec.id} has {spec.obs_size} entries")
        self.infinite, self.goal = infinite, goal

    def _prepare(self, task: Lifted) -> tuple[list[Gains], bool]:
        centre = task.stage.minimiser() if self.goal is None else torch.tensor(self.goal)
        latent = task.lift(centre[None].float())[0].double()
        system = lifted_system(task, action_matrix(task.parts, latent))
        if self.infinite:
            gains, solved = infinite_horizon(system, latent)
            return [gains] * self.horizon, solved
        terminal = None if task.terminal is None else _of_latent(task, task.terminal)
        return finite_horizon(system, terminal, self.horizon), False

    def _control(self, task: Lifted, prepared: tuple[list[Gains], bool], latent: Tensor, memory: LiftedMemory) -> Plan:
        gains, solved = prepared
        device, z = latent.device, latent.cpu()
        actions, cost = [], torch.zeros(len(z), dtype=torch.float64)
        for one in gains:
            action = (-z @ one.feedback.T - one.offset).clamp(-self.action_limit, self.action_limit)
            z = z @ task.parts.a.T + (action_matrix(task.parts, z) @ action[:, :, None])[:, :, 0]
            obs = z @ task.parts.c.T + task.parts.offset
            cost += task.stage.cost(obs, action)
            actions.append(action)
        if task.terminal is not None:
            cost += task.terminal.cost(obs, torch.zeros_like(action))
        plan = torch.stack(actions)
        memory = LiftedMemory(shifted(plan.transpose(0, 1)).to(device), memory.dual, memory.fallback)
        return Plan(plan.to(device), -cost.to(device), memory, {"riccati": torch.tensor(float(solved))})


def lifted_system(task: Lifted, b: Tensor) -> System:
    """The model with action matrix ``b [N, A]`` and the stage cost, as a system of latents."""
    matrix, vector = _of_latent(task, task.stage)
    drift = torch.zeros(len(task.parts.a), dtype=torch.float64)
    return System(task.parts.a, b, drift, matrix, vector, task.stage.r_matrix, task.stage.r_vector)


def infinite_horizon(system: System, latent: Tensor) -> tuple[Gains, bool]:
    """Stationary gains, and whether they solve the algebraic equation; ``latent [N]`` tells constants' values."""
    eye = torch.eye(len(system.a), dtype=torch.float64)
    moves = (system.a - eye).abs().amax(1) + system.b.abs().amax(1) > 1e-9
    kept, constant = moves.nonzero()[:, 0], (~moves).nonzero()[:, 0]
    inside = System(
        system.a[kept][:, kept],
        system.b[kept],
        system.drift[kept] + system.a[kept][:, constant] @ latent[constant],
        system.q_matrix[kept][:, kept],
        system.q_vector[kept] + 2.0 * system.q_matrix[kept][:, constant] @ latent[constant],
        system.r_matrix,
        system.r_vector,
    )
    solved = stationary(inside) if len(kept) else None
    gains = solved or long_horizon(inside, LONG)
    feedback = torch.zeros(len(system.r_vector), len(eye), dtype=torch.float64)
    feedback[:, kept] = gains.feedback
    return Gains(feedback, gains.offset), solved is not None


def _of_latent(task: Lifted, form: QuadraticForm) -> tuple[Tensor, Tensor]:
    """``C' P C`` and ``C' (2 P offset + p)``."""
    c = task.parts.c
    return c.T @ form.p_matrix @ c, c.T @ (2.0 * form.p_matrix @ task.parts.offset + form.p_vector)
