"""Predicted against true trajectories."""

from __future__ import annotations

import math

from matplotlib.figure import Figure as Drawing

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.parts import Choice, Figure, Section
from mbrl.diagnostics.open_loop import Paths

MOST_ENTRIES = 12
COLUMNS = 3


def section(found: Evidence) -> Section:
    """A typical, the best, the worst and one more window, entry by entry."""
    paths = found.paths
    lead = (
        "What happened and what the model says would, from one true observation on. The band holds 90 % of the model's"
        " sampled paths, one member each; the line is the mean over members, stepped together."
    )
    options = {name: [_figure(found, name, window)] for name, window in _windows(paths).items()}
    return Section("paths", "Predicted and true trajectories", lead, [Choice("paths-by", "window", options)])


def _windows(paths: Paths) -> dict[str, int]:
    order = paths.error.nan_to_num(math.inf).argsort().tolist()
    places = {
        "typical error": len(order) // 2,
        "smallest error": 0,
        "largest error": -1,
        "upper quartile": -len(order) // 4,
    }
    return {name: order[place] for name, place in places.items()}


def _entries(found: Evidence) -> list[int]:
    errors = found.errors
    worst = errors.model[-1].nan_to_num(math.inf).argsort(descending=True).tolist()
    return sorted([i for i in worst if errors.varies[i]][:MOST_ENTRIES])


def _figure(found: Evidence, name: str, window: int) -> Figure:
    entries, paths = _entries(found), found.paths
    columns = min(COLUMNS, len(entries))
    rows = math.ceil(len(entries) / columns)
    figure = Drawing(figsize=(9.6 if columns > 1 else 5.2, 0.5 + 2.0 * rows), layout="constrained")
    steps = range(len(paths.true))
    for place, entry in enumerate(entries):
        axes = drawing.tidy(figure.add_subplot(rows, columns, place + 1))
        band = (x[:, window, entry].numpy() for x in (paths.low, paths.high))
        axes.fill_between(steps, *band, color=drawing.MODEL, alpha=0.2, linewidth=0, label="90 % of its paths")
        axes.plot(steps, paths.mean[:, window, entry], color=drawing.MODEL, label="model")
        axes.plot(steps, paths.true[:, window, entry], "--", color=drawing.TRUTH, label="what happened")
        axes.set_title(found.errors.names[entry], fontsize=9)
        drawing.whole_numbers(axes.xaxis)
        if place >= len(entries) - columns:
            axes.set_xlabel("steps", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    error = float(paths.error[window])
    caption = f"Of {len(paths.error)} windows the one with {name}: {error:.2g} standard deviations over its steps."
    if int(found.errors.varies.sum()) > len(entries):
        caption += f" The {len(entries)} entries with the largest errors are shown."
    return Figure(f"paths-{name.replace(' ', '-')}", figure, caption, f"Model and truth, window with {name}.")
