"""What an agent logs of its model before every fit: cheap numbers on rows that the model has not seen."""

from __future__ import annotations

import torch
from torch import Generator

from mbrl.data.buffer import ReplayBuffer
from mbrl.diagnostics.calibration import inside
from mbrl.diagnostics.depth_error import depth_error
from mbrl.diagnostics.predictive import predictive
from mbrl.models.base import DynamicsModel

MOST_ROWS = 512


@torch.no_grad()
def judge(
    model: DynamicsModel, buffer: ReplayBuffer, newest: int, generator: Generator, windows: int = 256
) -> dict[str, float]:
    """Errors by depth and, where the model states a distribution, how well that fits the ``newest`` rows.

    ``error_at_1``, ``error_at_3``, ``error_at_8``: see :func:`mbrl.diagnostics.depth_error.depth_error`, which draws
    all the random numbers. ``coverage_50``, ``coverage_90``: share of outcomes inside the model's central intervals,
    mean over outputs. ``nll``: negative log density of a row, nats, in the outputs' own units, so that it compares over
    the fits of a run. Both are of at most 512 of the newest rows, evenly spread.
    """
    found = depth_error(model, buffer, newest, generator, windows=windows)
    ids = buffer.ids[-newest:]
    said = predictive(model, buffer[ids[:: -(-len(ids) // MOST_ROWS)]])
    if said is None:
        return found
    pit = said.pit()
    coverage = {f"coverage_{round(100 * level)}": float(inside(pit, level).mean()) for level in (0.5, 0.9)}
    return found | coverage | {"nll": float(-said.log_prob().mean())}
