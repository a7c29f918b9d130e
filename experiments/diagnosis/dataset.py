"""Real transitions as data: of a run (read without building its agent or running its code), or of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from experiments.checkpoint import CheckpointStore
from experiments.run import RunDirectory
from experiments.segments import BufferStore
from experiments.tree import read_yaml
from mbrl.data import offline
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.labels import need_actions
from mbrl.data.transitions import Transitions
from mbrl.seeding import generator


@dataclass(frozen=True)
class JudgedRows:
    """Transitions and where they come from."""

    path: Path
    buffer: ReplayBuffer
    env: Mapping[str, Any] | None
    """The ``env`` part of the run's configuration, or what a file says; None where nobody does"""

    def digest(self) -> str:
        """Eight hex digits of every row's place and content: the same rows, the same digits."""
        rows, hashed = self.buffer.all(), hashlib.blake2b(digest_size=4)
        for column in (rows.episode, rows.step, rows.obs, rows.action, rows.next_obs):
            hashed.update(column.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()


@dataclass(frozen=True)
class Split:
    """Whole episodes, by id: those a model is fitted on, and those it is judged on."""

    train: list[int]
    heldout: list[int]


def read_dataset(path: Path, most: int | None = None, env: Mapping[str, Any] | None = None) -> JudgedRows:
    """The transitions at ``path``: a run directory, or what :func:`mbrl.data.offline.open_dataset` opens.

    ``most`` counts the transitions ever added that are to be read, where the run has gone on since. ``env`` is what the
    user says of a file's environment; whose it is is still what the file says, if it does.

    Raises:
        UserError: there is nothing like that, it is damaged or empty, or a row has no action, or holds NaN or infinity.
    """
    if (path / "buffer.json").is_file():
        found = JudgedRows(path, ReplayBuffer.load(path), offline.folder_about(path).env)
    elif _is_run(path):
        found = _of_run(RunDirectory.open(path), most)
    else:
        opened = offline.open_dataset(path, env)
        found = JudgedRows(opened.path, opened.buffer(), opened.about.own_env or opened.about.env)
    _check(found)
    return found


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()


class RunRows(offline.Dataset):
    """Every row of a run that is still on the disk, as the front door of datasets gives it; all in memory."""

    def __init__(self, path: Path, env: Mapping[str, Any] | None = None) -> None:
        found = read_dataset(path)
        about, named = offline.told(offline.About(env=found.env, policy={"run": str(path)}), env)
        super().__init__(path, "run directory", about, named)
        self._buffer = found.buffer

    def __len__(self) -> int:
        return len(self._buffer)

    def pieces(self) -> Iterator[Transitions]:
        for ids in self._buffer.ids.split(offline.BATCH):
            yield self._buffer[ids]


offline.register_kind(offline.Kind("run", _is_run, RunRows, "a run directory", "*/checkpoints"))


def _of_run(run: RunDirectory, most: int | None) -> JudgedRows:
    state = CheckpointStore(run.checkpoints).load_latest()
    if state is None:
        raise UserError("--data", str(run.path), "this run has no checkpoint yet")
    counts = state["buffers"]
    name = "real" if "real" in counts else next(iter(counts), "real")
    total, forgotten = (int(counts[name][key]) if counts else 0 for key in ("total_added", "forgotten"))
    total = total if most is None else min(total, most)
    if total <= forgotten:
        raise UserError(
            "--data",
            str(run.path),
            "it has stored no transitions: its agent keeps none, has just begun, or forgot those of an ended task",
        )
    env = read_yaml(run.config).get("env")
    return JudgedRows(run.path, _read_segments(run.checkpoints / "buffers" / name, total, forgotten), env)


def _read_segments(folder: Path, total: int, forgotten: int) -> ReplayBuffer:
    """Every row that is still on the disk, among them some that the run's own ring has let go but was not told to."""
    try:
        about = json.loads((folder / "schema.json").read_text())
        columns = {column["name"]: tuple(column["shape"]) for column in about["columns"]}
        oldest = min(int(path.stem.removeprefix("segment-")) for path in folder.glob("segment-*.bin"))
        first = max(forgotten, oldest * int(about["segment_rows"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(folder), type(error).__name__, "the buffer's files are damaged or missing") from error
    if first >= total:
        raise UserError(str(folder), f"rows from {first:,} on", f"rows before {total:,} are wanted; they are gone")
    extra = {name.removeprefix("extra."): shape for name, shape in columns.items() if name.startswith("extra.")}
    buffer = ReplayBuffer(total - first, extra)
    BufferStore(folder).read(buffer, total, forgotten)
    return buffer


def _check(data: JudgedRows) -> None:
    if not len(data.buffer):
        raise UserError("--data", str(data.path), "there are no rows in it")
    need_actions(data.buffer, "a model of the dynamics")
    rows = data.buffer.all()
    finite = rows.reward.isfinite()
    for column in (rows.obs, rows.action, rows.next_obs):
        finite = finite & column.isfinite().all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise UserError(f"{data.path}, row {row}", "NaN or infinity", "remove the row or mend the environment")


def need_fit(data: JudgedRows, spec: EnvSpec) -> None:
    """Refuse data whose observations or actions are not those of the model's environment."""
    rows = data.buffer.all()
    seen, wanted = (rows.obs.shape[-1], rows.action.shape[-1]), (spec.obs_size, spec.action.size)
    if seen != wanted:
        fix = f"the model is of {spec.id}, whose observations and actions have {wanted[0]} and {wanted[1]} entries"
        raise UserError("--data", f"{data.path} with {seen[0]} and {seen[1]} entries", fix)


def split_episodes(episode: Tensor, share: float, seed: int) -> Split:
    """Part the episodes of rows ``[N]`` at random into train and held-out; each side gets at least one.

    Raises ``UserError`` when there is only one episode, or ``share`` is not inside (0, 1).
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share < 1.0:
        raise UserError("--heldout", share, "give a share of the episodes, above 0 and below 1")
    ids = episode.unique()
    if len(ids) < 2:
        raise UserError("--data", "one episode", "an episode is held out whole; collect at least two")
    order = torch.randperm(len(ids), generator=generator(seed, "split"))
    held = min(max(1, round(share * len(ids))), len(ids) - 1)
    parts = ids[order[held:]], ids[order[:held]]
    return Split(*(sorted(part.tolist()) for part in parts))


def of_episodes(buffer: ReplayBuffer, episodes: list[int]) -> ReplayBuffer:
    """The rows of those episodes."""
    rows = buffer.all()
    return subset(rows, torch.isin(rows.episode, torch.tensor(episodes, dtype=rows.episode.dtype)))


def subset(rows: Transitions, mask: Tensor) -> ReplayBuffer:
    """A buffer of the rows where ``mask [N]``, in their order; at least one."""
    kept = rows[mask]
    buffer = ReplayBuffer(len(kept), {name: tuple(column.shape[1:]) for name, column in kept.extra.items()})
    buffer.extend(kept)
    return buffer
