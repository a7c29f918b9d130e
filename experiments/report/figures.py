"""The drawings that sections share: lines with bands, intervals in rows; every agent looks the same in all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from experiments.pages.palette import colours, contrast
from experiments.report.statistics import FloatArray

WIDTH, HEIGHT = 4.3, 3.0
"""Inches; narrow enough to be read on a phone, where a figure has the whole width."""
TEXT, MUTED, RULE, GROUND = "#1a1a1a", "#666666", "#d0d0d0", "#ffffff"
DARK_INK, LIGHT_INK = "#141416", "#fdfdff"
"""For text on colours that both themes share: no neutral greys, which the page would recolour."""
COLOUR_STEPS = 32
"""Of a colour scale; from 50 on matplotlib would make the scale's bar a bitmap."""
MARKERS = "osD^vPX*"
LEVEL_DASH = (0, (4, 2))
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Style:
    """How an agent is drawn. Markers differ too, so that no one has to tell colours apart."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


def styles(agents: Sequence[str]) -> dict[str, Style]:
    """A look for every agent, by its place in the comparison."""
    return {
        label: Style(colour, MARKERS[index % len(MARKERS)], DASHES[index // len(MARKERS) % len(DASHES)])
        for index, (label, colour) in enumerate(colours(agents).items())
    }


def plain(text: str) -> str:
    """Text that matplotlib shall not read as mathematics."""
    return text.replace("$", r"\$")


def new(
    title: str, xlabel: str, ylabel: str, width: float = WIDTH, height: float = HEIGHT
) -> tuple[matplotlib.figure.Figure, Axes]:
    """A figure with one quiet set of axes."""
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plain(title), fontsize=10, loc="left", color=TEXT, fontweight="bold")
    axes.set_xlabel(plain(xlabel), fontsize=9, color=TEXT)
    axes.set_ylabel(plain(ylabel), fontsize=9, color=TEXT)
    _quiet(axes)
    return figure, axes


def strips(titles: Sequence[str], xlabel: str, ylabel: str) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """Low axes one above the other, a title each, over one x-axis and with one scale."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 1.0 + 0.95 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), 1, sharex=True, sharey=True, squeeze=False)
    rows: list[Axes] = list(grid[:, 0])
    for axes, title in zip(rows, titles, strict=True):
        axes.set_title(plain(title), fontsize=9, loc="left", color=TEXT, pad=3)
        _quiet(axes)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    rows[-1].set_xlabel(plain(xlabel), fontsize=9, color=TEXT)
    figure.supylabel(plain(ylabel), fontsize=9, color=TEXT)
    return figure, rows


def _quiet(axes: Axes) -> None:
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=8.5, color=MUTED, labelcolor=TEXT, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """A number for an axis: 1.5k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if unit == "k" else size
            return f"{value / divisor:.4g}{unit}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def line(axes: Axes, agent: str, style: Style, xs: Sequence[float], ys: Sequence[float], part: str = "line") -> None:
    """The main line of an agent."""
    options: dict[str, Any] = {
        "marker": style.marker,
        "markersize": 4.0,
        "markevery": max(1, len(xs) // 12),
        "linewidth": 1.8,
    }
    (artist,) = axes.plot(xs, ys, color=style.colour, linestyle=style.dash, **options)
    artist.set_gid(f"agent:{agent}:{part}")


def thin_line(axes: Axes, agent: str, style: Style, xs: Sequence[float], ys: Sequence[float], seed: int) -> None:
    """The line of one seed."""
    options: dict[str, Any] = {
        "marker": style.marker,
        "markersize": 2.8,
        "markevery": max(1, len(xs) // 6),
        "linewidth": 1.0,
    }
    (artist,) = axes.plot(xs, ys, color=style.colour, linestyle=style.dash, alpha=0.8, **options)
    artist.set_gid(f"agent:{agent}:seed {seed}")


def level(axes: Axes, agent: str, style: Style, y: float) -> None:
    """The height of an agent that has no place along the x-axis."""
    axes.axhline(y, color=style.colour, linestyle=LEVEL_DASH, linewidth=1.4).set_gid(f"agent:{agent}:level")


def band(
    axes: Axes, agent: str, style: Style, xs: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    """The interval around an agent's line."""
    artist = axes.fill_between(xs, low, high, color=style.colour, alpha=0.18, linewidth=0)
    artist.set_gid(f"agent:{agent}:band")


def landmark(axes: Axes, y: float, text: str) -> None:
    """A labelled horizontal line: a dataset's return, a reference."""
    axes.axhline(y, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
    axes.annotate(plain(text), (1.0, y), ha="right", va="bottom", fontsize=8, color=MUTED, **place)


def legend(
    figure: matplotlib.figure.Figure, looks: Mapping[str, Style], agents: Iterable[str], levels: Collection[str] = ()
) -> None:
    """Names the agents above the axes, those of ``levels`` as learned from data; an entry is hidden with its agent."""
    agents = list(agents)
    handles = [_level_handle(looks[agent]) if agent in levels else _handle(looks[agent]) for agent in agents]
    names = [f"{agent} (from data)" if agent in levels else agent for agent in agents]
    columns = 1 if max(map(len, names), default=0) > 28 else 2 if max(map(len, names), default=0) > 14 else 3
    texts = [plain(name) for name in names]
    box = figure.legend(handles, texts, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)
    for agent, text, handle in zip(agents, box.get_texts(), box.legend_handles, strict=True):
        text.set_color(TEXT)
        text.set_gid(f"agent:{agent}:legend text")
        if handle is not None:
            handle.set_gid(f"agent:{agent}:legend line")


def _handle(style: Style) -> Line2D:
    look: dict[str, Any] = {"linestyle": style.dash, "linewidth": 1.8, "marker": style.marker, "markersize": 4.0}
    return Line2D([], [], color=style.colour, **look)


def _level_handle(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=LEVEL_DASH, linewidth=1.4)


@dataclass(frozen=True)
class Row:
    """A point with its interval in a plot of intervals.

    ``about`` are the agents whose hiding hides it; the first one's look is used. ``low`` and ``high`` are None where
    the runs allow no interval.
    """

    label: str
    about: tuple[str, ...]
    value: float
    low: float | None = None
    high: float | None = None


def interval_rows(
    title: str,
    xlabel: str,
    rows: Sequence[Row],
    looks: Mapping[str, Style],
    at: float | None = None,
    within: tuple[float, float] | None = None,
) -> matplotlib.figure.Figure:
    """Points with intervals, one row each from the top; a vertical line stands ``at``, all of ``within`` is shown."""
    figure, axes = new(title, xlabel, "", height=1.0 + 0.32 * len(rows))
    if at is not None:
        axes.axvline(at, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
    for place, row in enumerate(rows):
        _interval(axes, place, row, looks[row.about[0]])
    if within is not None:
        margin = 0.03 * (within[1] - within[0])
        axes.set_xlim(within[0] - margin, within[1] + margin)
    axes.set_yticks(range(len(rows)), [plain(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _interval(axes: Axes, place: int, row: Row, style: Style) -> None:
    name = "".join(f"agent:{agent}:" for agent in row.about)
    if row.low is not None and row.high is not None:
        (bar,) = axes.plot([row.low, row.high], [place, place], color=style.colour, linewidth=5, alpha=0.35)
        bar.set_solid_capstyle("butt")
        bar.set_gid(f"{name}interval {place}")
    (point,) = axes.plot([row.value], [place], color=style.colour, marker=style.marker, markersize=6, linestyle="none")
    point.set_gid(f"{name}point {place}")


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map say; the brightest is the best."""

    label: str
    norm: Normalize
    high_is_best: bool = True

    @property
    def colours(self) -> Colormap:
        return colormaps["viridis" if self.high_is_best else "viridis_r"].resampled(COLOUR_STEPS)


def heat_map(
    title: str,
    labels: tuple[str, str],
    rows: Sequence[str],
    columns: Sequence[str],
    values: FloatArray,
    texts: Sequence[Sequence[str]],
    scale: Scale,
) -> matplotlib.figure.Figure:
    """Coloured cells with text in them; a cell with text and without a value is grey, one without text is not there.

    Args:
        title: above the axes.
        labels: of the x-axis and the y-axis.
        rows: names of the rows, from the top.
        columns: names of the columns.
        values: what the colours say, ``[rows, columns]``, NaN where there is nothing.
        texts: what is written in the cells, the same shape.
        scale: the colours.
    """
    figure, axes = new(title, *labels, height=1.1 + 0.36 * max(len(rows), 5))
    axes.grid(visible=False)
    for row, column in np.argwhere(np.array(texts, dtype=object) != ""):
        _cell(axes, row, column, float(values[row, column]), texts[row][column], scale)
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns])
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    _colour_bar(figure, axes, scale)
    return figure


def _cell(axes: Axes, row: int, column: int, value: float, text: str, scale: Scale) -> None:
    known = np.isfinite(value)
    colour = to_hex(scale.colours(scale.norm(value))) if known else RULE
    ink = max((DARK_INK, LIGHT_INK), key=lambda ink: contrast(ink, colour)) if known else TEXT
    place = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(place, 1, 1, facecolor=colour, edgecolor=GROUND, linewidth=1.5))
    axes.text(column, row, plain(text), ha="center", va="center", fontsize=7.5, color=ink, linespacing=1.0)


def _colour_bar(figure: matplotlib.figure.Figure, axes: Axes, scale: Scale) -> None:
    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colours), ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(plain(scale.label), fontsize=8.5, color=TEXT)
    bar.ax.tick_params(labelsize=8, color=MUTED, labelcolor=TEXT, length=3)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)
