"""Replay buffer: a ring of transitions in contiguous memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.transitions import Transitions

IDS = ("episode", "step", "policy_version")
REQUIRED = ("obs", "action", "reward", "next_obs", "terminated", "truncated", *IDS, "weight")
OPTIONAL = {"task", "sim_state"}
VECTORS = ("obs", "action", "next_obs")
DTYPES = {
    "terminated": torch.bool,
    "truncated": torch.bool,
    "sim_state": torch.float64,
    "task": torch.int64,
} | dict.fromkeys(IDS, torch.int64)
MOST_ROWS = 10**9


class ReplayBuffer:
    """A ring of ``capacity`` transitions; memory is allocated when the first rows show their shapes.

    A row's *id* is its insertion number: it survives wrap-around, and weights are kept by it.

    Args:
        capacity: rows kept; the oldest are overwritten.
        extra: declared extra columns, name -> trailing shape. Rows must bring exactly these.
        device: where the memory lies.
    """

    def __init__(
        self, capacity: int, extra: Mapping[str, tuple[int, ...]] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if not 1 <= capacity <= MOST_ROWS:
            raise UserError("capacity", capacity, f"a replay buffer holds 1 to {MOST_ROWS:,} rows")
        self.capacity = capacity
        self.extra = dict(extra or {})
        self.device = torch.device(device)
        self.total_added = 0
        self.forgotten = 0
        self.columns: dict[str, Tensor] = {}
        self._starts: tuple[int, int, Tensor] | None = None

    def __len__(self) -> int:
        return min(self.total_added - self.forgotten, self.capacity)

    def forget(self) -> None:
        """Drop every row; ids go on counting, and the memory is used again."""
        self.forgotten = self.total_added
        for name, column in self.columns.items():
            column.fill_(name == "weight")

    @property
    def ids(self) -> Tensor:
        """``[len]`` ids of the rows, oldest first."""
        return torch.arange(self.total_added - len(self), self.total_added, device=self.device)

    def extend(self, rows: Transitions) -> None:
        """Append rows in order. Rows of one episode must arrive in step order; episodes may be interleaved."""
        flat = flatten(rows)
        self._check(flat)
        if not self.columns:
            self.columns = {name: self._allocate(name, column) for name, column in flat.items()}
            self.columns["weight"] = torch.ones(self.capacity, device=self.device)
        n = len(rows)
        keep = min(n, self.capacity)
        where = torch.arange(self.total_added + n - keep, self.total_added + n, device=self.device) % self.capacity
        for name, column in flat.items():
            self.columns[name][where] = column[n - keep :].to(self.device, self.columns[name].dtype)
        self.columns["weight"][where] = 1.0
        self.total_added += n

    def _check(self, flat: Mapping[str, Tensor]) -> None:
        brought = {name.removeprefix("extra.") for name in flat if name.startswith("extra.")}
        if brought != set(self.extra):
            fix = f"declare these columns when the buffer is made; it was made with {sorted(self.extra)}"
            raise UserError("extra columns", sorted(brought), fix)
        holds = set(self.columns) - {"weight"}
        if holds and holds != set(flat):
            raise UserError("transitions", sorted(flat), f"this buffer holds the columns {sorted(holds)}")
        declared = {f"extra.{name}": tuple(shape) for name, shape in self.extra.items()}
        shapes = declared | {name: tuple(column.shape[1:]) for name, column in self.columns.items()}
        for name, column in flat.items():
            if name in shapes and shapes[name] != tuple(column.shape[1:]):
                raise UserError(f"column {name}", tuple(column.shape[1:]), f"this buffer holds {shapes[name]}")

    def _allocate(self, name: str, like: Tensor) -> Tensor:
        dtype = DTYPES.get(name, torch.float32)
        try:
            return torch.zeros((self.capacity, *like.shape[1:]), dtype=dtype, device=self.device)
        except RuntimeError as error:  # also torch.OutOfMemoryError
            raise UserError("capacity", self.capacity, f"there is no memory for so many rows of {name}") from error

    def __getitem__(self, ids: Tensor) -> Transitions:
        """Rows by id, any leading shape. An id that was overwritten or never was raises ``IndexError``."""
        self._need_live(ids)
        return self._rows(ids % self.capacity)

    def _need_live(self, ids: Tensor) -> None:
        """It waits for a device, which is why sampling goes without it."""
        low, high = self.total_added - len(self), self.total_added - 1
        if ids.numel() and (int(ids.min()) < low or int(ids.max()) > high):
            raise IndexError(f"buffer holds ids {low}..{high}, asked for {int(ids.min())}..{int(ids.max())}")

    def _rows(self, where: Tensor) -> Transitions:
        self._need_rows()
        return unflatten({name: column[where] for name, column in self.columns.items() if name != "weight"})

    def all(self) -> Transitions:
        """Every row, oldest first."""
        return self._rows(self.ids % self.capacity)

    def sample_ids(self, n: int, generator: Generator, weighted: bool = False) -> Tensor:
        """``[n]`` ids, drawn uniformly or by weight, with replacement; the generator may lie on another device."""
        self._need_rows()
        oldest = self.total_added - len(self)
        if not weighted:
            return oldest + torch.randint(len(self), (n,), generator=generator, device=generator.device).to(self.device)
        weight = self.columns["weight"][self.ids % self.capacity].double()
        edges = weight.cumsum(0)
        if not bool(edges[-1] > 0):
            raise UserError("weight", 0.0, "every stored row has weight 0; nothing can be sampled by weight")
        unit = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64).to(self.device)
        draw = unit * edges[-1]
        return oldest + torch.searchsorted(edges, draw, right=True).clamp(max=len(self) - 1)

    def sample(self, n: int, generator: Generator, weighted: bool = False) -> Transitions:
        """``n`` rows with replacement; by weight when ``weighted``."""
        return self._rows(self.sample_ids(n, generator, weighted) % self.capacity)

    def set_weights(self, ids: Tensor, weight: Tensor) -> None:
        """Sampling weights (>= 0) of rows by id; ids that have been overwritten are ignored."""
        if not bool(weight.isfinite().all()) or bool((weight < 0).any()):
            raise UserError("weight", weight, "sampling weights are finite and not negative")
        if bool((ids >= self.total_added).any()):
            raise UserError("ids", int(ids.max()), f"the newest row has id {self.total_added - 1}")
        live = ids >= self.total_added - len(self)
        self.columns["weight"][ids[live] % self.capacity] = weight[live].to(self.columns["weight"].dtype)

    def weights(self, ids: Tensor) -> Tensor:
        """Sampling weights of rows that are in the buffer, by id."""
        self._need_live(ids)
        return self.columns["weight"][ids % self.capacity]

    def windows(self, n: int, length: int, generator: Generator) -> Transitions:
        """``n`` windows of ``length`` consecutive steps, ``[n, length, ...]``, never across an episode's or task's end.

        Raises ``UserError`` when no stored episode is that long.
        """
        chains = self._chains(length)
        pick = torch.randint(chains.shape[1], (n,), generator=generator, device=generator.device).to(self.device)
        return self._rows(chains[:, pick].T % self.capacity)

    def _chains(self, length: int) -> Tensor:
        """``[length, M]`` ids of every window of that length in the buffer."""
        self._need_rows()
        if self._starts is None or self._starts[:2] != (self.total_added, length):
            self._starts = (self.total_added, length, self._find_chains(length))
        return self._starts[2]

    def _find_chains(self, length: int) -> Tensor:
        where = self.ids % self.capacity
        task = self.columns["task"][where] if "task" in self.columns else None
        found = consecutive(self.columns["episode"][where], self.columns["step"][where], length, task)
        if not found.shape[1]:
            raise UserError("window length", length, f"no stored episode has that many steps ({len(self)} rows stored)")
        return self.ids[0] + found

    def _need_rows(self) -> None:
        if not len(self):
            raise UserError("replay buffer", "empty", "add transitions before sampling")

    def save(self, path: Path | str) -> None:
        """Write ``path/`` with one ``.npy`` a column (oldest row first) and ``buffer.json``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        where = self.ids % self.capacity
        for name, column in self.columns.items():
            np.save(path / f"{name}.npy", column[where].cpu().numpy(), allow_pickle=False)
        (path / "buffer.json").write_text(json.dumps(self._description()))

    def _description(self) -> dict[str, Any]:
        extra = {name: list(shape) for name, shape in self.extra.items()}
        return {
            "capacity": self.capacity,
            "total_added": self.total_added,
            "forgotten": self.forgotten,
            "extra": extra,
            "columns": list(self.columns),
        }

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> ReplayBuffer:
        """Read what :meth:`save` wrote. Runs no code from the files; raises ``UserError`` on a damaged folder."""
        about, arrays = _read_folder(Path(path))
        buffer = cls(about["capacity"], {name: tuple(shape) for name, shape in about["extra"].items()}, device)
        buffer.total_added, buffer.forgotten = about["total_added"], about["forgotten"]
        where = buffer.ids % buffer.capacity
        for name, array in arrays.items():
            column = torch.from_numpy(np.array(array)).to(buffer.device)
            buffer.columns[name] = torch.zeros((buffer.capacity, *column.shape[1:]), dtype=column.dtype, device=device)
            buffer.columns[name][where] = column
        return buffer

    @classmethod
    def open(cls, path: Path | str) -> ReplayBuffer:
        """Map what :meth:`save` wrote, for data larger than memory: nothing is read until it is sampled.

        The result is full and counts its rows' ids from 0; it can be sampled and windowed. What is written to it
        (weights, say) stays in memory, the files do not change.
        """
        about, arrays = _read_folder(Path(path))
        rows = min(about["total_added"] - about["forgotten"], about["capacity"])
        if not rows:
            raise UserError(str(path), "no rows", "there is nothing to map; load it, or give another folder")
        buffer = cls(rows, {name: tuple(shape) for name, shape in about["extra"].items()})
        buffer.columns = {name: torch.from_numpy(array) for name, array in arrays.items()}
        buffer.total_added = rows
        return buffer


def consecutive(episode: Tensor, step: Tensor, length: int, task: Tensor | None = None) -> Tensor:
    """``[length, M]`` row numbers of every window of ``length`` consecutive steps of one episode and task, in rows
    ``[N]`` of any order.
    """
    order = torch.from_numpy(np.lexsort((step.cpu().numpy(), episode.cpu().numpy()))).to(episode.device)
    episode, step = episode[order], step[order]
    broken = (episode.diff() != 0) | (step.diff() != 1)
    if task is not None:
        broken |= task[order].diff() != 0
    count = len(order) - length + 1
    if length < 1 or count < 1:
        return order.new_empty(max(length, 0), 0)
    chain = torch.cat([broken.new_zeros(1), broken]).cumsum(0)
    first = (chain[length - 1 :] == chain[:count]).nonzero()[:, 0]
    return order[first + torch.arange(length, device=order.device)[:, None]]


def _read_folder(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What ``buffer.json`` says, and the columns mapped copy-on-write: the files stay as they are."""
    try:
        about = json.loads((path / "buffer.json").read_text())
        rows = min(int(about["total_added"]) - int(about["forgotten"]), int(about["capacity"]))
        wanted = {*REQUIRED, *(f"extra.{name}" for name in about["extra"])} if rows else set()
        if odd := (wanted ^ set(about["columns"])) - OPTIONAL:
            raise ValueError(f"column {min(odd)} is missing from buffer.json, or is not one of a replay buffer")
        arrays: dict[str, np.ndarray[Any, Any]] = {
            name: np.lib.format.open_memmap(path / f"{name}.npy", mode="c") for name in about["columns"]
        }
        if wrong := [name for name, array in arrays.items() if array.shape[:1] != (rows,)]:
            raise ValueError(f"{wrong[0]}.npy has shape {arrays[wrong[0]].shape}, buffer.json speaks of {rows} rows")
        for name, array in arrays.items():
            _need_column(name, array, about["extra"])
        return about, arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            str(path), f"{type(error).__name__}: {error}", "give a folder written by ReplayBuffer.save"
        ) from error


def _need_column(name: str, array: np.ndarray[Any, Any], extra: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where a column's numbers or their shape are not those of a replay buffer."""
    kind = torch.empty(0, dtype=DTYPES.get(name, torch.float32)).numpy().dtype
    if array.dtype != kind:
        raise ValueError(f"{name}.npy holds {array.dtype}, a replay buffer has {kind} there")
    if name in VECTORS and array.ndim != 2:
        raise ValueError(f"{name}.npy has shape {array.shape}, a replay buffer has one vector a row there")
    shape = tuple(extra[name.removeprefix("extra.")]) if name.startswith("extra.") else ()
    if name not in (*VECTORS, "sim_state") and array.shape[1:] != shape:
        raise ValueError(f"{name}.npy has shape {array.shape}, it should be {(len(array), *shape)}")


def flatten(rows: Transitions) -> dict[str, Tensor]:
    """Columns by name; extra columns get the prefix ``extra.``, absent optional ones are left out."""
    flat = {name: value for name, value in vars(rows).items() if isinstance(value, Tensor)}
    return flat | {f"extra.{name}": column for name, column in rows.extra.items()}


def unflatten(columns: Mapping[str, Tensor]) -> Transitions:
    """Inverse of :func:`flatten`."""
    plain = {name: column for name, column in columns.items() if not name.startswith("extra.")}
    extra = {name.removeprefix("extra."): column for name, column in columns.items() if name.startswith("extra.")}
    return Transitions(**plain, extra=extra)


def sample_mix(sources: Mapping[str, tuple[ReplayBuffer, float]], n: int, generator: Generator) -> Transitions:
    """``n`` rows from several buffers, ``{name: (buffer, share)}``; shares sum to 1, counts are rounded to fit.

    Rows come grouped by source, in the mapping's order.
    """
    shares = torch.tensor([share for _, share in sources.values()], dtype=torch.float64)
    if not torch.isclose(shares.sum(), torch.ones((), dtype=torch.float64)) or bool((shares < 0).any()):
        raise UserError("shares", {name: share for name, (_, share) in sources.items()}, "shares are >= 0 and sum to 1")
    edges = (shares.cumsum(0) * n).round().long().tolist()
    counts = [end - start for start, end in zip([0, *edges], edges, strict=False)]
    parts = [
        buffer.sample(count, generator) for (buffer, _), count in zip(sources.values(), counts, strict=True) if count
    ]
    return Transitions.cat(parts)
