"""How the figures of a diagnosis look."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from experiments.pages.palette import TWINS

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, SLATE, BROWN = TWINS
MODEL, NO_CHANGE, LINEAR, TRUTH = BLUE, SLATE, ORANGE, VERMILION
MUTED = "#808080"
"""Chance, ideal and other lines to compare with"""
DASHES = ("-", "--", "-.", ":")


def plot(width: float = 5.2, height: float = 3.4, **labels: str) -> tuple[Figure, Any]:
    """A figure with one set of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, tidy(figure.add_subplot(**labels))


def tidy(axes: Any) -> Any:
    """Axes without the frame's top and right, with a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return axes


def legend(axes: Any, **options: Any) -> None:
    axes.legend(fontsize=8, frameon=False, **options)


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers only: a depth is a number of steps."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
