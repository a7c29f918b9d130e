"""Probability of improvement for every pair of agents."""

from __future__ import annotations

from experiments.pages.parts import Figure, Section, Table
from experiments.report import figures
from experiments.report.comparison import Comparison
from experiments.report.figures import Row
from experiments.report.sections._pairs import EVEN, Pair, pairs
from experiments.report.sections._shared import number, plural


def improvement(comparison: Comparison) -> Section | None:
    """Interval plot and table of all pairs; None when no two agents share an environment."""
    every = pairs(comparison)
    if not every:
        return None
    lead = (
        "How likely a run of the first agent ends with a higher return than a run of the second, on an environment"
        " drawn at random from those that both ran on with three seeds or more (from all, if there are none). 0.5 is a"
        " coin toss: an interval (95 %, bootstrap over seeds) that holds it shows no significant difference. Each pair"
        " is judged by itself; with twenty pairs of equal agents, one is expected to look different."
    )
    return Section("improvement", "Probability of improvement", lead, [_figure(comparison, every), _table(every)])


def _figure(comparison: Comparison, every: list[Pair]) -> Figure:
    rows = [
        Row(f"{pair.first} > {pair.second}", (pair.first, pair.second), value.value, value.low, value.high)
        for pair in every
        for value in [pair.estimate]
    ]
    looks = figures.styles(comparison.agents)
    drawn = figures.interval_rows("", "probability of improvement", rows, looks, at=EVEN, within=(0.0, 1.0))
    said = "; ".join(f"{row.label}: {number(row.value)}" for row in rows[:12])
    caption = "Probability that the agent on the left of > beats the one on its right; the line stands at 0.5."
    return Figure("improvement", drawn, caption, f"Probabilities of improvement. {said}.")


def _envs(pair: Pair) -> str:
    if len(pair.envs) < pair.shared:
        return f"{len(pair.envs)} of {pair.shared} (three seeds or more)"
    return pair.envs[0] if pair.shared == 1 else plural(pair.shared, "environment")


def _table(every: list[Pair]) -> Table:
    columns = ["first", "second", "environments", "P(first > second)", "from", "to", "verdict"]
    rows = []
    for pair in every:
        value = pair.estimate
        rows.append((pair.first, pair.second, _envs(pair), value.value, value.low, value.high, pair.words))
    return Table("improvement-pairs", columns, rows, "Probability of improvement with 95 % intervals", digits=3)
