"""Errors over given windows: how far open-loop predictions are after so many steps, and which ran away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import device_of, mean_path, miss
from mbrl.models.base import DynamicsModel

RUNAWAY = 100.0
"""A prediction that is off by more standard deviations than this has diverged."""


@dataclass(frozen=True)
class WindowErrors:
    """What a model said of ``rollouts`` windows."""

    errors: Mapping[int, float]
    """By depth: root mean square error of the rollouts that did not diverge, in standard deviations of each entry over
    the windows; NaN where all of them did"""
    rollouts: int
    diverged: int
    """Rollouts that left all bounds, or the finite numbers, at some depth up to the last"""


@torch.no_grad()
def window_errors(model: DynamicsModel, windows: Transitions, depths: Sequence[int]) -> WindowErrors:
    """Errors of predictions along the executed actions, without sampled noise, an ensemble by its members' mean.

    Args:
        model: judged; bound here.
        windows: ``[W, L, ...]`` consecutive steps.
        depths: steps ahead, at most ``L``.
    """
    windows = windows.to(device_of(model))
    path = mean_path(model, windows[:, 0], windows.action[:, : max(depths)].transpose(0, 1))
    std = windows.next_obs.flatten(0, 1).std(0)
    unit = torch.where(std > 1e-6, std, torch.ones_like(std))
    said = {depth: model.decode(path.states[depth])[0] for depth in depths}
    misses = {d: miss(model.spec, there, windows.next_obs[:, d - 1]) / unit for d, there in said.items()}
    lost = torch.stack([~(gap.abs() <= RUNAWAY).all(-1) for gap in misses.values()]).any(0)
    errors = {depth: float(gap[~lost].square().mean().sqrt()) for depth, gap in misses.items()}
    return WindowErrors(errors, len(lost), int(lost.sum()))
