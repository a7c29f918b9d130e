"""Rows put in the order of their episodes, and where one row follows on from another."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.data.transitions import Transitions


def grouped(rows: Transitions) -> Transitions:
    """The rows by episode and step, episodes in the order in which they first appear."""
    episode, step = rows.episode.cpu().numpy(), rows.step.cpu().numpy()
    _, first, which = np.unique(episode, return_index=True, return_inverse=True)
    order = np.lexsort((step, first[which]))
    return rows[torch.from_numpy(order)]


def run_ends(rows: Transitions) -> NDArray[np.bool_]:
    """``[N]`` where the next row does not follow on: another episode, a missing step, an end, or an observation that
    differs from ``next_obs`` in any bit. Rows are :func:`grouped`.
    """
    ends = np.ones(len(rows), dtype=bool)
    one, other = rows[:-1], rows[1:]
    same = (one.episode == other.episode) & (one.step + 1 == other.step) & ~(one.terminated | one.truncated)
    same &= (one.next_obs.view(torch.int32) == other.obs.view(torch.int32)).all(-1)
    ends[:-1] = ~same.cpu().numpy()
    return ends
