"""How the model stretches small deviations."""

from __future__ import annotations

import math

import torch

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import _drawing as drawing
from experiments.pages.parts import Figure, Section, Text
from mbrl.diagnostics.spectra import Spectra


def section(found: Evidence) -> Section:
    """Eigenvalues in the complex plane and the distribution of the spectral radius."""
    about = found.spectra
    title = "Spectra"
    if about is None:
        return Section("spectra", title, "", [Text("The mean step of this model cannot be differentiated.")])
    states = len(about.radius)
    lead = (
        f"Eigenvalues of {about.source} with respect to the observation, at {states} states."
        " They are local: of one step's linearisation, and say nothing of many steps together."
    )
    above = float((about.radius > 1.0).double().mean())
    words = (
        f"The spectral radius has median {float(about.radius.median()):.3f}; it is above 1 at {100 * above:.0f} % of"
        f" the states. That of the linear baseline is {found.linear_radius:.3f}. The largest stretch of a deviation,"
        f" in standard deviations, has median {float(about.stretch.median()):.2f}."
    )
    if any(angle.cos is not None for angle in found.subject.model.spec.angles):
        words += " Each cos/sin pair adds an eigenvalue 0: predictions stay on the circle."
    return Section("spectra", title, lead, [_plane(about), _radius(about, found.linear_radius), Text(words)])


def _plane(about: Spectra) -> Figure:
    figure, axes = drawing.plot(4.4, 4.0, xlabel="real part", ylabel="imaginary part")
    values = about.eigenvalues[torch.linspace(0, len(about.eigenvalues) - 1, 100).long().unique()].flatten()
    axes.scatter(values.real, values.imag, s=5, alpha=0.4, color=drawing.MODEL, linewidths=0)
    around = torch.linspace(0, 2 * math.pi, 200)
    axes.plot(around.cos(), around.sin(), color=drawing.MUTED, linewidth=0.8, linestyle=":")
    axes.set_aspect("equal", adjustable="datalim")
    caption = "Outside the unit circle deviations grow."
    return Figure("eigenvalues", figure, caption, f"Median spectral radius {float(about.radius.median()):.3f}.")


def _radius(about: Spectra, linear: float) -> Figure:
    figure, axes = drawing.plot(5.2, 4.0, xlabel="spectral radius", ylabel="states")
    axes.hist(about.radius.numpy(), bins=30, color=drawing.MODEL, alpha=0.75, label="model, by state")
    axes.axvline(linear, color=drawing.LINEAR, linestyle="--", label="linear baseline")
    axes.axvline(1.0, color=drawing.MUTED, linestyle=":", linewidth=1)
    drawing.legend(axes)
    low, high = (float(about.radius.quantile(share)) for share in (0.05, 0.95))
    return Figure(
        "spectral-radius", figure, "At 1 (dotted) deviations neither grow nor shrink.", f"{low:.3f} to {high:.3f}."
    )
