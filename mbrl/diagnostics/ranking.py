"""Whether a model is unsure where it is wrong.

Risk-coverage curves: El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """How one uncertainty estimator orders the errors of ``B`` rows. Risks are in the errors' own units."""

    estimator: str
    spearman: float
    """Rank correlation of uncertainty and error, in [-1, 1]"""
    curve: Tensor
    """``[B]`` risk: mean error of the ``i + 1`` rows that the model is most sure of"""
    oracle: Tensor
    """``[B]`` the same with rows in the order of their errors: the lowest there can be"""

    @property
    def area(self) -> float:
        """Mean risk over all coverages."""
        return float(self.curve.mean())

    @property
    def random_area(self) -> float:
        """What an uninformed order gets: the mean error at every coverage."""
        return float(self.curve[-1])

    @property
    def gain(self) -> float:
        """Share of what ordering can gain: 0 is as good as chance, 1 is the oracle."""
        possible = self.random_area - float(self.oracle.mean())
        return (self.random_area - self.area) / possible if possible > 0 else 0.0


def rank(estimator: str, uncertainty: Tensor, error: Tensor) -> Ranking:
    """Judge ``uncertainty [B]`` against the ``error [B]`` that followed."""
    found = stats.spearmanr(uncertainty.numpy(), error.numpy()).statistic
    sure_first = error[uncertainty.argsort(stable=True)]
    return Ranking(estimator, float(found), _running_mean(sure_first), _running_mean(error.sort().values))


def _running_mean(x: Tensor) -> Tensor:
    return x.cumsum(0) / torch.arange(1, len(x) + 1, dtype=x.dtype)
