"""What the suite set, and in which settings the agents differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.pages.parts import Part, Section, Table
from experiments.report._status import SuiteSettings
from experiments.report.comparison import Comparison, differences


def configuration(comparison: Comparison) -> Section | None:
    """What the suite set, and a row for every setting that is not the same in all agents; None when there is none."""
    parts: list[Part] = []
    lead = ""
    if comparison.settings is not None and (rows := list(_set(comparison.settings))):
        lead = (
            "First what the suite set: an environment's settings win over those for every run, an agent's over both;"
            " all else is as the agent's recipe has it. "
        )
        parts.append(Table("suite", ["for", "setting", "value"], rows, "Set by the suite"))
    if found := differences(comparison):
        lead += (
            "Settings in which agents differ on the same environment, seeds left out; a dash where an agent's parts"
            " have no such setting. A class in another place is listed by its name alone, its own arguments are not"
            " compared."
        )
        parts.append(_differences(comparison, found))
    return Section("configuration", "Configuration", lead.strip(), parts) if parts else None


def _set(settings: SuiteSettings) -> Iterator[tuple[str, str, str]]:
    yield from _rows("every run", settings.every)
    for env, of_env in settings.envs.items():
        steps = {} if of_env.steps is None else {"steps": of_env.steps}
        yield from _rows(f"environment {env}", {**steps, **of_env.set})
    for agent, of_agent in settings.agents.items():
        recipe = {} if of_agent.recipe is None else {"recipe": of_agent.recipe}
        yield from _rows(f"agent {agent}", {**recipe, **of_agent.begins, **of_agent.set})


def _rows(whose: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield from ((whose, key, _said(value)) for key, value in given.items())


def _differences(comparison: Comparison, found: Mapping[str, Mapping[str, Any]]) -> Table:
    agents = [agent for agent in comparison.agents if any(agent in values for values in found.values())]
    rows = [
        [key, *(_said(values[agent]) if agent in values else None for agent in agents)] for key, values in found.items()
    ]
    return Table("configuration", ["setting", *agents], rows, "Settings in which agents differ")


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
