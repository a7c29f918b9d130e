"""Dynamics models."""

from mbrl.models.base import DynamicsModel, HasDistribution, State, Step, Trajectory
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator

__all__ = [
    "DynamicsModel",
    "HasDistribution",
    "ProbabilisticEnsemble",
    "Simulator",
    "State",
    "Step",
    "Trajectory",
]
