"""The runs of a comparison as they lie on disk, read into typed records; nothing is left out silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "unfinished", "failed", "missing"]
Axis = Literal["env_steps", "updates", "seconds"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run. ``seconds`` are those of training alone, evaluations excluded."""

    env_steps: int
    updates: int
    seconds: float
    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.returns) / len(self.returns)


@dataclass(frozen=True)
class Run:
    """One agent on one environment with one seed."""

    agent: str
    env: str
    seed: int
    folder: Path
    state: State
    error: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    fits: tuple[dict[str, Any], ...] = ()
    """The ``fit`` records of ``metrics.jsonl``"""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None

    @property
    def last(self) -> float | None:
        """Mean return of the last evaluation; None when there was none."""
        return self.evaluations[-1].mean if self.evaluations else None


@dataclass(frozen=True)
class Reference:
    """Returns that count as 0 and 1 on an environment, and where they come from."""

    low: float
    high: float
    source: str

    def normalized(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Comparison:
    """Everything a report is made from. ``agents`` and ``envs`` are in the order they are shown."""

    title: str
    root: Path
    runs: Sequence[Run]
    agents: Sequence[str]
    envs: Sequence[str]
    axis: Axis = "env_steps"
    references: Mapping[str, Reference] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By environment, the mean returns of named datasets"""

    def of(self, agent: str, env: str) -> list[Run]:
        """The runs of one agent on one environment, by seed."""
        same = [run for run in self.runs if (run.agent, run.env) == (agent, env)]
        return sorted(same, key=lambda run: run.seed)
