"""The sections of a diagnosis, one file each; :data:`SECTIONS` is their order on the page.

A section is a function from the evidence to what is shown, or None where there is nothing to show. A family of models
that has something of its own to say adds its function here.
"""

from __future__ import annotations

from collections.abc import Callable

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.sections import calibration, depth, modes, paths, ranking, rows, shift, spectra, verdict
from experiments.pages.parts import Section

SECTIONS: tuple[Callable[[Evidence], Section | None], ...] = (
    verdict.section,
    depth.section,
    calibration.section,
    ranking.section,
    shift.section,
    spectra.section,
    modes.section,
    paths.section,
    rows.section,
)
