"""Whether the model's intervals hold what they promise."""

from __future__ import annotations

import torch

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.parts import Figure, Fold, Part, Section, Table, Text
from mbrl.diagnostics.calibration import DATA_NLL, LEVELS, Calibration, inside


def section(found: Evidence) -> Section:
    """Calibration curve, PIT histogram, and the numbers by output."""
    lead = (
        "Whether what came lies inside the model's intervals as often as it says, one step ahead."
        " The distribution is the mixture over the members that predict."
    )
    if found.calibration is None:
        return Section("calibration", "Calibration", lead, [Text("This model states no distribution.")])
    about = found.calibration
    parts: list[Part] = [_curve(about), _histogram(about), _overall(about), Fold("By output", [_by_output(about)])]
    return Section("calibration", "Calibration", lead, parts)


def _curve(about: Calibration) -> Figure:
    figure, axes = drawing.plot(xlabel="what the model calls (central interval)", ylabel="share of rows inside")
    levels = torch.linspace(0, 1, 51)
    by_output = torch.stack([inside(about.pit, float(level)) for level in levels])
    for column in by_output.T[:20]:
        axes.plot(levels, column, color=drawing.MODEL, linewidth=0.6, alpha=0.4)
    axes.plot(levels, by_output.mean(1), color=drawing.MODEL, linewidth=2, label="mean over outputs")
    axes.plot([0, 1], [0, 1], color=drawing.MUTED, linestyle=":", label="calibrated")
    drawing.legend(axes)
    caption = (
        "Below the dotted line the model is overconfident, above it underconfident. Thin lines are single outputs."
    )
    alt = f"Of the 90 % intervals {100 * about.overall(0.9):.0f} % hold what came: {about.confidence}."
    return Figure("calibration-curve", figure, caption, alt)


def _histogram(about: Calibration) -> Figure:
    figure, axes = drawing.plot(xlabel="the model's CDF at what came", ylabel="density")
    axes.hist(about.pit.flatten().numpy(), bins=20, range=(0, 1), density=True, color=drawing.MODEL, alpha=0.75)
    axes.axhline(1.0, color=drawing.MUTED, linestyle=":")
    caption = (
        "Probability integral transform, all outputs: flat when calibrated, a bowl when overconfident, a hill when"
        " underconfident, a slope when biased."
    )
    alt = f"Mean Kolmogorov-Smirnov distance from flat: {float(about.ks.mean()):.2f}."
    return Figure("pit-histogram", figure, caption, alt)


def _overall(about: Calibration) -> Table:
    rows: list[tuple[str, float, float]] = [
        (f"share inside the {100 * level:g} % interval", about.overall(level), level) for level in LEVELS
    ]
    rows += [
        ("expected calibration error", float(about.error.mean()), 0.0),
        ("Kolmogorov-Smirnov distance", float(about.ks.mean()), 0.0),
        ("spread of standardised errors", float(about.spread.square().mean().sqrt()), 1.0),
        ("sharpness, std of the mixture in std of the outputs", float(about.sharpness.square().mean().sqrt()), 0.0),
        ("negative log-likelihood an output, nats", about.nll_per_output, DATA_NLL),
    ]
    caption = (
        "Means over outputs. The last column is what a calibrated model gets; for sharpness, what perfect knowledge"
        " would; for the likelihood, a Gaussian with the data's own mean and variance."
    )
    return Table("calibration", ("measure", "value", "to compare with"), rows, caption, digits=3)


def _by_output(about: Calibration) -> Table:
    rows: list[tuple[str | float, ...]] = [
        (
            name,
            *(float(about.covered[level][i]) for level in LEVELS),
            *(float(column[i]) for column in (about.error, about.ks, about.spread, about.sharpness)),
        )
        for i, name in enumerate(about.names)
    ]
    names = ("output", *(f"inside {100 * level:g} %" for level in LEVELS))
    names += ("calibration error", "KS", "spread", "sharpness")
    return Table("calibration-by-output", names, rows, "Outputs are changes in one step.", digits=3)
