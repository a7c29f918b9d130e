"""Where imagined rollouts end, and what the critics say there.

States that rollouts reach with their last step only stand in the critics' targets and are never learned about
themselves; what the critics happen to say of them leaks into all others. Sims, Lu, Foerster, Teh, "The Edge-of-Reach
Problem in Offline Model-Based Reinforcement Learning", 2024.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbrl.data.transitions import Transitions

MOST_ROWS = 512
"""States of each depth that are valued, evenly spread"""
SHOWN = (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500)
"""Depths that are looked at, besides the last"""


@torch.no_grad()
def reach(rows: Transitions, horizon: int, value: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """What is seen of imagined ``rows``, which have the column ``depth``.

    ``q_at_depth_k``: mean ``value`` (``[N, D] -> [N]``) of states after ``k`` imagined steps; 0 are the data's own,
    ``horizon`` those at the edge. Values that grow towards the edge are made up there. ``edge_share``: rows of which
    the target asks for the value of a state at the edge.
    """
    depth = rows.extra["depth"]
    edge = (depth == horizon - 1) & ~(rows.terminated | rows.truncated)
    states = {k: rows.obs[depth == k] for k in SHOWN if k < horizon} | {horizon: rows.next_obs[edge]}
    found = {f"q_at_depth_{k}": float(value(_spread(obs)).mean()) for k, obs in states.items() if len(obs)}
    return {"edge_share": float(edge.float().mean())} | found


def _spread(obs: Tensor) -> Tensor:
    return obs[:: -(-len(obs) // MOST_ROWS)]


def unstored(rows: Transitions, starts: int, horizon: int) -> int:
    """Rollouts out of ``starts`` that ended in a step which was not stored: it was dropped, or was no number."""
    goes_on = ~(rows.terminated | rows.truncated) & (rows.extra["depth"] < horizon - 1)
    began = int((rows.extra["depth"] == 0).sum())
    later = len(rows) - began
    return starts - began + int(goes_on.sum()) - later


class Box:
    """The range of the data's observations, entry by entry.

    Args:
        obs: ``[N, D]``.
    """

    def __init__(self, obs: Tensor) -> None:
        self.low, self.high = obs.amin(0), obs.amax(0)

    @property
    def largest(self) -> float:
        """The largest magnitude in it."""
        return float(torch.maximum(-self.low, self.high).max())

    def outside(self, obs: Tensor) -> Tensor:
        """``[B]`` bool: some entry of ``obs [B, D]`` has left the range."""
        low, high = self.low.to(obs.device), self.high.to(obs.device)
        return ((obs < low) | (obs > high)).any(-1)
