"""``mbrl diagnose``: a page that says how good a model is and when to trust it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.diagnosis.evidence import measure, numbers
from experiments.diagnosis.fit import SUMMARY, plain
from experiments.diagnosis.subject import open_subject
from experiments.diagnosis.verdict import summary, verdict
from experiments.pages.parts import Page

NUMBERS = "diagnosis.json"


def run_diagnosis(source: Path, data: Path | None, out: Path | None, trust: Sequence[str]) -> Path:
    """Judge the model of a run (its newest checkpoint) or of a fit; the page that says how it is.

    Args:
        source: a run directory, or a folder made by ``mbrl fit``.
        data: transitions to judge it on: another run or a saved replay buffer. By default a fit is judged on its
            held-out episodes, a run on those of its own rows that its model has not been trained on, where that can
            be known; else on all of them, and the page says so.
        out: folder of the page (default: ``SOURCE/diagnosis``).
        trust: modules outside the project that configurations may name.

    Beside ``index.html`` lie its figures and tables, ``diagnosis.json`` (every number) and ``summary.txt`` (a few lines
    to show).

    Raises:
        UserError: no such run, fit or data; code that is not trusted; a folder that holds something else.
    """
    from experiments.diagnosis.sections import SECTIONS
    from experiments.pages.render import write_page

    found = measure(open_subject(source, data, trust))
    sections = [shown for make in SECTIONS if (shown := make(found)) is not None]
    spec = found.subject.model.spec
    page = Page("Can this model be trusted?", f"{found.subject.title} · {spec.id}", sections)
    answers = [{"question": f.question, "answer": f.answer, "sentence": f.sentence} for f in verdict(found)]
    record = plain({"verdict": answers, **numbers(found)})
    files = {
        NUMBERS: (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
        SUMMARY: (summary(found) + "\n").encode(),
    }
    return write_page(page, source / "diagnosis" if out is None else out, files)
