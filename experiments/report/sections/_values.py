"""Values of agents that learned from data: against what they can be, over training and along imagined rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes

from experiments.pages.parts import Figure, Part, Table
from experiments.report import figures
from experiments.report._learned import Values
from experiments.report.comparison import Comparison, Run
from experiments.report.figures import Style
from experiments.report.sections._shared import number, plural, slug

Cell = str | float | int | bool | None
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Learner:
    """An agent's runs on one dataset, all with records of values."""

    env: str
    dataset: str
    agent: str
    runs: tuple[Run, ...]

    @property
    def values(self) -> list[Values]:
        """Those of each run."""
        return [run.values for run in self.runs if run.values is not None]

    @property
    def imagines(self) -> bool:
        """Whether values along imagined rollouts are known."""
        return any(values.growth is not None for values in self.values)

    @property
    def records_outside(self) -> int:
        """Records of values that no return can have, over all runs."""
        return sum(values.outside for values in self.values)

    @property
    def grows(self) -> bool:
        """Whether values of a run grow towards the edge of its rollouts by more than the data's rewards explain."""
        return any(values.grows for values in self.values)

    @property
    def worst(self) -> Run:
        """The run to look into first."""

        def badness(run: Run) -> tuple[int, bool, float]:
            assert run.values is not None
            return run.values.outside, run.values.grows, run.values.growth or 0.0

        return max(self.runs, key=badness)

    def outside(self, several: bool) -> str:
        """In a sentence, how far values left the range."""
        every = sum(len(values.q) for values in self.values)
        low, high = min(v.low for v in self.values), max(v.high for v in self.values)
        ends = [values.q[-1][1] for values in self.values]
        runs = sum(values.outside > 0 for values in self.values)
        return (
            f"Values of {self._name(several)} left the attainable range, {number(low)} to {number(high)}, in"
            f" {self.records_outside:,} of {plural(every, 'record')} ({runs} of {plural(len(self.runs), 'run')}; at the"
            f" end {', '.join(map(_said, ends))})."
        )

    def growing(self, several: bool) -> str:
        """In a sentence, how values grow along rollouts."""
        worst = max((v for v in self.values if v.grows), key=lambda values: values.growth or 0.0)
        first, edge = min(worst.depths), max(worst.depths)
        return (
            f"Values of {self._name(several)} grow towards the edge of its rollouts: from"
            f" {number(worst.depths[first])} after {plural(first, 'imagined step')} to {number(worst.depths[edge])}"
            f" after {edge:,}; the data's rewards account for a growth of {number(worst.explained or 0.0)} at most."
        )

    def _name(self, several: bool) -> str:
        return f"{self.agent} on {self.dataset}" if several else self.agent


def worrying(learners: Sequence[Learner]) -> list[Learner]:
    """Those whose values leave the range or grow towards the edge."""
    return [learner for learner in learners if learner.records_outside or learner.grows]


def _said(value: float) -> str:
    return number(value) if math.isfinite(value) else "no number"


def value_parts(comparison: Comparison, learners: Sequence[Learner]) -> list[Part]:
    """Two figures a dataset, and their numbers."""
    parts: list[Part] = []
    for env, dataset in dict.fromkeys((learner.env, learner.dataset) for learner in learners):
        own = [learner for learner in learners if (learner.env, learner.dataset) == (env, dataset)]
        parts.append(_over_training(comparison, own))
        deep = [learner for learner in own if learner.imagines]
        parts += [_along_rollouts(comparison, deep)] if deep else []
    deep = [learner for learner in learners if learner.imagines]
    return [*parts, _range_table(learners), *([_depth_table(deep)] if deep else [])]


def _draw(axes: Axes, learner: Learner, style: Style, curve: Callable[[Values], Curve]) -> None:
    """A thin line a seed; with several, their mean, where they are measured at the same places."""
    lines = {run.seed: curve(run.values) for run in learner.runs if run.values is not None}
    for seed, line in lines.items():
        figures.thin_line(axes, learner.agent, style, *line, seed)
    places = {tuple(xs) for xs, _ in lines.values()}
    if len(lines) > 1 and len(places) == 1:
        middle = [fmean(ys) for ys in zip(*(ys for _, ys in lines.values()), strict=True)]
        figures.line(axes, learner.agent, style, [*places.pop()], middle)


def _over_training(comparison: Comparison, learners: Sequence[Learner]) -> Figure:
    env, dataset = learners[0].env, learners[0].dataset
    looks = figures.styles(comparison.agents)
    figure, axes = figures.new(dataset, "gradient steps", "mean value of the critics")
    for learner in learners:
        _draw(axes, learner, looks[learner.agent], _finite)
    for name, value in _range(learners).items():
        figures.landmark(axes, value, name)
    axes.set_xlim(left=0)
    figures.legend(figure, looks, [learner.agent for learner in learners])
    caption = (
        f"Mean value that the critics give the batches of {dataset} on {env}. Dotted: the lowest and the highest"
        " discounted sum of rewards in the data that there can be; a value beyond is made up."
    )
    said = "; ".join(f"{x.agent} at {', '.join(_said(v.q[-1][1]) for v in x.values)}" for x in learners)
    return Figure(
        f"values-{slug(env)}-{slug(dataset)}", figure, caption, f"Values over gradient steps. At the end: {said}."
    )


def _range(learners: Sequence[Learner]) -> Mapping[str, float]:
    """The range of each discount; agents with the same one share it."""
    found = {(values.low, values.high): learner.agent for learner in learners for values in learner.values}
    several = len(found) > 1
    return {
        f"{end} attainable{f' ({agent})' if several else ''}": value
        for (low, high), agent in found.items()
        for end, value in (("lowest", low), ("highest", high))
    }


def _finite(values: Values) -> Curve:
    points = [(float(updates), q) for updates, q in values.q if math.isfinite(q)]
    return [x for x, _ in points], [y for _, y in points]


def _along_rollouts(comparison: Comparison, learners: Sequence[Learner]) -> Figure:
    env, dataset = learners[0].env, learners[0].dataset
    looks = figures.styles(comparison.agents)
    figure, axes = figures.new(dataset, "imagined steps", "mean value at the end")
    for learner in learners:
        _draw(axes, learner, looks[learner.agent], lambda v: ([float(k) for k in v.depths], [*v.depths.values()]))
    figures.legend(figure, looks, [learner.agent for learner in learners])
    caption = (
        "Mean value of states after so many imagined steps, at the last rollouts: at 0 the data's own states, at the"
        " right end those at the edge, which targets ask for and nothing is learned about."
    )
    said = "; ".join(f"{learner.agent} {_ends(learner)}" for learner in learners)
    name = f"values-{slug(env)}-{slug(dataset)}-depth"
    return Figure(name, figure, caption, f"Values by imagined depth. From the data to the edge: {said}.")


def _ends(learner: Learner) -> str:
    ends = [(v.depths[min(v.depths)], v.depths[max(v.depths)]) for v in learner.values if v.depths]
    return ", ".join(f"{number(first)} to {number(edge)}" for first, edge in ends)


def _range_table(learners: Sequence[Learner]) -> Table:
    rows: list[list[Cell]] = []
    for learner in learners:
        ends = [values.q[-1][1] for values in learner.values]
        known = fmean(ends) if all(map(math.isfinite, ends)) else None
        low, high = min(v.low for v in learner.values), max(v.high for v in learner.values)
        every = sum(len(values.q) for values in learner.values)
        outside = f"{learner.records_outside:,} of {every:,}"
        rows.append([learner.dataset, learner.agent, len(learner.runs), known, low, high, outside])
    columns = ["dataset", "agent", "seeds", "value at the end", "lowest attainable", "highest attainable"]
    caption = "Values and their attainable range; a dash where the critics gave no number"
    return Table("data-values", [*columns, "records outside"], rows, caption)


def _depth_table(learners: Sequence[Learner]) -> Table:
    depths = sorted({k for learner in learners for values in learner.values for k in values.depths})
    rows: list[list[Cell]] = []
    for learner in learners:
        row: list[Cell] = [learner.dataset, learner.agent]
        row += [_mean([v.depths[k] for v in learner.values if k in v.depths]) for k in depths]
        row.append(_mean([v.growth for v in learner.values if v.growth is not None]))
        row.append(_mean([v.explained for v in learner.values if v.explained is not None]))
        row.append(_mean([v.edge_share for v in learner.values if v.edge_share is not None]))
        rows.append(row)
    columns = ["dataset", "agent", *(f"after {k}" for k in depths), "growth", "accounted for, at most", "edge share"]
    caption = (
        "Mean value by imagined depth at the end, means over seeds; edge share: imagined rows whose target asks for the"
        " value of a state at the edge"
    )
    return Table("data-depths", columns, rows, caption)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
