"""Who won, in plain words, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.pages.parts import Notice, Part, Section, Table, Text
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._pairs import Pair, of, pairs
from experiments.report.sections._shared import last_returns, listing, number, plural, seeds, where
from experiments.report.sections.aggregates import covering, interval
from experiments.report.statistics import caution, estimate

CLEAR = 0.75
"""Lower end of a probability of improvement from which a winner is a clear one, halfway from a coin toss to always."""
NAMED = 12
"""Runs that a notice lists one by one; the rest is in the section on failures."""


def summary(comparison: Comparison) -> Section | None:
    """The verdict, its certainty, every run that did not end well, and a row an agent."""
    every, counts = pairs(comparison), seeds(comparison)
    parts: list[Part] = [*(Text(text) for text in verdict(comparison.agents, every))]
    if counts and len(comparison.agents) > 1:
        parts.append(Notice(_certainty(counts)))
    parts += [*_bad(comparison), _table(comparison, every)]
    return Section("summary", "Summary", _lead(comparison), parts)


def _lead(comparison: Comparison) -> str:
    done = sum(run.state == "done" for run in comparison.runs)
    asked = f"{plural(len(comparison.agents), 'agent')} on {plural(len(comparison.envs), 'environment')}"
    finished = "all finished" if done == len(comparison.runs) else f"{done:,} of them finished"
    return f"{asked}: {plural(len(comparison.runs), 'run')}, {finished}."


def _certainty(counts: Sequence[int]) -> str:
    """How little this many seeds prove."""
    low, high = min(counts), max(counts)
    if low == high:
        return f"{plural(low, 'seed')} for each agent and environment. {caution(low)}"
    return (
        f"Between {low:,} and {plural(high, 'seed')} for an agent and environment. Where there are fewest:"
        f" {caution(low)} Where there are most: {caution(high)}"
    )


def verdict(agents: Sequence[str], every: Sequence[Pair]) -> list[str]:
    """Sentences that say who is better than whom."""
    if len(agents) < 2:
        return ["There is one agent, so there is nothing to compare it with."]
    if not every:
        return ["No two agents have finished runs on the same environment, so none can be compared."]
    if all(pair.verdict == "too few runs" for pair in every):
        return ["There are too few seeds to say which agent is better; the numbers below only describe these runs."]
    return [_headline(agents, every), *_sentences(every)]


def _headline(agents: Sequence[str], every: Sequence[Pair]) -> str:
    for agent in agents:
        own = of(agent, every)
        if len(own) == len(agents) - 1 and all(pair.winner == agent for pair in own):
            sure = "clear winner" if all(_floor(pair, agent) >= CLEAR for pair in own) else "winner, by a narrow margin"
            return f"{agent} is the {sure}: its returns are higher than those of {_others(agents, agent)}."
    if not any(pair.winner for pair in every):
        return f"There is no significant difference between {listing(agents)}."
    unbeaten = [a for a in agents if all(pair.winner in (a, None) for pair in of(a, every)) and of(a, every)]
    if unbeaten and len(unbeaten) < len(agents):
        return f"There is no single winner. Not shown to be worse than any other: {listing(unbeaten)}."
    return "There is no single winner."


def _floor(pair: Pair, winner: str) -> float:
    """The lower end of the interval of the winner's probability of improvement."""
    low, high = pair.estimate.low or 0.0, 1.0 if pair.estimate.high is None else pair.estimate.high
    return low if winner == pair.first else 1 - high


def _others(agents: Sequence[str], winner: str) -> str:
    others = [agent for agent in agents if agent != winner]
    return others[0] if len(others) == 1 else f"all others ({listing(others)})"


def _sentences(every: Sequence[Pair]) -> list[str]:
    """What each pair shows: the decided ones by winner, then the undecided ones."""
    by_winner: dict[str, list[str]] = {}
    for pair in every:
        if pair.winner is not None:
            loser = pair.second if pair.winner == pair.first else pair.first
            by_winner.setdefault(pair.winner, []).append(f"{loser} ({_chance(pair, pair.winner)})")
    said = [f"{winner} is better than {listing(losers)}." for winner, losers in by_winner.items()]
    if said:
        said[0] += " In brackets: how likely a run of one beats a run of the other, with a 95 % interval."
    for kind, words in (("no difference", "No significant difference"), ("too few runs", "Too few runs to tell")):
        named = [f"{p.first} and {p.second} ({_chance(p, p.first)})" for p in every if p.verdict == kind]
        said += [f"{words}: {'; '.join(named)}."] if named else []
    return said


def _chance(pair: Pair, winner: str) -> str:
    """The estimate, from the winner's side."""
    value, low, high = pair.estimate.value, pair.estimate.low, pair.estimate.high
    if winner != pair.first:
        value, low, high = 1 - value, None if high is None else 1 - high, None if low is None else 1 - low
    if low is None or high is None:
        return number(value)
    if low == high:  # nothing that could be drawn differently, which is no certainty
        return {1.0: "every run above every other", 0.5: "all runs equal"}.get(value, number(value))
    return f"{number(value)}, {number(low)} to {number(high)}"


def _bad(comparison: Comparison) -> list[Part]:
    """Failed, unfinished and missing runs by name: none is dropped without a word."""
    words: Mapping[str, str] = {"failed": "failed", "unfinished": "did not finish", "missing": "are missing"}
    parts: list[Part] = []
    for state, word in words.items():
        runs = [run for run in comparison.runs if run.state == state]
        if runs:
            text = f"{plural(len(runs), 'run')} {'is missing' if word == 'are missing' and len(runs) == 1 else word}"
            said = f"{text} and {'counts' if len(runs) == 1 else 'count'} in no mean or verdict: {_named(runs)}."
            parts.append(Notice(said, "failure" if state == "failed" else "warning"))
    return parts


def _named(runs: Sequence[Run]) -> str:
    named = [where(run) for run in runs[:NAMED]]
    rest = len(runs) - NAMED
    return "; ".join(named) + (f"; and {rest} more, see Failures" if rest > 0 else "")


def _table(comparison: Comparison, every: Sequence[Pair]) -> Table:
    """How many runs each agent has, its IQM where there are references, and whom it beats."""
    envs, agents = covering(comparison)
    columns = ["agent", "runs", "finished", "environments", "better than", "worse than"]
    rows: list[list[str | float | int | None]] = []
    for agent in comparison.agents:
        runs = [run for run in comparison.runs if run.agent == agent]
        done = [run for run in runs if run.state == "done"]
        row: list[str | float | int | None] = [agent, len(runs), len(done), len({run.env for run in done})]
        lost = sum(pair.winner not in (agent, None) for pair in of(agent, every))
        row.append(sum(pair.winner == agent for pair in of(agent, every)))
        row.append(lost)
        rows.append(row)
    if agents:
        columns += ["IQM, normalised", "95 % interval"]
        for row in rows:
            agent = str(row[0])
            found = estimate(last_returns(comparison, agent, envs, normalised=True)) if agent in agents else None
            row += [None, None] if found is None else [round(found.value, 6), interval(found)]
    return Table(
        "summary", columns, rows, "Agents at a glance; better and worse count significant differences", digits=3
    )
