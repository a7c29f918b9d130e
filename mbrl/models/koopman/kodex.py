"""Imitation as a linear flow: lift robot and object together, fit one matrix to demonstrations, roll it out.

KODex, and the state form of KOROL (Chen et al., "KOROL: Learning Visualizable Object Feature with Koopman Operator
Rollout for Manipulation", 2024). Demonstrations of an expert that reacts to what it sees look like an autonomous
system, so the model has no action: it says where the robot should be next. What follows it is a tracker's business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from envs.errors import UserError
from mbrl.models.koopman.demonstrations import Demonstrations

CUT_OFF = 1e-12
"""Eigenvalues of the Gram matrix below this share of the largest count as zero: about 1e-6 in singular values of the
data. (Published code leaves it to a library's pseudoinverse, whose defaults differ between libraries.)"""


class RobotLift(nn.Module, ABC):
    """Coordinates of robot and object together; the first ``n`` of them are the robot's state itself."""

    @abstractmethod
    def forward(self, robot: Tensor, object: Tensor) -> Tensor:
        """``[..., p]`` of ``robot [..., n]`` and ``object [..., m]``."""

    def size(self, robot: int, object: int) -> int:
        """``p`` for that ``n`` and ``m``. Raises ``UserError`` where the robot's state does not come first."""
        state = torch.linspace(0.1, 0.9, robot + object, dtype=torch.float64)
        with torch.no_grad():
            lifted: Tensor = self(state[:robot], state[robot:])
        if not torch.equal(lifted[:robot], state[:robot]):
            raise UserError("lift", type(self).__name__, "its first coordinates must be the robot's state")
        return len(lifted)


class LinearLift(RobotLift):
    """``r, o``: no lift at all, the control."""

    def forward(self, robot: Tensor, object: Tensor) -> Tensor:
        return torch.cat([robot, object], -1)


class PolynomialLift(RobotLift):
    """``r, r^2, o, o^2, o_i o_j (i < j), r_i r_j (i < j), r^3, o_i^2 o_j (all i, j)``; no constant.

    ``p = 3n + 2m + m^2 + n (n - 1) / 2 + m (m - 1) / 2``.
    """

    def forward(self, robot: Tensor, object: Tensor) -> Tensor:
        mixed = (object.square().unsqueeze(-1) * object.unsqueeze(-2)).flatten(-2)
        parts = [robot, robot.square(), object, object.square(), _products(object), _products(robot), robot**3, mixed]
        return torch.cat(parts, -1)


class DictionaryLift(RobotLift):
    """Any function of ``[r, o]``, put behind the robot's own state.

    Args:
        dictionary: ``[..., n + m] -> [..., q]``: radial functions, a trained network. A module is saved with the model;
            what it must settle on data, it has settled before.
    """

    def __init__(self, dictionary: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, robot: Tensor, object: Tensor) -> Tensor:
        return torch.cat([robot, self.dictionary(torch.cat([robot, object], -1))], -1)


def _products(x: Tensor) -> Tensor:
    """``x_i x_j`` for ``i < j``, ``[..., d (d - 1) / 2]``."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1, device=x.device)
    return x[..., i] * x[..., j]


class KoopmanReference(nn.Module):
    """Where the robot should go, ``Phi' = K Phi``; float64. Before a fit it says: stay.

    Args:
        robot: ``n``, entries of the robot's state.
        object: ``m``, entries of the object's state.
        lift: coordinates (default: :class:`PolynomialLift`).
        cut_off: see :data:`CUT_OFF`.
        ridge: added to the Gram matrix's diagonal, in units of its mean. The published method has none.
        bound: a rollout has diverged where it is outside the range of the demonstrations by more than this many of
            their widths and goes further out (from a start outside it may come back). Cubic terms explode away from
            the data; what lies so far outside is no imitation. Not from the publications.
    """

    def __init__(
        self,
        robot: int,
        object: int,
        lift: RobotLift | None = None,
        cut_off: float = CUT_OFF,
        ridge: float = 0.0,
        bound: float = 1.0,
    ) -> None:
        super().__init__()
        if not (0.0 <= cut_off < 1.0 and 0.0 <= ridge < math.inf and 0.0 <= bound < math.inf):
            fix = "cut_off is at least 0 and below 1, the others are finite and at least 0"
            raise UserError("cut_off, ridge, bound", (cut_off, ridge, bound), fix)
        self.sizes, self.lift = (robot, object), lift or PolynomialLift()
        self.cut_off, self.ridge, self.bound = cut_off, ridge, bound
        self.operator: Tensor
        self.box: Tensor
        size = self.lift.size(robot, object)
        self.register_buffer("operator", torch.eye(size, dtype=torch.float64))
        self.register_buffer("box", torch.tensor([[-math.inf], [math.inf]]).double().repeat(1, robot))

    def fit(self, demonstrations: Demonstrations) -> dict[str, float]:
        """``K = (sum Phi' Phi^T) (sum Phi Phi^T)^+`` over all pairs of all paths; what to log.

        Raises:
            UserError: other entries than the model's; fewer pairs than coordinates (without ridge); a lift that
                overflows.
        """
        gram, cross = self._statistics(demonstrations)
        values, vectors = torch.linalg.eigh(gram)
        values = values + self.ridge * gram.diagonal().mean()
        kept = values > self.cut_off * values[-1]
        inverse = torch.where(kept, 1.0 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
        self.operator.copy_(cross @ (vectors * inverse) @ vectors.T)
        low, high = demonstrations.range()
        wide = self.bound * (high - low)
        self.box.copy_(torch.stack([low - wide, high + wide]))
        return self._report(demonstrations, int(kept.sum()))

    def _statistics(self, demonstrations: Demonstrations) -> tuple[Tensor, Tensor]:
        """``sum Phi Phi^T`` and ``sum Phi' Phi^T``; they add up over demonstrations."""
        if demonstrations.sizes != self.sizes:
            fix = f"the model is of {self.sizes[0]} entries of the robot and {self.sizes[1]} of the object"
            raise UserError("demonstrations", demonstrations.sizes, fix)
        size = len(self.operator)
        if demonstrations.pairs < size and not self.ridge:
            seen = f"{demonstrations.pairs} steps in {len(demonstrations.paths)} paths"
            fix = f"fewer than the lift's {size} coordinates: give more, a smaller lift, or a ridge above 0"
            raise UserError("demonstrations", seen, fix)
        gram, cross = torch.zeros_like(self.operator), torch.zeros_like(self.operator)
        for path in demonstrations.paths:
            lifted = self.lift(path.robot.to(gram), path.object.to(gram))
            gram += lifted[:-1].T @ lifted[:-1]
            cross += lifted[1:].T @ lifted[:-1]
        if not bool((gram.isfinite() & cross.isfinite()).all()):
            raise UserError("demonstrations", "numbers too large to lift", "use units in which values are of order 1")
        return gram, cross

    def _report(self, demonstrations: Demonstrations, rank: int) -> dict[str, float]:
        radius = torch.linalg.eigvals(self.operator).abs().max()
        return {
            "demonstrations": float(len(demonstrations.paths)),
            "pairs": float(demonstrations.pairs),
            "coordinates": float(len(self.operator)),
            "rank": float(rank),
            "spectral_radius": float(radius),
        }

    def advance(self, latent: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """One step of ``latent [B, p]``; rows that are ``held [B]``, or diverge now, stay where they are.

        Returns the latents, and which rows are held from now on.
        """
        moved = latent @ self.operator.T
        strays = (self._outside(moved) > self._outside(latent)).any(-1)
        held = held | strays | ~moved.isfinite().all(-1)
        return torch.where(held[:, None], latent, moved), held

    def _outside(self, latent: Tensor) -> Tensor:
        """``[B, n]``: how far each entry of the robot is outside the bound; 0 inside."""
        robot = self.read(latent)
        return torch.maximum(self.box[0] - robot, robot - self.box[1]).clamp(min=0.0)

    def read(self, latent: Tensor) -> Tensor:
        """The robot's state ``[..., n]``: the first coordinates."""
        return latent[..., : self.sizes[0]]

    def rollout(
        self, robot: Tensor, object: Tensor, steps: int, relift_every: int = 0, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """References ``[steps + 1, B, n]`` from ``robot [B, n]`` and ``object [B, m]``; and who diverged, ``[B]``.

        Every ``relift_every`` steps the reference is lifted anew (0: never), with the object as ``seen
        [steps, B, m]`` at that step (default: as at the start). A row that diverged stays at its last reference until
        then.
        """
        latent = self.lift(robot.to(self.operator), object.to(self.operator))
        held = torch.zeros(len(latent), dtype=torch.bool, device=latent.device)
        path, diverged = [self.read(latent)], held
        for step in range(steps):
            if relift_every and step and step % relift_every == 0:
                now = (object if seen is None else seen[step]).to(latent)
                latent, held = self.lift(path[-1], now), torch.zeros_like(held)
            latent, held = self.advance(latent, held)
            path.append(self.read(latent))
            diverged = diverged | held
        return torch.stack(path), diverged
