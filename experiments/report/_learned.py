"""What runs learned from besides acting, and what their critics said of it; read from their files as data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DEPTH = re.compile(r"q_at_depth_(\d+)")


@dataclass(frozen=True)
class Data:
    """The dataset of a run; None is what its files do not say."""

    path: str
    """A path or an id, as in the run's configuration"""
    rows: int | None = None
    digest: str | None = None
    """Of what every row says"""
    references: tuple[float, float] | None = None
    """Mean returns of a random and an expert policy: 0 and 100 of a score"""


@dataclass(frozen=True)
class Values:
    """What the critics of a run on data said, beside what a return of the data's rewards can be at all."""

    low: float
    high: float
    q: tuple[tuple[int, float], ...]
    """Updates and the critics' mean; infinite where that was no number"""
    outside: int
    """Of these, those that are no attainable value"""
    depths: Mapping[int, float] = field(default_factory=dict)
    """At the end, the mean value of states after so many imagined steps"""
    edge_share: float | None = None
    gamma: float | None = None

    @property
    def growth(self) -> float | None:
        """How much higher the value is at the edge of the rollouts than in the data; None without rollouts."""
        return self.depths[max(self.depths)] - self.depths[min(self.depths)] if len(self.depths) > 1 else None

    @property
    def explained(self) -> float | None:
        """The most that values may grow along rollouts by the data's rewards; None without rollouts or a discount.

        Of a policy's own values ``V(s_0) = sum_(i<k) gamma^i r_i + gamma^k V(s_k)``, and no reward is below
        ``low (1 - gamma)``: ``V(s_k) - V(s_0) <= (V(s_0) - low) (gamma^-k - 1)``.
        """
        if self.growth is None or self.gamma is None:
            return None
        first = min(self.depths)
        return max(0.0, self.depths[first] - self.low) * (self.gamma ** (first - max(self.depths)) - 1.0)

    @property
    def grows(self) -> bool:
        """Whether values grow towards the edge by more than the data's rewards account for."""
        return self.growth is not None and self.explained is not None and self.growth > self.explained


def read_data(config: Mapping[str, Any], versions: Mapping[str, Any]) -> Data | None:
    """The dataset that a configuration names, with what the run directory keeps of it."""
    path, told = config.get("data"), versions.get("data")
    if not isinstance(path, str):
        return None
    told = told if isinstance(told, Mapping) else {}
    rows, digest, pair = (told.get(key) for key in ("rows", "digest", "references"))
    known = isinstance(pair, list) and len(pair) == 2 and all(_number(value) is not None for value in pair)
    return Data(
        path,
        rows if isinstance(rows, int) and not isinstance(rows, bool) else None,
        digest if isinstance(digest, str) else None,
        (float(pair[0]), float(pair[1])) if known and pair is not None and pair[0] != pair[1] else None,
    )


def read_values(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Values | None:
    """What the records say; None where no update was compared with a range."""
    seen = [r for r in records if r["event"] == "update" and None not in (_number(r.get(k)) for k in RANGE)]
    if not seen:
        return None
    imagined = [record for record in records if record["event"] == "imagine"]
    last = imagined[-1] if imagined else {}
    depths = {int(m[1]): v for key in last if (m := DEPTH.fullmatch(key)) and (v := _number(last[key])) is not None}
    return Values(
        low=float(seen[-1]["value_low"]),
        high=float(seen[-1]["value_high"]),
        q=tuple((int(record["updates"]), _or_infinite(record.get("q"))) for record in seen),
        outside=sum(bool(record.get("q_outside")) for record in seen),
        depths=dict(sorted(depths.items())),
        edge_share=_number(last.get("edge_share")),
        gamma=_discount(config),
    )


RANGE = ("value_low", "value_high")


def _or_infinite(q: Any) -> float:
    value = _number(q)
    return math.inf if value is None else value


def _discount(config: Mapping[str, Any]) -> float | None:
    """``agent.learner.gamma``, where it is a discount."""
    node: Any = config
    for key in ("agent", "init_args", "learner", "init_args", "gamma"):
        node = node.get(key) if isinstance(node, Mapping) else None
    value = _number(node)
    return value if value is not None and 0.0 < value < 1.0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
