"""Linear model-predictive control on a lifted model: one small quadratic program a decision.

Korda, Mezić, "Linear predictors for nonlinear dynamical systems: Koopman operator meets model predictive control",
Automatica 2018. Solver: OSQP (Stellato, Banjac, Goulart, Bemporad, Boyd, "OSQP: an operator splitting solver for
quadratic programs", 2020). How bilinear models are linearised on the way is our choice, see :class:`QPPlanner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import osqp
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.planning.base import Plan
from mbrl.planning.condensed import Condensed, action_matrix, follow, predicted
from mbrl.planning.lifted import Lifted, LiftedMemory, LiftedPlanner, PlannerFactory, shifted
from mbrl.planning.objective import entries
from mbrl.planning.search import check_counts

Floats = NDArray[np.float64]

SETTINGS = {
    "verbose": False,
    "eps_abs": 1e-6,
    "eps_rel": 1e-6,
    "polishing": False,  # it prints, whatever `verbose` says
    "check_termination": 5,
    # by iterations: the default may go by the clock, and then a result depends on what else the machine does
    "adaptive_rho": 1,
    "adaptive_rho_interval": 50,
}


@dataclass(frozen=True)
class QuadraticProgram:
    """``min 1/2 x' P x + q' x`` with ``low <= A x <= high``; ``P`` positive definite."""

    hessian: Floats
    """P, ``[n, n]``"""
    gradient: Floats
    """q, ``[n]``"""
    rows: csc_matrix
    """A, ``[m, n]``"""
    low: Floats
    high: Floats
    """``[m]``, infinite where there is no bound"""


@dataclass(frozen=True)
class Solution:
    """``solved`` false: nothing keeps the bounds, or nothing was found; then ``primal`` is where the search began."""

    primal: Floats
    dual: Floats
    iterations: int
    solved: bool


def solve(program: QuadraticProgram, primal: Floats, dual: Floats, max_iterations: int = 4000) -> Solution:
    """Where no bound is met, a linear system; else OSQP, warm-started at ``primal [n]`` and ``dual [m]``.

    The solver is set up anew each time: all it starts from is in the arguments, so a resumed run solves alike.
    """
    if not (np.isfinite(program.hessian).all() and np.isfinite(program.gradient).all()):
        return Solution(primal, dual, 0, False)
    free = np.linalg.solve(program.hessian, -program.gradient).astype(np.float64, copy=False)
    reached = program.rows @ free
    if (reached >= program.low).all() and (reached <= program.high).all():
        return Solution(free, np.zeros_like(dual), 0, True)
    solver = osqp.OSQP(algebra="builtin")  # left to choose, it searches the disk for others each time
    options = SETTINGS | {"max_iter": max_iterations}
    solver.setup(_upper(program.hessian), program.gradient, program.rows, program.low, program.high, **options)
    solver.warm_start(x=primal, y=dual)
    found = solver.solve(raise_error=False)
    usable = int(found.info.status_val) in (osqp.SolverStatus.OSQP_SOLVED, osqp.SolverStatus.OSQP_SOLVED_INACCURATE)
    if not usable or not np.isfinite(found.x).all():
        return Solution(primal, np.zeros_like(dual), int(found.info.iter), False)
    return Solution(found.x, found.y, int(found.info.iter), True)


def _upper(matrix: Floats) -> csc_matrix:
    """The upper triangle, column by column; every entry is stored."""
    size = len(matrix)
    columns, index = np.tril_indices(size)  # of the transpose: (column, row <= column)
    starts = np.concatenate([[0], np.cumsum(np.arange(1, size + 1))])
    return csc_matrix((matrix[index, columns], index, starts), shape=matrix.shape)


class QPPlanner(LiftedPlanner):
    """Model-predictive control with a lifted (bi)linear model: the condensed quadratic program, solved with bounds.

    It regulates: plans are as good as the lift is linear over the horizon, which near a set point it is. For a swing-up
    a linear-input model is useless, see ``mbrl bench koopman-control``.

    Bilinear models are linearised anew at each decision, with the action matrix ``B(z) = B + [N_i z]`` at the current
    latent (``relinearize: 1``); each further pass takes ``B(z_k)`` of every step along the path that the pass before
    predicted, so that a settled plan is predicted exactly. (No Newton step: that an action changes later ``B(z_k)`` is
    not seen. With models of little data three passes held a pendulum upright where one did not; its swing-up was better
    with some models, worse with others.) 0 leaves the bilinear terms out.

    ``stats``: ``quadratic`` as in the base class; ``[B]``: ``iterations`` of the solver, ``infeasible`` (no plan keeps
    the bounds, or none was found: the last plan goes on, shifted).

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead.
        action_limit: bound on |action|, at most 1.
        observation_bounds: lowest and highest value of observation entries by name or index (null: none), kept at
            every predicted step.
        relinearize: passes of a bilinear model in each decision.
        max_iterations: of the solver, for one program.
        min_r2: least explained variance of a fitted reward.
        fallback: factory of the planner that plans where this one cannot.
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 40,
        action_limit: float = 1.0,
        observation_bounds: dict[str | int, tuple[float | None, float | None]] | None = None,
        relinearize: int = 1,
        max_iterations: int = 4000,
        min_r2: float = 0.9,
        fallback: PlannerFactory | None = None,
    ) -> None:
        super().__init__(spec, horizon, action_limit, min_r2, fallback)
        check_counts(max_iterations=max_iterations)
        if relinearize < 0:
            raise UserError("relinearize", relinearize, "give a number of passes, 0 for none")
        self.relinearize, self.max_iterations = relinearize, max_iterations
        self.bounded, self.low, self.high = _bounds(spec, observation_bounds or {})

    @property
    def _duals(self) -> int:
        return self.horizon * (self.spec.action.size + len(self.bounded))

    def _prepare(self, task: Lifted) -> Program:
        return Program(Condensed(task.parts, task.stage, task.terminal, self.horizon), self)

    def _control(self, task: Lifted, prepared: Program, latent: Tensor, memory: LiftedMemory) -> Plan:
        latent, plan, dual = latent.cpu(), memory.plan.cpu(), memory.dual.cpu()
        last, iterations = plan, torch.zeros(len(latent))
        for pass_number in range(max(1, self.relinearize if task.parts.bilinear is not None else 1)):
            program = prepared.at(self._action_matrix(task, latent, plan, pass_number))
            free = program.condensed.free(latent)
            plan, dual, done, found = program.solve(free, plan, dual)
            iterations += done
        plan = torch.where(found[:, None, None], plan, last).clamp(-self.action_limit, self.action_limit)
        value = -program.condensed.cost(predicted(program.response, free, plan), plan)
        device = memory.plan.device
        warm_start = LiftedMemory(shifted(plan).to(device), self._shifted_dual(dual).to(device), memory.fallback)
        stats = {"iterations": iterations.to(device), "infeasible": ~found.to(device)}
        return Plan(plan.transpose(0, 1).to(device), value.to(device), warm_start, stats)

    def _action_matrix(self, task: Lifted, latent: Tensor, plan: Tensor, pass_number: int) -> Tensor | None:
        """``[B, 1 or H, N, A]`` for this pass; None where it is the same for all, so that nothing is computed anew."""
        if task.parts.bilinear is None or not self.relinearize:
            return None
        if not pass_number:
            return action_matrix(task.parts, latent)[:, None].expand(-1, self.horizon, -1, -1)
        return action_matrix(task.parts, follow(task.parts, latent, plan)[:, :-1])

    def _shifted_dual(self, dual: Tensor) -> Tensor:
        """Multipliers one step ahead: those of actions and those of observations are each a block, time first."""
        sizes = [self.horizon * self.spec.action.size, self.horizon * len(self.bounded)]
        blocks = [x.unflatten(1, (self.horizon, -1)) for x in dual.split(sizes, 1) if x.shape[1]]
        return torch.cat([shifted(x).flatten(1) for x in blocks], 1)


class Program:
    """The quadratic program of a model: all of it that does not depend on where the environment is."""

    def __init__(self, condensed: Condensed, planner: QPPlanner, b: Tensor | None = None) -> None:
        self.condensed, self.planner = condensed, planner
        self.response = condensed.response(condensed.parts.b if b is None else b)
        self.hessian = condensed.hessian(self.response)
        seen = self.response[..., planner.bounded, :, :].flatten(-2).flatten(-3, -2)
        identity = torch.eye(self.hessian.shape[-1], dtype=torch.float64).expand_as(self.hessian)
        self.rows = torch.cat([identity, seen], -2)
        self.shared = None if b is not None else (self.hessian.numpy(), csc_matrix(self.rows.numpy()))

    def at(self, b: Tensor | None) -> Program:
        """The program with action matrices of the environments' own ``[B, H, N, A]``, or this one."""
        return self if b is None else Program(self.condensed, self.planner, b)

    def solve(self, free: Tensor, plan: Tensor, dual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Plans ``[B, H, A]``, multipliers, iterations ``[B]`` and which were solved ``[B]``, row by row."""
        gradient = self.condensed.gradient(self.response, free).numpy()
        low, high = self._limits(free)
        programs = [
            QuadraticProgram(hessian, gradient[i], rows, low[i], high[i])
            for i, (hessian, rows) in enumerate(self._matrices(len(free)))
        ]
        starts = zip(programs, plan.flatten(1).numpy(), dual.numpy(), strict=True)
        found = [solve(one, x, y, self.planner.max_iterations) for one, x, y in starts]
        primal = torch.from_numpy(np.stack([one.primal for one in found])).view_as(plan)
        multipliers = torch.from_numpy(np.stack([one.dual for one in found]))
        iterations = torch.tensor([float(one.iterations) for one in found])
        return primal, multipliers, iterations, torch.tensor([one.solved for one in found])

    def _matrices(self, batch: int) -> list[tuple[Floats, csc_matrix]]:
        if self.shared is not None:
            return [self.shared] * batch
        hessian, rows = self.hessian.numpy(), self.rows.numpy()
        return [(hessian[i], csc_matrix(rows[i])) for i in range(batch)]

    def _limits(self, free: Tensor) -> tuple[Floats, Floats]:
        """Bounds ``[B, M]`` of the rows: of actions, then of what the actions add to the bounded entries."""
        planner, drift = self.planner, free[:, :, self.planner.bounded]
        box = free.new_full((len(free), planner.horizon * planner.spec.action.size), planner.action_limit)
        low, high = (
            torch.cat([side, (bound - drift).flatten(1)], 1)
            for side, bound in ((-box, planner.low), (box, planner.high))
        )
        return low.numpy(), high.numpy()


def _bounds(
    spec: EnvSpec, bounds: Mapping[str | int, tuple[float | None, float | None]]
) -> tuple[list[int], Tensor, Tensor]:
    """Bounded observation entries, and their lowest and highest values, infinite where there is none."""
    index, low, high = list[int](), list[float](), list[float]()
    for name, (lowest, highest) in bounds.items():
        least = -np.inf if lowest is None else float(lowest)
        most = np.inf if highest is None else float(highest)
        if not least < most:
            raise UserError(f"observation_bounds.{name}", (lowest, highest), "the lower bound comes first")
        for entry in entries(spec, name, "observation_bounds"):
            index.append(entry)
            low.append(least)
            high.append(most)
    return index, torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
