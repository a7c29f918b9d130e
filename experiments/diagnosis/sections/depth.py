"""Open-loop error by depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.diagnosis.verdict import number
from experiments.pages.parts import Figure, Fold, Part, Section, Table, Text
from mbrl.diagnostics.open_loop import OpenLoop

MOST_ENTRIES = 40
"""Rows of the heat map; of more entries those with the largest error at the end are shown"""


def section(found: Evidence) -> Section:
    """The curve against both baselines, the heat map by entry, and the numbers."""
    errors = found.errors
    lead = (
        "How far the model's own path is from what happened, after that many executed actions without looking again."
        f" Root mean square over {errors.windows:,} windows of {len(errors.model)} steps, drawn from the"
        f" {errors.available:,} that there are; none goes across an episode's end."
    )
    parts: list[Part] = [_curve(errors), _heat_map(errors), *_words(found), _table(errors)]
    return Section("depth", "Error by depth", lead, [*parts, Fold("By entry of the observation", [_by_entry(errors)])])


def _curves(errors: OpenLoop) -> list[tuple[str, Tensor, str, str]]:
    return [
        ("model", errors.overall(errors.model), drawing.MODEL, "-"),
        ("linear model", errors.overall(errors.linear), drawing.LINEAR, "--"),
        ("no change", errors.overall(errors.persistence), drawing.NO_CHANGE, "-."),
    ]


def _curve(errors: OpenLoop) -> Figure:
    figure, axes = drawing.plot(xlabel="depth, steps", ylabel="error, standard deviations")
    for label, value, colour, dash in _curves(errors):
        shown = value.clone()
        shown[~shown.isfinite()] = torch.nan
        axes.plot(errors.depths, shown, dash, color=colour, label=label, marker="o" if len(shown) < 3 else None)
    axes.axhline(1.0, color=drawing.MUTED, linewidth=1.4, linestyle=":")
    axes.set_yscale("log")
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    caption = "Over all entries that vary; the dotted line is one standard deviation, what predicting the mean gets."
    alt = "; ".join(
        f"{label}: {number(v[0])} after 1 step, {number(v[-1])} at the end" for label, v, *_ in _curves(errors)
    )
    return Figure("error-by-depth", figure, caption, alt)


def _shown(errors: OpenLoop) -> list[int]:
    worst = errors.model[-1].nan_to_num(torch.inf).argsort(descending=True)
    chosen = [int(i) for i in worst if errors.varies[i]][:MOST_ENTRIES]
    return sorted(chosen)


def _heat_map(errors: OpenLoop) -> Figure:
    shown = _shown(errors)
    height = max(2.6, 1.3 + 0.26 * len(shown))
    figure, axes = drawing.plot(5.2, height, xlabel="depth, steps")
    value = errors.model[:, shown].T.clamp(min=1e-6).nan_to_num(1e6, posinf=1e6).numpy()
    edges = np.arange(len(errors.model) + 1) + 0.5
    norm = LogNorm(max(float(value.min()), 1e-4), max(min(float(value.max()), 1e2), 1.0))
    mesh = axes.pcolormesh(
        edges, np.arange(len(shown) + 1) - 0.5, value, cmap="viridis", norm=norm, edgecolors="face", linewidth=0.3
    )
    axes.set_yticks(range(len(shown)), [errors.names[i] for i in shown])
    axes.invert_yaxis()
    axes.grid(visible=False)
    drawing.whole_numbers(axes.xaxis)
    _colour_bar(figure, mesh)
    missing = len(errors.names) - len(shown)
    caption = "The model's error by entry of the observation" + (
        f"; {missing} entries are not shown." if missing else "."
    )
    worst = max(shown, key=lambda i: float(errors.model[-1, i]))
    return Figure("error-by-entry", figure, caption, f"At the end the error is largest for {errors.names[worst]}.")


def _colour_bar(figure: Any, mesh: Any) -> None:
    bar = figure.colorbar(mesh, label="error, standard deviations")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _words(found: Evidence) -> list[Part]:
    errors, growth, ends = found.errors, found.growth, found.ends
    said = []
    if growth is not None:
        better = (
            f"by a factor of {growth.factor:.2f} a step (R² {growth.factor_r2:.2f})"
            if growth.exponential
            else f"as depth to the power {growth.power:.2f} (R² {growth.power_r2:.2f})"
        )
        said.append(f"The error grows {better}.")
    reward = f"{number(errors.reward[0])} after 1 step and {number(errors.reward[-1])} after {len(errors.reward)}"
    how = "in part learned" if errors.learns_reward else "known, and computed from predicted observations"
    said.append(f"The reward is {how}: its error is {reward}, in its standard deviations.")
    how = "learned" if ends.learned else "known, and computed from predicted observations"
    said.append(
        f"Ends of episodes are {how}: one step ahead, of {ends.true} in {ends.rows} rows it misses {ends.missed}"
        f" and invents {ends.invented}."
    )
    return [Text(" ".join(said))]


def _table(errors: OpenLoop) -> Table:
    depths = sorted({d for d in (1, 2, 3, 5, 8, 12, 16, 20) if d <= len(errors.model)} | {len(errors.model)})
    columns = [value for _, value, *_ in _curves(errors)]
    rows = [
        (depth, *(float(column[depth - 1]) for column in columns), float(errors.reward[depth - 1])) for depth in depths
    ]
    names = ("depth", "model", "linear model", "no change", "model's reward")
    return Table("errors", names, rows, "Errors in standard deviations.", digits=3)


def _by_entry(errors: OpenLoop) -> Table:
    last = len(errors.model)
    rows: list[tuple[str | float, ...]] = []
    for i, name in enumerate(errors.names):
        if errors.varies[i]:
            ends = [float(errors.model[d, i]) for d in (0, -1)]
            rows.append((name, *ends, float(errors.linear[-1, i]), float(errors.persistence[-1, i])))
    names = ("entry", "model, depth 1", f"model, depth {last}", f"linear, depth {last}", f"no change, depth {last}")
    return Table("errors-by-entry", names, rows, "Errors in standard deviations.", digits=3)
