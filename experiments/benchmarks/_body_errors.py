"""Open-loop errors of the models of a sequence: windows of test episodes, rollouts that diverge counted apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import mean_path
from mbrl.models.base import DynamicsModel

DIVERGED = 10.0
"""A rollout has diverged from where its root mean square error over entries is larger (standard deviations), or is not
finite, on. It is counted, and is in no mean from there on."""
STRIDE = 5
"""Steps from the begin of one window to that of the next."""


@dataclass(frozen=True)
class OpenLoop:
    """Errors after each depth, in the order of the depths."""

    errors: list[float | None]
    """Root mean square over entries and over the windows that have not diverged, in standard deviations; None: all have
    """
    diverged: list[float]
    """Share of the windows"""


def scale_of(tests: Sequence[Transitions]) -> Tensor:
    """``[D]`` standard deviation of each entry over the rows of all tasks: what stays put in one task (a door's handle)
    moves in another, and is measured alike.
    """
    std = torch.cat([test.next_obs.flatten(0, 1) for test in tests]).std(0)
    return torch.where(std > 1e-6, std, torch.ones_like(std))


def windows_of(test: Transitions, length: int) -> Transitions:
    """``[length, B]`` windows of episodes ``[T, N]``, begun every :data:`STRIDE` steps."""
    starts = range(0, len(test.obs) - length + 1, STRIDE)
    return Transitions.cat([test[first : first + length] for first in starts], dim=1)


@torch.no_grad()
def open_loop(model: DynamicsModel | None, test: Transitions, scale: Tensor, depths: Sequence[int]) -> OpenLoop:
    """Follow the actions of windows of ``test [T, N]``; no model: predict no change."""
    lived = windows_of(test, max(depths))
    if model is None:
        said = lived.obs[:1].expand_as(lived.next_obs)
    else:
        path = mean_path(model, lived[0], lived.action)
        said = model.decode(path.states[1:])[:, 0]
    return judged(((said - lived.next_obs) / scale).square().mean(-1), depths)


def judged(squares: Tensor, depths: Sequence[int]) -> OpenLoop:
    """Of squared errors ``[H, B]``, means over entries."""
    lost = (~(squares <= DIVERGED**2)).cummax(0).values  # what is no number has diverged as well
    kept = [squares[depth - 1][~lost[depth - 1]] for depth in depths]
    errors = [float(rows.mean().sqrt()) if len(rows) else None for rows in kept]
    return OpenLoop(errors, [float(lost[depth - 1].float().mean()) for depth in depths])
