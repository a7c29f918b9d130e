"""Costs that a controller can solve for in closed form: declared by the environment, or fitted to rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.quadratic_fit import fit_convex


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

    def cost(self, next_obs: Tensor, action: Tensor) -> Tensor:
        """``[...]`` of ``next_obs [..., D]`` and ``action [..., A]``, float64."""
        o, a = next_obs.double(), action.double()
        of_obs = ((o @ self.p_matrix) * o).sum(-1) + o @ self.p_vector
        of_action = ((a @ self.r_matrix) * a).sum(-1) + a @ self.r_vector
        total: Tensor = of_obs + of_action + self.constant
        return total

    def __add__(self, other: QuadraticForm) -> QuadraticForm:
        return self._combine(lambda mine, theirs: mine + theirs, [self, other])

    def is_convex(self, tolerance: float = 1e-9) -> bool:
        """Whether both matrices are positive semidefinite, up to rounding."""
        return all(_semidefinite(matrix, tolerance) for matrix in (self.p_matrix, self.r_matrix))

    def minimiser(self) -> Tensor:
        """The observation ``[D]`` of least cost; 0 in directions that cost nothing."""
        lowest: Tensor = torch.linalg.pinv(self.p_matrix, hermitian=True) @ (-0.5 * self.p_vector)
        return lowest

    @classmethod
    def zero(cls, spec: EnvSpec) -> QuadraticForm:
        """What costs nothing."""
        shapes = (spec.obs_size,) * 2, (spec.obs_size,), (spec.action.size,) * 2, (spec.action.size,), ()
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @classmethod
    def declared(cls, spec: EnvSpec) -> QuadraticForm | None:
        """The cost that the environment declares, in platform units; None where it declares none.

        A declared cost is of the observation *before* the step. Here it is charged on the one after it: a plan's total
        then differs by what the first and the last observation cost, and its last action counts too.
        """
        if spec.quadratic is None:
            return None
        if spec.action.discrete:
            raise UserError(f"{spec.id}: quadratic", "discrete actions", "a quadratic cost needs continuous ones")
        q, r, goal = (torch.tensor(x, dtype=torch.float64) for x in _fields(spec))
        low, high = (torch.tensor(x, dtype=torch.float64) for x in (spec.action.low, spec.action.high))
        q, r, middle, half = _symmetric(q), _symmetric(r), (high + low) / 2, (high - low) / 2
        # env action = middle + half * a
        r_vector, constant = 2.0 * half * (r @ middle), middle @ r @ middle + goal @ q @ goal
        return cls(q, -2.0 * (q @ goal), half[:, None] * r * half, r_vector, constant)


class QuadraticReward(nn.Module):
    """A quadratic form fitted to rewards that were seen, and how much of them it explains.

    The best *convex* form in the sense of least squares (:func:`mbrl.models.quadratic_fit.fit_convex`). Before the
    first fit it costs nothing and explains nothing. It is the best form for *these* rows: where the data is the whole
    circle of a pendulum, say, it explains 0.99 of ``angle^2`` and is flat at the top.

    Args:
        spec: the environment.
        max_rows: a fit looks at no more rows than this, evenly spread over the data.
    """

    r2: Tensor
    """``[]``: explained variance of the rewards it was fitted to; -inf before the first fit"""

    def __init__(self, spec: EnvSpec, max_rows: int = 2000) -> None:
        super().__init__()
        self.max_rows = max_rows
        for name, value in vars(QuadraticForm.zero(spec)).items():
            self.register_buffer(name, value)
        self.register_buffer("r2", torch.full((), -torch.inf, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, data: Transitions) -> None:
        """Fit ``-reward`` on ``next_obs, action`` of ``data [N]``."""
        stride = max(1, -(-len(data) // self.max_rows))
        obs, action, reward = (x[::stride].double() for x in (data.next_obs, data.action, data.reward))
        parts, r2 = fit_convex(obs, action, -reward)
        for name, value in zip(QuadraticForm._names(), parts, strict=True):
            self.get_buffer(name).copy_(value)
        self.r2.fill_(r2)

    def form(self) -> QuadraticForm:
        """The fitted form: a snapshot that later fits do not change."""
        return QuadraticForm(*(self.get_buffer(name).clone() for name in QuadraticForm._names()))


def _fields(spec: EnvSpec) -> tuple[object, object, object]:
    assert spec.quadratic is not None
    return spec.quadratic.q, spec.quadratic.r, spec.quadratic.goal


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _semidefinite(matrix: Tensor, tolerance: float) -> bool:
    values = torch.linalg.eigvalsh(matrix)
    return bool(values.min() >= -tolerance * values.abs().max().clamp(min=1.0))
