"""What is compared: agents x environments x seeds, from a suite file or from flags, checked before anything runs.

A suite file::

    name: first
    agents:
      pets: {}                                  # a recipe under its own name
      sac-utd1: {recipe: sac-fast, set: {agent.updates_per_step: 1}}
      mobile: {data: runs/teacher}                  # learns from a path, run or Minari id; or {ENV: PATH, ...}
      continued: {recipe: mbpo-fast, from: mobile}  # goes on online from its run of the same env and seed; or a RUN
    envs:
      Pendulum-v1: {steps: 1500, low: -1200, high: -120, source: "random policy; true-dynamics planner"}
    seeds: 5                                    # or a list
    set: {evaluation.every: 500}                # for every run; then the environment's, then the agent's
    budget: env_steps                           # x-axis of the report: env_steps, updates or seconds
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from envs.errors import UserError
from experiments.given_data import locate
from experiments.tree import read_yaml

Budget = Literal["env_steps", "updates", "seconds"]
SUITES = Path(__file__).parent.parent / "suites"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class AgentEntry:
    """One agent: a recipe (name or file), what is set in it, and what it begins with besides."""

    recipe: str
    set: Mapping[str, Any] = field(default_factory=dict)
    data: str | Mapping[str, str] | None = None
    """The dataset that it learns from, or one for each environment"""
    start_from: str | None = None
    """The label of the agent that it continues, or a run directory"""

    def data_on(self, env: str) -> str | None:
        """The dataset of one environment; None where the agent learns by acting."""
        return self.data.get(env) if isinstance(self.data, Mapping) else self.data

    def tree(self) -> dict[str, Any]:
        """As plain values."""
        data = dict(self.data) if isinstance(self.data, Mapping) else self.data
        given = {"data": data, "from": self.start_from}
        return {"recipe": self.recipe, "set": dict(self.set)} | {k: v for k, v in given.items() if v is not None}


@dataclass(frozen=True)
class EnvEntry:
    """One environment: its budget, what is set in its runs, and the returns that count as 0 and 1."""

    steps: int | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    source: str = "given in the suite"
    datasets: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Everything that is compared."""

    name: str
    agents: Mapping[str, AgentEntry]
    envs: Mapping[str, EnvEntry]
    seeds: Sequence[int]
    set: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = "env_steps"

    def text(self) -> str:
        """As a suite file that :func:`read_suite` reads back to the same."""
        return yaml.safe_dump(self.tree(), sort_keys=False)

    def tree(self) -> dict[str, Any]:
        """As plain values."""
        agents = {label: entry.tree() for label, entry in self.agents.items()}
        envs = {name: {k: v for k, v in vars(entry).items() if v is not None} for name, entry in self.envs.items()}
        tree = {"name": self.name, "agents": agents, "envs": envs, "seeds": list(self.seeds)}
        return tree | {"set": dict(self.set), "budget": self.budget}


def find_suite(name: str) -> Path:
    """A suite's file: a path, a comparison's folder, or a name in ``experiments/suites``."""
    path = Path(name)
    for candidate in (path / "suite.yaml", path, SUITES / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise UserError("SUITE", name, "give a suite file, a comparison's folder or a name", list_suites())


def list_suites() -> list[str]:
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def read_suite(path: Path) -> Suite:
    """The suite in a file; raises ``UserError`` at the first key or value that is wrong."""
    tree = read_yaml(path)
    _known(tree, "", ("name", "agents", "envs", "seeds", "set", "budget"))
    default_name = path.stem if path.name != "suite.yaml" else path.parent.name
    return make_suite(
        name=tree.get("name", default_name),
        agents={label: _agent(str(label), entry) for label, entry in _mapping(tree, "agents").items()},
        envs={str(name): _env(str(name), entry) for name, entry in _mapping(tree, "envs").items()},
        seeds=tree.get("seeds", 5),
        set=_mapping(tree, "set", needed=False),
        budget=tree.get("budget", "env_steps"),
    )


def make_suite(
    name: Any,
    agents: Mapping[str, AgentEntry],
    envs: Mapping[str, EnvEntry],
    seeds: Any,
    set: Mapping[str, Any],
    budget: Any = "env_steps",
) -> Suite:
    """A suite of values that a person gave, each checked."""
    for field_name, label in [("name", name), *(("agents", label) for label in agents)]:
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            raise UserError(field_name, label, "letters, digits and . _ + - only, for it names a folder")
    if not agents or not envs:
        raise UserError("agents" if not agents else "envs", "none", "give at least one")
    if budget not in get_args(Budget):
        raise UserError("budget", budget, "one of env_steps, updates, seconds", get_args(Budget))
    _check_circles({label: entry.start_from for label, entry in agents.items()})
    located = {label: _located(agents, entry) for label, entry in agents.items()}
    return Suite(name, located, dict(envs), _seeds(seeds), dict(set), budget)


def _located(agents: Mapping[str, AgentEntry], entry: AgentEntry) -> AgentEntry:
    """A run that is continued and is none of the suite's, by a path that holds from anywhere."""
    if entry.start_from is None or entry.start_from in agents:
        return entry
    return replace(entry, start_from=locate(entry.start_from))


def _check_circles(continued: Mapping[str, str | None]) -> None:
    """Refuse agents that continue one another."""
    for label in continued:
        way = [label]
        while (earlier := continued.get(way[-1])) is not None:
            if earlier in way:
                fix = "an agent cannot continue itself: name one that learns from data"
                raise UserError(f"agents.{label}.from", " from ".join([*way, earlier]), fix)
            way.append(earlier)


def _seeds(seeds: Any) -> tuple[int, ...]:
    """A number of seeds, or the seeds themselves."""
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= 10_000:
        return tuple(range(seeds))
    good = isinstance(seeds, list | tuple) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or len({*seeds}) < len(seeds):
        raise UserError("seeds", seeds, "give how many (1 to 10,000), or a list of different whole numbers")
    return tuple(seeds)


def _agent(label: str, entry: Any) -> AgentEntry:
    if isinstance(entry, str):
        return AgentEntry(entry)
    place = f"agents.{label}"
    entry = _known(entry or {}, place, ("recipe", "set", "data", "from"))
    recipe = entry.get("recipe", label)
    if not isinstance(recipe, str):
        raise UserError(f"{place}.recipe", recipe, "give a recipe's name or file")
    earlier = entry.get("from")
    if earlier is not None and not isinstance(earlier, str):
        raise UserError(f"{place}.from", earlier, "give the label of an agent of this suite, or a run directory")
    return AgentEntry(
        recipe, _mapping(entry, "set", f"{place}.", needed=False), _data(place, entry.get("data")), earlier
    )


def _data(place: str, given: Any) -> str | dict[str, str] | None:
    """A dataset, or one by environment; paths hold from anywhere."""
    if given is None or isinstance(given, str):
        return given and locate(given)
    if not isinstance(given, dict) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise UserError(f"{place}.data", given, "give a path or a Minari id, or a mapping of environments to these")
    return {env: locate(path) for env, path in given.items()}


def _env(name: str, entry: Any) -> EnvEntry:
    place = f"envs.{name}"
    entry = _known(entry or {}, place, ("steps", "set", "low", "high", "source", "datasets"))
    if (entry.get("low") is None) != (entry.get("high") is None):
        raise UserError(f"{place}.low, high", (entry.get("low"), entry.get("high")), "give both or neither")
    for key in ("low", "high", "steps"):
        _number(f"{place}.{key}", entry.get(key))
    if entry.get("low") is not None and entry["low"] == entry["high"]:
        raise UserError(f"{place}.high", entry["high"], "it must differ from low")
    datasets = _mapping(entry, "datasets", f"{place}.", needed=False)
    for dataset, value in datasets.items():
        _number(f"{place}.datasets.{dataset}", value)
    return EnvEntry(**{**entry, "set": _mapping(entry, "set", f"{place}.", needed=False), "datasets": datasets})


def _number(place: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(place, value, "give a finite number")


def _known(tree: Any, place: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise UserError(place, tree, f"give a mapping with {', '.join(keys)}")
    for key in tree:
        if key not in keys:
            raise UserError(f"{place}.{key}".lstrip("."), key, f"there are: {', '.join(keys)}", keys)
    return tree


def _mapping(tree: Mapping[str, Any], key: str, place: str = "", needed: bool = True) -> dict[str, Any]:
    value = tree.get(key) or {}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = {item: {} for item in value}  # agents: [pets, random]
    if not isinstance(value, dict) or (needed and not value):
        raise UserError(f"{place}{key}", tree.get(key, "missing"), "give a mapping of names to settings")
    return value
