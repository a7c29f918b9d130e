"""A matplotlib figure as PNG, as a standalone SVG, and as an SVG that takes the colours of the page it stands in."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.pages.palette import variable
from experiments.pages.parts import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FIXED: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "page"}
"""Text stays text, and ids depend on nothing but the drawing: the same data gives the same bytes."""
DPI = 150

_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"(font: [^;]*?[\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#")


def png(part: Figure) -> bytes:
    """The figure at 150 dots an inch, on white."""
    file = io.BytesIO()
    FigureCanvasAgg(part.figure)
    with rc_context(FIXED):
        part.figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def svg(part: Figure) -> bytes:
    """The figure as a file of its own, with text as text."""
    file = io.BytesIO()
    FigureCanvasAgg(part.figure)
    with rc_context(FIXED):
        part.figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def inline(drawn: bytes, part: Figure, agents: Collection[str]) -> str:
    """``drawn`` (from :func:`svg`) for the inside of a page.

    Ids begin with the figure's name, since matplotlib's (clip paths, markers) are those of other figures too; neutral
    colours and those of the palette become the page's variables; groups whose gid is ``agent:LABEL:...`` for one of
    ``agents`` carry ``data-agent`` (and ``data-other`` where they compare two).
    """
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # the style would hold for the whole page
                parent.remove(child)
    seen: Counter[str] = Counter()
    for element in root.iter():
        _adapt(element, part.name, agents, seen)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": part.alt}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, prefix: str, agents: Collection[str], seen: Counter[str]) -> None:
    for name, value in element.attrib.items():
        if name == "id":
            continue
        if name in ("style", "fill", "stroke"):
            value = _FONT.sub(r"\1 var(--figure-font)", _COLOUR.sub(lambda found: themed(found.group()), value))
        if name == f"{{{XLINK}}}href" and value.startswith("#"):
            value = f"#{prefix}--{value[1:]}"
        element.set(name, _REFERENCE.sub(f"url(#{prefix}--", value))
    if (gid := element.get("id")) is not None:
        seen[gid] += 1
        again = f"--{seen[gid]}" if seen[gid] > 1 else ""
        element.set("id", re.sub(r"\s", "_", f"{prefix}--{gid}{again}"))
        for name, agent in zip(("data-agent", "data-other"), agents_of(gid, agents), strict=False):
            element.set(name, agent)


def agents_of(gid: str, agents: Collection[str]) -> list[str]:
    """Whom an artist with ``gid`` is about: ``agent:A:...``, or ``agent:A:agent:B:...`` where two are compared.

    The longest label that fits, since labels may hold colons.
    """
    found = max((label for label in agents if gid.startswith(f"agent:{label}:")), key=len, default=None)
    return [] if found is None else [found, *agents_of(gid[len(f"agent:{found}:") :], agents)]


def themed(colour: str) -> str:
    """A colour as the page says it: greys by their lightness (text, muted, rules, ground), the palette by variables."""
    if not colour[1:3] == colour[3:5] == colour[5:7]:
        return variable(colour)
    lightness = int(colour[1:3], 16) / 255
    if lightness > 0.95:
        return "var(--ground)"
    return "var(--rule)" if lightness > 0.7 else "var(--muted)" if lightness > 0.35 else "currentColor"
