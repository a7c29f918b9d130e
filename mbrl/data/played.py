"""What environments saw, as the record that agents learn from."""

from __future__ import annotations

import torch

from envs.pool import PoolStep
from mbrl.data.transitions import Transitions


def to_transitions(
    step: PoolStep, action: torch.Tensor, extra: dict[str, torch.Tensor], version: int, task: int | None = None
) -> Transitions:
    """One step of a pool: one row a slot."""
    columns = {
        name: torch.from_numpy(getattr(step, name))
        for name in ("obs", "reward", "next_obs", "terminated", "truncated", "episode", "step")
    }
    return Transitions(
        **columns,
        action=action.cpu(),
        policy_version=torch.full((len(action),), version),
        task=None if task is None else torch.full((len(action),), task),
        sim_state=None if step.sim_state is None else torch.from_numpy(step.sim_state),
        extra={name: column.cpu() for name, column in extra.items()},
    )
