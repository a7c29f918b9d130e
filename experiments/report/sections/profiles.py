"""Performance profiles: how many runs end above each score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.pages.parts import Figure, Section
from experiments.report import figures
from experiments.report.comparison import Comparison
from experiments.report.sections._shared import KINDS, alike, last_returns, listing, number, own_scale
from experiments.report.sections.aggregates import covering
from experiments.report.statistics import FloatArray, performance_profile

POINTS = 101


def profiles(comparison: Comparison) -> Section | None:
    """Share of runs above each normalised return; None when there are no references or no agent has them all."""
    envs, agents = covering(comparison)
    if not agents:
        return None
    lead = (
        "The share of runs, over all environments and seeds, that end above a normalised return. A curve that lies"
        " above another everywhere is better at every level; where curves cross, it depends on what is asked for."
    )
    groups = alike(comparison, agents)
    drawn = [_figure(comparison, envs, members, kind) for kind, members in groups.items()]
    return Section("profiles", "Performance profiles", lead, drawn)


def _figure(comparison: Comparison, envs: Sequence[str], agents: Sequence[str], kind: str) -> Figure:
    scores = {agent: last_returns(comparison, agent, envs, normalised=True) for agent in agents}
    looks, taus = figures.styles(comparison.agents), _taus(np.concatenate([np.concatenate(s) for s in scores.values()]))
    figure, axes = figures.new(KINDS.get(kind, ""), "normalised return", "share of runs above")
    for agent in agents:
        found = performance_profile(scores[agent], taus)
        xs = taus.tolist()
        if found.low is not None and found.high is not None:
            figures.band(axes, agent, looks[agent], xs, found.low.tolist(), found.high.tolist())
        figures.line(axes, agent, looks[agent], xs, found.value.tolist())
    axes.set_ylim(-0.03, 1.03)
    figures.legend(figure, looks, agents)
    middle = "; ".join(f"{agent} {number(float(np.mean(np.concatenate(scores[agent]) > 0.5)))}" for agent in agents)
    caption = f"On {listing(envs)}. Bands are pointwise 95 % bootstrap intervals, where there are enough seeds."
    caption = " ".join(filter(None, [caption, own_scale(comparison, envs)]))
    return Figure(
        "-".join(filter(None, ["profiles", kind])),
        figure,
        caption,
        f"Performance profiles. Share of runs above 0.5: {middle}.",
    )


def _taus(values: FloatArray) -> FloatArray:
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    return np.linspace(low - 0.02 * (high - low), high + 0.02 * (high - low), POINTS)
