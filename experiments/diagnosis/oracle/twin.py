"""The twin of an offline Dyna run: the same recipe, data, seed and updates under the true dynamics.

Sims, Lu, Foerster, Teh, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", 2024: what goes
wrong without any model error is not the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from agents.offline.model_based import OfflineDynaAgent
from agents.offline.morec import RewardConsistentAgent
from envs.errors import UserError
from experiments.config import Resolved, resolve
from experiments.diagnosis.building import build
from experiments.diagnosis.oracle.subject import Subject, Training, read_training
from experiments.run import RunDirectory, free_path
from experiments.session import Session
from experiments.tree import read_yaml

TWIN = "twin"
SIMULATOR, DYNA = "mbrl.models.simulator.Simulator", "agents.offline.model_based.OfflineDynaAgent"
MOREC = ("reward", "candidates", "temperature", "threshold", "stop")
"""Arguments of the agent that chooses among a model's steps; the true dynamics offer one"""


@dataclass(frozen=True)
class Twin:
    """A finished twin, its agent and its data at hand."""

    path: Path
    agent: OfflineDynaAgent
    updates: int
    training: Training


def twin_config(subject: Subject, updates: int, trust: Sequence[str]) -> Resolved:
    """The run's configuration with the true dynamics for a model and nothing to fit, for that many updates.

    Raises:
        UserError: the agent refuses the true dynamics.
    """
    tree = read_yaml(subject.run.config)
    kwargs: dict[str, Any] = dict(subject.resolved.config.env.kwargs)
    model = {"class_path": SIMULATOR, "init_args": {"env_kwargs": kwargs or None}}
    overrides: list[tuple[str, Any]] = [("steps", updates), ("video", False)]
    if isinstance(subject.agent, RewardConsistentAgent):
        kept = {key: value for key, value in tree["agent"]["init_args"].items() if key not in MOREC}
        overrides.append(("agent", {"class_path": DYNA, "init_args": kept | {"model": model, "fitter": None}}))
    else:
        overrides += [("agent.init_args.model", model), ("agent.init_args.fitter", None)]
    return resolve(str(subject.run.config), overrides, trust=trust)


@dataclass(frozen=True)
class Plan:
    """A twin that can be trained, or goes on."""

    place: Path
    resolved: Resolved
    begun: bool


def plan_twin(subject: Subject, place: Path, updates: int, trust: Sequence[str]) -> Plan:
    """What :func:`train_twin` will do; nothing is written.

    Raises:
        UserError: the agent refuses the true dynamics, or something else is at ``place``.
    """
    resolved = twin_config(subject, updates, trust)
    begun = _need_same(place, resolved)
    build(resolved)
    if not begun:
        free_path(str(place), TWIN)
    return Plan(place, resolved, begun)


def train_twin(plan: Plan, command: Sequence[str], quiet: bool = False) -> Twin:
    """Train the twin to its end, from its newest checkpoint if it has begun; a finished one is only read.

    Raises:
        UserError: the data has changed, or another process trains it.
    """
    session = Session(plan.resolved)
    try:
        run = RunDirectory.open(plan.place) if plan.begun else session.create(str(plan.place), command)
        with session.loop(run, quiet) as loop:
            if not loop.finished:
                loop.run()
        agent = cast(OfflineDynaAgent, session.agent)
    finally:
        session.close()
    return Twin(plan.place, agent, plan.resolved.config.steps, read_training(run.metrics))


def _need_same(place: Path, resolved: Resolved) -> bool:
    """Whether this very twin has begun at ``place``; ``UserError`` where another one or something else has."""
    config = place / "config.yaml"
    if not config.is_file():
        return False
    if config.read_text(encoding="utf-8") == resolved.text:
        return True
    there = read_yaml(config).get("steps")
    if read_yaml(config) | {"steps": resolved.config.steps} == _tree(resolved):
        fix = f"give --oracle-updates {there} to look at it, another --oracle-out, or delete it"
        raise UserError("--oracle-updates", resolved.config.steps, f"{place} is a twin of {there:,} updates: {fix}")
    raise UserError("--oracle-out", str(place), "another run is there; name another place, or delete it")


def _tree(resolved: Resolved) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(resolved.text)
    return tree
