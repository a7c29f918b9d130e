"""What agents begin with, given by flags: ``--data [LABEL=]PATH`` and ``--from LABEL=LABEL|RUN``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.offline.base import OfflineAgent
from envs.errors import UserError
from experiments.compare.suite import AgentEntry, Suite, make_suite
from experiments.config import find_recipe
from experiments.given_data import locate
from experiments.names import OWN, short_names
from experiments.tree import read_yaml


def with_sources(suite: Suite, data: Sequence[str], earlier: Sequence[str]) -> Suite:
    """The suite with the datasets and earlier runs of the command line, which go before its own.

    Raises:
        UserError: an unknown label, a dataset for nobody, or agents that continue one another.
    """
    if not data and not earlier:
        return suite
    agents = dict(suite.agents)
    for word in data:
        label, given, path = word.partition("=")
        if given and label in agents:
            agents[label] = replace(agents[label], data=locate(path))
        else:
            agents |= {name: replace(agents[name], data=locate(word)) for name in _learners(suite, word)}
    for word in earlier:
        label, given, run = word.partition("=")
        if not given or label not in agents or not run:
            fix = "write LABEL=LABEL or LABEL=RUN: who goes on, and from which agent's runs or which run"
            raise UserError("--from", word, fix, suite.agents)
        agents[label] = replace(agents[label], start_from=run)
    return make_suite(suite.name, agents, suite.envs, [*suite.seeds], suite.set, suite.budget)


def _learners(suite: Suite, word: str) -> list[str]:
    """The agents that learn from a dataset: those that are given one, or else those whose recipe does."""
    found = [label for label, entry in suite.agents.items() if entry.data is not None]
    found = found or [label for label, entry in suite.agents.items() if _offline(entry)]
    if not found:
        fix = "no agent here learns from a dataset; write LABEL=PATH for one that is not of this project"
        raise UserError("--data", word, fix, suite.agents)
    return found


def _offline(entry: AgentEntry) -> bool:
    """Whether a recipe's agent is one of this project's that learn from data."""
    agent: Any = read_yaml(find_recipe(entry.recipe)).get("agent")
    named = str(agent.get("class_path")) if isinstance(agent, dict) else ""
    module, _, name = short_names().get(named, named).rpartition(".")
    if module.partition(".")[0] not in OWN:  # nothing else is imported here
        return False
    found = getattr(importlib.import_module(module), name, None)
    return isinstance(found, type) and issubclass(found, OfflineAgent)
