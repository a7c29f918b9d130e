"""Planners, and what they maximise."""

from mbrl.planning.base import Plan, Planner
from mbrl.planning.cem import CEM, ICEM
from mbrl.planning.lqr import LQRPlanner
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
from mbrl.planning.qp import QPPlanner
from mbrl.planning.random_shooting import RandomShooting

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionCost",
    "ConstraintTerm",
    "LQRPlanner",
    "Objective",
    "ObjectiveTerm",
    "Plan",
    "Planner",
    "QPPlanner",
    "QuadraticState",
    "RandomShooting",
    "RewardTerm",
    "TerminalValue",
    "UncertaintyTerm",
]
