"""``metrics.jsonl``: one flat JSON record a line, the truth about a run that figures and tables are made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError
from experiments.storage import disk_errors, sync
from mbrl.clock import Clock

TIMING_SUFFIXES = ("_seconds", "_ms", "_per_second", "_bytes")


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its timing and memory fields, which differ from run to run; the rest is reproducible."""
    return {name: v for name, v in record.items() if name != "seconds" and not name.endswith(TIMING_SUFFIXES)}


def make_record(event: str, clock: Clock, seconds: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat record; non-finite numbers become null and their fields are named in ``nonfinite``."""
    record: dict[str, Any] = {"event": event, "env_steps": clock.env_steps, "updates": clock.updates}
    record["seconds"] = round(seconds, 3)
    plain = {name: _plain(value) for name, value in values.items()}
    bad = sorted(name for name, value in plain.items() if not _finite(value))
    record |= {name: _finite_or_null(value) for name, value in plain.items()}
    return record | ({"nonfinite": bad} if bad else {})


def steps_of(record: Mapping[str, Any]) -> int:
    """Steps of the run at a record: env steps; of an agent that learns from data, which takes none, updates."""
    return int(record.get("env_steps") or record.get("updates") or 0)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; raises ``UserError`` where a line is damaged."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}", line[:40], "this line is not a JSON record") from error
    except OSError as error:
        raise UserError(str(path), error.strerror, "give a run directory written by `mbrl train`") from error


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_null(part) for part in value]
    return value if _finite(value) else None


class MetricsLog:
    """Appends records to ``path``; locked, so that a run is never written by two processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            self._file = path.open("ab")
        self._lock()
        self._sum = _digest(b"")

    def verify(self, offset: int, digest: str) -> None:
        """The first ``offset`` bytes are what a checkpoint remembers, else ``UserError``."""
        with disk_errors(self.path):
            data = self.path.read_bytes()
        if len(data) < offset or _digest(data[:offset]).hexdigest() != digest:
            fix = "it was changed or cut short after it was written, so the run cannot be continued; train it anew"
            raise UserError(str(self.path), f"{len(data)} bytes", fix)

    def cut(self, offset: int) -> None:
        """Forget what was written beyond ``offset`` bytes."""
        with disk_errors(self.path):
            self._file.truncate(offset)
            self._file.seek(0, 2)
            self._sum = _digest(self.path.read_bytes())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UserError(
                str(self.path.parent), "in use", "another process is running this run; stop it first"
            ) from error

    def write(self, record: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            self._file.write(line)
            self._file.flush()
        self._sum.update(line)

    def offset(self) -> int:
        """Bytes written, all of them safely on disk."""
        with disk_errors(self.path):
            sync(self._file)
            return self._file.tell()

    def digest(self) -> str:
        """Digest of what was written so far."""
        return self._sum.hexdigest()

    def close(self) -> None:
        self._file.close()


def _digest(data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)
