"""The dataset that a run learns from: found, compared with its environment, and known again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.labels import HAS_ACTION

if TYPE_CHECKING:
    from experiments.config import EnvConfig
    from mbrl.data.offline import Dataset

ENV_KEYS = ("id", "params", "kwargs", "action_repeat", "max_episode_steps", "learn")
"""What of an environment a dataset can say, as in a configuration"""
HASHED = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "episode", "step")
MANY_ROWS = 65_536
LARGE_BYTES = 2**30
"""From which on a folder of columns is not read into memory"""


def locate(data: str) -> str:
    """A path that holds from anywhere; the id of a Minari dataset as it is."""
    if not data.strip():
        raise UserError("--data, --from", data, "give a path or the id of a dataset")
    path = Path(os.path.expanduser(data))
    return str(path.resolve()) if path.exists() else data


def open_data(data: str, env: Mapping[str, Any] | None = None) -> Dataset:
    """The dataset at a path or of a Minari id; a run directory is one too. Raises ``UserError`` where there is none."""
    import experiments.diagnosis.dataset  # noqa: F401 (run directories are datasets once it is imported)
    from mbrl.data.offline import open_dataset

    return open_dataset(data, env)


def env_of_data(data: str) -> dict[str, Any]:
    """The ``env`` of a configuration that a dataset names.

    Raises:
        UserError: there is no such dataset, or it does not say its environment.
    """
    told = open_data(data).about.env
    if told is None or not told.get("id"):
        raise UserError("--data", data, "this dataset does not say its environment: give --env ID")
    need_installed(told, data)
    return {key: told[key] for key in ENV_KEYS if told.get(key) not in (None, {}, [])}


def need_installed(env: Mapping[str, Any], where: str) -> None:
    """Raise ``UserError`` where a dataset's environment is none that could be made here. A name with a colon is left
    to what guards imports.
    """
    import gymnasium

    import envs.registry  # noqa: F401 (it registers ours)

    id = env.get("id")
    if not isinstance(id, str):
        raise UserError(f"{where}: env.id", id, "the dataset's environment is to be a name: give --env ID")
    if ":" not in id and id not in gymnasium.registry:
        fix = "the dataset's environment is not installed here: install its package, or give --env ID or module:Class"
        raise UserError(f"{where}: env", id, fix, gymnasium.registry)


def open_given(data: str, env: EnvConfig) -> Dataset:
    """The dataset, as rows of the run's environment, whatever it says of its own."""
    return open_data(data, {key: value for key, value in dataclasses.asdict(env).items() if key in ENV_KEYS})


class GivenData:
    """A dataset as a replay buffer, of the run's environment.

    Args:
        data: a path or an id.
        env: the run's environment; it goes before what the dataset says.
        spec: the same, built.

    Raises:
        UserError: there is none, it is damaged, or its rows are another environment's.
    """

    def __init__(self, data: str, env: EnvConfig, spec: EnvSpec) -> None:
        dataset = open_given(data, env)
        need_same(dataset, spec)
        self.about, self.buffer = dataset.about, rows_of(dataset)
        self.notes = [*dataset.notes, *_other_env(dataset)]
        """What the user should know of how they were read"""
        self.identity = {"path": data, "rows": len(self.buffer), "digest": digest(self.buffer)}

    @property
    def told(self) -> dict[str, Any]:
        """What a run directory keeps of it: how many rows, which, and the returns that count as 0 and 100."""
        return {key: self.identity[key] for key in ("rows", "digest")} | {"references": self.about.references}

    def score(self, mean_return: float) -> float | None:
        """A return in per cent of the way from the random to the expert policy; None without references."""
        if self.about.references is None:
            return None
        return float(self.about.score(torch.tensor(mean_return, dtype=torch.float64)))

    def verify(self, remembered: Mapping[str, Any] | None) -> None:
        """Raise ``UserError`` where these are not the rows that a checkpoint remembers, wherever they lie now."""
        seen = {key: self.identity[key] for key in ("rows", "digest")}
        wanted = {key: (remembered or {}).get(key) for key in seen}
        if seen != wanted:
            fix = f"the dataset has changed since the run began (it was {wanted}); put it back, or train anew"
            raise UserError(f"data: {self.identity['path']}", seen, fix)


def _other_env(dataset: Dataset) -> Iterator[str]:
    """Where the user names another environment than the dataset does, and the sizes agree, nothing else tells."""
    from mbrl.data.offline import physics

    theirs, ours = physics(dataset.about.own_env), physics(dataset.about.env)
    if theirs and theirs.get("id") != ours.get("id"):
        yield f"The dataset says that it is of {theirs.get('id')}; it is taken as {ours.get('id')}'s, as you named it."
    elif theirs and theirs != ours:
        yield f"The dataset is of {theirs}, this run of {ours}: rows and scores are the former's."


def learned_from(config: Mapping[str, Any], state: Mapping[str, Any], spec: EnvSpec) -> ReplayBuffer:
    """The rows that a run learned from, by its configuration as plain values and the checkpoint that remembers them.

    Raises:
        UserError: they are not there, another environment's, or not the same any more.
    """
    from experiments.config import EnvConfig

    data = GivenData(config["data"], EnvConfig(**config["env"]), spec)
    data.verify(state.get("data"))
    return data.buffer


def rows_of(dataset: Dataset) -> ReplayBuffer:
    """Every row, checked; in memory, or where a folder of columns is very large on the disk."""
    from mbrl.data.offline import BufferFolder

    if isinstance(dataset, BufferFolder) and _bytes_of(dataset.path) > LARGE_BYTES:
        for _ in dataset.stream():
            pass
        return dataset.mapped(dataset.path)
    return dataset.buffer()


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.npy"))


def need_same(dataset: Dataset, spec: EnvSpec) -> None:
    """Raise ``UserError`` where observations or actions of a dataset are not those of an environment."""
    dataset.agree(spec)
    first = next(dataset.stream(1, check=False), None)
    if first is None:
        raise UserError("--data", str(dataset.path), "there are no rows in it")
    seen, wanted = (first.obs.shape[-1], first.action.shape[-1]), (spec.obs_size, spec.action.size)
    if seen != wanted:
        fix = f"those of {spec.id} have {wanted[0]} and {wanted[1]} entries: the data is another environment's"
        raise UserError(f"{dataset.path}: observations and actions", f"{seen[0]} and {seen[1]} entries", fix)
    if spec.action.discrete and not bool(((first.action == 0) | (first.action == 1)).all()):
        fix = f"{spec.id} has discrete actions, one-hot in the data: the data is another environment's"
        raise UserError(f"{dataset.path}: actions", first.action[0].tolist(), fix)


def digest(buffer: ReplayBuffer) -> str:
    """Sixteen hex digits of what every row says, whatever the format that it is kept in."""
    hashed = hashlib.blake2b(digest_size=8)
    names = [*HASHED, *(name for name in (f"extra.{HAS_ACTION}",) if name in buffer.columns)]
    for ids in buffer.ids.split(MANY_ROWS):
        where = ids % buffer.capacity
        for name in names:
            hashed.update(buffer.columns[name][where].contiguous().cpu().numpy().tobytes())
    return hashed.hexdigest()
