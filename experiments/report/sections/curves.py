"""Learning curves by environment, over env steps, updates or training seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from experiments.pages.parts import Choice, Figure, Part, Section, Table
from experiments.report import figures
from experiments.report.comparison import Axis, Comparison, Evaluation, Run
from experiments.report.figures import Style
from experiments.report.sections._shared import (
    evaluated,
    learned,
    listing,
    number,
    plural,
    seeds,
    shown_agents,
    slug,
    spread,
)
from experiments.report.statistics import FEWEST_RUNS, Band, align, learning_curve

AXES: dict[Axis, str] = {"env_steps": "env steps", "updates": "updates", "seconds": "training seconds"}


def curves(comparison: Comparison) -> Section | None:
    """A figure for every environment and x-axis; None when no run was evaluated."""
    if not any(run.evaluations for run in comparison.runs):
        return None
    options = {AXES[axis]: _figures(comparison, axis) for axis in _axes(comparison)}
    parts: list[Part] = [Choice("x-axis", "Over", options)] if len(options) > 1 else [*next(iter(options.values()))]
    parts += [_datasets(comparison)] if any(comparison.datasets.values()) else []
    return Section("curves", "Learning curves", _lead(seeds(comparison) or [0]), parts)


def _datasets(comparison: Comparison) -> Table:
    """The returns of datasets, which the figures show as dotted lines."""
    rows = [(env, name, value) for env, given in comparison.datasets.items() for name, value in given.items()]
    caption = "Returns of datasets, as the suite gives them"
    if not learned(comparison):
        caption += "; nothing here was measured or learned from"
    return Table("datasets", ["environment", "dataset", "return"], rows, caption)


def _lead(counts: Sequence[int]) -> str:
    drawn = f"Mean return of each evaluation; {spread(counts)} finished seed{'' if max(counts) == 1 else 's'} an agent."
    if max(counts) < FEWEST_RUNS:
        return f"{drawn} A line a seed: fewer than {FEWEST_RUNS} seeds allow no interval."
    text = "The line is the interquartile mean over seeds, the band its 95 % bootstrap interval."
    few = f" Agents with fewer than {FEWEST_RUNS} seeds have a thin line a seed and no band."
    return f"{drawn} {text}{few if min(counts) < FEWEST_RUNS else ''}"


def _axes(comparison: Comparison) -> list[Axis]:
    """The x-axes along which anything moves, the comparison's own first."""
    points = [evaluation for run in comparison.runs for evaluation in run.evaluations]
    moving = [axis for axis in AXES if any(getattr(point, axis) > 0 for point in points)]
    return sorted(moving, key=lambda axis: axis != comparison.axis) or [comparison.axis]


def _figures(comparison: Comparison, axis: Axis) -> list[Part]:
    """One an environment; beside it, one of those that do not move along env steps over their own."""
    drawn: list[Part] = []
    for env in comparison.envs:
        agents = shown_agents(comparison, env)
        drawn += [_figure(comparison, env, axis, agents)] if agents else []
        if axis == "env_steps" and (still := _still(_runs(comparison, env, agents), axis)):
            drawn.append(_figure(comparison, env, "updates", still, "from-data"))
    return drawn


def _runs(comparison: Comparison, env: str, agents: Sequence[str]) -> dict[str, list[Run]]:
    return {agent: [_whole(run) for run in evaluated(comparison, agent, env)] for agent in agents}


def _whole(run: Run) -> Run:
    """A run with what it inherited as its first evaluation, before its first step."""
    if run.inherited is None:
        return run
    begin = replace(run.inherited, env_steps=0, updates=0, seconds=0.0)
    return replace(run, evaluations=(begin, *run.evaluations))


def _figure(comparison: Comparison, env: str, axis: Axis, agents: Sequence[str], kind: str = "") -> Figure:
    looks, over = figures.styles(comparison.agents), "gradient steps" if kind else AXES[axis]
    figure, axes = figures.new(f"{env}, from data alone" if kind else env, over, "return")
    for name, value in comparison.datasets.get(env, {}).items():
        figures.landmark(axes, value, f"dataset {name}")
    runs = _runs(comparison, env, agents)
    still, short = _still(runs, axis), []
    for agent, own in runs.items():
        short += _draw(axes, agent, looks[agent], own, axis, agent in still)
    axes.set_xlim(left=0)
    figures.legend(figure, looks, agents, still)
    caption = _caption(env, over, short, still, comparison.datasets.get(env, {})) + _begun(runs, over)
    return Figure(f"curves-{slug(env)}-{kind or axis}", figure, caption, _alt(env, runs))


def _begun(runs: Mapping[str, Sequence[Run]], over: str) -> str:
    """Where the curves of agents that continue a run begin."""
    found = {agent: own[0] for agent, own in runs.items() if any(run.inherited is not None for run in own)}
    return "".join(
        f" {agent} goes on from {run.earlier}: its point at 0 is that run's last evaluation; the data and the {over} of"
        " that run do not count here."
        for agent, run in found.items()
    )


def _still(runs: Mapping[str, Sequence[Run]], axis: Axis) -> list[str]:
    """The agents that do not move along the axis, such as an offline one beside online ones; none if no one moves."""
    still = [agent for agent, own in runs.items() if all(getattr(run.evaluations[-1], axis) == 0 for run in own)]
    return still if len(still) < len(runs) else []


def _draw(axes: Axes, agent: str, style: Style, runs: Sequence[Run], axis: Axis, still: bool) -> list[Run]:
    """Draws one agent; returns the runs that ended too early."""
    if still:
        figures.level(axes, agent, style, float(np.mean([run.evaluations[-1].mean for run in runs])))
        return []
    whole = [run for run in runs if run.state == "done"]  # a shorter one would cut the common curve
    if (curve := _middle(whole, axis)) is not None:
        _draw_band(axes, agent, style, curve)
    for run in runs:
        if curve is None or run not in whole:
            figures.thin_line(axes, agent, style, *_points(run.evaluations, axis), run.seed)
    return [run for run in runs if run not in whole]


def _draw_band(axes: Axes, agent: str, style: Style, curve: Band) -> None:
    xs = curve.x.tolist()
    if curve.low is not None and curve.high is not None:
        figures.band(axes, agent, style, xs, curve.low.tolist(), curve.high.tolist())
    figures.line(axes, agent, style, xs, curve.value.tolist())


def _middle(runs: Sequence[Run], axis: Axis) -> Band | None:
    """The aggregate of several runs; None where they are too few or have no stretch of the x-axis in common."""
    if len(runs) < FEWEST_RUNS:
        return None
    points = [tuple(map(np.array, _points(run.evaluations, axis))) for run in runs]
    if axis == "seconds" and len({_grid(run) for run in runs}) == 1:  # the same evaluations, at times of their own
        together = np.mean([x for x, _ in points], axis=0)
        points = [(together, y) for _, y in points]
    if max(x[0] for x, _ in points) > min(x[-1] for x, _ in points):
        return None
    x, values = align([(x, y) for x, y in points])
    return learning_curve([values], x)


def _grid(run: Run) -> tuple[tuple[int, int], ...]:
    return tuple((point.env_steps, point.updates) for point in run.evaluations)


def _points(evaluations: Sequence[Evaluation], axis: Axis) -> tuple[list[float], list[float]]:
    return [float(getattr(point, axis)) for point in evaluations], [point.mean for point in evaluations]


def _caption(env: str, over: str, short: Sequence[Run], still: Sequence[str], datasets: Mapping[str, float]) -> str:
    text = f"Return on {env} over {over}."
    if datasets:
        given = listing(f"{name} at {number(value)}" for name, value in datasets.items())
        text += f" Dotted across, as given in the suite: the return of dataset{'s' * (len(datasets) > 1)} {given}."
    if still:
        text += f" Dashed across: the last evaluation of {listing(still)}, which took no {over}."
    if short:
        named = listing(f"{run.agent} seed {run.seed} ({run.state})" for run in short)
        text += f" {plural(len(short), 'run')} not finished, drawn thin and not averaged: {named}."
    return text


def _alt(env: str, runs: Mapping[str, Sequence[Run]]) -> str:
    ends = {agent: float(np.mean([run.evaluations[-1].mean for run in own])) for agent, own in runs.items()}
    said = "; ".join(f"{agent} at {number(end, 1)}" for agent, end in ends.items())
    return f"Learning curves on {env}. Mean return at the end: {said}."
