"""``status.json`` of a comparison, read as data: every field is what it must be, or one message says which is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.report._run_files import DAMAGED, read_json

REWRITE = "`mbrl compare` did not write this; run it again on this folder"
FINITE = "give a finite number in the suite and run `mbrl compare` on it again"
NO_SOURCE = "given in the suite, which names no source"


@dataclass(frozen=True)
class Dropped:
    """A run on disk that the suite does not ask for any more."""

    agent: str
    env: str
    seed: int
    folder: str


@dataclass(frozen=True)
class Job:
    """A run that the suite asks for; ``folder`` is below the comparison's and None before there is one."""

    agent: str
    env: str
    seed: int
    folder: str | None
    state: str
    error: str | None


@dataclass(frozen=True)
class AgentSettings:
    """What the suite says of an agent."""

    recipe: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    begins: Mapping[str, Any] = field(default_factory=dict)
    """``data`` that it learns from, and the agent or run that it goes on ``from``"""


@dataclass(frozen=True)
class EnvSettings:
    """What the suite says of an environment's runs."""

    steps: int | None = None
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteSettings:
    """What the suite sets: for every run, for single agents and for single environments."""

    every: Mapping[str, Any] = field(default_factory=dict)
    agents: Mapping[str, AgentSettings] = field(default_factory=dict)
    envs: Mapping[str, EnvSettings] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """All of ``status.json``; ``references`` are ``(low, high, source)`` by environment."""

    suite: str
    budget: str
    agents: Sequence[str]
    envs: Sequence[str]
    references: Mapping[str, tuple[float, float, str]]
    datasets: Mapping[str, Mapping[str, float]]
    jobs: Sequence[Job]
    dropped: Sequence[Dropped]
    settings: SuiteSettings | None


def read_status(path: Path, budgets: Collection[str], states: Collection[str]) -> Status:
    """The file, checked.

    Args:
        path: ``status.json``.
        budgets: what ``budget`` may be.
        states: what a job's ``state`` may be.

    Raises:
        UserError: it cannot be read, or a field is missing or not what it must be.
    """
    top = _Node(f"{path}: ", "", read_json(path))
    return Status(
        suite=top["suite"].text(),
        budget=top["budget"].one_of(budgets),
        agents=[label.text() for label in top["agents"].items()],
        envs=[env.text() for env in top["envs"].items()],
        references={env: _reference(given) for env, given in top["references"].mapping().items()},
        datasets={env: _returns(given) for env, given in top["datasets"].mapping().items()},
        jobs=[_job(job, states) for job in top["jobs"].items()],
        dropped=[_dropped(run) for run in top["dropped"].items()] if top.has("dropped") else [],
        settings=_settings(top["settings"]) if top.has("settings") else None,
    )


def _reference(given: _Node) -> tuple[float, float, str]:
    low, high = given["low"].number(), given["high"].number()
    if low == high:
        raise given.error("the returns that count as 0 and as 1 must differ")
    return low, high, (given["source"].text() if given.has("source") else "") or NO_SOURCE


def _returns(given: _Node) -> dict[str, float]:
    return {name: value.number() for name, value in given.mapping().items()}


def _job(job: _Node, states: Collection[str]) -> Job:
    return Job(
        *_whose(job),
        folder=job["folder"].text() if job.has("folder") else None,
        state=job["state"].one_of(states),
        error=job["error"].text() if job.has("error") else None,
    )


def _dropped(run: _Node) -> Dropped:
    return Dropped(*_whose(run), folder=run["folder"].text())


def _whose(run: _Node) -> tuple[str, str, int]:
    return run["agent"].text(), run["env"].text(), run["seed"].integer()


def _settings(given: _Node) -> SuiteSettings:
    agents, envs = given.optional("agents"), given.optional("envs")
    return SuiteSettings(
        every=given.optional("set").values(),
        agents={label: _agent(entry) for label, entry in agents.mapping().items()},
        envs={env: _env(entry) for env, entry in envs.mapping().items()},
    )


def _agent(entry: _Node) -> AgentSettings:
    begins = {key: entry[key].value for key in ("data", "from") if entry.has(key)}
    recipe = entry["recipe"].text() if entry.has("recipe") else None
    return AgentSettings(recipe, entry.optional("set").values(), begins)


def _env(entry: _Node) -> EnvSettings:
    return EnvSettings(entry["steps"].integer() if entry.has("steps") else None, entry.optional("set").values())


@dataclass(frozen=True)
class _Node:
    """A value in the file that knows its dotted name; each method gives it as what it must be, else ``UserError``."""

    file: str
    name: str
    value: Any

    def error(self, fix: str, choices: Collection[str] = ()) -> UserError:
        return UserError(f"{self.file}{self.name}", self.value, fix, choices)

    def _below(self, key: str | int, value: Any) -> _Node:
        return _Node(self.file, f"{self.name}.{key}".lstrip("."), value)

    def values(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.error(REWRITE)
        return self.value

    def mapping(self) -> dict[str, _Node]:
        return {key: self._below(key, value) for key, value in self.values().items()}

    def items(self) -> list[_Node]:
        if not isinstance(self.value, list):
            raise self.error(REWRITE)
        return [self._below(number, value) for number, value in enumerate(self.value)]

    def has(self, key: str) -> bool:
        """Whether there is something other than null under ``key``."""
        return self.values().get(key) is not None

    def __getitem__(self, key: str) -> _Node:
        return self._below(key, self.values().get(key))

    def optional(self, key: str) -> _Node:
        """The mapping under ``key``; an empty one where there is none."""
        return self[key] if self.has(key) else self._below(key, {})

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error(REWRITE)
        return self.value

    def one_of(self, choices: Collection[str]) -> str:
        if self.text() not in choices:
            raise self.error(DAMAGED, choices)
        return self.text()

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.error(REWRITE)
        return self.value

    def number(self) -> float:
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.error(FINITE)
        try:
            value = float(self.value)
        except OverflowError as error:
            raise self.error(FINITE) from error
        if not math.isfinite(value):
            raise self.error(FINITE)
        return value
