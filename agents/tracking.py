"""Following a reference: the action that brings a robot from where it is to where it should be next."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.demonstrations import Entries
from mbrl.seeding import seeded


class Tracker(nn.Module, ABC):
    """Actions that follow a reference; one that learns does so from any transitions, good or bad."""

    def set_up(self, spec: EnvSpec, entries: Entries) -> None:
        """Hear what is to be tracked, once. Raises ``UserError`` where it cannot be."""

    def fit(self, rows: Transitions, entries: Entries, generator: Generator) -> dict[str, float]:
        """Learn from ``rows [N]``; what to log."""
        return {}

    @abstractmethod
    def act(self, robot: Tensor, before: Tensor, reference: Tensor, target: Tensor) -> Tensor:
        """Actions ``[B, A]`` in [-1, 1]; the robot now and a step ago, where it should be now and next: ``[B, n]``."""


class PDTracker(Tracker):
    """``kp (target - robot) + kd ((target - reference) - (robot - before))``, clipped; entry by entry.

    Differences are those of one step, not divided by its length. Where an action is a velocity and 1 means ``v`` a
    second, ``kp = 1 / (v dt)`` arrives in one step.

    Args:
        kp: gain on the error, for all actions or one each.
        kd: gain on the error of the step's difference, likewise.
    """

    def __init__(self, kp: float | Sequence[float], kd: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        self.kp, self.kd = _gains("kp", kp), _gains("kd", kd)

    def set_up(self, spec: EnvSpec, entries: Entries) -> None:
        tracked, actions = len(entries.robot), spec.action.size
        if spec.action.discrete or tracked != actions:
            fix = f"each entry of the robot needs an action; {spec.id} has {actions}: name others, or learn it"
            raise UserError("robot", f"{tracked} entries", fix)
        for name, gain in (("kp", self.kp), ("kd", self.kd)):
            if len(gain) not in (1, actions):
                raise UserError(name, gain.tolist(), f"give one gain, or {actions}: one an action")

    def act(self, robot: Tensor, before: Tensor, reference: Tensor, target: Tensor) -> Tensor:
        rate = (target - reference) - (robot - before)
        return (self.kp.to(robot) * (target - robot) + self.kd.to(robot) * rate).clamp(-1.0, 1.0)


def _gains(name: str, given: float | Sequence[float]) -> Tensor:
    gains = torch.tensor(given, dtype=torch.float64).reshape(-1)
    if not len(gains) or not bool(gains.isfinite().all()):
        raise UserError(name, given, "give a finite number, or a list of them")
    return gains


class InverseDynamics(Tracker):
    """A network that says which action led from one state of the robot to the next: ``(r_t, r_t+1) -> u``.

    ``2n - 4n - 4n - 2n - A`` with ReLU, as KOROL's controller (Chen et al., 2024), on standardised ``r`` and
    ``r_t+1 - r_t``. How it was trained there is not known; here: Adam, squared error.

    Args:
        width: the widest layers, in units of ``n``.
        updates: gradient steps of a fit.
        batch_size: rows a step.
        lr: learning rate.
    """

    def __init__(self, width: int = 4, updates: int = 2000, batch_size: int = 256, lr: float = 3e-3) -> None:
        super().__init__()
        if min(width, updates, batch_size) < 1 or not 0.0 < lr < math.inf:
            seen = (width, updates, batch_size, lr)
            raise UserError("width, updates, batch_size, lr", seen, "whole numbers of at least 1, and a rate above 0")
        self.width, self.updates, self.batch_size, self.lr = width, updates, batch_size, lr

    def set_up(self, spec: EnvSpec, entries: Entries) -> None:
        if spec.action.discrete:
            raise UserError("tracker", type(self).__name__, f"{spec.id} has discrete actions; it gives continuous ones")
        n = len(entries.robot)
        sizes = [2 * n, self.width * n, self.width * n, 2 * n]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.action.size))
        self.register_buffer("scale", torch.stack([torch.zeros(2 * n), torch.ones(2 * n)]))

    def fit(self, rows: Transitions, entries: Entries, generator: Generator) -> dict[str, float]:
        """Raises ``UserError`` where actions are missing, which are NaN in demonstrations that were only watched."""
        if not bool(rows.action.isfinite().all()):
            fix = "the inverse dynamics are learned from actions: give transitions that have them, or a PDTracker"
            raise UserError("demonstrations", "NaN among the actions", fix)
        inputs = self._moves(entries.split(rows.obs)[0], entries.split(rows.next_obs)[0])
        self.get_buffer("scale").copy_(torch.stack([inputs.mean(0), inputs.std(0).clamp(min=1e-6)]))
        targets = rows.action.to(inputs.device)
        with seeded(generator):
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        optimizer = torch.optim.Adam(self.net.parameters(), self.lr)
        with torch.enable_grad():
            for _ in range(self.updates):
                loss = self._step(optimizer, inputs, targets, generator)
        return {"tracker_loss": loss, "gradient_steps": float(self.updates)}

    def _step(self, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, generator: Generator) -> float:
        pick = torch.randint(len(inputs), (self.batch_size,), generator=generator, device=generator.device)
        loss = (self._said(inputs[pick]) - targets[pick]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def act(self, robot: Tensor, before: Tensor, reference: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            return self._said(self._moves(robot, target)).clamp(-1.0, 1.0)

    def _moves(self, robot: Tensor, target: Tensor) -> Tensor:
        return torch.cat([robot, target - robot], -1).to(self.get_buffer("scale"))

    def _said(self, moves: Tensor) -> Tensor:
        mean, std = self.get_buffer("scale")
        said: Tensor = self.net((moves - mean) / std)
        return said
