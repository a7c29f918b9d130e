"""What the runs cost: time and memory."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median

from experiments.pages.parts import Section, Table
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._shared import finished, listing

ENOUGH = 0.9
"""Normalised return whose first reaching is timed."""
SECONDS_TO, REACHED = f"seconds to {ENOUGH}", f"reached {ENOUGH}"
MEBIBYTE = 2**20


def cost(comparison: Comparison) -> Section | None:
    """A row for every agent and environment; None when no finished run was timed."""
    if not any(run.state == "done" and run.seconds > 0 for run in comparison.runs):
        return None
    pairs = [(agent, env) for env in comparison.envs for agent in comparison.agents if comparison.of(agent, env)]
    rows = {pair: _row(comparison, *pair) for pair in pairs}
    columns = list(next(iter(rows.values())))
    known = [name for name in columns if any(row[name] is not None for row in rows.values())]
    cells = [(env, agent, *(row[name] for name in known)) for (agent, env), row in rows.items()]
    lead = (
        "Means over finished seeds. Training seconds leave evaluations out. Times and memory hold for the machines the"
        " runs were made on and what else these were doing; compare them only where the runs shared one machine."
    )
    if "ms a decision" in known:
        lead += " A decision is one for all environments of an evaluation together, in the last evaluation."
    if SECONDS_TO in known:
        lead += (
            f" Seconds to {ENOUGH}: training seconds until an evaluation first reached that normalised return, the"
            " median of the seeds that did."
        )
    if begun := list(dict.fromkeys(run.agent for run in comparison.runs if run.start_from is not None)):
        lead += f" What {listing(begun)} took does not count the run that was continued."
    table = Table("cost", ["environment", "agent", *known], cells, "Cost by environment and agent", digits=3)
    return Section("cost", "Cost", lead, [table])


def _row(comparison: Comparison, agent: str, env: str) -> dict[str, float | str | None]:
    runs = finished(comparison, agent, env)
    training = _mean(run.seconds or None for run in runs)
    steps = _mean(float(run.evaluations[-1].env_steps) for run in runs)
    memory = _mean(run.peak_memory_bytes for run in runs)
    return {
        "training seconds": training,
        "env steps a second": steps / training if steps and training else None,
        "ms a decision": _mean(run.evaluations[-1].act_ms for run in runs),
        "peak memory, MiB": memory / MEBIBYTE if memory is not None else None,
        **_reached(comparison, env, runs),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _reached(comparison: Comparison, env: str, runs: list[Run]) -> dict[str, float | str | None]:
    """When runs first were good enough, and how many ever were; None without a reference."""
    reference = comparison.references.get(env)
    if reference is None or not runs:
        return {SECONDS_TO: None, REACHED: None}
    first = [
        next((point.seconds for point in run.evaluations if reference.normalized(point.mean) >= ENOUGH), None)
        for run in runs
    ]
    took = [seconds for seconds in first if seconds is not None]
    return {SECONDS_TO: median(took) if took else None, REACHED: f"{len(took)} of {len(runs)}"}
