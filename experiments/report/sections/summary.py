"""Who won, in plain words, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose

from experiments.pages.parts import Notice, Part, Section, Table, Text
from experiments.report.comparison import Comparison, Run
from experiments.report.permutation import LEVEL, fewest_seeds
from experiments.report.sections._pairs import Pair, of, pairs
from experiments.report.sections._shared import (
    KINDS,
    USED,
    alike,
    last_returns,
    learned,
    listing,
    number,
    own_scale,
    p_value,
    plural,
    seeds,
    used,
    where,
)
from experiments.report.sections.aggregates import covering, interval
from experiments.report.statistics import caution, estimate

CLEAR = 0.75
"""Estimated probability of improvement from which a winner is a clear one, halfway from a coin toss to always."""
NAMED = 12
"""Runs that a notice lists one by one; the rest is in the section on failures."""


def summary(comparison: Comparison) -> Section | None:
    """The verdict, its certainty, every run that did not end well, and a row an agent."""
    every, counts = pairs(comparison), seeds(comparison)
    parts: list[Part] = [*(Text(text) for text in _verdicts(comparison, every))]
    if counts and len(comparison.agents) > 1:
        parts.append(Notice(f"{_certainty(counts)} {_needed(every)}".strip()))
    parts += [*_bad(comparison), *_dropped(comparison), _table(comparison, every)]
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


def _needed(every: Sequence[Pair]) -> str:
    """From how many seeds the test can tell anything, for so many pairs."""
    if not every:
        return ""
    judged = "two agents" if len(every) == 1 else f"one of {len(every)} pairs of agents"
    tasks = sorted({1, *(len(pair.envs) for pair in every)})
    fewest = [f"{plural(fewest_seeds(len(every), n), 'seed')} each on {plural(n, 'environment')}" for n in tasks]
    more = " More pairs need more seeds." if len(every) > 1 else ""
    return f"To tell {judged} apart at all, the test behind the verdicts needs at least {listing(fewest)}.{more}"


def _verdicts(comparison: Comparison, every: Sequence[Pair]) -> list[str]:
    """The verdict; where some agents acted and others learned from data alone, one of each kind."""
    groups = alike(comparison, comparison.agents)
    if len(groups) == 1:
        return [*verdict(comparison.agents, every), *_had_data(comparison)]
    said = [
        f"{listing(groups['from-data'])} learned from data alone and took no env step; the others acted. Neither had"
        " what the other one had, so better and worse are said within each kind only."
    ]
    for kind, members in groups.items():
        if len(members) > 1:
            first, *rest = verdict(members, [pair for pair in every if pair.first in members])
            said += [f"{KINDS[kind]} ({listing(members)}): {first}", *rest]
    return [*said, *_had_data(comparison)]


def _had_data(comparison: Comparison) -> list[str]:
    """What agents that continue a run had before they acted."""
    begun: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        if run.earlier is not None:
            begun.setdefault(run.agent, {})[run.earlier] = None
    return [
        f"{agent} goes on from {listing(earlier)} and its data: what it is ahead of agents that began with nothing is"
        " the data's merit as well."
        for agent, earlier in begun.items()
    ]


def verdict(agents: Sequence[str], every: Sequence[Pair]) -> list[str]:
    """Sentences that say who is better than whom."""
    if len(agents) < 2:
        return ["There is one agent, so there is nothing to compare it with."]
    if not every:
        return ["No two agents have finished runs on the same environment, so none can be compared."]
    if all(pair.verdict == "too few runs" for pair in every):
        return [_too_few(min(every, key=lambda pair: pair.smallest))]
    return [_headline(agents, every), *_sentences(every)]


def _too_few(best: Pair) -> str:
    family = f", corrected for {best.judged} pairs" if best.judged > 1 else ""
    return (
        "There are too few seeds to say which agent is better: even with every run of one above every run of the"
        f" other, p would be {p_value(best.smallest)}{family}, and {LEVEL:g} is asked for. The numbers below only"
        " describe these runs."
    )


def _headline(agents: Sequence[str], every: Sequence[Pair]) -> str:
    for agent in agents:
        own = of(agent, every)
        if len(own) == len(agents) - 1 and all(pair.winner == agent for pair in own):
            return _won(agent, _rest(agents, agent), all(pair.chance(agent) >= CLEAR for pair in own))
    if not any(pair.winner for pair in every):
        return f"There is no significant difference between {listing(agents)}."
    unbeaten = [a for a in agents if all(pair.winner in (a, None) for pair in of(a, every)) and of(a, every)]
    if unbeaten and len(unbeaten) < len(agents):
        return f"There is no single winner. Not shown to be worse than any other: {listing(unbeaten)}."
    return "There is no single winner."


def _won(winner: str, others: Sequence[str], clear: bool) -> str:
    one = len(others) == 1
    beaten = others[0] if one else f"all others ({listing(others)})"
    if clear:
        sure, share = "clear winner", f"a run of {others[0] if one else 'any of them'} in at least 3 of 4 cases"
    else:
        rival = others[0] if one else "at least one of them"
        sure, share = "winner, by a narrow margin", f"a run of {rival} in fewer than 3 of 4 cases"
    return (
        f"{winner} is the {sure}: luck alone hardly explains its lead over {beaten}, and a run of it is estimated to"
        f" end above {share}."
    )


def _rest(agents: Sequence[str], winner: str) -> list[str]:
    return [agent for agent in agents if agent != winner]


def _sentences(every: Sequence[Pair]) -> list[str]:
    """What each pair shows: the decided ones by winner, then the undecided ones."""
    by_winner: dict[str, list[str]] = {}
    for pair in every:
        if pair.winner is not None:
            loser = pair.second if pair.winner == pair.first else pair.first
            by_winner.setdefault(pair.winner, []).append(f"{loser} ({_chance(pair, pair.winner)})")
    said = [f"{winner} is better than {listing(losers)}." for winner, losers in by_winner.items()]
    for kind, words in (("no difference", "No significant difference"), ("too few runs", "Too few runs to tell")):
        named = [f"{p.first} and {p.second} ({_chance(p, p.first)})" for p in every if p.verdict == kind]
        said += [f"{words}: {'; '.join(named)}."] if named else []
    corrected = f" corrected for {judged} pairs" if (judged := max(pair.judged for pair in every)) > 1 else ""
    said[0] += (
        " In brackets: how likely a run of the one beats a run of the other, its 95 % bootstrap interval, and p of a"
        f" permutation test{corrected}; better is said where that is at most {LEVEL:g}."
    )
    return said


def _chance(pair: Pair, winner: str) -> str:
    """The estimate, from the winner's side, and p where there is one to judge by."""
    said = _estimate(pair, winner)
    return said if pair.verdict == "too few runs" else f"{said}; p {p_value(pair.corrected)}"


def _estimate(pair: Pair, winner: str) -> str:
    value, low, high = pair.estimate.value, pair.estimate.low, pair.estimate.high
    if winner != pair.first:
        value, low, high = 1 - value, None if high is None else 1 - high, None if low is None else 1 - low
    if low is None or high is None:
        return number(value)
    if isclose(low, high):  # nothing that could be drawn differently, which is no certainty
        return {1.0: "every run above every other", 0.5: "all runs equal"}.get(round(value, 9), number(value))
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


def _dropped(comparison: Comparison) -> list[Part]:
    """How many runs on disk the suite does not ask for any more."""
    if not comparison.dropped:
        return []
    count, verb = plural(len(comparison.dropped), "run"), "is" if len(comparison.dropped) == 1 else "are"
    text = f"{count} on disk {verb} not part of this suite any more and left out of everything; see Failures."
    return [Notice(text)]


def _named(runs: Sequence[Run]) -> str:
    named = [where(run) for run in runs[:NAMED]]
    rest = len(runs) - NAMED
    return "; ".join(named) + (f"; and {rest} more, see Failures" if rest > 0 else "")


def _table(comparison: Comparison, every: Sequence[Pair]) -> Table:
    """How many runs each agent has, its IQM where there are references, and whom it beats."""
    envs, agents = covering(comparison)
    columns = ["agent", *(USED if learned(comparison) else ()), "runs", "finished", "environments"]
    columns += ["better than", "worse than"]
    rows: list[list[str | float | int | None]] = []
    for agent in comparison.agents:
        runs = [run for run in comparison.runs if run.agent == agent]
        done = [run for run in runs if run.state == "done"]
        had = used(done) if learned(comparison) else []
        row: list[str | float | int | None] = [agent, *had, len(runs), len(done), len({run.env for run in done})]
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
    caption = "Agents at a glance; better and worse count significant differences"
    if agents and own_scale(comparison, envs):
        caption += "; intervals ignore that the return that counts as 1 was chosen from these runs"
    return Table("summary", columns, rows, caption, digits=3)
