"""Aggregates over all environments, on returns normalised by references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.pages.parts import Figure, Notice, Part, Section, Table, Text
from experiments.report import figures
from experiments.report.comparison import Comparison
from experiments.report.figures import Row
from experiments.report.sections._shared import (
    KINDS,
    USED,
    alike,
    finished,
    finished_agents,
    last_returns,
    learned,
    listing,
    number,
    own_scale,
    seeds,
    used,
)
from experiments.report.statistics import AGGREGATES, Estimate, caution, estimate

WHAT = {
    "IQM": "Interquartile mean: the middle half of all runs. Robust, and the one to go by.",
    "median": "Median of the environments' means; blind to half of the environments.",
    "mean": "Mean of the environments' means; one environment can dominate it.",
    "optimality gap": "How far runs stay below the high reference on average. Smaller is better.",
}


def covering(comparison: Comparison) -> tuple[list[str], list[str]]:
    """The environments with references, and the agents with finished runs on all of them."""
    envs = [env for env in comparison.envs if env in comparison.references and finished_agents(comparison, env)]
    agents = [agent for agent in comparison.agents if all(agent in finished_agents(comparison, env) for env in envs)]
    return envs, agents if envs else []


def aggregates(comparison: Comparison) -> Section | None:
    """IQM, median, mean and optimality gap; a sentence where they cannot be had, None when no run is finished."""
    if not seeds(comparison):
        return None
    envs, agents = covering(comparison)
    lead = "Returns of different environments are put on one scale, then summed up over environments and seeds."
    if not envs:
        text = "There are no reference returns for these environments, so their returns cannot be put on one scale."
        return Section("aggregates", "Over all environments", text)
    parts: list[Part] = []
    if left := [agent for agent in comparison.agents if agent not in agents]:
        text = f"Left out, since without a finished run on some of {listing(envs)}: {listing(left)}."
        parts.append(Notice(text, "warning"))
    for kind, members in (alike(comparison, agents) if agents else {}).items():
        found = _estimates(comparison, envs, members)
        parts += [Text(f"{KINDS[kind]}: {listing(members)}.")] if kind else []
        parts += [*_figures(comparison, found, kind), _table(comparison, found, kind)]
    if agents:
        parts += [Notice(own)] if (own := own_scale(comparison, envs)) else []
        parts.append(Text(caution(min(len(scores) for a in agents for scores in last_returns(comparison, a, envs)))))
    return Section("aggregates", "Over all environments", lead, [*parts, _references(comparison, envs)])


Found = Mapping[str, Mapping[str, Estimate]]


def _estimates(comparison: Comparison, envs: Sequence[str], agents: Sequence[str]) -> Found:
    """Aggregate -> agent -> estimate."""
    scores = {agent: last_returns(comparison, agent, envs, normalised=True) for agent in agents}
    return {
        name: {agent: estimate(scores[agent], aggregate) for agent in agents} for name, aggregate in AGGREGATES.items()
    }


def _figures(comparison: Comparison, found: Found, kind: str) -> list[Figure]:
    looks, drawn = figures.styles(comparison.agents), []
    for name, by_agent in found.items():
        rows = [Row(agent, (agent,), value.value, value.low, value.high) for agent, value in by_agent.items()]
        figure = figures.interval_rows(name, "normalised return", rows, looks)
        said = "; ".join(f"{row.label}: {number(row.value)}" for row in rows)
        file = "-".join(filter(None, ["aggregate", name.replace(" ", "-"), kind]))
        drawn.append(Figure(file, figure, WHAT[name], f"{name} by agent. {said}."))
    return drawn


def _table(comparison: Comparison, found: Found, kind: str) -> Table:
    had = learned(comparison)
    columns, agents = ["agent", *(USED if had else ())], list(next(iter(found.values())))
    for name in found:
        columns += [name, f"{name}, 95 % interval"]
    rows = []
    for agent in agents:
        row: list[str | float | None] = [agent, *(_used(comparison, agent) if had else ())]
        for by_agent in found.values():
            row += [round(by_agent[agent].value, 6), interval(by_agent[agent])]
        rows.append(row)
    caption = "Aggregates of normalised returns at the last evaluation"
    caption += f"; {KINDS[kind].lower()}" if kind else ""
    return Table("-".join(filter(None, ["aggregates", kind])), columns, rows, caption, digits=3)


def _used(comparison: Comparison, agent: str) -> list[str | int | None]:
    return used(run for env in comparison.envs for run in finished(comparison, agent, env))


def interval(value: Estimate) -> str | None:
    """``0.81 to 0.94``; None where there is none."""
    return None if value.low is None or value.high is None else f"{number(value.low)} to {number(value.high)}"


def _references(comparison: Comparison, envs: Sequence[str]) -> Table:
    rows = [(env, ref.low, ref.high, ref.source) for env in envs for ref in [comparison.references[env]]]
    columns = ["environment", "return that counts as 0", "return that counts as 1", "source"]
    return Table("references", columns, rows, "Reference returns")
