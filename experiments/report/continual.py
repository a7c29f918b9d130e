"""Runs through a sequence of tasks: their records as matrices, and the measures of remembering and forgetting.

In a matrix ``M[j, t]`` is what was measured on the task at position ``t`` after the task at position ``j`` was learned;
it is NaN above the diagonal and wherever nothing was measured. The measures follow Lopez-Paz and Ranzato, "Gradient
episodic memory for continual learning" (2017) and Wolczyk et al., "Continual World: a robotic benchmark for continual
reinforcement learning" (2021), with the scores of a task between random actions and an agent of that task's own.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.report.comparison import RANDOM, Comparison, Run
from experiments.report.statistics import FloatArray

BoolArray = npt.NDArray[np.bool_]
SINGLE = "hypercrl-single"
"""The agent whose return at the end, with a model of its own for every task, counts as 1."""
DEPTH = re.compile(r"error_at_(\d+)")


# ---- measures


def average(matrix: FloatArray, tasks: BoolArray) -> float | None:
    """Mean at the end over the ``tasks`` that count, ``[T]``; None where none does."""
    return _mean(matrix[-1], tasks)


def forgetting(matrix: FloatArray, tasks: BoolArray) -> float | None:
    """What was lost between the end of a task and the end of all, a mean over the old tasks; 0 is none, higher worse.

    Args:
        matrix: scores or returns, ``[T, T]``.
        tasks: which count, ``[T]``; the last one was just learned and never does.
    """
    return _mean(np.diagonal(matrix) - matrix[-1], _old(tasks))


def forward_transfer(scores: FloatArray, tasks: BoolArray) -> float | None:
    """How far a task just learned is above the agent that learns it alone, whose score is 1; below 0 is worse."""
    return _mean(np.diagonal(scores) - 1.0, tasks)


def just_learned(matrix: FloatArray) -> float | None:
    """Mean over the old tasks of what was measured right after each; None where one of them could not be measured."""
    return _mean(np.diagonal(matrix), _old(np.ones(len(matrix), dtype=bool)))


def at_end(matrix: FloatArray) -> float | None:
    """Mean over the old tasks of what was measured after all; None where one of them could not be measured."""
    return _mean(matrix[-1], _old(np.ones(len(matrix), dtype=bool)))


def normalised(returns: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Scores ``[..., T]`` of returns ``[..., T]`` with ``low`` at 0 and ``high`` at 1, both ``[T]``.

    NaN for tasks without these, or where ``high`` is not above ``low``: a span that would turn the order around.
    """
    span = high - low
    return (returns - low) / np.where(span > 0, span, np.nan)


def _old(tasks: BoolArray) -> BoolArray:
    return tasks & (np.arange(len(tasks)) < len(tasks) - 1)


def _mean(values: FloatArray, which: BoolArray) -> float | None:
    """None without a value, or where one is not a number: what could not be measured is not averaged away."""
    mean = float(values[which].mean()) if which.any() else np.nan
    return mean if np.isfinite(mean) else None


# ---- one run


@dataclass(frozen=True)
class Task:
    """A task as the records name it."""

    id: str
    name: str


@dataclass(frozen=True)
class TaskCost:
    """What learning one task took and left behind; None is what the records do not say."""

    seconds: float | None
    """Processor time of acting and learning, evaluations aside"""
    bytes: float | None
    """Kept for this task, ``kept_bytes`` of old rows, targets or anchors among them"""
    kept_bytes: float | None
    shared_bytes: float | None
    stored_rows: float | None


@dataclass(frozen=True, eq=False)
class TaskRun:
    """One run through a sequence, as far as it came: ``J`` tasks."""

    agent: str
    seed: int
    state: str
    tasks: tuple[Task, ...]
    returns: FloatArray
    """Mean returns, ``[J, J]``"""
    errors: Mapping[int, FloatArray]
    """Open-loop errors by depth, ``[J, J]``, in standard deviations; without the rollouts that diverged"""
    rollouts: FloatArray
    """How many each error was measured on, ``[J, J]``"""
    diverged: FloatArray
    """How many of them diverged, ``[J, J]``"""
    costs: Mapping[int, TaskCost] = field(default_factory=dict)
    """By position"""

    @property
    def complete(self) -> bool:
        """Every task so far was measured after every one that followed."""
        return bool(np.isfinite(self.returns[np.tril_indices(len(self.returns))]).all())


def read_tasks(run: Run) -> TaskRun | None:
    """The records of a run through a sequence as matrices; None where it has none.

    The last row of a run that was killed within it is left out: its task was not measured yet.
    """
    every = [record for record in run.tasks if record["event"] == "task_evaluation"]
    named = {r["position"]: Task(str(r["task"]), str(r["name"])) for r in every if r["position"] == r["learned"]}
    size = next(position for position in itertools.count() if position not in named)
    cells = [record for record in every if record["learned"] < size]
    depths = sorted({int(found[1]) for record in cells for name in record if (found := DEPTH.fullmatch(name))})
    if not cells:
        return None
    return TaskRun(
        run.agent,
        run.seed,
        run.state,
        tuple(named[position] for position in range(size)),
        _matrix(cells, "return_mean", size),
        {depth: _matrix(cells, f"error_at_{depth}", size) for depth in depths},
        _matrix(cells, "rollouts", size),
        _matrix(cells, "diverged", size),
        {record["position"]: _cost(record) for record in run.tasks if record["event"] == "task"},
    )


def _matrix(cells: Iterable[Mapping[str, Any]], name: str, size: int) -> FloatArray:
    matrix = np.full((size, size), np.nan)
    for record in cells:
        if (value := _number(record.get(name))) is not None:
            matrix[record["learned"], record["position"]] = value
    return matrix


def _cost(record: Mapping[str, Any]) -> TaskCost:
    names = ("task_seconds", "task_memory_bytes", "kept_bytes", "shared_bytes", "stored_rows")
    return TaskCost(*(_number(record.get(name)) for name in names))


def _number(value: object) -> float | None:
    """What is no finite number was written as null."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


# ---- all runs of a sequence


@dataclass(frozen=True, eq=False)
class SequenceRuns:
    """The runs of one sequence, sorted by what may be compared."""

    env: str
    tasks: tuple[Task, ...]
    """``T`` of them, in the order in which they are learned"""
    agents: tuple[str, ...]
    """Those with a run that is not among :attr:`others`, in the comparison's order"""
    everyone: tuple[str, ...]
    """All agents of the comparison; an agent looks the same in all of its figures"""
    finished: Sequence[TaskRun]
    """Through all tasks: what measures and averages are made from"""
    unfinished: Sequence[TaskRun]
    """Through the first tasks only"""
    others: Sequence[TaskRun]
    """Through other tasks, fewer of them or in another order: compared with nothing"""
    low: FloatArray
    """Returns of random actions ``[T]``, NaN where not known"""
    high: FloatArray
    """Returns of agents with a model for each task alone ``[T]``, NaN where not known"""

    @property
    def scored(self) -> BoolArray:
        """Which tasks have scores, ``[T]``."""
        return np.asarray(self.high > self.low)

    @property
    def depths(self) -> list[int]:
        """Depths at which any run measured its model's errors."""
        return sorted({depth for run in (*self.finished, *self.unfinished) for depth in run.errors})

    def of(self, agent: str) -> list[TaskRun]:
        """The finished runs of an agent, by seed."""
        return [run for run in self.finished if run.agent == agent]

    def stopped(self, agent: str) -> list[TaskRun]:
        """The unfinished runs of an agent, by seed."""
        return [run for run in self.unfinished if run.agent == agent]

    def scores(self, run: TaskRun) -> FloatArray:
        """A run's normalised returns, ``[J, J]``; NaN for tasks that are not :attr:`scored`."""
        size = len(run.returns)
        return normalised(run.returns, self.low[:size], self.high[:size])


def sequence_runs(comparison: Comparison, env: str) -> SequenceRuns | None:
    """The runs of ``env`` that recorded tasks; None where none did.

    The sequence is the one that most of the finished runs went through, else that of the run that came furthest.
    """
    read = [read_tasks(run) for agent in comparison.agents for run in comparison.of(agent, env)]
    runs = [run for run in read if run is not None]
    if not runs:
        return None
    tasks = _sequence(runs)
    finished = [run for run in runs if _whole(run) and run.tasks == tasks]
    unfinished = [run for run in runs if not _whole(run) and run.tasks == tasks[: len(run.tasks)]]
    own = [*finished, *unfinished]
    return SequenceRuns(
        env,
        tasks,
        tuple(agent for agent in comparison.agents if any(run.agent == agent for run in own)),
        tuple(comparison.agents),
        finished,
        unfinished,
        [run for run in runs if run not in own],
        _at_end(finished, RANDOM, len(tasks)),
        _at_end(finished, SINGLE, len(tasks)),
    )


def _whole(run: TaskRun) -> bool:
    return run.state == "done" and run.complete


def _sequence(runs: Sequence[TaskRun]) -> tuple[Task, ...]:
    counts = Counter(run.tasks for run in runs if _whole(run))
    if not counts:
        return max((run.tasks for run in runs), key=len)
    return max(counts, key=lambda tasks: (counts[tasks], len(tasks)))


def _at_end(runs: Sequence[TaskRun], agent: str, size: int) -> FloatArray:
    """Mean returns ``[T]`` of an agent after the last task."""
    rows = [run.returns[-1] for run in runs if run.agent == agent]
    return np.mean(rows, axis=0) if rows else np.full(size, np.nan)


# ---- the summary


Row = dict[str, str | float | int | None]


def continual_rows(comparison: Comparison, env: str) -> list[Row]:
    """One flat row an agent on the sequence ``env``: means over its finished runs, and the worst of them.

    ``return``, ``score``, ``forgetting``, ``forgetting_return`` and ``forward`` have a twin ``..._worst``;
    ``error_at_K_just`` and ``error_at_K_end`` are means over the old tasks; ``bytes``, ``kept_bytes``, ``shared_bytes``
    and ``stored_rows`` are those of the last task. ``diverged`` of ``rollouts`` are counted over all evaluations of
    all runs, unfinished ones too. None is what no run can tell; the list is empty where no run recorded tasks.
    """
    runs = sequence_runs(comparison, env)
    return [] if runs is None else [summary_row(runs, agent) for agent in runs.agents]


def summary_row(runs: SequenceRuns, agent: str) -> Row:
    """The row of one agent in :func:`continual_rows`."""
    own, stopped = runs.of(agent), runs.stopped(agent)
    row: Row = {"agent": agent, "finished": len(own), "unfinished": len(stopped)}
    row |= _returns(runs, own) | _errors(own, runs.depths) | _costs(own)
    return row | _rollouts([*own, *stopped])


def _returns(runs: SequenceRuns, own: Sequence[TaskRun]) -> Row:
    every, scored = np.ones(len(runs.tasks), dtype=bool), runs.scored
    scores = [runs.scores(run) for run in own]
    lost = [forgetting(run.returns, every) for run in own]
    return {
        **_mean_and_worst("return", [average(run.returns, every) for run in own], min),
        **_mean_and_worst("score", [average(score, scored) for score in scores], min),
        **_mean_and_worst("forgetting", [forgetting(score, scored) for score in scores], max),
        **_mean_and_worst("forgetting_return", lost, max),
        **_mean_and_worst("forward", [forward_transfer(score, scored) for score in scores], min),
    }


def _mean_and_worst(name: str, values: Sequence[float | None], worst: Any) -> Row:
    known = [value for value in values if value is not None]
    whole = bool(known) and len(known) == len(values)
    return {name: mean_of(values), f"{name}_worst": worst(known) if whole else None}


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where there is nothing, or where one of the values is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _errors(own: Sequence[TaskRun], depths: Iterable[int]) -> Row:
    row: Row = {}
    for depth in depths:
        for name, measure in (("just", just_learned), ("end", at_end)):
            found = [measure(run.errors[depth]) if depth in run.errors else None for run in own]
            row[f"error_at_{depth}_{name}"] = mean_of(found)
    return row


def _costs(own: Sequence[TaskRun]) -> Row:
    last = [run.costs.get(len(run.tasks) - 1) for run in own]
    names = ("bytes", "kept_bytes", "shared_bytes", "stored_rows")
    row: Row = {name: mean_of([None if cost is None else getattr(cost, name) for cost in last]) for name in names}
    return _seconds(own) | row


def _seconds(own: Sequence[TaskRun]) -> Row:
    """Of the second task and of the last one; the first is not like the others: nothing is to be kept yet."""
    second, last = ([_seconds_of(run, place) for run in own] for place in (1, -1))
    ratios = [_ratio(*pair) for pair in zip(last, second, strict=True)]
    further = all(len(run.tasks) > 2 for run in own)
    return {
        "seconds_second": mean_of(second),
        "seconds_last": mean_of(last),
        "seconds_ratio": mean_of(ratios) if further else None,
    }


def _seconds_of(run: TaskRun, place: int) -> float | None:
    cost = run.costs.get(place % len(run.tasks)) if len(run.tasks) > 1 else None
    return None if cost is None else cost.seconds


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _rollouts(runs: Sequence[TaskRun]) -> Row:
    """None without a model whose rollouts could diverge."""
    rollouts, diverged = (int(sum(np.nansum(getattr(run, name)) for run in runs)) for name in ("rollouts", "diverged"))
    return {"diverged": diverged if rollouts else None, "rollouts": rollouts or None}
