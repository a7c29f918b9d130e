"""Colours that colour-blind readers can tell apart, each with a twin for the dark theme.

After Okabe and Ito, "Color Universal Design", 2008; darkened where they would be hard to see on white, and lightened
where they would be on black: every one keeps a contrast of at least 3 to 1 with its ground (WCAG 2.1, 1.4.11).
"""

from __future__ import annotations

from collections.abc import Sequence

LIGHT_GROUND, DARK_GROUND = "#ffffff", "#15181c"

TWINS = {
    "#0072b2": "#5aaae0",  # blue
    "#c85200": "#f0884a",  # vermilion
    "#00825f": "#33c49a",  # bluish green
    "#a8457f": "#e08fc0",  # reddish purple
    "#9a6b00": "#e6ab2e",  # orange
    "#3b8eb8": "#9bd7f2",  # sky blue
    "#4b4f6b": "#b9bed8",  # slate, for Okabe and Ito's black
    "#7d4b32": "#c99f83",  # brown, for their yellow
}
"""Colour in the light theme -> the same one in the dark theme."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for every label, in order; beyond eight they repeat, and only marker and dash tell lines apart."""
    light = list(TWINS)
    return {label: light[index % len(light)] for index, label in enumerate(labels)}


def variable(colour: str) -> str:
    """The CSS variable of a colour of the palette: ``var(--ink-0072b2)``; any other colour as it is."""
    return f"var(--ink-{colour[1:]})" if colour in TWINS else colour


def declarations(dark: bool) -> str:
    """CSS declarations of all variables for one theme."""
    return " ".join(f"--ink-{light[1:]}: {twin if dark else light};" for light, twin in TWINS.items())


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances, 1 to 21 (WCAG 2.1)."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
