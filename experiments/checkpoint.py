"""Checkpoints: tensors and JSON only, written atomically, found damaged when they are, loaded without running code."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.errors import UserError
from experiments.segments import BufferStore
from experiments.storage import disk_errors, remove_leftovers, sync_directory, write_atomically
from mbrl.data.buffer import ReplayBuffer

NAME = re.compile(r"step-(\d{12})-([0-9a-f]{16})\.pt")
FORMAT = 1


def global_random_states() -> dict[str, Any]:
    """The random states of Python, NumPy and torch that library code uses, as tensors and numbers."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    state = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = list(torch.cuda.get_rng_state_all())
    return state


def set_global_random_states(state: dict[str, Any]) -> None:
    """Inverse of :func:`global_random_states`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk; its name carries the env steps and a digest of its content."""

    path: Path
    env_steps: int
    digest: str


class CheckpointStore:
    """The ``checkpoints/`` of a run: the newest ``keep`` checkpoints, the best weights, and the buffers' rows.

    Buffer rows are written before the checkpoint that counts them, and deleted only when no kept one needs them; so a
    crash between any two system calls leaves a checkpoint from which the run continues.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.policies = directory, directory / "policies"
        self.keep = max(1, keep)
        self._stores: dict[str, BufferStore] = {}
        self._oldest_needed: dict[str, list[int]] = {}

    def found(self) -> list[Found]:
        """Every checkpoint, oldest first."""
        matches = [(path, NAME.fullmatch(path.name)) for path in self.directory.glob("step-*.pt")]
        return sorted(
            (Found(path, int(m[1]), m[2]) for path, m in matches if m),
            key=lambda found: (found.env_steps, _written(found.path)),
        )

    def save(self, env_steps: int, state: dict[str, Any], buffers: dict[str, ReplayBuffer]) -> Path:
        """Write one checkpoint of ``state`` (tensors, numbers, strings, lists, dicts) and the buffers' new rows."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            counts = {name: self._append(name, buffer) for name, buffer in buffers.items()}
            data = _to_bytes({"format": FORMAT, "buffers": counts, **state})
            digest = hashlib.blake2b(data, digest_size=8).hexdigest()
            path = self.directory / f"step-{env_steps:012d}-{digest}.pt"
            write_atomically(path, data)
            self._rotate(path, buffers)
        return path

    def save_best(self, state: dict[str, Any]) -> None:
        """Replace the best weights."""
        write_atomically(self.directory / "best.pt", _to_bytes({"format": FORMAT, **state}))

    def save_policy(self, steps: int, state: dict[str, Any]) -> None:
        """Keep the weights of one evaluation beside the others."""
        with disk_errors(self.policies):
            self.policies.mkdir(parents=True, exist_ok=True)
        write_atomically(self.policies / f"step-{steps:012d}.pt", _to_bytes({"format": FORMAT, **state}))

    def load_policies(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The kept weights and their files, earliest first."""
        for path in sorted(self.policies.glob("step-*.pt")):
            yield path, _from_bytes(path, None)

    def load_best(self) -> dict[str, Any]:
        path = self.directory / "best.pt"
        if not path.is_file():
            raise UserError(str(path), "missing", "this run has not been evaluated yet; leave --best out")
        return _from_bytes(path, None)

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint, or None when the run was stopped before its first.

        Raises ``UserError`` when it is damaged. No code in the file is run.
        """
        while found := self.found():
            try:
                return _from_bytes(found[-1].path, found[-1].digest)
            except UserError:
                if found[-1].path.exists():
                    raise  # else the run is alive and has moved on to a newer one
        return None

    def remove_leftovers(self) -> None:
        """Clear what a killed process left half-written. Only for the process that holds the run's lock."""
        remove_leftovers(self.directory)

    def restore_buffers(self, state: dict[str, Any], buffers: dict[str, ReplayBuffer]) -> None:
        """Fill the agent's buffers as the checkpoint counted them, and forget rows that came later."""
        if set(state["buffers"]) != set(buffers):
            raise UserError(
                "buffers", sorted(state["buffers"]), f"the agent has {sorted(buffers)}; another version of it?"
            )
        for name, buffer in buffers.items():
            count = state["buffers"][name]
            self._store(name).restore(buffer, count["total_added"], count["forgotten"])
            if count["weight"] is not None:
                buffer.columns["weight"].copy_(count["weight"])
            self._oldest_needed[name] = [_oldest(buffer)]

    def _append(self, name: str, buffer: ReplayBuffer) -> dict[str, Any]:
        self._store(name).append(buffer)
        weight = buffer.columns.get("weight")
        plain = weight is None or bool((weight == 1.0).all())
        kept = None if plain else weight
        return {"total_added": buffer.total_added, "forgotten": buffer.forgotten, "weight": kept}

    def _store(self, name: str) -> BufferStore:
        return self._stores.setdefault(name, BufferStore(self.directory / "buffers" / name))

    def _rotate(self, newest: Path, buffers: dict[str, ReplayBuffer]) -> None:
        for stale in [found.path for found in self.found() if found.path != newest][: -(self.keep - 1) or None]:
            stale.unlink(missing_ok=True)
        sync_directory(self.directory)
        for name, buffer in buffers.items():
            needed = [*self._oldest_needed.get(name, [0]), _oldest(buffer)][-self.keep :]
            self._oldest_needed[name] = needed
            self._store(name).prune(min(needed))


def _written(path: Path) -> int:
    """When it was written; 0 when it has just been rotated away."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _oldest(buffer: ReplayBuffer) -> int:
    return buffer.total_added - len(buffer)


def _to_bytes(state: dict[str, Any]) -> bytes:
    _check_plain(state, "")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _check_plain(value: Any, where: str) -> None:
    """What cannot be read back without running code is refused when it is written, not when it is needed."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_plain(part, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            _check_plain(part, f"{where}[{i}]")
    elif type(value) not in (int, float, bool, str, type(None)) and not isinstance(value, torch.Tensor):
        fix = "a checkpoint holds tensors, numbers, text, lists and dicts; make arrays tensors, and NumPy numbers plain"
        raise UserError(f"state to be saved, {where}", type(value).__name__, fix)


def _from_bytes(path: Path, digest: str | None) -> dict[str, Any]:
    with disk_errors(path):
        data = path.read_bytes()
    if digest is not None and hashlib.blake2b(data, digest_size=8).hexdigest() != digest:
        fix = "it was changed or cut short after it was written; delete it to resume from the one before"
        raise UserError(str(path), f"{len(data)} bytes, damaged", fix)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is not a plain tensor file
        raise UserError(str(path), type(error).__name__, "not a checkpoint of tensors and plain values") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(str(path), "another format", f"this version reads checkpoint format {FORMAT}")
    return state
