"""One front door to transitions on disk: Minari, D4RL-style HDF5, saved buffers, and what other rooms register.

:func:`open_dataset` finds out what is there. Nothing is read then but the description; rows come by
:meth:`Dataset.stream` (from the disk, in batches), :meth:`Dataset.rows` (all), or :meth:`Dataset.mapped` (a replay
buffer whose rows stay on the disk).
"""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.buffer import DTYPES, ReplayBuffer
from mbrl.data.labels import HAS_ACTION
from mbrl.data.native import build_env
from mbrl.data.transitions import Transitions

BATCH = 65_536
ABOUT = "dataset.json"
PHYSICAL = ("id", "params", "kwargs", "action_repeat")
"""What of an environment decides its transitions"""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")
SLACK = 1e-5
"""How far beyond [-1, 1] rounding may carry an action"""


@dataclass(frozen=True)
class About:
    """What a dataset says of itself besides its rows. JSON values throughout."""

    env: Mapping[str, Any] | None = None
    """``id``, ``params``, ``kwargs``, ``action_repeat``, ``max_episode_steps``: as ``env`` of a run's configuration"""
    references: tuple[float, float] | None = None
    """Mean returns of the random and of the expert policy: 0 and 100 of a normalised score"""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Who acted: name, level, hash of the checkpoint, seed, noise"""
    versions: Mapping[str, Any] = field(default_factory=dict)
    """Packages that made it"""
    description: str = ""
    own_env: Mapping[str, Any] | None = None
    """What the file calls its environment, where the user named one instead; not written"""

    def __post_init__(self) -> None:
        if self.references is not None and not -math.inf < self.references[0] < self.references[1] < math.inf:
            fix = "a random policy's return comes first and is below the expert's, both finite; correct or remove them"
            raise UserError("references", self.references, fix)

    def score(self, returns: Tensor) -> Tensor:
        """Returns as per cent of the way from the random to the expert policy; needs ``references``."""
        if self.references is None:
            raise UserError("references", None, "this dataset names no returns of a random and an expert policy")
        low, high = self.references
        return 100.0 * (returns - low) / (high - low)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "own_env"}

    @classmethod
    def from_json(cls, values: Any, where: str) -> About:
        """Raises ``UserError`` where a file says something else than :meth:`to_json` does."""
        try:
            pair = values.get("references")
            return cls(
                env=None if values.get("env") is None else dict(values["env"]),
                references=None if pair is None else (float(pair[0]), float(pair[1])),
                policy=dict(values.get("policy") or {}),
                versions=dict(values.get("versions") or {}),
                description=str(values.get("description") or ""),
            )
        except UserError as error:
            raise error.within(where) from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(where, f"{type(error).__name__}: {error}", "its description is damaged") from error


class Dataset(ABC):
    """Transitions on disk, in the platform's units.

    Args:
        path: where.
        kind: its format, in words.
        about: what it says of itself, with the user's environment where they named one.
        named: whether the user named the environment.
    """

    def __init__(self, path: Path, kind: str, about: About, named: bool = False) -> None:
        self.path, self.kind, self.about, self.named = path, kind, about, named
        self.notes: list[str] = []
        """What reading changed or left out, in sentences"""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def pieces(self) -> Iterator[Transitions]:
        """The rows in order, in pieces of any size, not yet looked at."""

    def agree(self, spec: EnvSpec) -> None:
        """Raise ``UserError`` where the file's own spaces are not those of the environment."""

    def stream(self, batch: int = BATCH, check: bool = True) -> Iterator[Transitions]:
        """The rows from the disk in order, ``batch`` at a time (the last ones fewer).

        Raises:
            UserError: a damaged file; with ``check`` also NaN, infinity or an action out of bounds, with row and field.
        """
        done = 0
        for rows in rebatched(self.pieces(), batch):
            if check:
                check_rows(rows, self.path, done)
            done += len(rows)
            yield rows
        if done != len(self):
            fix = f"it promises {len(self):,}; the file is cut off or damaged"
            raise UserError(str(self.path), f"{done:,} rows", fix)

    def rows(self, check: bool = True) -> Transitions:
        """Every row, in memory; errors as :meth:`stream`."""
        parts = list(self.stream(max(len(self), 1), check))
        if not parts:
            raise UserError(str(self.path), "no rows", "there is nothing in this dataset")
        return parts[0]

    def buffer(self) -> ReplayBuffer:
        """Every row as a full replay buffer in memory."""
        rows = self.rows()
        made = ReplayBuffer(len(rows), {name: tuple(column.shape[1:]) for name, column in rows.extra.items()})
        made.extend(rows)
        return made

    def mapped(self, folder: Path) -> ReplayBuffer:
        """A replay buffer whose rows stay on the disk, in ``folder``: it is written once, then opened again.

        Raises:
            UserError: as :meth:`stream`; or ``folder`` holds another dataset or something else.
        """
        if not (folder / "buffer.json").is_file():
            save_folder(self.stream(), len(self), folder, self.about)
        opened = ReplayBuffer.open(folder)
        if len(opened) != len(self):
            raise UserError(str(folder), f"{len(opened):,} rows", f"{self.path} has {len(self):,}; name another folder")
        return opened

    def spec(self) -> EnvSpec:
        """What is known of the environment; the dataset's sizes and units are compared with it.

        Raises:
            UserError: it names none, it is not installed here, or the data is another environment's.
        """
        if self.about.env is None:
            raise UserError(f"{self.path}: env", None, "the dataset does not say its environment: name it")
        env = build_env(self.about.env, str(self.path), self.named)
        spec = env.env_spec
        env.close()
        self.agree(spec)
        first = next(self.stream(1, check=False), None)
        if first is not None:
            seen, wanted = (first.obs.shape[-1], first.action.shape[-1]), (spec.obs_size, spec.action.size)
            if seen != wanted:
                fix = f"those of {spec.id} have {wanted[0]} and {wanted[1]} entries"
                raise UserError(f"{self.path}: observations and actions", f"{seen[0]} and {seen[1]} entries", fix)
        return spec

    def validate(self) -> None:
        """Read all of it once; where the environment is named, compare with it.

        Raises:
            UserError: the first thing that is wrong, naming row and field.
        """
        if self.about.env is not None:
            self.spec()
        for _ in self.stream():
            pass


def check_rows(rows: Transitions, where: Path | str, first: int = 0) -> None:
    """Refuse NaN, infinity and actions out of bounds; ``first`` is the number of the first row.

    Where the extra column ``has_action`` is 0, there is no action, and whatever stands in its place is not looked at.

    Raises:
        UserError: naming the first such row and its field.
    """
    known = _known(rows, where, first)
    for name in ("obs", "reward", "next_obs"):
        column = getattr(rows, name)
        fix = "a value must be finite; remove the row, or mend what made it"
        _refuse(~column.isfinite(), column, name, rows, where, first, fix)
    fix = f"a value must be finite; remove the row, or where its action is not known set {HAS_ACTION} to 0"
    _refuse(~rows.action.isfinite() & known, rows.action, "action", rows, where, first, fix)
    fix = "actions lie in [-1, 1] here; name the environment, whose bounds tell the units"
    _refuse((rows.action.abs() > 1.0 + SLACK) & known, rows.action, "action", rows, where, first, fix)


def _known(rows: Transitions, where: Path | str, first: int) -> Tensor:
    """``[N, 1]`` which rows have an action."""
    column = rows.extra.get(HAS_ACTION)
    if column is None:
        return torch.ones(len(rows), 1, dtype=torch.bool)
    if column.dim() > 1:
        raise UserError(f"{where}: {HAS_ACTION}", f"shape {tuple(column.shape)}", "give one number a row")
    fix = "give 1 for a row that has an action, 0 for one that has none"
    _refuse((column != 0) & (column != 1), column, HAS_ACTION, rows, where, first, fix)
    return column.bool()[:, None]


def _refuse(bad: Tensor, column: Tensor, name: str, rows: Transitions, where: Path | str, first: int, fix: str) -> None:
    if not bool(bad.any()):
        return
    at = bad.nonzero()[0].tolist()
    field = name if len(at) == 1 else f"{name}[{at[1]}]"
    place = f"row {first + at[0]} (episode {int(rows.episode[at[0]])}, step {int(rows.step[at[0]])})"
    raise UserError(f"{where}, {place}: {field}", float(column[tuple(at)]), fix)


def rebatched(pieces: Iterable[Transitions], batch: int) -> Iterator[Transitions]:
    """The same rows in batches of ``batch``, the last one smaller."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UserError("batch", batch, "give a number of rows of at least 1")
    waiting: list[Transitions] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= batch:
            rows = Transitions.cat(waiting)
            whole = count - count % batch
            yield from (rows[start : start + batch] for start in range(0, whole, batch))
            waiting, count = [rows[whole:]] if count > whole else [], count - whole
    if count:
        yield Transitions.cat(waiting)


def require_one_env(datasets: Sequence[Dataset]) -> None:
    """Refuse to mix datasets of different environments, physics parameters or shapes among them.

    Raises:
        UserError: naming the first that differs from the first dataset.
    """
    first, *others = [_identity(dataset) for dataset in datasets]
    for dataset, found in zip(datasets[1:], others, strict=True):
        for name, mine, theirs in zip(("env", "observation and action sizes"), first, found, strict=True):
            if mine != theirs:
                fix = f"{datasets[0].path} has {mine}; rows of different environments are not mixed"
                raise UserError(f"{dataset.path}: {name}", theirs, fix)


def physics(env: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of an environment's description decides what follows what; settings at their defaults are left out."""
    return {key: value for key in PHYSICAL if (value := (env or {}).get(key)) not in (None, {}, 1)}


def _identity(dataset: Dataset) -> tuple[Any, tuple[int, int]]:
    row = next(dataset.stream(1, check=False), None)
    return physics(dataset.about.env), (0, 0) if row is None else (row.obs.shape[-1], row.action.shape[-1])


# -- saved replay buffers ---------------------------------------------------------------------------------------------


class BufferFolder(Dataset):
    """A folder written by :meth:`ReplayBuffer.save` or :func:`save_folder`; mapped, not read."""

    def __init__(self, path: Path, about: About, named: bool = False) -> None:
        super().__init__(path, "replay buffer", about, named)
        self._buffer = ReplayBuffer.open(path)

    def __len__(self) -> int:
        return len(self._buffer)

    def pieces(self) -> Iterator[Transitions]:
        for start in range(0, len(self), BATCH):
            yield self._buffer[torch.arange(start, min(start + BATCH, len(self)))]

    def mapped(self, folder: Path) -> ReplayBuffer:
        """It is mapped already; ``folder`` stays as it is."""
        return ReplayBuffer.open(self.path)


def folder_about(path: Path) -> About:
    """What a folder of columns says of itself; nothing where it was written without."""
    file = path / ABOUT
    return About.from_json(read_json(file), str(file)) if file.is_file() else About()


def save_folder(batches: Iterable[Transitions], count: int, folder: Path, about: About | None = None) -> None:
    """Write ``count`` rows to a folder that :meth:`ReplayBuffer.open` maps, one batch in memory at a time.

    The folder appears whole or not at all.

    Raises:
        UserError: there is something at ``folder``, no row comes or not ``count``, or the disk refuses.
    """
    with written_aside(folder) as aside:
        aside.mkdir()
        buffer: _MappedBuffer | None = None
        for rows in batches:
            buffer = buffer or _MappedBuffer(aside, count, rows)
            if buffer.total_added + len(rows) > count:
                raise UserError(str(folder), f"more than {count:,} rows", "say how many rows come")
            buffer.extend(rows)
        if buffer is None or buffer.total_added != count:
            seen = 0 if buffer is None else buffer.total_added
            raise UserError(str(folder), f"{seen:,} rows", f"{count:,} rows were to come, at least 1")
        buffer.finish(about or About())


class _MappedBuffer(ReplayBuffer):
    """A buffer whose memory is new files, one a column; the weights are written at the end."""

    def __init__(self, folder: Path, capacity: int, like: Transitions) -> None:
        super().__init__(capacity, {name: tuple(column.shape[1:]) for name, column in like.extra.items()})
        self._folder = folder

    def _allocate(self, name: str, like: Tensor) -> Tensor:
        dtype = torch.empty(0, dtype=DTYPES.get(name, torch.float32)).numpy().dtype
        shape = (self.capacity, *like.shape[1:])
        file = self._folder / f"{name}.npy"
        return torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape))

    def finish(self, about: About) -> None:
        """What :meth:`ReplayBuffer.save` writes beside the columns, and where the rows come from."""
        np.save(self._folder / "weight.npy", self.columns["weight"].numpy(), allow_pickle=False)
        (self._folder / "buffer.json").write_text(json.dumps(self._description()))
        (self._folder / ABOUT).write_text(json.dumps(about.to_json(), indent=1) + "\n")


# -- what is where ----------------------------------------------------------------------------------------------------

Opener = Callable[[Path, Mapping[str, Any] | None], Dataset]
"""``open(path, env)``; ``env`` is what the user named, or None"""


@dataclass(frozen=True)
class Kind:
    """A format: how it is told from others, and opened."""

    name: str
    recognises: Callable[[Path], bool]
    open: Opener
    described: str
    """For the message when nothing fits"""
    mark: str
    """Where a file of it lies beside another's, as a pattern for suggestions; empty where names are no paths"""


_KINDS: dict[str, Kind] = {}


def register_kind(kind: Kind) -> None:
    """Make :func:`open_dataset` know a format. Registering a name again replaces it."""
    _KINDS[kind.name] = kind


def open_dataset(where: Path | str, env: Mapping[str, Any] | str | None = None) -> Dataset:
    """The dataset at a path, or a Minari dataset by its id.

    Args:
        where: a Minari folder or id (under ``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``), a D4RL-style HDF5
            file, a folder written by :meth:`ReplayBuffer.save`, or what else is registered (a run directory, once
            ``experiments.dataset`` is imported).
        env: the environment, an id or the ``env`` part of a configuration; it goes before what the file says, and
            may name ``module:Class``, which a file may not.

    Raises:
        UserError: there is nothing like that; it is damaged.
    """
    from mbrl.data import d4rl, minari  # noqa: F401 (they register themselves; their libraries are imported when used)

    told_env = {"id": env} if isinstance(env, str) else env
    path = Path(os.path.expanduser(where))
    if not path.exists() and (found := minari.local_path(str(where))) is not None:
        path = found
    for kind in _KINDS.values():
        if kind.recognises(path):
            return kind.open(path, told_env)
    if path.is_file() and path.suffix in PACKED:
        raise UserError("--data", str(where), "this file is packed: unpack it first")
    known = "; ".join(kind.described for kind in _KINDS.values())
    ids = f"Ids are looked for in {minari.local_root()} (MINARI_DATASETS_PATH); `mbrl dataset list` shows them."
    fix = f"give one of these: {known}. {ids}"
    raise UserError("--data", str(where), fix, [*minari.local_ids(), *_neighbours(path)])


def _neighbours(path: Path) -> Iterator[str]:
    for kind in _KINDS.values():
        for file in path.parent.glob(kind.mark) if kind.mark and path.parent.is_dir() else ():
            yield str(file.parent if "/" in kind.mark else file)


def told(about: About, env: Mapping[str, Any] | None) -> tuple[About, bool]:
    """``about`` with the environment that the user named, and whether they did."""
    if env is None:
        return about, False
    return replace(about, env=dict(env), own_env=about.env), True


def read_json(path: Path) -> Any:
    """Raises ``UserError`` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"{type(error).__name__}: {error}", "the file is damaged or missing") from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` for the block to write a file or folder to; it is renamed when all went well.

    Raises:
        UserError: there is something at ``path`` (an empty folder may be), or the disk refuses.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(str(path), "there already", "name a place where nothing is")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    _clear_leftovers(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        for file in [aside] if aside.is_file() else [p for p in aside.rglob("*") if p.is_file()]:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(str(path), error.strerror or str(error), "check the place and the space there") from error
    finally:
        _remove(aside)


def _clear_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote to ``path``."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not _is_running(int(number)):
            _remove(left)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink()


register_kind(
    Kind(
        "buffer",
        lambda path: (path / "buffer.json").is_file(),
        lambda path, env: BufferFolder(path, *told(folder_about(path), env)),
        "a folder written by ReplayBuffer.save",
        "*/buffer.json",
    )
)
