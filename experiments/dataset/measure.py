"""What a dataset holds, measured in one pass over the disk: 60 bytes a row are kept, not the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import UserError
from mbrl.data.labels import HAS_ACTION
from mbrl.data.offline import About, Dataset
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import obs_names

FIELDS = ("obs", "action", "reward", "next_obs")
SATURATED = 0.99
"""An action this far out is at its bound"""
VARIES = 1e-6
"""Standard deviations below this share of the value's size are none"""

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Coverage:
    """Of each entry of a vector ``[D]``, over the rows where it is finite."""

    low: Doubles
    high: Doubles
    mean: Doubles
    std: Doubles

    @property
    def constant(self) -> NDArray[np.bool_]:
        return np.asarray(self.std <= VARIES * np.maximum(np.abs(self.mean), 1.0))


@dataclass(frozen=True)
class Episodes:
    """``[E]``, in the order of their first rows."""

    number: NDArray[np.int64]
    returns: Doubles
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    """Of the last row"""
    truncated: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    """From step 0 to an end, without a gap"""


@dataclass(frozen=True)
class Rows:
    """Counts of rows, and of neighbours inside an episode."""

    nonfinite: dict[str, int]
    """Rows with NaN or infinity, by field; of actions, among the rows that have one"""
    without_action: int
    """Rows whose column ``has_action`` is 0"""
    duplicates: int
    """Rows that repeat an earlier one in obs, action, reward and next_obs"""
    pairs: int
    """Rows whose next step is there too"""
    follow: int
    """Those of them whose next_obs is the next row's obs"""
    gaps: int
    """Places inside an episode where steps are missing"""
    repeated_steps: int
    """Rows of an episode that have the same step as another"""
    ends_inside: int
    """Rows flagged as an end after which the episode goes on"""
    ends: int
    """Last rows of episodes that are followed by another episode's first step"""
    ends_reset: int
    """Those of them whose next_obs is that first step's obs: the reset, not what came after"""
    both_flags: int


@dataclass(frozen=True)
class Description:
    """Everything that the page shows."""

    path: str
    kind: str
    about: About
    notes: list[str]
    count: int
    names: list[str]
    """Of the observation's entries"""
    env_problem: str | None
    """Why the environment could not be asked"""
    episodes: Episodes
    rows: Rows
    obs: Coverage
    action: Coverage
    reward: Coverage
    saturated: Doubles
    """``[A]`` share of rows at either bound; of one-hot actions, of each choice"""
    discrete: bool
    """Every action is one-hot"""
    policy_versions: int
    extra: list[str] = field(default_factory=list)


def describe(dataset: Dataset) -> Description:
    """Measure all of it; rows that a learner would refuse are counted, not refused.

    Raises:
        UserError: the file is damaged, or empty.
    """
    names, problem = _ask_env(dataset)
    found: _Pass | None = None
    for batch in dataset.stream(check=False):
        found = found or _Pass(batch)
        found.add(batch)
    if found is None:
        raise UserError(str(dataset.path), "no rows", "there is nothing to describe")
    rows = found.columns()
    count, spans = len(rows["row"]), {name: moments.coverage() for name, moments in found.moments.items()}
    return Description(
        path=str(dataset.path),
        kind=dataset.kind,
        about=dataset.about,
        notes=list(dataset.notes),
        count=count,
        names=names or [f"obs[{i}]" for i in range(len(spans["obs"].low))],
        env_problem=problem,
        episodes=_episodes(rows),
        rows=_rows(rows, found),
        **spans,
        saturated=found.outermost / count,
        discrete=found.one_hot,
        policy_versions=len(np.unique(rows["policy_version"])),
        extra=found.extra,
    )


def _ask_env(dataset: Dataset) -> tuple[list[str] | None, str | None]:
    """Names of the observation's entries, or why there are none."""
    if dataset.about.env is None:
        return None, "The dataset does not say which environment it comes from."
    try:
        return obs_names(dataset.spec()), None
    except UserError as error:
        return None, str(error)


class _Moments:
    """Extremes and sums of the finite entries of rows ``[N, D]``, taken from the first row so that little cancels."""

    def __init__(self, size: int) -> None:
        self.shift: Doubles | None = None
        self.count, self.sum, self.squares = (np.zeros(size) for _ in range(3))
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, values: Floats) -> None:
        x, finite = values.astype(np.float64), np.isfinite(values)
        if self.shift is None:
            self.shift = np.where(finite[0], x[0], 0.0)
        self.low = np.minimum(self.low, np.where(finite, x, np.inf).min(0))
        self.high = np.maximum(self.high, np.where(finite, x, -np.inf).max(0))
        x = np.where(finite, x, self.shift) - self.shift
        self.count += finite.sum(0)
        self.sum += x.sum(0)
        self.squares += np.square(x).sum(0)

    def coverage(self) -> Coverage:
        assert self.shift is not None
        count = np.maximum(self.count, 1)
        mean = self.sum / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0.0))
        return Coverage(self.low, self.high, mean + self.shift, std)


class _Pass:
    """What is kept of the rows while they stream by."""

    def __init__(self, first: Transitions) -> None:
        obs, action = first.obs.shape[-1], first.action.shape[-1]
        self.moments = {"obs": _Moments(obs), "action": _Moments(action), "reward": _Moments(1)}
        self.outermost = np.zeros(action)
        self.one_hot = True
        self.nonfinite, self.without_action = dict.fromkeys(FIELDS, 0), 0
        self.kept: dict[str, list[NDArray[Any]]] = {}
        self.extra = sorted(first.extra)

    def add(self, batch: Transitions) -> None:
        plain = {name: getattr(batch, name).numpy() for name in FIELDS}
        plain["reward"] = plain["reward"][:, None]
        for name, moments in self.moments.items():
            moments.add(plain[name])
        lacking = _lacking(batch)
        self.without_action += int(lacking.sum())
        for name, column in plain.items():
            odd = (~np.isfinite(column)).any(-1)
            self.nonfinite[name] += int((odd & ~lacking if name == "action" else odd).sum())
        self.outermost += (np.abs(plain["action"]) >= SATURATED).sum(0)
        self.one_hot &= bool(((plain["action"] == 1.0).sum(-1) == 1).all() and np.isin(plain["action"], (0, 1)).all())
        self._keep(batch, plain)

    def _keep(self, batch: Transitions, plain: dict[str, Floats]) -> None:
        columns = {name: getattr(batch, name).numpy() for name in ("episode", "step", "terminated", "truncated")}
        columns["policy_version"] = batch.policy_version.numpy()
        columns["reward"] = plain["reward"][:, 0].copy()
        columns["obs"], columns["next_obs"] = fingerprint(plain["obs"]), fingerprint(plain["next_obs"])
        columns["row"] = fingerprint(np.concatenate([plain[name] for name in FIELDS], axis=1))
        for name, column in columns.items():
            self.kept.setdefault(name, []).append(np.array(column))

    def columns(self) -> dict[str, NDArray[Any]]:
        """By episode and step, episodes in the order of their first rows."""
        whole = {name: np.concatenate(parts) for name, parts in self.kept.items()}
        _, first, which = np.unique(whole["episode"], return_index=True, return_inverse=True)
        order = np.lexsort((whole["step"], first[which]))
        return {name: column[order] for name, column in whole.items()}


def _lacking(batch: Transitions) -> NDArray[np.bool_]:
    """``[N]`` which rows have no action."""
    column = batch.extra.get(HAS_ACTION)
    return np.zeros(len(batch), bool) if column is None else np.asarray(column.reshape(len(batch), -1)[:, 0] == 0)


def fingerprint(values: Floats) -> NDArray[np.uint64]:
    """``[N]`` 64 bits of each row ``[N, D]``: equal rows get the same, others (but for one pair in 2^64) do not.

    The finaliser of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, on each entry.
    """
    bits = (values + np.float32(0.0)).view(np.uint32).astype(np.uint64)  # minus zero is zero
    keys = np.arange(1, values.shape[1] + 1, dtype=np.uint64)
    x = np.asarray(bits + keys * np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))).sum(-1, dtype=np.uint64))


def _episodes(rows: dict[str, NDArray[Any]]) -> Episodes:
    starts = np.flatnonzero(np.diff(rows["episode"], prepend=rows["episode"][0] - 1) != 0)
    lengths = np.diff(starts, append=len(rows["episode"]))
    last = starts + lengths - 1
    terminated, truncated = rows["terminated"][last], rows["truncated"][last]
    unbroken = (rows["step"][starts] == 0) & (rows["step"][last] == lengths - 1)
    returns = np.add.reduceat(rows["reward"].astype(np.float64), starts)
    whole = unbroken & (terminated | truncated)
    return Episodes(rows["episode"][starts], returns, lengths, terminated, truncated, whole)


def _rows(rows: dict[str, NDArray[Any]], found: _Pass) -> Rows:
    same = rows["episode"][1:] == rows["episode"][:-1]
    stride = np.diff(rows["step"])
    pair = same & (stride == 1)
    follows = rows["next_obs"][:-1] == rows["obs"][1:]
    flagged = rows["terminated"] | rows["truncated"]
    turn = ~same & (rows["step"][1:] == 0)
    return Rows(
        nonfinite=found.nonfinite,
        without_action=found.without_action,
        duplicates=len(rows["row"]) - len(np.unique(rows["row"])),
        pairs=int(pair.sum()),
        follow=int((pair & follows).sum()),
        gaps=int((same & (stride > 1)).sum()),
        repeated_steps=int((same & (stride == 0)).sum()),
        ends_inside=int((flagged[:-1] & same).sum()),
        ends=int(turn.sum()),
        ends_reset=int((turn & follows).sum()),
        both_flags=int((rows["terminated"] & rows["truncated"]).sum()),
    )
