"""RLlib's state as tensors and plain values, so that a checkpoint runs no code when it is read; and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNTED = frozenset({"weights_seq_no", "module_train_batch_size_mean", "diff_num_grad_updates_vs_sampler_policy"})
"""What says nothing of learning, or is in every record of the run anyway."""


def to_plain(value: Any) -> Any:
    """NumPy arrays become tensors, NumPy's numbers numbers; the rest stays as it is."""
    if isinstance(value, Mapping):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(part) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value


def from_plain(value: Any) -> Any:
    """Inverse of :func:`to_plain`, but that NumPy's numbers stay plain."""
    if isinstance(value, Mapping):
        return {key: from_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(from_plain(part) for part in value)
    return value.numpy().copy() if isinstance(value, Tensor) else value


def learner_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that one module's learner told in an iteration, by plain names; no counters, no timers."""
    told = {name: value for name, value in result.items() if isinstance(value, int | float | np.number)}
    kept = {name: float(value) for name, value in told.items() if not name.startswith("num_") and name not in COUNTED}
    return {name.lower(): value for name, value in kept.items() if not math.isnan(value)}
