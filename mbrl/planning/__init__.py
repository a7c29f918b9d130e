"""Planners, and what they maximise."""

from mbrl.planning.base import Plan, Planner
from mbrl.planning.cem import CEM, ICEM
from mbrl.planning.mppi import MPPI
from mbrl.planning.objective import (
    ActionCost,
    ConstraintTerm,
    Objective,
    ObjectiveTerm,
    QuadraticState,
    RewardTerm,
    TerminalValue,
    UncertaintyTerm,
)
from mbrl.planning.random_shooting import RandomShooting

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionCost",
    "ConstraintTerm",
    "Objective",
    "ObjectiveTerm",
    "Plan",
    "Planner",
    "QuadraticState",
    "RandomShooting",
    "RewardTerm",
    "TerminalValue",
    "UncertaintyTerm",
]
