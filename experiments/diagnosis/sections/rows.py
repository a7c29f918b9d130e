"""Which rows everything comes from."""

from __future__ import annotations

from experiments.diagnosis.evidence import Evidence
from experiments.pages.parts import Fold, Section, Table, Text


def section(found: Evidence) -> Section:
    """Where the rows come from, whether the model has seen them, and the units."""
    subject, units = found.subject, found.units
    pools = (
        ("one step ahead", subject.steps, subject.unseen_steps),
        ("several steps", subject.windows, subject.unseen_windows),
    )
    rows = [
        (name, len(pool), len(pool.all().episode.unique()), "no" if unseen else "yes") for name, pool, unseen in pools
    ]
    rows.append(("units and linear baseline", len(subject.reference), len(subject.reference.episode.unique()), "yes"))
    columns = ("used for", "transitions", "episodes", "trained on")
    table = Table("rows", columns, rows, "What the numbers on this page rest on.")
    names = found.errors.names
    stds = [(name, float(a), float(b)) for name, a, b in zip(names, units.obs, units.change, strict=True)]
    units_of = ("entry", "standard deviation", "of one step's change")
    return Section(
        "rows",
        "Data",
        "Which transitions the model was judged on.",
        [
            Text(" ".join(subject.provenance)),
            table,
            Fold("Units of the errors", [Table("units", units_of, stds, "Over the rows of the last line.")]),
        ],
    )
