"""The drawings of the section on task sequences: what every task was worth after every other, and its way there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FixedLocator

from experiments.pages.parts import Figure
from experiments.report import figures
from experiments.report.continual import SequenceRuns, TaskRun, mean_of
from experiments.report.figures import Scale, Style
from experiments.report.sections._shared import number, plural, slug
from experiments.report.statistics import FloatArray

MOST_WRITTEN = 12
"""Tasks up to which the cells of a matrix have room for their number."""
LOWEST = -0.5
"""Score at which the figure over the sequence is cut off, lest one collapse flatten all else."""
MISSING, BLANK = "\N{EN DASH}", " "
AFTER, ON = "task learned last", "measured on task"


# ---- matrices


def matrices(runs: SequenceRuns, agent: str) -> list[Figure]:
    """Returns, and the errors at the least and the greatest depth, after every task on every task before it."""
    depths = sorted({*runs.depths[:1], *runs.depths[-1:]})
    modelled = [depth for depth in depths if any(depth in run.errors for run in shown(runs, agent))]
    return [_returns(runs, agent), *(_errors(runs, agent, depth) for depth in modelled)]


def shown(runs: SequenceRuns, agent: str) -> list[TaskRun]:
    """The finished runs of an agent; without any, the one that came furthest."""
    return runs.of(agent) or [max(runs.stopped(agent), key=lambda run: len(run.tasks))]


def _returns(runs: SequenceRuns, agent: str) -> Figure:
    own = shown(runs, agent)
    returns = _whole(runs, np.mean([run.returns for run in own], axis=0))
    scored = bool(runs.scored.any())
    values = _whole(runs, np.mean([runs.scores(run) for run in own], axis=0)) if scored else returns
    texts = _texts(returns, len(own[0].tasks), lambda value: figures.short(float(f"{value:.3g}")))
    said = "coloured by normalised score, below 0 as 0 and above 1 as 1" if scored else "the brighter the higher"
    caption = f"Mean return of {agent} on each task (column) after each task was learned (row), {_of(own)}; {said}."
    if scored and not runs.scored.all():
        caption += " Grey: tasks without a score."
    return _figure(runs, agent, "return", values, texts, _return_scale(runs, scored), caption)


def _return_scale(runs: SequenceRuns, scored: bool) -> Scale:
    """One for all agents, so that their matrices can be compared."""
    if scored:
        return Scale("normalised score", Normalize(0.0, 1.0, clip=True))
    return Scale("return", Normalize(*_range(run.returns for run in (*runs.finished, *runs.unfinished)), clip=True))


def _errors(runs: SequenceRuns, agent: str, depth: int) -> Figure:
    own = [run for run in shown(runs, agent) if depth in run.errors]
    errors = _whole(runs, np.mean([run.errors[depth] for run in own], axis=0))
    diverged = _whole(runs, np.sum([np.nan_to_num(run.diverged) for run in own], axis=0))
    texts = _texts(errors, len(own[0].tasks), lambda value: f"{value:.2g}")
    marked = [[_with_count(*cell) for cell in zip(*row, strict=True)] for row in zip(texts, diverged, strict=True)]
    every = (run.errors[depth] for run in (*runs.finished, *runs.unfinished) if depth in run.errors)
    scale = Scale("error, standard deviations", LogNorm(*_range(every, positive=True), clip=True), high_is_best=False)
    caption = (
        f"Open-loop error of {agent}'s model after {plural(depth, 'step')} on each task (column) after each task was"
        f" learned (row), {_of(own)}; the darker the worse."
    )
    if (count := int(np.nansum(diverged))) > 0:
        tried = int(np.nansum([run.rollouts for run in own]))
        caption += f" Marked !: as many rollouts diverged and are not in the error, {count:,} of {tried:,} in all."
    return _figure(runs, agent, f"error at depth {depth}", np.where(errors > 0, errors, np.nan), marked, scale, caption)


def _with_count(text: str, diverged: float) -> str:
    return f"{text}\n!{int(diverged)}" if text and diverged > 0 else text


def _figure(
    runs: SequenceRuns,
    agent: str,
    what: str,
    values: FloatArray,
    texts: Sequence[Sequence[str]],
    scale: Scale,
    caption: str,
) -> Figure:
    rows, columns = task_labels(runs), [str(place) for place in range(1, len(runs.tasks) + 1)]
    own = shown(runs, agent)
    stopped = "" if own[0] in runs.finished else f", unfinished ({reached(runs, own[0])})"
    drawn = figures.heat_map(f"{agent}: {what}{stopped}", (ON, AFTER), rows, columns, values, texts, scale)
    name = f"tasks-{slug(runs.env)}-{runs.agents.index(agent)}-{slug(agent)}-{slug(what)}"
    alt = f"Matrix of {agent}, {what}. Last row: {', '.join(filter(None, texts[len(own[0].returns) - 1]))}."
    return Figure(name, drawn, caption, alt.replace("\n", " "))


def reached(runs: SequenceRuns, run: TaskRun) -> str:
    """How far an unfinished run came; how far it would have to go, only a finished one tells."""
    count = len(run.tasks)
    return f"{count} of {plural(len(runs.tasks), 'task')}" if runs.finished else f"{plural(count, 'task')} so far"


def task_labels(runs: SequenceRuns) -> list[str]:
    """``1 light``: the place, too, since a sequence may come back to a task."""
    return [f"{place} {task.name}" for place, task in enumerate(runs.tasks, start=1)]


def _whole(runs: SequenceRuns, matrix: FloatArray) -> FloatArray:
    """A matrix ``[J, J]`` with the tasks that an unfinished run did not reach, ``[T, T]``."""
    missing = len(runs.tasks) - len(matrix)
    return np.pad(matrix, (0, missing), constant_values=np.nan)


def _texts(matrix: FloatArray, learned: int, say: Callable[[float], str]) -> list[list[str]]:
    """What the cells on and below the diagonal say, as far as a run has ``learned``; nothing in the others."""
    written = len(matrix) <= MOST_WRITTEN
    texts = [["" for _ in row] for row in matrix]
    for row, column in zip(*np.tril_indices(learned), strict=True):
        value = float(matrix[row, column])
        texts[row][column] = MISSING if not np.isfinite(value) else say(value) if written else BLANK
    return texts


def _range(matrices: Iterable[FloatArray], positive: bool = False) -> tuple[float, float]:
    """Least and greatest number, apart from one another."""
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    known = values[np.isfinite(values) & ((values > 0) | (not positive))]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    return (low, high) if high > low else (low, low + (0.1 * abs(low) or 1.0))


def _of(own: Sequence[TaskRun]) -> str:
    return f"mean of {plural(len(own), 'seed')}" if len(own) > 1 else f"seed {own[0].seed}"


# ---- over the sequence


def progress(runs: SequenceRuns) -> Figure:
    """How each task does from when it was learned to the end: a strip a task, a line an agent."""
    scored = bool(runs.scored.any())
    places = [place for place in range(len(runs.tasks)) if runs.scored[place] or not scored]
    looks, labels = figures.styles(runs.everyone), task_labels(runs)
    ylabel = "normalised score" if scored else "return"
    figure, strips = figures.strips([labels[place] for place in places], "tasks learned", ylabel)
    cut = [_strip(axes, runs, place, scored, looks) for axes, place in zip(strips, places, strict=True)]
    strips[0].set_xlim(0.7, len(runs.tasks) + 0.3)
    strips[-1].xaxis.set_major_locator(FixedLocator(list(range(1, len(runs.tasks) + 1))))
    if any(cut):
        strips[0].set_ylim(bottom=LOWEST)
    figures.legend(figure, looks, runs.agents)
    name = f"tasks-{slug(runs.env)}-over-the-sequence"
    return Figure(name, figure, _progress_caption(runs, scored, any(cut)), _progress_alt(runs))


def _strip(axes: Axes, runs: SequenceRuns, place: int, scored: bool, looks: Mapping[str, Style]) -> bool:
    """Draws one task; whether something lies too low to be shown."""
    drawn: list[FloatArray] = []
    for level in (0.0, 1.0) if scored else ():
        axes.axhline(level, color=figures.MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    for agent in runs.agents:
        own = [_course(runs, run, place, scored) for run in runs.of(agent)]
        if own:
            _draw(axes, agent, looks[agent], place, np.array(own))
        parts = {run.seed: _course(runs, run, place, scored) for run in runs.stopped(agent) if len(run.tasks) > place}
        for seed, part in parts.items():
            figures.thin_line(axes, agent, looks[agent], _xs(place, part), part.tolist(), seed)
        drawn += [*own, *parts.values()]
    return scored and any(bool((values < LOWEST).any()) for values in drawn)


def _course(runs: SequenceRuns, run: TaskRun, place: int, scored: bool) -> FloatArray:
    """The task at ``place`` after each task from itself on."""
    return (runs.scores(run) if scored else run.returns)[place:, place]


def _draw(axes: Axes, agent: str, style: Style, place: int, own: FloatArray) -> None:
    xs = _xs(place, own[0])
    if len(own) > 1:
        figures.band(axes, agent, style, xs, own.min(axis=0).tolist(), own.max(axis=0).tolist())
    figures.line(axes, agent, style, xs, own.mean(axis=0).tolist())


def _xs(place: int, values: FloatArray) -> list[float]:
    return [float(place + 1 + step) for step in range(len(values))]


def _progress_caption(runs: SequenceRuns, scored: bool, cut: bool) -> str:
    what = "Normalised score" if scored else "Return"
    text = f"{what} of each task from when it was learned to the end of the sequence: a level line forgets nothing."
    if scored:
        text += " Dashed across: 0, random actions, and 1, an agent that learns this task alone."
    if any(len(runs.of(agent)) > 1 for agent in runs.agents):
        text += " Thick: the mean over seeds; shaded: from the worst seed to the best."
    if runs.unfinished:
        text += " Thin: unfinished runs."
    if cut:
        text += f" What fell below {number(LOWEST, 1)} lies outside the figure."
    return text


def _progress_alt(runs: SequenceRuns) -> str:
    ends = {agent: mean_of([float(run.returns[-1].mean()) for run in runs.of(agent)]) for agent in runs.agents}
    said = "; ".join(f"{agent} at {number(end, 1)}" for agent, end in ends.items() if end is not None)
    return (
        f"Tasks of {runs.env} over the course of the sequence. Mean return of all tasks at the end: {said or 'none'}."
    )
