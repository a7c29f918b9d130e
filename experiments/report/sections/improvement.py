"""Probability of improvement for every pair of agents."""

from __future__ import annotations

from experiments.pages.parts import Figure, Part, Section, Table, Text
from experiments.report import figures
from experiments.report.comparison import Comparison
from experiments.report.figures import Row
from experiments.report.permutation import LEVEL
from experiments.report.sections._pairs import EVEN, Pair, pairs
from experiments.report.sections._shared import alike, number, plural

CORRECTED = "p, corrected for all pairs"


def improvement(comparison: Comparison) -> Section | None:
    """Interval plot and table of all pairs; None when no two agents share an environment."""
    every = pairs(comparison)
    if not every:
        return None
    lead = (
        "How likely a run of the first agent ends with a higher return than a run of the second, on an environment"
        " drawn at random from those that both ran on with three seeds or more (from all, if there are none). 0.5 is a"
        " coin toss. The intervals (95 %, bootstrap over seeds) describe these runs; they are too short where seeds"
        " are few, so they decide nothing."
    )
    if len(alike(comparison, comparison.agents)) > 1:
        lead += " Agents that learned from data alone are paired with one another only, and so are those that acted."
    parts: list[Part] = [_figure(comparison, every), _table(every), Text(_how(max(pair.judged for pair in every)))]
    return Section("improvement", "Probability of improvement", lead, parts)


def _how(judged: int) -> str:
    """How verdicts come about, and how often they are wrong."""
    family = f", corrected for the {judged} pairs judged here (Holm's method)," if judged > 1 else ""
    return (
        "Verdicts go by p of a permutation test: if two agents were equal, the runs of each environment could be dealt"
        " to them in any way, and p is the share of deals whose probability lies at least as far from 0.5 as the one"
        f" seen. One is called better where p{family} is at most {LEVEL:g}; among equal agents, no more than one such"
        " report in twenty would call any of them better. No significant difference does not mean equal. Too few runs"
        " to tell: even with every run of one above every run of the other, p would not come down to the level. The"
        " test asks whether the agents' returns could have been swapped, so agents that differ in spread alone trip"
        " it more often: in about 8 of 100 simulated comparisons where one spreads ten times as wide."
    )


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
    columns = ["first", "second", "environments", "P(first > second)", "from", "to", "p", CORRECTED, "verdict"]
    rows = []
    for pair in every:
        value, corrected = pair.estimate, None if pair.verdict == "too few runs" else _rounded(pair.corrected)
        numbers = (value.value, value.low, value.high, _rounded(pair.test.p), corrected)
        rows.append((pair.first, pair.second, _envs(pair), *numbers, pair.words))
    caption = "Probability of improvement with its 95 % interval, and the permutation test that decides"
    return Table("improvement-pairs", columns, rows, caption, digits=3)


def _rounded(p: float) -> float:
    """Without the last digits, which are no p's but the machine's."""
    return float(f"{p:.6g}")
