"""What is compared: agents x environments x seeds, from a suite file or from flags, checked before anything runs.

A suite file::

    name: first
    agents:
      pets: {}                                  # a recipe under its own name
      sac-utd1: {recipe: sac-fast, set: {agent.updates_per_step: 1}}
    envs:
      Pendulum-v1: {steps: 1500, low: -1200, high: -120, source: "random policy; true-dynamics planner"}
    seeds: 5                                    # or a list
    set: {evaluation.every: 500}                # for every run; then the environment's, then the agent's
    budget: env_steps                           # x-axis of the report: env_steps, updates or seconds
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from envs.errors import UserError
from experiments.compare.fleet import Job
from experiments.config import find_recipe, resolve
from experiments.session import try_agent
from experiments.tree import read_yaml

Budget = Literal["env_steps", "updates", "seconds"]
SUITES = Path(__file__).parent.parent / "suites"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
EVALUATIONS = 10
"""Evaluations of a run, where the suite does not say how often; the same episodes for every agent."""


@dataclass(frozen=True)
class AgentEntry:
    """One agent: a recipe (name or file) and what is set in it."""

    recipe: str
    set: Mapping[str, Any] = field(default_factory=dict)


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
        agents = {label: {"recipe": entry.recipe, "set": dict(entry.set)} for label, entry in self.agents.items()}
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
    return Suite(name, dict(agents), dict(envs), _seeds(seeds), dict(set), budget)


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
    entry = _known(entry or {}, f"agents.{label}", ("recipe", "set"))
    recipe = entry.get("recipe", label)
    if not isinstance(recipe, str):
        raise UserError(f"agents.{label}.recipe", recipe, "give a recipe's name or file")
    return AgentEntry(recipe, _mapping(entry, "set", f"agents.{label}.", needed=False))


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


# -- the runs --------------------------------------------------------------------------------------------------------


def make_jobs(suite: Suite, root: Path, trust: Sequence[str]) -> list[Job]:
    """Every run of the suite, seed by seed; its folder's name ends in the digest of its configuration.

    Every configuration is resolved, its environment tried and its agent built first, so that nothing runs when one of
    them is wrong. A run whose configuration
    is changed is another run, in another folder.
    """
    runs = {(label, env): _resolved(suite, label, env, trust) for env in suite.envs for label in suite.agents}
    return [
        Job(label, env, seed, _command(words, seed, trust), root / "runs" / _folder(env, label, seed, digest), steps)
        for seed in suite.seeds
        for (label, env), (words, digest, steps) in runs.items()
    ]


def _folder(env: str, label: str, seed: int, digest: str) -> Path:
    return Path(re.sub(r"[^\w.+-]", "-", env)) / label / f"seed{seed}-{digest}"


def _command(words: Sequence[str], seed: int, trust: Sequence[str]) -> tuple[str, ...]:
    return ("train", *words, "--seed", str(seed), *(word for name in trust for word in ("--trust", name)))


def _resolved(suite: Suite, label: str, env: str, trust: Sequence[str]) -> tuple[list[str], str, int]:
    """Words of the command, digest of what they resolve to, and env steps of one agent on one environment."""
    agent, entry = suite.agents[label], suite.envs[env]
    recipe = str(find_recipe(agent.recipe).resolve()) if "/" in agent.recipe else agent.recipe
    given = {**suite.set, **({"steps": entry.steps} if entry.steps is not None else {}), **entry.set, **agent.set}
    try:
        steps = resolve(recipe, [*given.items()], env, trust).config.steps
        fair = {"evaluation.every": -(-steps // EVALUATIONS), "evaluation.episodes": 10, "evaluation.num_envs": 10}
        pairs = [*(fair | given).items()]
        resolved = resolve(recipe, pairs, env, trust)
        try_agent(resolved.config)
    except UserError as error:
        raise error.within(f"{label} on {env}") from error
    words = [recipe, "--env", env, *(f"--{key}={json.dumps(value)}" for key, value in pairs)]
    return words, hashlib.blake2b(resolved.text.encode(), digest_size=4).hexdigest(), steps
