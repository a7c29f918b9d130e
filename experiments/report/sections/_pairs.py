"""Every pair of agents: how likely one beats the other, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from experiments.report.comparison import Comparison
from experiments.report.sections._shared import finished, finished_agents, last_returns
from experiments.report.statistics import FEWEST_RUNS, Estimate, probability_of_improvement

Verdict = Literal["first", "second", "no difference", "too few runs"]
EVEN = 0.5


@dataclass(frozen=True)
class Pair:
    """Two agents on ``envs`` out of the ``shared`` ones that both finished runs on.

    The estimate is of the first one beating the second.
    """

    first: str
    second: str
    envs: tuple[str, ...]
    shared: int
    estimate: Estimate

    @property
    def verdict(self) -> Verdict:
        """Who is better, if the interval leaves out 0.5; seeds too few for an interval never say."""
        low, high = self.estimate.low, self.estimate.high
        if low is None or high is None:
            return "too few runs"
        return "first" if low > EVEN else "second" if high < EVEN else "no difference"

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


def pairs(comparison: Comparison) -> list[Pair]:
    """All pairs of agents with finished runs on the same environment, in the comparison's order.

    Environments where either has fewer than three are left out, if there are others: they would allow no interval.
    """
    found = []
    for first, second in combinations(comparison.agents, 2):
        envs = tuple(env for env in comparison.envs if {first, second} <= set(finished_agents(comparison, env)))
        if envs:
            enough = tuple(env for env in envs if min(_runs(comparison, (first, second), env)) >= FEWEST_RUNS)
            found.append(_pair(comparison, first, second, enough or envs, len(envs)))
    return found


def _runs(comparison: Comparison, agents: Sequence[str], env: str) -> list[int]:
    return [len(finished(comparison, agent, env)) for agent in agents]


def _pair(comparison: Comparison, first: str, second: str, envs: tuple[str, ...], shared: int) -> Pair:
    ours, theirs = last_returns(comparison, first, envs), last_returns(comparison, second, envs)
    return Pair(first, second, envs, shared, probability_of_improvement(ours, theirs))


def of(agent: str, every: Sequence[Pair]) -> list[Pair]:
    """The pairs that an agent is part of."""
    return [pair for pair in every if agent in (pair.first, pair.second)]
