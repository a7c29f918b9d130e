"""Minari datasets, HDF5 and Arrow: read in the platform's units, and written so that nothing is lost.

A Minari episode has ``T + 1`` observations and ``T`` of everything else, so the true successor of its last row is in
the file (Younis et al., "Minari", 2024). What a row has here and not there goes to ``infos`` under names that begin
with ``mbrl_``, one place after the row, as Minari keeps the infos of a step; the first place holds zeros.

No environment is recovered from a file: its spaces tell the units, and its entry point is never called.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.buffer import flatten, unflatten
from mbrl.data.labels import HAS_ACTION
from mbrl.data.native import Units, as_float32, build_env
from mbrl.data.offline import SLACK, About, Dataset, Kind, check_rows, read_json, register_kind, told, written_aside
from mbrl.data.order import grouped, run_ends
from mbrl.data.transitions import Transitions

OWN = "mbrl_"
FORMATS = ("hdf5", "arrow")
METADATA = "metadata.json"
NAMESPACE = "namespace_metadata.json"
PLAIN = {"obs", "action", "reward", "next_obs", "terminated", "truncated"}
"""Columns that Minari has itself"""
DAMAGE = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, NotImplementedError)
"""What Minari, h5py and pyarrow raise on files that are not what they promise"""


class MinariFolder(Dataset):
    """A Minari dataset in a folder (the one with ``data/``, or ``data`` itself).

    Args:
        path: the folder.
        env: the environment that the user named; its spaces must be those of the file.

    Raises:
        UserError: the description or the data is damaged; a space that the platform does not support.
    """

    def __init__(self, path: Path, env: Mapping[str, Any] | None = None) -> None:
        self._data = path / "data" if (path / "data" / METADATA).is_file() else path
        self._metadata = _read_metadata(self._data)
        about, named = told(_about(self._metadata, str(path)), env)
        super().__init__(path, f"Minari {self._metadata['data_format']}", about, named)
        self.episodes: int = self._metadata["total_episodes"]
        with _damage(f"{path}"):
            self._storage = _open_storage(self._data, self._metadata)
        self.units = Units(self._storage.observation_space, self._storage.action_space, str(path))
        self._shapes = {name: tuple(shape) for name, shape in (self._own.get("columns") or {}).items()}
        self._note_wrappers()

    @property
    def _own(self) -> Mapping[str, Any]:
        found = self._metadata.get("mbrl")
        return found if isinstance(found, Mapping) else {}

    def _note_wrappers(self) -> None:
        if wrappers := _env_spec(self._metadata).get("additional_wrappers"):
            names = ", ".join(str(w.get("name")) for w in wrappers if isinstance(w, Mapping))
            self.notes.append(f"The environment was wrapped ({names}); the environment built here is not.")

    def __len__(self) -> int:
        return int(self._metadata["total_steps"])

    def agree(self, spec: EnvSpec) -> None:
        mine, theirs = self.units.action, spec.action
        if (mine.kind, mine.size, mine.low, mine.high) != (theirs.kind, theirs.size, theirs.low, theirs.high):
            fix = f"those of {spec.id} are {theirs}: the data is another environment's"
            raise UserError(f"{self.path}: action space", mine, fix)

    def pieces(self) -> Iterator[Transitions]:
        """One Minari episode a piece."""
        clipped = 0
        for index, episode in enumerate(self._read()):
            with _damage(f"{self.path}, episode {index}"):
                rows, outside = self._rows_of(index, episode)
            clipped += outside
            yield rows
        if clipped and not any("clipped" in note for note in self.notes):
            self.notes.append(f"{clipped:,} rows had actions out of bounds; clipped, as the environment's edge does.")

    def _read(self) -> Iterator[Mapping[str, Any]]:
        index = -1
        with _damage(f"{self.path}", lambda: f"episode {index + 1}"):
            for index, episode in enumerate(_episodes(self._storage, self.episodes)):  # noqa: B007 (for the message)
                yield episode

    def _rows_of(self, index: int, episode: Mapping[str, Any]) -> tuple[Transitions, int]:
        place = f"episode {index}: "
        obs = self.units.flat(episode["observations"], f"{place}observations")
        raw = self.units.from_native(episode["actions"], f"{place}actions")
        count = len(raw)
        self._require_length(len(obs), count + 1, f"{place}observations", count)
        columns: dict[str, NDArray[Any]] = {"obs": obs[:-1], "action": raw, "next_obs": obs[1:]}
        for name, theirs in (("reward", "rewards"), ("terminated", "terminations"), ("truncated", "truncations")):
            column = np.asarray(episode[theirs]).reshape(-1)
            self._require_length(len(column), count, f"{place}{theirs}", count)
            columns[name] = as_float32(column) if name == "reward" else column.astype(bool)
        columns |= {"episode": np.full(count, index), "step": np.arange(count), "policy_version": np.zeros(count, int)}
        own = self._own_columns(episode.get("infos") or {}, count, place)
        outside = self._settle_action(columns, own, place)
        return unflatten({name: torch.from_numpy(np.array(c)) for name, c in (columns | own).items()}), outside

    def _require_length(self, seen: int, wanted: int, field: str, actions: int) -> None:
        if seen != wanted:
            more = (
                "; without the last one, what came after the episode's last action is lost" if seen == actions else ""
            )
            fix = f"an episode of {actions:,} actions needs {wanted:,} of them{more}"
            raise UserError(f"{self.path}, {field}", f"{seen:,} entries", fix)

    def _own_columns(self, infos: Mapping[str, Any], count: int, place: str) -> dict[str, NDArray[Any]]:
        found = {}
        for name, shape in self._shapes.items():
            if f"{OWN}{name}" not in infos:
                raise UserError(f"{self.path}, {place}infos/{OWN}{name}", "missing", "the file is damaged")
            column = np.asarray(infos[f"{OWN}{name}"])
            self._require_length(len(column), count + 1, f"{place}infos/{OWN}{name}", count)
            found[name] = column[1:].reshape(count, *shape)
        return found

    def _settle_action(self, columns: dict[str, NDArray[Any]], own: dict[str, NDArray[Any]], place: str) -> int:
        """The action to the bit where it was written; else clipped. Returns how many rows were out of bounds."""
        raw = columns["action"]
        if "action" in own:
            known = own.get(f"extra.{HAS_ACTION}", np.ones(len(raw))).astype(bool)
            if not np.allclose(own["action"][known], raw[known], atol=SLACK, equal_nan=True):
                fix = "the two columns of actions, the environment's and the platform's, do not agree"
                raise UserError(f"{self.path}, {place}actions", "changed", fix)
            return 0
        outside = int((np.abs(raw) > 1.0 + SLACK).any(-1).sum())
        columns["action"] = np.clip(raw, -1.0, 1.0)  # NaN stays NaN, for the check to find
        return outside


def _episodes(storage: Any, count: int) -> Iterator[Mapping[str, Any]]:
    """One after the other. Arrow's reader is asked for one at a time: given many, it takes each batch that the scanner
    makes for a whole episode.
    """
    if storage.FORMAT == "hdf5":
        yield from storage.get_episodes(range(count))
    else:
        for index in range(count):
            yield from storage.get_episodes([index])


@contextmanager
def _damage(path: str, place: Callable[[], str] = str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        where = f"{path}, {place()}" if place() else path
        seen = f"{type(error).__name__}: {error}"
        raise UserError(where, seen, "the dataset is cut off, damaged, or not what its metadata says") from error


def _read_metadata(data: Path) -> dict[str, Any]:
    path = data / METADATA
    found = read_json(path)
    wanted: dict[str, type] = {"data_format": str, "total_episodes": int, "total_steps": int}
    for name, kind in (wanted | {"observation_space": str, "action_space": str}).items():
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, kind):
            raise UserError(f"{path}: {name}", value, f"Minari writes a {kind.__name__} there; the file is damaged")
    return dict(found)


def _open_storage(data: Path, metadata: Mapping[str, Any]) -> Any:
    """Minari's own reader. It is given the stored spaces, so it has no reason to build the environment."""
    from minari.dataset._storages import get_minari_storage
    from minari.serialization import deserialize_space

    if metadata["data_format"] not in FORMATS:
        fix = f"this format is not known here; give one of {', '.join(FORMATS)}"
        raise UserError(f"{data / METADATA}: data_format", metadata["data_format"], fix, FORMATS)
    spaces = []
    for name in ("observation_space", "action_space"):
        with _damage(f"{data / METADATA}: {name}"):
            spaces.append(deserialize_space(metadata[name]))
    jpeg = bool(metadata.get("jpeg_encoding", True))
    return get_minari_storage(metadata["data_format"])(data, *spaces, jpeg_encoding=jpeg)


def _env_spec(metadata: Mapping[str, Any]) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        found = json.loads(metadata["env_spec"]) if "env_spec" in metadata else {}
        return found if isinstance(found, dict) else {}
    return {}


def _about(metadata: Mapping[str, Any], where: str) -> About:
    own = metadata.get("mbrl")
    if isinstance(own, Mapping) and "about" in own:
        return About.from_json(own["about"], f"{where}: mbrl")
    spec = _env_spec(metadata)
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    env = {"id": spec.get("id"), "kwargs": spec.get("kwargs") or {}, "max_episode_steps": spec.get("max_episode_steps")}
    values = {
        "env": env if spec.get("id") else None,
        "references": None if low is None or high is None else (low, high),
        "policy": {"name": metadata["algorithm_name"]} if metadata.get("algorithm_name") else {},
        "versions": {"minari": metadata.get("minari_version")},
        "description": metadata.get("description"),
    }
    return About.from_json(values, where)


# -- writing ----------------------------------------------------------------------------------------------------------


def write_minari(
    rows: Transitions,
    id: str,
    about: About | None = None,
    *,
    data_format: str = "hdf5",
    root: Path | None = None,
    named: bool = False,
) -> Path:
    """Write rows as the Minari dataset ``id``; it appears whole or not at all.

    Rows are grouped by episode, in the order in which their episodes begin; where steps are missing, or ``next_obs``
    is not the next row's ``obs``, a Minari episode ends, and reading puts the parts together again. Every column comes
    back to the bit: ids, flags, ``policy_version``, ``task``, ``sim_state`` and the extra ones.

    Args:
        rows: at least one.
        id: ``name-v0``, with namespaces before it: ``mbrl/hopper/medium-v0``.
        about: with an environment, observations and actions are written in its own spaces; without, in flat ones.
        data_format: ``hdf5`` or ``arrow``.
        root: where datasets lie (default: ``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``).
        named: the user named the environment of ``about``, so it may be ``module:Class``.

    Returns:
        The dataset's folder.

    Raises:
        UserError: a malformed id; NaN, infinity, an action out of bounds; rows of another environment than ``about``
            names; there is such a dataset; the disk refuses.
    """
    about = about or About()
    if data_format not in FORMATS:
        raise UserError("data_format", data_format, f"give one of {', '.join(FORMATS)}", FORMATS)
    folder = _folder_of(id, local_root() if root is None else Path(os.path.expanduser(root)).resolve())
    check_rows(rows, id)
    rows = grouped(rows)
    units, env_spec = _spaces_of(rows, about, id, named)
    columns = _columns(rows, units)
    with written_aside(folder) as aside:
        _write(aside, rows, columns, units, data_format, _metadata(id, about, columns) | env_spec)
    _mark_namespaces(id, folder)
    return folder


def _write(
    aside: Path,
    rows: Transitions,
    columns: Mapping[str, NDArray[Any]],
    units: Units,
    data_format: str,
    metadata: Mapping[str, Any],
) -> None:
    from minari.dataset.minari_storage import MinariStorage

    aside.mkdir()
    with _damage(str(aside)):
        storage = MinariStorage.new(
            aside / "data", units.observation, units.action_space, data_format=data_format, jpeg_encoding=False
        )
        measure = storage.get_size
        storage.get_size = lambda: 0.0  # Arrow's writer looks at every file after each episode: once is enough
        storage.update_episodes(_buffers(rows, columns, units))
        size = float(measure())
    path = aside / "data" / METADATA  # what update_metadata would refuse: the environment's description
    written = json.loads(path.read_text()) | {"dataset_size": size} | metadata
    path.write_text(json.dumps(written))


def _buffers(rows: Transitions, columns: Mapping[str, NDArray[Any]], units: Units) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    plain = {name: column.cpu().numpy() for name, column in flatten(rows).items() if name in PLAIN}
    stops = np.flatnonzero(run_ends(rows)) + 1
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        obs = np.concatenate([plain["obs"][start:stop], plain["next_obs"][stop - 1 : stop]])
        yield EpisodeBuffer(
            observations=units.nested(obs),
            actions=units.to_native(plain["action"][start:stop]),
            rewards=plain["reward"][start:stop],
            terminations=plain["terminated"][start:stop],
            truncations=plain["truncated"][start:stop],
            infos={f"{OWN}{name}": _after(column[start:stop]) for name, column in columns.items()},
        )


def _after(column: NDArray[Any]) -> NDArray[Any]:
    """``[T, ...]`` as ``[T + 1, K]``: nothing is known of the reset, and Arrow wants two dimensions."""
    flat = column.reshape(len(column), -1)
    return np.concatenate([np.zeros_like(flat[:1]), flat])


def _columns(rows: Transitions, units: Units) -> dict[str, NDArray[Any]]:
    """What goes to infos: the columns that Minari has not, and the action where its units lose a bit."""
    own = {name: column.cpu().numpy() for name, column in flatten(rows).items() if name not in PLAIN}
    action = rows.action.cpu().numpy()
    if not np.array_equal(units.from_native(units.to_native(action)), action):
        own["action"] = action
    return own


def _metadata(id: str, about: About, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    shapes = {name: list(column.shape[1:]) for name, column in columns.items()}
    found: dict[str, Any] = {
        "dataset_id": id,
        "minari_version": importlib.metadata.version("minari"),
        "mbrl": {"about": about.to_json(), "columns": shapes},
    }
    if about.references is not None:
        found |= dict(zip(("ref_min_score", "ref_max_score"), about.references, strict=True))
    if name := about.policy.get("name"):
        found["algorithm_name"] = str(name)
    return found | ({"description": about.description} if about.description else {})


def _spaces_of(rows: Transitions, about: About, where: str, named: bool) -> tuple[Units, dict[str, str]]:
    """The environment's own spaces, and its description for other readers where Gymnasium knows it."""
    if about.env is None:
        units = Units(*_flat_spaces(rows), where)
        return units, {}
    env = build_env(about.env, where, named)
    units = Units(env.env.observation_space, env.env.action_space, where)
    described = _described(env)
    env.close()
    seen, wanted = (rows.obs.shape[-1], rows.action.shape[-1]), (units.obs_size, units.action.size)
    if seen != wanted:
        fix = f"those of {about.env['id']} have {wanted[0]} and {wanted[1]} entries"
        raise UserError(f"{where}: observations and actions", f"{seen[0]} and {seen[1]} entries", fix)
    return units, described


def _flat_spaces(rows: Transitions) -> tuple[gym.Space[Any], gym.Space[Any]]:
    box = gym.spaces.Box(-np.inf, np.inf, (rows.obs.shape[-1],), np.float32)
    return box, gym.spaces.Box(-1.0, 1.0, (rows.action.shape[-1],), np.float32)


def _described(env: BoundaryEnv) -> dict[str, str]:
    spec = env.env.spec
    if spec is None or spec.id not in gym.registry:
        return {}
    with suppress(TypeError, ValueError):  # arguments that JSON does not hold; our own description has the rest
        return {"env_spec": spec.to_json()}
    return {}


# -- ids --------------------------------------------------------------------------------------------------------------


def local_root() -> Path:
    """Where Minari keeps datasets on this machine; nothing is made there."""
    told_root = os.environ.get("MINARI_DATASETS_PATH")
    return Path(os.path.expanduser(told_root)).absolute() if told_root else Path.home() / ".minari" / "datasets"


def local_path(id: str) -> Path | None:
    """The folder of a dataset by its id, where there is one."""
    folder = local_root() / id
    return folder if re.fullmatch(r"[-\w/]+", id) and _recognises(folder) else None


def local_ids() -> list[str]:
    """Ids of the datasets on this machine."""
    root = local_root()
    found = (path.parent.parent.relative_to(root) for path in root.glob(f"**/data/{METADATA}"))
    return sorted(str(id) for id in found if not id.name.startswith("."))  # what a killed process left


def _folder_of(id: str, root: Path) -> Path:
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        _, _, version = parse_dataset_id(id)
    except (ValueError, TypeError) as error:
        fix = "a Minari dataset is called NAME-v0, with namespaces (2 letters or more) before it: mbrl/hopper/medium-v0"
        raise UserError("name of a Minari dataset (--out)", id, fix) from error
    assert version is not None
    return root / id


def _mark_namespaces(id: str, folder: Path) -> None:
    """Minari lists only namespaces that say that they are."""
    for up in list(folder.parents)[: id.count("/")]:
        if not (up / NAMESPACE).exists():
            (up / NAMESPACE).write_text("{}")


def _recognises(path: Path) -> bool:
    return (path / "data" / METADATA).is_file() or (path / METADATA).is_file()


register_kind(Kind("minari", _recognises, MinariFolder, "a Minari folder or id", ""))
