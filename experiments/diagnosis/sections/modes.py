"""Which modes of a lifted linear model are real."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from matplotlib.colors import LogNorm

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.diagnosis.verdict import number
from experiments.pages.parts import Figure, Fold, Part, Section, Table, Text
from mbrl.diagnostics.modes import ROWS_PER_DIRECTION, TRUSTED, WORST, Drift, Modes, Trust
from mbrl.diagnostics.resdmd import CUTOFF, compress, forecast_bound, grid, pseudospectrum

SHOWN = 20
"""Rows of the table that is open at first"""
MOST_DIRECTIONS, ACROSS = 128, 49
"""The pseudospectrum is of so many of the strongest directions, on a grid so wide: some seconds"""
LEVELS = (0.01, 0.03, 0.1, 0.3)
LEAST, MOST = 1e-3, 1.0
"""Ends of the colour scale"""
STEPS = 10
NEAR_ZERO = 1e-9
LASTS = 10_000
"""Half-lives of more steps than that are not told from none"""


def section(found: Evidence) -> Section | None:
    """Eigenvalues by residual, how the closure error grows, and the table; None for a model without modes."""
    if found.modes is None:
        return None
    about = found.modes
    kind, size = ("bilinear" if about.bilinear else "linear"), len(about.values)
    lead = (
        f"This model is {kind} in {size} lifted coordinates. Each eigenvector of its state matrix is a function of the"
        " state that should evolve on its own: multiplied by its eigenvalue at every step, beside what the action does."
        f" The residual is how far a step is from that, relative to the function's own size: {_which_rows(found)}."
    )
    parts: list[Part] = [
        _plane(about),
        *([] if found.drift is None else [_growth(found.drift, found.subject.unseen_windows)]),
        Text(_words(about)),
    ]
    return Section("modes", "Modes", lead, [*parts, *_tables(found, about)])


def _which_rows(found: Evidence) -> str:
    new = "that the model was not trained on" if found.subject.unseen_steps else "most of which it was trained on"
    return f"measured on {found.modes.rows if found.modes else 0:,} rows {new}"


def _words(about: Modes) -> str:
    features = about.features
    against = "better than" if about.closure < 1.0 else "no better than"
    said = [
        f"The closure error is {number(about.closure)}: the part of one step's change of the lifted coordinates"
        f" that the model does not explain ({against} predicting no change).",
        f"The spectral radius is {about.radius:.4f}.",
        f"The condition number of the eigenvectors is {number(about.condition)}"
        + (": single eigenvalues may be far off, the residuals hold all the same." if about.condition > 1e6 else "."),
        f"That of the features' Gram matrix is {_condition(features.condition)}; {features.rank} of"
        f" {len(about.values)} directions lie above the cut-off of {CUTOFF:g} of the strongest.",
    ]
    return " ".join(said)


def _condition(value: float) -> str:
    return number(value) if math.isfinite(value) else "too large for float64"


# -- figures ---------------------------------------------------------------------------------------------------------


def _plane(about: Modes) -> Figure:
    """Eigenvalues by residual, and where the dictionary has no function with a small one."""
    figure, axes = drawing.plot(5.6, 4.2, xlabel="real part", ylabel="imaginary part")
    reach = max(1.1, min(1.05 * about.radius, 1.6))
    drawn = _contours(axes, about, reach)
    around = torch.linspace(0, 2 * math.pi, 200)
    axes.plot(around.cos(), around.sin(), color=drawing.MUTED, linewidth=0.9, linestyle=":")
    order = about.residual.nan_to_num(MOST).argsort(descending=True)  # the best on top
    at, colour = about.values[order], about.residual[order].nan_to_num(MOST).clamp(LEAST, MOST)
    dots = axes.scatter(
        at.real, at.imag, c=colour, s=20, cmap="viridis", norm=LogNorm(LEAST, MOST), edgecolors="white", linewidths=0.4
    )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    bar = figure.colorbar(dots, label="residual of a step")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    outside = int((about.values.abs() > reach).sum())
    caption = f"Eigenvalues; dark ones can be trusted. Dotted: the unit circle, outside of which modes grow. {drawn}"
    caption += f" {outside} lie outside of the picture." if outside else ""
    held = int((about.residual <= TRUSTED).sum())
    return Figure(
        "mode-eigenvalues", figure, caption, f"{held} of {len(at)} eigenvalues have a residual of at most {TRUSTED:g}."
    )


def _contours(axes: Any, about: Modes, reach: float) -> str:
    """Draw the pseudospectrum; a sentence of what it is, or why there is none."""
    if not about.enough_rows:
        return f"For contours of the pseudospectrum it takes {ROWS_PER_DIRECTION} rows a coordinate, so there are none."
    small = about.features if about.features.rank <= MOST_DIRECTIONS else compress(about.held, most=MOST_DIRECTIONS)
    upper = grid((-reach, reach), (0.0, reach), ACROSS)
    tau = pseudospectrum(small, upper)
    points, tau = torch.cat([upper, upper.conj().flip(0)[1:]]), torch.cat([tau, tau.flip(0)[1:]])  # all is real
    lines = axes.contour(points.real, points.imag, tau, LEVELS, colors=drawing.MUTED, linewidths=0.8)
    axes.clabel(lines, fontsize=7, fmt="%g")
    of = "" if small is about.features else f" of the {small.rank} strongest directions"
    return f"Grey: contours of the smallest residual that any function{of} has there."


def _growth(grown: Drift, unseen: bool) -> Figure:
    figure, axes = drawing.plot(4.8, 4.2, xlabel="depth, steps", ylabel="closure error")
    styles = ((drawing.BLUE, "-"), (drawing.VERMILION, "--"))
    for (period, error), (colour, dash) in zip(grown.closure.items(), styles, strict=False):
        label = "never re-encoded" if not period else f"re-encoded every {period} step{'s' * (period > 1)}"
        axes.plot(range(1, len(error) + 1), error, dash, color=colour, label=label)
    axes.axhline(1.0, color=drawing.MUTED, linewidth=1.2, linestyle=":")
    axes.set_yscale("log")
    drawing.whole_numbers(axes.xaxis)
    drawing.legend(axes)
    gone = [f"{100 * share:.0f} % ({_period(period)})" for period, share in grown.diverged.items() if share]
    caption = (
        "Error of the lifted coordinates along the model's own path, relative to how far they have moved; the dotted"
        " line is what predicting no change gets."
    )
    caption += "" if unseen else " The model was trained on these rows."
    caption += f" Windows that diverge, counted as {WORST:g}: {', '.join(gone)}." if gone else ""
    alt = "; ".join(f"{_period(period)}: {number(error[-1])} at the end" for period, error in grown.closure.items())
    return Figure("closure-by-depth", figure, caption, alt)


def _period(period: int) -> str:
    return f"every {period}" if period else "never re-encoded"


# -- tables ----------------------------------------------------------------------------------------------------------


def _tables(found: Evidence, about: Modes) -> list[Part]:
    dt = found.subject.model.spec.dt
    rows = list(_rows(about, dt))
    period = "period, steps" if dt is None else "period, s"
    names: tuple[str, ...] = ("eigenvalue", "verdict", "modulus", period, "residual", "no change")
    caption = (
        "A row for each real mode or conjugate pair, smallest residual first. Relative to the mode's size: its"
        " residual, and what predicting no change of it would get."
    )
    if not about.bilinear:
        names = (*names, f"in {STEPS} steps")
        caption += f" The last column is about the most that its error comes to in {STEPS} steps on such states."
    caption += "" if dt is None else f" A step is {dt:g} s."
    first = Table("modes", names, rows[:SHOWN], caption, digits=3)
    if len(rows) <= SHOWN:
        return [first]
    rest = Table("modes-rest", names, rows[SHOWN:], "", digits=3)
    return [first, Fold(f"The other {len(rows) - SHOWN}", [rest])]


def _rows(about: Modes, dt: float | None) -> Iterable[tuple[str | float | None, ...]]:
    bound = forecast_bound(about.residual, about.values, STEPS).tolist()
    columns = (about.values.tolist(), about.residual.tolist(), about.change.tolist(), bound, about.trust())
    for value, residual, change, most, trust in zip(*columns, strict=True):
        if value.imag < -NEAR_ZERO:  # its conjugate is shown
            continue
        judged = (residual, change) if about.bilinear else (residual, change, most)
        seen = [x if math.isfinite(x) else None for x in judged]
        period = _period_of(value, 1.0 if dt is None else dt)
        yield _eigenvalue(value), words_of(value, residual, trust, dt), abs(value), period, *seen


def _eigenvalue(value: complex) -> str:
    return f"{value.real:.4f}" if abs(value.imag) <= NEAR_ZERO else f"{value.real:.4f} ± {value.imag:.4f}i"


def _period_of(value: complex, dt: float) -> float | None:
    """None where it does not turn."""
    angle = abs(math.atan2(value.imag, value.real))
    return None if abs(value) < NEAR_ZERO or angle < NEAR_ZERO else 2 * math.pi / angle * dt


def words_of(value: complex, residual: float, trust: Trust, dt: float | None) -> str:
    """What to make of a mode: ``trust: half-life 12 steps; linear to 2 % a step``."""
    match trust:
        case "constant":
            return "constant: tells no states apart"
        case "unseen":
            return "zero on all rows"
        case "spurious":
            return f"spurious: off by {100 * residual:.2g} % a step"
        case "trust":
            return f"trust: {_fades(value, dt)}; linear to {100 * residual:.2g} % a step"
    why = "no better than no change" if residual <= TRUSTED else f"off by {100 * residual:.2g} % a step"
    return f"doubt: {_fades(value, dt)}; {why}"


def _fades(value: complex, dt: float | None) -> str:
    """Its half-life, or the time in which it doubles."""
    size = abs(value)
    if size < 0.05:
        return "gone in a step"
    steps = math.log(2) / abs(math.log(size)) if size != 1.0 else math.inf
    if steps > LASTS:
        return "lasts"
    time = f"{_plain(steps)} steps" if dt is None else f"{_plain(steps * dt)} s"
    return f"{'half-life' if size < 1.0 else 'doubles in'} {time}"


def _plain(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"
