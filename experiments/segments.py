"""Replay buffers on disk: rows are appended to segment files, so a checkpoint costs only the rows that are new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError
from experiments.storage import disk_errors, sync, sync_directory, write_atomically
from mbrl.data.buffer import ReplayBuffer

SEGMENT_ROWS = 4096


class BufferStore:
    """The rows of one replay buffer in ``directory``: fixed-size binary rows, ``segment_rows`` of them a file.

    Segment ``k`` holds the rows with ids ``k * segment_rows`` onwards; ``schema.json`` says how a row is packed.
    Rows beyond the count that a checkpoint holds are what a crash left behind: :meth:`restore` cuts them off.
    """

    def __init__(self, directory: Path, segment_rows: int = SEGMENT_ROWS) -> None:
        self.directory = directory
        self.segment_rows = segment_rows
        self.written = 0
        self._schema: list[dict[str, Any]] | None = None

    def append(self, buffer: ReplayBuffer) -> None:
        """Write the rows that are new since the last call, through to the disk."""
        first = max(self.written, buffer.total_added - len(buffer))
        if first >= buffer.total_added:
            return
        with disk_errors(self.directory):
            if self._schema is None:
                self._write_schema(buffer)
            for segment, start, stop in self._pieces(first, buffer.total_added):
                self._write_piece(segment, start, _pack(buffer, start, stop, self._columns()))
            sync_directory(self.directory)
        self.written = buffer.total_added

    def prune(self, oldest: int) -> None:
        """Delete the segments whose rows all have ids below ``oldest``."""
        for path in self.directory.glob("segment-*.bin"):
            if (int(path.stem.removeprefix("segment-")) + 1) * self.segment_rows <= oldest:
                path.unlink(missing_ok=True)

    def restore(self, buffer: ReplayBuffer, total_added: int, forgotten: int = 0) -> None:
        """Fill an empty ``buffer`` as it was when ``total_added`` rows had been added, of which it had been told to
        forget the first ``forgotten``; later rows are cut off.
        """
        self._cut(total_added)
        self.written = total_added
        self.read(buffer, total_added, forgotten)

    def read(self, buffer: ReplayBuffer, total_added: int, forgotten: int = 0) -> None:
        """As :meth:`restore`, and nothing on the disk changes: the run may be alive."""
        buffer.total_added, buffer.forgotten = total_added, forgotten
        if total_added == forgotten:
            return
        self._read_schema()
        self._allocate(buffer)
        for segment, start, stop in self._pieces(total_added - len(buffer), total_added):
            where = torch.arange(start, stop, device=buffer.device) % buffer.capacity
            for name, values in _unpack(self._read_piece(segment, start, stop), self._columns()).items():
                buffer.columns[name][where] = values.to(buffer.device)
        buffer[buffer.ids[:1]]  # a schema whose columns are no transitions is refused here

    def _allocate(self, buffer: ReplayBuffer) -> None:
        for name, dtype, shape in self._columns():
            buffer.columns[name] = torch.zeros((buffer.capacity, *shape), dtype=dtype, device=buffer.device)
        buffer.columns["weight"] = torch.ones(buffer.capacity, device=buffer.device)

    def _pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """``(segment, start, stop)`` of the id range ``[first, end)``."""
        while first < end:
            segment = first // self.segment_rows
            stop = min(end, (segment + 1) * self.segment_rows)
            yield segment, first, stop
            first = stop

    def _path(self, segment: int) -> Path:
        return self.directory / f"segment-{segment:09d}.bin"

    def _columns(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        assert self._schema is not None
        return [(c["name"], getattr(torch, c["dtype"]), tuple(c["shape"])) for c in self._schema]

    def _row_bytes(self) -> int:
        return sum(dtype.itemsize * int(np.prod(shape)) for _, dtype, shape in self._columns())

    def _write_piece(self, segment: int, start: int, data: bytes) -> None:
        path = self._path(segment)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek((start - segment * self.segment_rows) * self._row_bytes())
            file.write(data)
            sync(file)

    def _read_piece(self, segment: int, start: int, stop: int) -> bytes:
        row = self._row_bytes()
        path = self._path(segment)
        try:
            with path.open("rb") as file:
                file.seek((start - segment * self.segment_rows) * row)
                data = file.read((stop - start) * row)
        except FileNotFoundError:
            data = b""
        if len(data) < (stop - start) * row:
            raise UserError(
                str(path), f"{len(data)} bytes", f"rows {start}..{stop - 1} of the buffer are missing; damaged"
            )
        return data

    def _cut(self, total_added: int) -> None:
        if (self.directory / "schema.json").exists():
            self._read_schema()
        for path in self.directory.glob("segment-*.bin"):
            keep = total_added - int(path.stem.removeprefix("segment-")) * self.segment_rows
            if keep <= 0:
                path.unlink()
            elif keep < self.segment_rows:
                with path.open("r+b") as file:
                    file.truncate(min(path.stat().st_size, keep * self._row_bytes()))

    def _write_schema(self, buffer: ReplayBuffer) -> None:
        self._schema = [
            {"name": name, "dtype": str(column.dtype).removeprefix("torch."), "shape": list(column.shape[1:])}
            for name, column in buffer.columns.items()
            if name != "weight"
        ]
        self.directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"segment_rows": self.segment_rows, "columns": self._schema}, indent=1)
        write_atomically(self.directory / "schema.json", text.encode())
        sync_directory(self.directory.parent)

    def _read_schema(self) -> None:
        path = self.directory / "schema.json"
        try:
            about = json.loads(path.read_text())
            self.segment_rows, self._schema = int(about["segment_rows"]), list(about["columns"])
            self._row_bytes()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(str(path), type(error).__name__, "the buffer's files are damaged or missing") from error


def _pack(
    buffer: ReplayBuffer, start: int, stop: int, columns: list[tuple[str, torch.dtype, tuple[int, ...]]]
) -> bytes:
    where = torch.arange(start, stop, device=buffer.device) % buffer.capacity
    parts = [buffer.columns[name][where].cpu().contiguous() for name, _, _ in columns]
    rows = [part.reshape(stop - start, -1).view(torch.uint8) for part in parts]
    return torch.cat(rows, dim=1).numpy().tobytes()


def _unpack(data: bytes, columns: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    widths = [dtype.itemsize * int(np.prod(shape)) for _, dtype, shape in columns]
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, sum(widths))
    parts = rows.split(widths, dim=1)
    return {
        name: torch.empty_like(part, memory_format=torch.contiguous_format).copy_(part).view(dtype).reshape(-1, *shape)
        for (name, dtype, shape), part in zip(columns, parts, strict=True)
    }
