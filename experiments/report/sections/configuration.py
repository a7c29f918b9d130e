"""In which settings the agents differ."""

from __future__ import annotations

import json
from typing import Any

from experiments.pages.parts import Section, Table
from experiments.report.comparison import Comparison, differences


def configuration(comparison: Comparison) -> Section | None:
    """A row for every setting that is not the same in all agents; None when there is none."""
    found = differences(comparison)
    if not found:
        return None
    agents = [agent for agent in comparison.agents if any(agent in values for values in found.values())]
    rows = [
        [key, *(_said(values[agent]) if agent in values else None for agent in agents)] for key, values in found.items()
    ]
    lead = (
        "Settings in which agents differ on the same environment, seeds left out; a dash where an agent's parts have no"
        " such setting. A class in another place is listed by its name alone, its own arguments are not compared."
    )
    table = Table("configuration", ["setting", *agents], rows, "Settings by agent")
    return Section("configuration", "Differences in configuration", lead, [table])


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
