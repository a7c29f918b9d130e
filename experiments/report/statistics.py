"""Interval estimates of robust aggregates over few runs.

Scores come as a sequence with one array a task, ``[runs]``; tasks may have different numbers of runs. An aggregate
takes such a sequence with any leading axes (``[..., runs]``) and returns ``[...]``, so that all repetitions of a
bootstrap are one call. Intervals are percentile intervals of the stratified bootstrap: runs are drawn with
replacement, for each task by itself. They are a little too short when there are few runs (:data:`COVERAGE`).

Agarwal, Schwarzer, Castro, Courville, Bellemare, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt
from scipy.stats import trim_mean

from envs.errors import UserError

FloatArray = npt.NDArray[np.float64]
Scores = Sequence[FloatArray]
Aggregate = Callable[[Scores], FloatArray]

FEWEST_RUNS = 3
"""Runs on every task below which no interval is given."""
CONFIDENCE = 0.95
REPETITIONS = 50_000
"""Bootstrap repetitions for one number."""
BAND_REPETITIONS = 2_000
"""Bootstrap repetitions for probabilities of improvement, profiles and curves."""
COVERAGE = {3: 0.85, 5: 0.915, 10: 0.917}
"""By runs a task, how often a nominal 95 % interval held the truth in 400 simulations of six Gaussian tasks."""
_CHUNK = 1_000_000
"""Resampled scores in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; ``low`` and ``high`` are None where there are too few runs for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Band:
    """A curve and its pointwise interval, all ``[points]``; ``low`` and ``high`` are None where runs are too few."""

    x: FloatArray
    value: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None


def iqm(scores: Scores) -> FloatArray:
    """Interquartile mean of all runs of all tasks: a quarter of them, rounded down, is dropped at each end.

    A task with more runs weighs more.
    """
    return np.asarray(trim_mean(_pooled(scores), 0.25, axis=-1), dtype=np.float64)


def mean_of_task_means(scores: Scores) -> FloatArray:
    """Every task weighs the same."""
    return np.asarray(_task_means(scores).mean(axis=0))


def median_of_task_means(scores: Scores) -> FloatArray:
    """The task in the middle; blind to half of the tasks."""
    return np.asarray(np.median(_task_means(scores), axis=0))


def optimality_gap(scores: Scores, gamma: float = 1.0) -> FloatArray:
    """How far runs stay below ``gamma`` on average, what is above it not counted. Smaller is better."""
    return np.asarray(gamma - np.minimum(_pooled(scores), gamma).mean(axis=-1))


AGGREGATES: Mapping[str, Aggregate] = {
    "IQM": iqm,
    "median": median_of_task_means,
    "mean": mean_of_task_means,
    "optimality gap": optimality_gap,
}


def estimate(
    scores: Scores,
    aggregate: Aggregate = iqm,
    *,
    seed: int = 0,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    resample_tasks: bool = False,
) -> Estimate:
    """An aggregate and its stratified bootstrap interval.

    Args:
        scores: one array ``[runs]`` a task.
        aggregate: of :data:`AGGREGATES`, or any function of that kind that does not mind the order of tasks.
        seed: equal seeds give equal intervals.
        repetitions: of the bootstrap.
        confidence: nominal coverage, between 0 and 1.
        resample_tasks: draw tasks with replacement too: what another set of tasks like these might have shown.

    Raises:
        UserError: no task, a task without runs, or a score that is not finite.
    """
    scores = _checked(scores)
    value = float(aggregate(scores))
    if _too_few(scores):
        return Estimate(value)
    drawn = _replicates(scores, aggregate, seed, repetitions, resample_tasks)
    low, high = _interval(drawn, confidence)
    return Estimate(value, float(low), float(high))


def probability_of_improvement(
    x: Scores,
    y: Scores,
    *,
    seed: int = 0,
    repetitions: int = BAND_REPETITIONS,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """How likely a run of agent ``x`` beats one of agent ``y`` on a task drawn at random; an equal score is half a win.

    For each task this is Mann and Whitney's U over the number of pairs. The two agents are resampled independently.

    Args:
        x: one array ``[runs]`` a task.
        y: the same tasks in the same order.
        seed: equal seeds give equal intervals.
        repetitions: of the bootstrap.
        confidence: nominal coverage, between 0 and 1.

    Raises:
        UserError: the agents have different numbers of tasks, or scores are missing or not finite.
    """
    x, y = _checked(x), _checked(y)
    if len(x) != len(y):
        raise UserError("scores", f"{len(x)} and {len(y)} tasks", "compare two agents on the same tasks")
    wins = [np.heaviside(ours[:, None] - theirs, 0.5) for ours, theirs in zip(x, y, strict=True)]
    value = float(np.mean([table.mean() for table in wins]))
    if _too_few([*x, *y]):
        return Estimate(value)
    rng = np.random.default_rng(seed)
    drawn = np.mean([_resampled_wins(table, repetitions, rng) for table in wins], axis=0)
    low, high = _interval(drawn, confidence)
    return Estimate(value, float(low), float(high))


def performance_profile(
    scores: Scores,
    taus: FloatArray,
    *,
    seed: int = 0,
    repetitions: int = BAND_REPETITIONS,
    confidence: float = CONFIDENCE,
    resample_tasks: bool = False,
) -> Band:
    """For each of ``taus`` the share of runs, over all tasks, with a score above it; arguments as :func:`estimate`."""

    def profile(drawn: Scores) -> FloatArray:
        pooled = _pooled(drawn)
        return np.stack([(pooled > tau).mean(axis=-1) for tau in taus], axis=-1)

    scores, taus = _checked(scores), np.asarray(taus, dtype=np.float64)
    return _band(taus, scores, profile, seed, repetitions, confidence, resample_tasks)


def learning_curve(
    curves: Scores,
    x: FloatArray,
    aggregate: Aggregate = iqm,
    *,
    seed: int = 0,
    repetitions: int = BAND_REPETITIONS,
    confidence: float = CONFIDENCE,
    resample_tasks: bool = False,
) -> Band:
    """An aggregate at each point of learning curves; whole runs are resampled, the interval holds point by point.

    Args:
        curves: one array ``[runs, points]`` a task (:func:`align` makes them).
        x: ``[points]``, where the curves are known.
        aggregate: as in :func:`estimate`, as are the other arguments.

    Raises:
        UserError: curves are missing, not finite, or not as long as ``x``.
    """

    def at_each_point(drawn: Scores) -> FloatArray:
        return aggregate([np.swapaxes(task, -1, -2) for task in drawn])

    curves, x = _checked(curves, axes=2), np.asarray(x, dtype=np.float64)
    if any(task.shape[1] != len(x) for task in curves):
        raise UserError("curves", [task.shape for task in curves], f"give a value at each of the {len(x)} points")
    return _band(x, curves, at_each_point, seed, repetitions, confidence, resample_tasks)


def align(curves: Sequence[tuple[FloatArray, FloatArray]], points: int = 100) -> tuple[FloatArray, FloatArray]:
    """Curves of several runs at common points: ``x [points]`` and values ``[runs, points]``.

    Where all runs were evaluated at the same ``x`` those are kept. Else values are interpolated linearly at ``points``
    places in the stretch that all runs cover; nothing is extrapolated.

    Args:
        curves: ``(x, y)`` of each run, both ``[its evaluations]``, ``x`` ascending.
        points: places where the curves are not known at the same ones.

    Raises:
        UserError: there are no curves, an empty one, or no stretch that all of them cover.
    """
    if not curves or not all(len(x) for x, _ in curves):
        raise UserError("curves", len(curves), "give at least one run, each with at least one evaluation")
    first = np.asarray(curves[0][0], dtype=np.float64)
    if all(np.array_equal(first, x) for x, _ in curves):
        return first, np.stack([np.asarray(y, dtype=np.float64) for _, y in curves])
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low > high:
        raise UserError("curves", f"{low} > {high}", "these runs have no stretch in common; leave the shortest out")
    grid = np.linspace(low, high, points) if high > low else np.array([low], dtype=np.float64)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def caution(runs: int) -> str:
    """What ``runs`` runs a task prove, in plain words for a report."""
    if runs < 2:
        return "One run a task shows nothing of luck: another seed may turn any order round. No interval is shown."
    luck = (
        f"Of two agents that are equally good, all {runs} runs of one beat all {runs} runs of the other on a task by "
        f"luck alone once in {comb(2 * runs, runs) // 2:,} times."
    )
    if runs < FEWEST_RUNS:
        return f"{runs} runs a task are too few for an interval, so none is shown. {luck}"
    known = max(known for known in COVERAGE if known <= runs)
    short = (
        f"Simulated with {known} runs on each of six tasks, intervals that are called 95 % held the truth in "
        f"{100 * COVERAGE[known]:g} of 100 cases: they are too short, so they describe these runs and decide nothing."
    )
    return f"{short} {luck}" + ("" if runs >= max(COVERAGE) else " Ten runs a task make narrower intervals.")


def _pooled(scores: Scores) -> FloatArray:
    return np.concatenate([np.asarray(task, dtype=np.float64) for task in scores], axis=-1)


def _task_means(scores: Scores) -> FloatArray:
    return np.stack([np.mean(task, axis=-1) for task in scores])


def _checked(scores: Scores, axes: int = 1) -> list[FloatArray]:
    tasks = [np.asarray(task, dtype=np.float64) for task in scores]
    if not tasks or not all(task.ndim == axes and task.size for task in tasks):
        raise UserError("scores", [task.shape for task in tasks], "give every task an array with at least one run")
    for number, task in enumerate(tasks):
        if not np.isfinite(task).all():
            raise UserError(f"scores of task {number}", task[~np.isfinite(task)][0], "leave out runs without a result")
    return tasks


def _too_few(scores: Scores) -> bool:
    return min(len(task) for task in scores) < FEWEST_RUNS


def _interval(drawn: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _band(
    x: FloatArray,
    scores: Scores,
    statistic: Aggregate,
    seed: int,
    repetitions: int,
    confidence: float,
    resample_tasks: bool,
) -> Band:
    if _too_few(scores):
        return Band(x, statistic(scores))
    drawn = _replicates(scores, statistic, seed, repetitions, resample_tasks)
    return Band(x, statistic(scores), *_interval(drawn, confidence))


def _replicates(scores: Scores, statistic: Aggregate, seed: int, repetitions: int, resample_tasks: bool) -> FloatArray:
    """``statistic`` of resampled scores, ``[repetitions, ...]``, worked out in chunks."""
    rng, sizes = np.random.default_rng(seed), np.array([len(task) for task in scores])
    padded = np.zeros((len(scores), sizes.max(), *scores[0].shape[1:]))
    for row, task in zip(padded, scores, strict=True):
        row[: len(task)] = task
    chunk, parts = max(1, _CHUNK // padded.size), []
    for begin in range(0, repetitions, chunk):
        rows = np.tile(np.arange(len(scores)), (min(chunk, repetitions - begin), 1))
        if resample_tasks:
            rows = rng.integers(len(scores), size=rows.shape)
        parts += [statistic(drawn) for drawn in _resampled(padded, sizes, rows, rng)]
    return np.concatenate(parts)


def _resampled(
    padded: FloatArray, sizes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[list[FloatArray]]:
    """Runs drawn with replacement from the tasks in ``rows [repetitions, tasks]``.

    Repetitions whose tasks have the same numbers of runs are one group, one array ``[repetitions, runs, ...]`` a task.
    """
    by_size = np.argsort(sizes[rows], axis=1, kind="stable")
    rows = np.take_along_axis(rows, by_size, axis=1)
    shapes, group = np.unique(sizes[rows], axis=0, return_inverse=True)
    for number, shape in enumerate(shapes):
        own = rows[group.reshape(-1) == number]
        yield [padded[own[:, at, None], rng.integers(n, size=(len(own), n))] for at, n in enumerate(shape)]


def _resampled_wins(table: FloatArray, repetitions: int, rng: np.random.Generator) -> FloatArray:
    """Mean of ``table [n, m]`` with its rows and its columns drawn with replacement, ``[repetitions]``."""
    n, m = table.shape
    ours = rng.multinomial(n, np.full(n, 1 / n), size=repetitions) / n
    theirs = rng.multinomial(m, np.full(m, 1 / m), size=repetitions) / m
    return np.asarray(((ours @ table) * theirs).sum(axis=1))
