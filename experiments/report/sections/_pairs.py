"""Every pair of agents: how likely one beats the other, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from experiments.report.comparison import Comparison
from experiments.report.permutation import LEVEL, Significance, holm, permutation_test
from experiments.report.sections._shared import alike, finished, finished_agents, last_returns
from experiments.report.statistics import FEWEST_RUNS, Estimate, probability_of_improvement

Verdict = Literal["first", "second", "no difference", "too few runs"]
EVEN = 0.5
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Pair:
    """Two agents on ``envs`` out of the ``shared`` ones that both finished runs on.

    The estimate is of the first one beating the second. ``corrected`` is the test's p as one of ``judged`` pairs, and
    ``smallest`` what it would be, had every run of one agent ended above every run of the other.
    """

    first: str
    second: str
    envs: tuple[str, ...]
    shared: int
    estimate: Estimate
    test: Significance
    corrected: float = 1.0
    smallest: float = 1.0
    judged: int = 1

    @property
    def verdict(self) -> Verdict:
        """Who is better, by the corrected p; the interval has no say."""
        if not below(self.smallest):
            return "too few runs"
        if not below(self.corrected):
            return "no difference"
        return "first" if self.estimate.value > EVEN else "second"

    @property
    def winner(self) -> str | None:
        """The better agent, or None."""
        return {"first": self.first, "second": self.second}.get(self.verdict)

    @property
    def words(self) -> str:
        """The verdict for readers."""
        if self.winner is not None:
            return f"{self.winner} is better"
        return "no significant difference" if self.verdict == "no difference" else "too few runs to tell"

    def chance(self, agent: str) -> float:
        """How likely a run of one of the two agents beats a run of the other."""
        return self.estimate.value if agent == self.first else 1 - self.estimate.value


def below(p: float) -> bool:
    """Whether a p is at most the level."""
    return p <= LEVEL + _TOLERANCE


def pairs(comparison: Comparison) -> list[Pair]:
    """All pairs of like agents with finished runs on the same environment, in the comparison's order.

    An agent that learned from data alone is no rival of one that acted: neither had what the other one had.

    Environments where either has fewer than three are left out, if there are others: they would allow no interval.
    """
    found = []
    groups = alike(comparison, comparison.agents).values()
    for first, second in (pair for pair in combinations(comparison.agents, 2) if any({*pair} <= {*g} for g in groups)):
        envs = tuple(env for env in comparison.envs if {first, second} <= set(finished_agents(comparison, env)))
        if envs:
            enough = tuple(env for env in envs if min(_runs(comparison, (first, second), env)) >= FEWEST_RUNS)
            found.append(_pair(comparison, first, second, enough or envs, len(envs)))
    return _corrected(found)


def _runs(comparison: Comparison, agents: Sequence[str], env: str) -> list[int]:
    return [len(finished(comparison, agent, env)) for agent in agents]


def _pair(comparison: Comparison, first: str, second: str, envs: tuple[str, ...], shared: int) -> Pair:
    ours, theirs = last_returns(comparison, first, envs), last_returns(comparison, second, envs)
    estimate, test = probability_of_improvement(ours, theirs), permutation_test(ours, theirs)
    return Pair(first, second, envs, shared, estimate, test)


def _corrected(every: Sequence[Pair]) -> list[Pair]:
    """The pairs with p corrected for their number; those that no outcome could decide are no chance to err."""
    judged = [at for at, pair in enumerate(every) if below(pair.test.smallest)]
    ps = [every[at].test.p for at in judged]
    corrected, found = holm(ps), [replace(pair, corrected=1.0, smallest=pair.test.smallest) for pair in every]
    for place, at in enumerate(judged):
        least = holm([*ps[:place], every[at].test.smallest, *ps[place + 1 :]])[place]
        found[at] = replace(every[at], corrected=corrected[place], smallest=least, judged=len(judged))
    return found


def of(agent: str, every: Sequence[Pair]) -> list[Pair]:
    """The pairs that an agent is part of."""
    return [pair for pair in every if agent in (pair.first, pair.second)]
