"""The sections of a report, one file each, in the order of :data:`SECTIONS`.

A section is a function from the comparison to a :class:`~experiments.pages.parts.Section`, or to None where it has
nothing to say; a new one is a file and a line here.
"""

from __future__ import annotations

from collections.abc import Callable

from experiments.pages.parts import Section
from experiments.report.comparison import Comparison
from experiments.report.sections.aggregates import aggregates
from experiments.report.sections.configuration import configuration
from experiments.report.sections.continual import continual
from experiments.report.sections.cost import cost
from experiments.report.sections.curves import curves
from experiments.report.sections.data import data
from experiments.report.sections.environments import environments
from experiments.report.sections.failures import failures
from experiments.report.sections.improvement import improvement
from experiments.report.sections.model import model
from experiments.report.sections.profiles import profiles
from experiments.report.sections.provenance import provenance
from experiments.report.sections.summary import summary

SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    summary,
    curves,
    data,
    continual,
    aggregates,
    improvement,
    profiles,
    environments,
    cost,
    model,
    failures,
    configuration,
    provenance,
)
