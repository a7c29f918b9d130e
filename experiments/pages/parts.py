"""What a page is made of. A section says what it shows; :mod:`experiments.pages.render` decides how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(frozen=True)
class Figure:
    """A drawing: inline in the page as SVG, and beside it as ``NAME.png`` and ``NAME.svg``.

    Args:
        name: file name without an ending, unique in the page.
        figure: the drawing, with neutral colours for text and axes (the page recolours them for its dark theme).
        caption: what to see in it, a sentence or two.
        alt: what a reader who cannot see it needs to know.
    """

    name: str
    figure: matplotlib.figure.Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """Rows under named columns; numbers are aligned and can be sorted. Kept beside the page as ``NAME.csv``.

    Cells are text, numbers (shown with ``digits`` significant digits) or None (shown as a dash).
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int | bool | None]]
    caption: str = ""
    digits: int = 4


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Notice:
    """A paragraph that must not be overlooked."""

    text: str
    kind: Literal["note", "warning", "failure"] = "note"


@dataclass(frozen=True)
class Code:
    """Text as it is: a command, a configuration."""

    text: str


@dataclass(frozen=True)
class Choice:
    """Alternatives of which one is shown, picked by the reader: x-axes, environments.

    Args:
        name: unique in the page.
        label: what is chosen.
        options: what each choice shows, the first one shown at first.
    """

    name: str
    label: str
    options: Mapping[str, Sequence[Part]]


@dataclass(frozen=True)
class Fold:
    """Details that are closed at first."""

    title: str
    parts: Sequence[Part]


Part = Figure | Table | Text | Notice | Code | Choice | Fold


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading and a place in its contents.

    Args:
        id: anchor, unique in the page.
        title: heading.
        lead: one or two sentences that say what the section tells, in plain words.
        parts: what it shows, in order.
    """

    id: str
    title: str
    lead: str
    parts: Sequence[Part] = field(default=())


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    agents: Mapping[str, str] = field(default_factory=dict)
    """Agents that the reader can show and hide: label -> colour. Their artists in figures carry
    ``set_gid(f"agent:{label}:{anything}")``, or ``f"agent:{label}:agent:{other}:{anything}"`` where two are compared.
    """
