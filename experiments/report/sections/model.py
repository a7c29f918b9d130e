"""How good the learned models are, over the course of training."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from experiments.pages.parts import Choice, Figure, Part, Section
from experiments.report import figures
from experiments.report.comparison import Axis, Comparison, Run
from experiments.report.sections._shared import finished, plural, seeds, shown_agents, slug
from experiments.report.statistics import align

MEASURE = re.compile(r"error_at_(?P<depth>\d+)|coverage_(?P<level>\d+)|(?P<nll>.*nll.*)")
"""Values of ``fit`` records that say how good a model is."""
Curve = tuple[list[float], list[float]]


def model(comparison: Comparison) -> Section | None:
    """A figure for every environment and measure; None when no run fitted a model and measured it."""
    axis: Axis = "env_steps" if any(fit.get("env_steps") for run in comparison.runs for fit in run.fits) else "updates"
    options = {env: found for env in comparison.envs if (found := _figures(comparison, env, axis))}
    if not options:
        return None
    several = max(seeds(comparison), default=1) > 1
    lead = (
        "What the fits measured on data that came after the previous fit. Errors are root mean square errors of"
        " open-loop predictions, in standard deviations of the observations."
        + (" Thin: a seed; thick: the mean of those that finished." if several else "")
    )
    parts = [Choice("model-env", "On", options)] if len(options) > 1 else [*next(iter(options.values()))]
    return Section("model", "Model quality", lead, parts)


def measures(runs: Sequence[Run]) -> list[str]:
    """The measures that fits recorded, errors by depth first."""
    names = {name for run in runs for fit in run.fits for name, value in fit.items() if _is_number(value)}
    found = {name: match for name in names if (match := MEASURE.fullmatch(name))}
    return sorted(found, key=lambda name: (name.rstrip("0123456789") != "error_at_", *_natural(name)))


def _natural(name: str) -> tuple[str, int]:
    digits = re.search(r"\d+$", name)
    return (name.rstrip("0123456789"), int(digits.group()) if digits else 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(comparison: Comparison, env: str, axis: Axis) -> list[Part]:
    runs = [run for agent in shown_agents(comparison, env) for run in comparison.of(agent, env)]
    return [_figure(comparison, env, axis, measure) for measure in measures(runs)]


def _figure(comparison: Comparison, env: str, axis: Axis, measure: str) -> Figure:
    title, ylabel, nominal = _words(measure)
    looks, shown = figures.styles(comparison.agents), []
    figure, axes = figures.new(f"{env}: {title}", axis.replace("_", " "), ylabel)
    if nominal is not None:
        figures.landmark(axes, nominal, "nominal")
    for agent in comparison.agents:
        lines = {run.seed: _curve(run, axis, measure) for run in comparison.of(agent, env)}
        lines = {seed: line for seed, line in lines.items() if line[0]}
        for seed, line in lines.items():
            figures.thin_line(axes, agent, looks[agent], *line, seed)
        whole = [lines[run.seed] for run in finished(comparison, agent, env) if run.seed in lines]
        if len(whole) > 1 and (middle := _mean(whole)):  # a shorter one would cut the common curve
            figures.line(axes, agent, looks[agent], *middle)
        shown += [agent] if lines else []
    figures.legend(figure, looks, shown)
    caption = f"{title[0].upper()}{title[1:]} on {env}, of {plural(len(shown), 'agent')}."
    return Figure(
        f"model-{slug(env)}-{slug(measure)}", figure, caption, f"{title} over {axis.replace('_', ' ')} on {env}."
    )


def _words(measure: str) -> tuple[str, str, float | None]:
    """Title, what the y-axis says, and where a perfect model would be if that is not zero."""
    match = MEASURE.fullmatch(measure)
    if match is not None and (depth := match["depth"]):
        return f"error after {plural(int(depth), 'step')}", "error (standard deviations)", None
    if match is not None and (level := match["level"]):
        return f"coverage of {level} % intervals", "share inside", int(level) / 100
    return measure.replace("_", " "), measure.replace("_", " "), None


def _curve(run: Run, axis: Axis, measure: str) -> Curve:
    points = [(float(fit.get(axis, 0)), float(fit[measure])) for fit in run.fits if _is_number(fit.get(measure))]
    return [x for x, _ in points], [y for _, y in points]


def _mean(lines: Sequence[Curve]) -> Curve | None:
    """The mean over seeds where all of them have fits; None where they have no stretch in common."""
    if max(xs[0] for xs, _ in lines) > min(xs[-1] for xs, _ in lines):
        return None
    x, values = align([(np.array(xs), np.array(ys)) for xs, ys in lines])
    return x.tolist(), values.mean(axis=0).tolist()
