"""D4RL-style HDF5: one long array a column, episodes told apart by the flags at their ends.

Columns are ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts`` and, in most files, the true
``next_observations``. The layout is that of Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning",
2020. Without ``next_observations`` the successor of an episode's last row is not in the file: taking the next row's
observation would teach a model that an episode's end leads to the reset. Such rows are left out, and
:attr:`Dataset.notes` says how many.

A column ``has_action``, ours, tells rows that have an action (1) from those that have none (0); these come as NaN,
whatever the file holds in their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.errors import UserError
from mbrl.data.buffer import flatten, unflatten
from mbrl.data.labels import HAS_ACTION
from mbrl.data.native import Units, as_float32, build_env, platform_units
from mbrl.data.offline import SLACK, About, Dataset, Kind, register_kind, told, written_aside
from mbrl.data.offline import check_rows as check
from mbrl.data.order import grouped, run_ends
from mbrl.data.transitions import Transitions

CHUNK = 65_536
OWN = "mbrl_"
"""Prefix of our own columns under ``infos/``"""
ABOUT = "mbrl"
"""Our description, JSON under ``metadata/``"""
ENDINGS = (".hdf5", ".h5")
REQUIRED = ("observations", "actions", "rewards", "terminals")
ONE_A_ROW = ("rewards", "terminals", "timeouts", HAS_ACTION)
MASKS = (HAS_ACTION, f"infos/{OWN}extra.{HAS_ACTION}")
"""Where a file may say which rows have an action"""
SAMPLE = 200
"""Episode ends that are looked at to see whether the stored successors are true"""


class D4RLFile(Dataset):
    """A D4RL-style file; see the module.

    Args:
        path: the file.
        env: the environment that the user named. Its bounds tell the units of the actions; where it is not known they
            must lie in [-1, 1].

    Raises:
        UserError: a column is missing, has another length or kind, or the file is cut off.
    """

    def __init__(self, path: Path, env: Mapping[str, Any] | None = None) -> None:
        with _opened(path) as file:
            about, named = told(_read_about(file, path), env)
            super().__init__(path, "D4RL HDF5", about, named)
            self._total = _require_columns(file, path)
            self._next = "next_observations" in file
            self._own = sorted(name for name in file.get("infos", {}) if name.startswith(OWN))
            self._mask = next((name for name in MASKS if name in file), None)
            self._ends = self._find_ends(file)
            self._units = self._find_units(file)
            self._kept = self._find_kept(file)

    def __len__(self) -> int:
        return int(self._kept.sum())

    def pieces(self) -> Iterator[Transitions]:
        starts = np.concatenate([[0], np.flatnonzero(self._ends) + 1])
        with _opened(self.path) as file:
            for first in range(0, self._total, CHUNK):
                rows = self._chunk(file, first, min(first + CHUNK, self._total), starts)
                if len(rows):
                    yield rows

    def _chunk(self, file: Any, first: int, stop: int, starts: NDArray[np.int64]) -> Transitions:
        place = f"rows {first} to {stop - 1}"
        obs = self._units.flat(file["observations"][first:stop], f"{place}: observations")
        number = np.arange(first, stop)
        episode = np.searchsorted(starts, number, side="right") - 1
        columns: dict[str, NDArray[Any]] = {
            "obs": obs,
            "action": self._actions(file, first, stop, place),
            "reward": as_float32(file["rewards"][first:stop].reshape(-1)),
            "next_obs": self._successors(file, obs, first, stop, place),
            "terminated": _flags(file, "terminals", first, stop, self.path),
            "truncated": self._timeouts(file, first, stop),
            "episode": episode,
            "step": number - starts[episode],
            "policy_version": np.zeros(stop - first, dtype=np.int64),
        }
        columns |= {_field(name): file["infos"][name][first:stop] for name in self._own if name != f"{OWN}action"}
        if self._mask is not None:
            columns[f"extra.{HAS_ACTION}"] = as_float32(file[self._mask][first:stop].reshape(-1))
        kept = self._kept[first:stop]
        return unflatten({name: torch.from_numpy(np.ascontiguousarray(c[kept])) for name, c in columns.items()})

    def _actions(self, file: Any, first: int, stop: int, place: str) -> NDArray[np.float32]:
        native, known = np.array(file["actions"][first:stop]), np.ones(stop - first, dtype=bool)
        if self._mask is not None:
            known = _flags(file, self._mask, first, stop, self.path)
            native[~known] = self._units.start  # any that can be converted
        raw = self._units.from_native(native, f"{place}: actions")
        raw[~known] = np.nan
        if f"{OWN}action" not in self._own:
            return self._clipped(raw, native, first)
        exact: NDArray[np.float32] = file["infos"][f"{OWN}action"][first:stop]
        if exact.shape != raw.shape or not np.allclose(exact[known], raw[known], atol=SLACK, equal_nan=True):
            fix = "the two columns of actions, the environment's and the platform's, do not agree"
            raise UserError(f"{self.path}, {place}: actions", "changed", fix)
        return exact

    def _clipped(self, action: NDArray[np.float32], native: NDArray[Any], first: int) -> NDArray[np.float32]:
        """Out of bounds the environment was not: it clips. Unknown units are another matter, left for the check."""
        if self.about.env is None:
            return action
        beyond = np.flatnonzero((np.abs(action) > 1.0 + SLACK).any(-1))
        said = "Actions out of bounds are clipped, as the environment's edge does; the first is in row"
        if len(beyond) and not any(note.startswith(said) for note in self.notes):
            self.notes.append(f"{said} {first + beyond[0]}: {native[beyond[0]].tolist()}.")
        return np.clip(action, -1.0, 1.0)  # NaN stays NaN, for the check to find

    def _successors(
        self, file: Any, obs: NDArray[np.float32], first: int, stop: int, place: str
    ) -> NDArray[np.float32]:
        if self._next:
            return self._units.flat(file["next_observations"][first:stop], f"{place}: next_observations")
        after = self._units.flat(file["observations"][stop : stop + 1], f"row {stop}: observations")
        last = after if len(after) else obs[-1:]  # the file's last row, which is left out
        return np.concatenate([obs[1:], last])

    def _timeouts(self, file: Any, first: int, stop: int) -> NDArray[np.bool_]:
        if "timeouts" in file:
            return _flags(file, "timeouts", first, stop, self.path)
        return np.asarray(self._ends[first:stop] & ~_flags(file, "terminals", first, stop, self.path))

    def _find_ends(self, file: Any) -> NDArray[np.bool_]:
        """``[N]`` which rows are the last of their episode."""
        ends = _flags(file, "terminals", 0, self._total, self.path)
        if "timeouts" in file:
            return np.asarray(ends | _flags(file, "timeouts", 0, self._total, self.path))
        if not self._next:
            fix = "without timeouts and next_observations nobody can tell where an episode was cut; add either"
            raise UserError(f"{self.path}: timeouts", "missing", fix)
        self.notes.append("The file has no timeouts: an episode ends where the next row does not follow on.")
        obs, after = file["observations"], file["next_observations"]
        for first in range(0, self._total - 1, CHUNK):
            stop = min(first + CHUNK, self._total - 1)
            ends[first:stop] |= (obs[first + 1 : stop + 1] != after[first:stop]).reshape(stop - first, -1).any(-1)
        return np.asarray(ends)

    def _find_units(self, file: Any) -> Units:
        if self.about.env is None:
            obs_size, action_size = (int(np.prod(file[name].shape[1:])) for name in ("observations", "actions"))
            self.notes.append("The environment is not known: actions are taken to lie in [-1, 1] as they are.")
            return platform_units(obs_size, action_size, str(self.path))
        env = build_env(self.about.env, str(self.path), self.named)
        units = Units(env.observation_space, env.env.action_space, str(self.path))
        env.close()
        return units

    def _find_kept(self, file: Any) -> NDArray[np.bool_]:
        """``[N]`` which rows have a true successor."""
        kept = np.ones(self._total, dtype=bool)
        if not self._next:
            kept = ~self._ends
            kept[-1:] = False
            why = "the file has no next_observations, so what came after an episode's last row is not known"
        elif f"{OWN}episode" not in self._own and self._shifted(file):
            kept = ~self._ends
            why = "its next_observations hold the next episode's first observation there, not what came after"
        if not kept.any():
            fix = f"every row is the last of its episode, and {why}; add the true next_observations"
            raise UserError(f"{self.path}: next_observations", "not known of any row", fix)
        if not kept.all():
            self.notes.append(f"{int((~kept).sum()):,} of {self._total:,} rows are left out: {why}.")
        return kept

    def _shifted(self, file: Any) -> bool:
        """Whether the stored successors of ends are the next row's observation, in most of a sample of ends."""
        ends = np.flatnonzero(self._ends[:-1])
        picked = ends[np.linspace(0, len(ends) - 1, min(len(ends), SAMPLE)).astype(np.int64)] if len(ends) else ends
        same = [np.array_equal(file["next_observations"][row], file["observations"][row + 1]) for row in picked]
        return sum(same) > len(same) / 2


def _flags(file: Any, name: str, first: int, stop: int, path: Path) -> NDArray[np.bool_]:
    """``[stop - first]`` of a column of 0 and 1; raises ``UserError`` where it holds something else."""
    values = np.asarray(file[name][first:stop]).reshape(-1)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{path}, row {first + row}: {name}", values[row].item(), "a flag is 0 or 1, false or true")
    return values.astype(bool)


def _field(name: str) -> str:
    return name.removeprefix(OWN)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        seen = f"{type(error).__name__}: {error}"
        raise UserError(str(path), seen, "the file is cut off, damaged, or not HDF5") from error


def _require_columns(file: Any, path: Path) -> int:
    """The number of rows; every column has as many."""
    for name in REQUIRED:
        if name not in file:
            raise UserError(f"{path}: {name}", "missing", f"it holds {sorted(file)}; a D4RL file has {list(REQUIRED)}")
    infos = [f"infos/{name}" for name in file.get("infos", {}) if name.startswith(OWN)]
    there = [*REQUIRED, *(n for n in ("timeouts", "next_observations", HAS_ACTION) if n in file), *infos]
    for name in there:
        if not getattr(file[name], "shape", ()):
            kind = "a single number" if hasattr(file[name], "shape") else f"a group of {sorted(file[name])}"
            raise UserError(f"{path}: {name}", kind, "a column is one array, a row a transition")
    rows = len(file["observations"])
    for name in there:
        if len(file[name]) != rows:
            raise UserError(f"{path}: {name}", f"{len(file[name]):,} rows", f"observations has {rows:,}")
        if file[name].dtype.kind not in "fiub":
            raise UserError(f"{path}: {name}", str(file[name].dtype), "a column holds numbers")
        if name in ONE_A_ROW and file[name].shape not in ((rows,), (rows, 1)):
            raise UserError(f"{path}: {name}", f"shape {file[name].shape}", f"one number a row: give shape ({rows},)")
    if not rows:
        raise UserError(f"{path}: observations", "no rows", "there is nothing in this file")
    if "next_observations" in file and file["next_observations"].shape != file["observations"].shape:
        fix = f"observations has {file['observations'].shape}"
        raise UserError(f"{path}: next_observations", file["next_observations"].shape, fix)
    return rows


def _read_about(file: Any, path: Path) -> About:
    metadata = file.get("metadata", {})
    if ABOUT in metadata:
        return About.from_json(json.loads(_text(metadata[ABOUT])), f"{path}: metadata/{ABOUT}")
    algorithm = metadata.get("algorithm")
    return About(policy={} if algorithm is None else {"name": _text(algorithm)})


def _text(dataset: Any) -> str:
    value = dataset[()]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def write_d4rl(rows: Transitions, path: Path, about: About | None = None, *, named: bool = False) -> Path:
    """Write rows as a D4RL-style file, with the true ``next_observations``; the file appears whole or not at all.

    Rows are grouped by episode, in the order in which their episodes begin. Where the environment is known, actions
    are written in its units, and beside them (``infos/mbrl_action``) as they are here, to the bit. ``timeouts`` also
    marks where rows of an episode are missing, so that no reader takes the next row for a successor; the flag itself
    is in ``infos/mbrl_truncated``.

    Args:
        rows: at least one.
        path: the file to be made.
        about: its environment's bounds are the units of the actions; without one they are written as they are here.
        named: the user named that environment, so it may be ``module:Class``.

    Raises:
        UserError: NaN, infinity, an action out of bounds; rows of another environment than ``about`` names; there is
            something at ``path``; the disk refuses.
    """
    import h5py

    about = about or About()
    check(rows, path)
    rows = grouped(rows)
    units = _units_of(rows, about, path, named)
    with written_aside(path) as aside, h5py.File(aside, "w") as file:
        for name, column in _columns(rows, units).items():
            file.create_dataset(name, data=column)
        file.create_dataset(f"metadata/{ABOUT}", data=json.dumps(about.to_json()))
    return path


def _units_of(rows: Transitions, about: About, path: Path, named: bool) -> Units:
    if about.env is None:
        return platform_units(rows.obs.shape[-1], rows.action.shape[-1], str(path))
    env = build_env(about.env, str(path), named)
    units = Units(env.observation_space, env.env.action_space, str(path))
    env.close()
    seen, wanted = (rows.obs.shape[-1], rows.action.shape[-1]), (units.obs_size, units.action.size)
    if seen != wanted:
        fix = f"those of {about.env['id']} have {wanted[0]} and {wanted[1]} entries"
        raise UserError(f"{path}: observations and actions", f"{seen[0]} and {seen[1]} entries", fix)
    return units


def _columns(rows: Transitions, units: Units) -> dict[str, NDArray[Any]]:
    plain = {name: column.cpu().numpy() for name, column in flatten(rows).items()}
    written: dict[str, NDArray[Any]] = {
        "observations": plain.pop("obs"),
        "actions": units.to_native(plain["action"]),
        "rewards": plain.pop("reward"),
        "next_observations": plain.pop("next_obs"),
        "terminals": plain["terminated"],
        "timeouts": plain["truncated"] | (run_ends(rows) & ~plain["terminated"]),
    }
    del plain["terminated"]
    return written | {f"infos/{OWN}{name}": column for name, column in plain.items()}


def _recognises(path: Path) -> bool:
    return path.is_file() and path.suffix in ENDINGS and not (path.parent / "metadata.json").is_file()


register_kind(Kind("d4rl", _recognises, D4RLFile, "a D4RL-style .hdf5 file", "*.hdf5"))
