"""Named sequences, by and large those of Huang, Xie, Bharadhwaj and Shkurti (2021), "Continual model-based
reinforcement learning with hypernetworks"; what is ours in each is said there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from envs.errors import UserError
from envs.tasks.sequence import TaskSequence

Params = Mapping[str, float]
TURN = 1.57
"""Radians: how far a door's handle turns."""
GRAVITIES = (10.0, 12.0, 14.0, 16.0, 18.0)
PENDULUMS = ((10.0, 1.0, 1.0), (10.0, 2.0, 1.0), (4.0, 1.0, 1.0), (10.0, 1.0, 0.7), (14.0, 1.5, 1.2))
"""Gravity (m/s^2), mass (kg) and length (m)."""
LENGTHS = (0.6, 0.8, 0.4, 1.0, 1.2, 0.7, 0.5, 0.9, 1.1, 1.3)
"""Whole poles, metres."""
LINKS = (
    *((0.10, 0.10), (0.09, 0.09), (0.11, 0.11), (0.08, 0.08), (0.12, 0.12)),
    *((0.07, 0.09), (0.13, 0.13), (0.09, 0.07), (0.12, 0.10), (0.08, 0.10)),
)
"""Both links of the reacher, metres."""
GROWN = 1.25
TILTS = (0, 10, -10, 20, -20, 5, -5, 15, -15, 25, -25)
"""Degrees by which gravity is turned forward. Ours: the published angles are not known to us."""
DENSITIES = ((500.0, 500.0), (100.0, 500.0), (500.0, 100.0), (500.0, 250.0), (250.0, 500.0))
"""Left and right half of the block, kg/m^3."""
FRICTIONS = (0.2, 0.1, 0.4, 0.52, 1.0)
"""Between block and table, in the proportions of the published 0.001, 0.0005, 0.002, 0.0026, 0.005."""
HANDLES: Mapping[str, Params] = {
    "pull": {"knob": 0.012, "lever": 0.08},
    "round, turns back": {"knob": 0.015, "lever": 0.0, "handle_low": -TURN},
    "round, turns out": {"knob": 0.015, "lever": 0.0, "handle_high": TURN},
    "lever, turns back": {"knob": 0.012, "lever": 0.1, "handle_low": -TURN},
    "lever, turns out": {"knob": 0.012, "lever": 0.1, "handle_high": TURN},
}
"""A fixed bar; a knob and a lever that turn towards the door (-) or, when pulled, out of it (+)."""


@dataclass(frozen=True)
class NamedSequence:
    """One published sequence: which environment, under which parameters."""

    env: str
    variants: Mapping[str, Params]
    summary: str
    """One line."""

    def build(self, name: str) -> TaskSequence:
        return TaskSequence.of_variants(name, self.env, self.variants)


def _pendulum(gravity: float, mass: float, length: float) -> Params:
    return {"gravity": gravity, "mass": mass, "length": length}


SEQUENCES: dict[str, NamedSequence | Callable[[], TaskSequence]] = {
    "pendulum-gravities": NamedSequence(
        "Pendulum-v1",
        {f"gravity {g:g}": {"gravity": g} for g in GRAVITIES},
        "swing-up under gravity of 10 to 18 m/s^2",
    ),
    "pendulum-five": NamedSequence(
        "Pendulum-v1",
        {f"gravity {g:g}, mass {m:g}, length {length:g}": _pendulum(g, m, length) for g, m, length in PENDULUMS},
        "swing-up with other gravity, mass and length",
    ),
    "cartpole-lengths": NamedSequence(
        "mbrl/CartPoleTip-v0",
        {f"length {length:g}": {"half_length": length / 2.0} for length in LENGTHS},
        "swing-up of poles of 0.4 to 1.3 m; half_length is half the published length",
    ),
    "reacher-links": NamedSequence(
        "mbrl/ReacherLinks-v0",
        {f"links {a:g}, {b:g}": {"link_1": a, "link_2": b} for a, b in LINKS},
        "reaching with links of 0.07 to 0.13 m",
    ),
    "halfcheetah-bodies": NamedSequence(
        "mbrl/HalfCheetahBodies-v0",
        {"base": {}} | {f"{part} x {GROWN:g}": {part: GROWN} for part in ("torso", "thigh", "shin", "foot")},
        "running with one kind of body part grown by a quarter",
    ),
    "halfcheetah-gravity": NamedSequence(
        "mbrl/HalfCheetahBodies-v0",
        {f"tilt {degrees:+d} degrees": {"tilt": math.radians(degrees)} for degrees in TILTS},
        "running under gravity from other directions: up and down hill",
    ),
    "push-density": NamedSequence(
        "mbrl/ArmPush-v0",
        {f"density {a:g}, {b:g}": {"density_left": a, "density_right": b} for a, b in DENSITIES},
        "pushing a block whose halves differ in density",
    ),
    "push-friction": NamedSequence(
        "mbrl/ArmPush-v0",
        {f"friction {mu:g}": {"friction": mu} for mu in FRICTIONS},
        "pushing a block that slides more or less easily",
    ),
    "door-handles": NamedSequence("mbrl/ArmDoor-v0", HANDLES, "opening a door by a bar, a knob or a lever"),
}
"""Name -> what :func:`make_tasks` builds; :func:`register_tasks` adds to it."""


def make_tasks(name: str) -> TaskSequence:
    """The sequence of that name.

    Raises:
        UserError: there is none; the nearest names are suggested.
    """
    if name not in SEQUENCES:
        raise UserError("tasks", name, f"the named sequences are {', '.join(SEQUENCES)}.", SEQUENCES)
    known = SEQUENCES[name]
    return known.build(name) if isinstance(known, NamedSequence) else known()


def register_tasks(name: str, build: Callable[[], TaskSequence]) -> None:
    """Make ``name`` mean what ``build`` gives; its docstring's first line is the summary.

    Raises:
        UserError: the name is taken.
    """
    if name in SEQUENCES:
        raise UserError("tasks", name, "this name is taken; choose another.")
    SEQUENCES[name] = build


def list_tasks() -> dict[str, str]:
    """Name -> one line; nothing is built."""
    return {name: _line(known) for name, known in SEQUENCES.items()}


def _line(known: NamedSequence | Callable[[], TaskSequence]) -> str:
    if isinstance(known, NamedSequence):
        return f"{len(known.variants)} tasks on {known.env}: {known.summary}"
    return (known.__doc__ or "a registered sequence").strip().splitlines()[0]
