"""A row for every agent on every environment: the last evaluation, seed by seed."""

from __future__ import annotations

from statistics import mean

from experiments.pages.cells import shown
from experiments.pages.parts import Section, Table
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._shared import USED, evaluated, finished, learned, used


def environments(comparison: Comparison) -> Section | None:
    """Last evaluations by environment; None when no run was evaluated."""
    pairs = [(agent, env) for env in comparison.envs for agent in comparison.agents if comparison.of(agent, env)]
    rows = [_row(comparison, agent, env) for agent, env in pairs]
    if not any(run.evaluations for run in comparison.runs):
        return None
    had = [*USED] if learned(comparison) else []
    columns = ["environment", "agent", *had, "finished seeds", "mean", "lowest seed", "each seed"]
    if comparison.references:
        columns.append("normalised mean")
    columns.append("best of any evaluation (picked afterwards)")
    lead = (
        "Mean return of the last evaluation of every finished run: what training ended with, nothing picked. The best"
        " evaluation on the way is a maximum over many noisy numbers and flatters; it stands in the last column only."
    )
    if had:
        lead += (
            " Env steps and rows of data are what an agent had to learn from until then: agents that acted and agents"
            " that learned from data alone stand side by side here, not on equal terms."
        )
    table = Table("environments", columns, rows, "Last evaluation by environment, agent and seed")
    return Section("environments", "By environment", lead, [table])


def _row(comparison: Comparison, agent: str, env: str) -> list[str | float | int | None]:
    runs = finished(comparison, agent, env)
    last = [run.evaluations[-1].mean for run in runs]
    centre = mean(last) if last else None
    every = ", ".join(_seed(run) for run in comparison.of(agent, env))
    had = used(runs) if learned(comparison) else []
    row: list[str | float | int | None] = [env, agent, *had, len(last), centre, min(last, default=None), every]
    if comparison.references:
        reference = comparison.references.get(env)
        row.append(reference.normalized(centre) if reference is not None and centre is not None else None)
    bests = [run.best for run in evaluated(comparison, agent, env)]
    row.append(max((best for best in bests if best is not None), default=None))
    return row


def _seed(run: Run) -> str:
    value = shown(run.last, 4) if run.last is not None else "none"
    return value if run.state == "done" else f"{value} ({run.state})"
