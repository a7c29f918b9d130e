"""Whether what a model calls 90 % happens nine times in ten.

Probability integral transforms: Dawid, "Present Position and Potential Developments: The Prequential Approach", 1984.
Calibration error over levels: Kuleshov, Fenner, Ermon, "Accurate Uncertainties for Deep Learning Using Calibrated
Regression", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mbrl.diagnostics.predictive import Predictive

LEVELS = (0.5, 0.9, 0.95)
Confidence = Literal["calibrated", "overconfident", "underconfident", "of the wrong shape"]
DATA_NLL = 0.5 * math.log(2 * math.pi * math.e)
"""Nats an output that a Gaussian with the data's own mean and variance gets on standardised outputs."""


@dataclass(frozen=True)
class Calibration:
    """Of ``B`` predictions of ``T`` outputs."""

    names: list[str]
    pit: Tensor
    """``[B, T]`` uniform on [0, 1] when calibrated"""
    covered: dict[float, Tensor]
    """level -> ``[T]`` share of rows inside the central interval of that level"""
    ks: Tensor
    """``[T]`` Kolmogorov-Smirnov distance of the PIT from uniform, in [0, 1]"""
    error: Tensor
    """``[T]`` expected calibration error: mean over levels 0.01 ... 0.99 of |share of PIT below the level - level|"""
    spread: Tensor
    """``[T]`` root mean square of (what came - mean) / std of the mixture: 1 when calibrated, above it overconfident"""
    sharpness: Tensor
    """``[T]`` root mean square of the mixture's std, in the outputs' standard deviations: lower is sharper"""
    nll: float
    """Mean negative log density of a row, nats, all outputs together in their own units"""
    nll_per_output: float
    """The same on standardised outputs and divided by their number: compare with :data:`DATA_NLL` (1.42)"""

    def overall(self, level: float) -> float:
        """Share inside the central interval, mean over outputs."""
        return float(self.covered[level].mean())

    @property
    def confidence(self) -> Confidence:
        """In a word: 5 points off at 90 % or 10 off at 50 % are more than chance and less than harmless."""
        middle, wide = self.overall(0.5) - 0.5, self.overall(0.9) - 0.9
        if middle > 0.1 and wide < -0.05:
            return "of the wrong shape"
        if wide < -0.05 or middle < -0.1:
            return "overconfident"
        return "underconfident" if wide > 0.05 or middle > 0.1 else "calibrated"


def inside(pit: Tensor, level: float) -> Tensor:
    """``[T]`` share of ``pit [B, T]`` inside the central interval of that level."""
    return ((pit - 0.5).abs() <= 0.5 * level).double().mean(0)


def ks_distance(pit: Tensor) -> Tensor:
    """``[T]`` largest distance between the empirical distribution of ``pit [B, T]`` and the uniform one."""
    ordered, rows = pit.sort(0).values, len(pit)
    steps = torch.arange(rows + 1, dtype=pit.dtype)[:, None] / rows
    return torch.maximum((steps[1:] - ordered).amax(0), (ordered - steps[:-1]).amax(0))


def calibrate(said: Predictive) -> Calibration:
    """Everything about how well what was said fits what came."""
    pit, (mean, std) = said.pit(), said.moments()
    levels = torch.linspace(0.01, 0.99, 99, dtype=pit.dtype)
    below = (pit.unsqueeze(0) <= levels[:, None, None]).double().mean(1)
    nll = float(-said.log_prob().mean())
    return Calibration(
        names=said.names,
        pit=pit,
        covered={level: inside(pit, level) for level in LEVELS},
        ks=ks_distance(pit),
        error=(below - levels[:, None]).abs().mean(0),
        spread=((said.target - mean) / std).square().mean(0).sqrt(),
        sharpness=std.square().mean(0).sqrt(),
        nll=nll,
        nll_per_output=(nll - float(said.scale.log().sum())) / len(said.names),
    )
