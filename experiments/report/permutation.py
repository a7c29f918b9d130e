"""Which differences between agents luck explains: a permutation test of the probability of improvement.

If two agents are equal, the labels of their runs on a task mean nothing, and any deal of those runs to the two agents
was as likely as the one that was seen. p is the share of deals, made on each task by itself, whose probability of
improvement lies at least as far from 0.5. That holds with any number of runs, where the intervals of
:mod:`experiments.report.statistics` are too short.

Pitman, "Significance Tests Which May be Applied to Samples from any Populations", 1937. Mann, Whitney, "On a Test of
Whether one of Two Random Variables is Stochastically Larger than the Other", 1947. Van Elteren, "On the combination of
independent two sample tests of Wilcoxon", 1960. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import comb, lcm, prod

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from envs.errors import UserError
from experiments.report.statistics import FloatArray, Scores

LEVEL = 0.05
"""How often, at most, a report may call one of several equal agents better."""
DEALS = 19_999
"""Random deals where there are too many to go through."""
_WORK, _GRID, _CHUNK = 10**8, 10_000, 1_000_000
"""Additions on a task and outcomes over all tasks up to which every deal is counted; drawn numbers in memory."""


@dataclass(frozen=True)
class Significance:
    """``p`` of a two-sided test, and the ``smallest`` that so many runs can give, every run above every other."""

    p: float
    smallest: float


def permutation_test(
    x: Scores, y: Scores, *, seed: int = 0, deals: int = DEALS, exact: bool | None = None
) -> Significance:
    """Test that runs of agent ``x`` beat runs of agent ``y`` as often as the other way round.

    Args:
        x: one array ``[runs]`` a task.
        y: the same tasks in the same order.
        seed: of the random deals; equal seeds give equal p.
        deals: random ones, where not all are counted. The deal that was seen counts as one more.
        exact: count every deal (True), draw some (False), or what the numbers of runs allow (None).

    Raises:
        UserError: the agents have different numbers of tasks, or none.
    """
    if len(x) != len(y) or len(x) == 0:
        raise UserError("scores", f"{len(x)} and {len(y)} tasks", "compare two agents on the same tasks")
    sizes = [(len(ours), len(theirs)) for ours, theirs in zip(x, y, strict=True)]
    tasks = [_ranks(ours, theirs) for ours, theirs in zip(x, y, strict=True)]
    smallest = smallest_p(sizes)
    if _small(sizes) if exact is None else exact:
        return Significance(_exact(tasks, sizes), smallest)
    return Significance(_drawn(tasks, sizes, deals, np.random.default_rng(seed)), max(smallest, 1 / (deals + 1)))


def smallest_p(sizes: Sequence[tuple[int, int]]) -> float:
    """Of all deals, two put every run of one agent above every run of the other on every task: one for each agent."""
    return min(1.0, 2 / prod(comb(n + m, n) for n, m in sizes))


def fewest_seeds(pairs: int, tasks: int, level: float = LEVEL) -> int:
    """Seeds an agent and task from which at least one of ``pairs`` comparisons can come out below the level."""
    return next(n for n in count(1) if pairs * smallest_p([(n, n)] * tasks) <= level)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for being one of several; whoever goes by the corrected ones errs at all no more often."""
    corrected, floor = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        floor = max(floor, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = floor
    return corrected


Ranks = npt.NDArray[np.int64]


def _ranks(ours: FloatArray, theirs: FloatArray) -> Ranks:
    """Ranks of all runs of a task, doubled so that shared ones are whole; the first agent's come first."""
    doubled = 2 * rankdata(np.concatenate([ours, theirs]))
    return np.asarray(np.rint(doubled), dtype=np.int64)


def _small(sizes: Sequence[tuple[int, int]]) -> bool:
    work = max(n * (n + m) ** 2 * (n + m + 1) for n, m in sizes)
    return work <= _WORK and 2 * len(sizes) * lcm(*(n * m for n, m in sizes)) <= _GRID


def _exact(tasks: Sequence[Ranks], sizes: Sequence[tuple[int, int]]) -> float:
    """Every deal counted, in whole numbers: wins of a task weigh the inverse of how many there can be.

    Twice the wins (Mann and Whitney's U) are the first agent's doubled ranks less the fewest it can have, n (n + 1).
    """
    scale = lcm(*(n * m for n, m in sizes))
    shares, seen = np.ones(1), 0
    for ranks, (n, m) in zip(tasks, sizes, strict=True):
        weight = scale // (n * m)
        spaced = np.zeros(2 * scale + 1)
        spaced[::weight] = _share_of_deals(ranks, n, m)
        shares, seen = np.convolve(shares, spaced), seen + weight * (int(ranks[:n].sum()) - n * (n + 1))
    far = np.abs(np.arange(len(shares)) - scale * len(sizes)) >= abs(seen - scale * len(sizes))
    return min(1.0, float(shares[far].sum()))


def _share_of_deals(ranks: Ranks, n: int, m: int) -> FloatArray:
    """The share of deals of a task with so many doubled wins of the first agent, ``[2 n m + 1]``."""
    ways = np.zeros((n + 1, int(ranks.sum()) + 1))  # deals so far, by runs dealt to the first agent and their ranks
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    fewest = n * (n + 1)
    return np.asarray(ways[n, fewest : fewest + 2 * n * m + 1] / comb(n + m, n))


def _drawn(tasks: Sequence[Ranks], sizes: Sequence[tuple[int, int]], deals: int, rng: np.random.Generator) -> float:
    def offset(ranks: npt.NDArray[np.int64], n: int, m: int) -> FloatArray:
        return np.asarray((ranks[..., :n].sum(axis=-1) - n * (n + 1)) / (n * m) - 1)

    seen = abs(sum(float(offset(ranks, *size)) for ranks, size in zip(tasks, sizes, strict=True)))
    chunk, far = max(1, _CHUNK // max(len(ranks) for ranks in tasks)), 0
    for begin in range(0, deals, chunk):
        total = np.zeros(min(chunk, deals - begin))
        for ranks, size in zip(tasks, sizes, strict=True):
            total += offset(rng.permuted(np.tile(ranks, (len(total), 1)), axis=1), *size)
        far += int((np.abs(total) >= seen - 1e-9).sum())
    return (far + 1) / (deals + 1)
