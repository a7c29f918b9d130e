"""From a folder of runs to a page: ``index.html``, figures, tables, ``runs.csv`` and ``curves.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.pages.palette import colours
from experiments.pages.parts import Page
from experiments.pages.render import write_page
from experiments.report.comparison import Comparison, curve_rows, load, rows
from experiments.report.sections import SECTIONS
from experiments.report.sections._shared import listing, plural

FOLDER = "report"


def build_report(root: Path, out: Path | None = None) -> Path:
    """Write the report of all runs under ``root``; the same runs give the same bytes.

    Args:
        root: a folder of ``mbrl compare``, or any with run directories in it.
        out: folder of the report, ``root/report`` if None.

    Returns:
        The page.

    Raises:
        UserError: there are no runs, or ``out`` holds something that is no report.
    """
    comparison = load(root)
    return write_page(make_page(comparison), out or root / FOLDER, data_files(comparison))


def make_page(comparison: Comparison) -> Page:
    """The page of a comparison, with every section that has something to say."""
    sections = [found for section in SECTIONS if (found := section(comparison)) is not None]
    subtitle = (
        f"{plural(len(comparison.agents), 'agent')} on {listing(comparison.envs)},"
        f" {plural(len(comparison.runs), 'run')}"
    )
    return Page(comparison.title, subtitle, sections, colours(comparison.agents))


def data_files(comparison: Comparison) -> dict[str, bytes]:
    """``runs.csv`` with a row a run and ``curves.csv`` with a row an evaluation."""
    return {"runs.csv": _csv(rows(comparison)), "curves.csv": _csv(curve_rows(comparison))}


def _csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    if not records:
        return b""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().encode()
