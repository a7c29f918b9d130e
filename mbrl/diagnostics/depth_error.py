"""How far a model's open-loop predictions are from what happened, by depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer
from mbrl.diagnostics.rows import device_of
from mbrl.models.base import DynamicsModel


@torch.no_grad()
def depth_error(
    model: DynamicsModel,
    buffer: ReplayBuffer,
    newest: int,
    generator: Generator,
    depths: Sequence[int] = (1, 3, 8),
    windows: int = 256,
) -> dict[str, float]:
    """``{"error_at_1": ..., ...}``: root mean square error of predicted observations after that many executed actions.

    In units of each entry's standard deviation over the whole buffer. Windows are drawn from the ``newest`` rows, so
    that a model which was fitted before they came has not seen them. A depth that no stored episode reaches is left
    out. The model predicts without sampled noise, an ensemble by the mean of its members. ``generator`` lies where
    the buffer does.
    """
    recent = ReplayBuffer(min(newest, len(buffer)), buffer.extra, buffer.device)
    recent.extend(buffer[buffer.ids[-newest:]])
    scale = buffer.all().obs.std(0).clamp(min=1e-6).to(device_of(model))
    bound, errors = model.bind(), {}
    for depth in depths:
        try:
            lived = recent.windows(windows, depth, generator).to(device_of(model))
        except UserError:  # no episode is that long
            continue
        actions = lived.action.transpose(0, 1)
        path = bound.rollout(bound.encode(lived.obs[:, 0]), actions, None, propagation="mean")
        miss = (bound.decode(path.states[-1])[0] - lived.next_obs[:, -1]) / scale
        errors[f"error_at_{depth}"] = float(miss.square().mean().sqrt())
    return errors
