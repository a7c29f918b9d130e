"""What an expert was seen to do, without its actions: paths of a robot and of the things around it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions


@dataclass(frozen=True)
class Entries:
    """Which entries of an observation are the robot's, and which tell of the object (goals too)."""

    robot: tuple[int, ...]
    object: tuple[int, ...]

    @classmethod
    def named(cls, spec: EnvSpec, robot: Sequence[str], object: Sequence[str]) -> Entries:
        """By names of the environment's layout. Raises ``UserError`` on an unknown or repeated name, or no robot."""
        if not robot:
            raise UserError("robot", [*robot], f"name entries of {spec.id}: {', '.join(spec.layout)}")
        if twice := [name for name in (*robot, *object) if [*robot, *object].count(name) > 1]:
            raise UserError("robot, object", twice[0], "an entry belongs to the robot or to the object, once")
        return cls(_places(spec, "robot", robot), _places(spec, "object", object))

    def split(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Robot ``[..., n]`` and object ``[..., m]`` of ``obs [..., D]``, in float64."""
        return obs[..., list(self.robot)].double(), obs[..., list(self.object)].double()


def _places(spec: EnvSpec, field: str, names: Sequence[str]) -> tuple[int, ...]:
    places: list[int] = []
    for name in names:
        if name not in spec.layout:
            fix = f"{spec.id} observes {', '.join(spec.layout) or 'entries without names'}"
            raise UserError(field, name, fix, spec.layout)
        places += range(spec.obs_size)[spec.layout[name]]
    return tuple(places)


@dataclass(frozen=True)
class Path:
    """States of one demonstration, one a decision."""

    robot: Tensor
    """``[T, n]``"""
    object: Tensor
    """``[T, m]``"""


@dataclass(frozen=True)
class Demonstrations:
    """One path or more, all of the same robot and object.

    Raises:
        UserError: none, a path of fewer than two states, paths of different widths, NaN or infinity.
    """

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("demonstrations", "none", "give at least one")
        for number, path in enumerate(self.paths):
            _check(number, path, self.paths[0])

    @classmethod
    def of_transitions(cls, rows: Transitions, entries: Entries) -> Demonstrations:
        """Every unbroken run of steps of an episode in ``rows [N]``, in any order, is a path."""
        return cls(tuple(Path(*entries.split(states)) for states in _runs(rows)))

    @property
    def sizes(self) -> tuple[int, int]:
        """``n`` and ``m``."""
        return self.paths[0].robot.shape[-1], self.paths[0].object.shape[-1]

    @property
    def pairs(self) -> int:
        """States that have a successor."""
        return sum(len(path.robot) - 1 for path in self.paths)

    def range(self) -> tuple[Tensor, Tensor]:
        """Least and largest ``[n]`` of every entry of the robot."""
        robot = torch.cat([path.robot for path in self.paths])
        return robot.amin(0), robot.amax(0)


def _check(number: int, path: Path, first: Path) -> None:
    where = f"demonstration {number}"
    if len(path.robot) < 2 or len(path.robot) != len(path.object):
        seen = f"{len(path.robot)} states of the robot, {len(path.object)} of the object"
        raise UserError(where, seen, "a demonstration is at least two states, each with the object's")
    if (path.robot.shape[1:], path.object.shape[1:]) != (first.robot.shape[1:], first.object.shape[1:]):
        raise UserError(where, (*path.robot.shape[1:], *path.object.shape[1:]), "all have as many entries as the first")
    finite = path.robot.isfinite().all(-1) & path.object.isfinite().all(-1)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0, 0])
        raise UserError(f"{where}, state {step}", "NaN or infinity", "leave the demonstration out, or mend it")


def _runs(rows: Transitions) -> Iterator[Tensor]:
    """``[T, D]``: the observations of every unbroken run of steps."""
    if not len(rows):
        return
    by_step = torch.argsort(rows.step, stable=True)
    order = by_step[torch.argsort(rows.episode[by_step], stable=True)]
    rows = rows[order]
    broken = ((rows.episode.diff() != 0) | (rows.step.diff() != 1)).nonzero()[:, 0] + 1
    edges = [0, *broken.tolist(), len(rows)]
    for first, last in itertools.pairwise(edges):
        yield torch.cat([rows.obs[first:last], rows.next_obs[last - 1 : last]])
