"""Where imagined rows are kept, and batches that mix them with real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer, unflatten
from mbrl.data.transitions import Transitions

LEARNED_FROM = (
    "obs",
    "action",
    "reward",
    "next_obs",
    "terminated",
    "truncated",
    "episode",
    "step",
    "policy_version",
)
"""What a batch for learning consists of."""

ROUNDING = 1e-6
"""A product of a share and a count may fall short of a whole number by less: 0.29 * 100 is 28.999..."""


def published_capacity(horizon: int, retain_epochs: int, rollouts: int, every: int, epoch_steps: int = 1000) -> int:
    """Rows of the model buffer: ``retain_epochs * horizon * (rollouts * epoch_steps / every)``.

    Janner, Fu, Zhang, Levine, "When to Trust Your Model: Model-Based Policy Optimization", 2019, whose code makes
    100,000 rollouts every 250 env steps and has epochs of 1,000: ``retain * k * 400,000`` rows.

    Args:
        horizon: ``k``, steps of a rollout now.
        retain_epochs: how many epochs' worth of imagined rows are kept.
        rollouts: rollouts made each time.
        every: env steps between those times.
        epoch_steps: env steps of an epoch.
    """
    counts = (horizon, retain_epochs, rollouts, every, epoch_steps)
    if min(counts) < 1:
        raise UserError("horizon, retain_epochs, rollouts, every, epoch_steps", counts, "each is at least 1")
    return retain_epochs * max(1, horizon * rollouts * epoch_steps // every)


class ModelBuffer:
    """A ring of imagined rows whose capacity follows the horizon.

    Its extra columns are those of the first rows that come. It is saved whole, by its agent.

    Args:
        capacity: rows kept.
        device: where they lie.
    """

    def __init__(self, capacity: int = 1, device: torch.device | str = "cpu") -> None:
        self.ring = ReplayBuffer(capacity, device=device)
        """The rows. Another object after :meth:`resize` and :meth:`clear`, and after the first rows: do not keep it."""

    def __len__(self) -> int:
        return len(self.ring)

    @property
    def capacity(self) -> int:
        return self.ring.capacity

    def extend(self, rows: Transitions) -> None:
        """Append rows; the oldest make room."""
        if not len(rows):
            return
        if not len(self.ring):
            shapes = {name: tuple(column.shape[1:]) for name, column in rows.extra.items()}
            self.ring = ReplayBuffer(self.capacity, shapes, self.ring.device)
        self.ring.extend(rows)

    def resize(self, capacity: int) -> None:
        """Change the capacity; the newest rows stay, with their weights. Their ids are counted anew when it changes."""
        old = self.ring
        if capacity == old.capacity:
            return
        self.ring = ReplayBuffer(capacity, old.extra, old.device)
        ids = old.ids[-capacity:]
        if len(ids):
            self.ring.extend(old[ids])
            self.ring.set_weights(self.ring.ids, old.weights(ids))

    def clear(self) -> None:
        """Forget every row."""
        self.ring = ReplayBuffer(self.capacity, device=self.ring.device)

    def state_dict(self) -> dict[str, Any]:
        """Capacity, counts and rows (oldest first): tensors and plain values."""
        ring = self.ring
        where = ring.ids % ring.capacity
        return {
            "capacity": ring.capacity,
            "total_added": ring.total_added,
            "columns": {name: column[where] for name, column in ring.columns.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`: the same rows with the same ids."""
        columns: dict[str, Tensor] = state["columns"]
        prefix = "extra."
        shapes = {n.removeprefix(prefix): tuple(c.shape[1:]) for n, c in columns.items() if n.startswith(prefix)}
        ring = ReplayBuffer(int(state["capacity"]), shapes, self.ring.device)
        ring.total_added = int(state["total_added"])
        where = ring.ids % ring.capacity
        for name, rows in columns.items():
            column = torch.zeros((ring.capacity, *rows.shape[1:]), dtype=rows.dtype, device=ring.device)
            column[where] = rows.to(ring.device)
            ring.columns[name] = column
        self.ring = ring


def mixed_batches(
    real: ReplayBuffer,
    imagined: ReplayBuffer | None,
    real_ratio: float,
    updates: int,
    batch_size: int,
    generator: Generator,
    extra: Sequence[str] = (),
) -> Transitions:
    """Batches for ``updates`` gradient steps, ``[U, B, ...]``, drawn uniformly with replacement.

    The first ``real_ratio * batch_size`` rows of every batch, rounded down as in MBPO's published code, are real, the
    rest imagined; all are real while nothing has been imagined. One gather a source serves all batches. Only the
    columns that learning needs come along, and the ``extra`` ones asked for by name, which both sources must hold.
    Batches lie on the generator's device, wherever the buffers do: a dataset may stay in main memory.

    Raises:
        UserError: a ratio outside [0, 1], counts below 1, an empty real buffer, a missing extra column.
    """
    if not 0.0 <= real_ratio <= 1.0:
        raise UserError("real_ratio", real_ratio, "give a share in [0, 1]")
    if updates < 1 or batch_size < 1:
        raise UserError("updates, batch_size", (updates, batch_size), "each is at least 1")
    reals = math.floor(real_ratio * batch_size + ROUNDING)
    if imagined is None or not len(imagined):
        reals, imagined = batch_size, real
    names = [*LEARNED_FROM, *(f"extra.{name}" for name in extra)]
    parts = [
        _gather(buffer, names, updates, count, generator)
        for buffer, count in ((real, reals), (imagined, batch_size - reals))
        if count
    ]
    if len(parts) == 1:
        return unflatten(parts[0])
    return unflatten({name: torch.cat([part[name] for part in parts], 1) for name in names})


def _gather(
    buffer: ReplayBuffer, names: Sequence[str], updates: int, count: int, generator: Generator
) -> dict[str, Tensor]:
    """``count`` random rows for each of ``updates`` batches: columns ``[U, count, ...]``."""
    where = buffer.sample_ids(updates * count, generator) % buffer.capacity
    if missing := [name for name in names if name not in buffer.columns]:
        raise UserError("column", missing[0].removeprefix("extra."), "a buffer does not hold it", buffer.extra)
    columns = {name: buffer.columns[name].index_select(0, where).to(generator.device) for name in names}
    return {name: column.unflatten(0, (updates, count)) for name, column in columns.items()}
