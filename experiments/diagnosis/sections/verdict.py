"""The answers first."""

from __future__ import annotations

from experiments.diagnosis.evidence import Evidence
from experiments.diagnosis.verdict import verdict
from experiments.pages.parts import Notice, Part, Section, Table


def section(found: Evidence) -> Section:
    """The questions and their answers, with a warning where the rows are not new to the model."""
    findings = verdict(found)
    rows = [(finding.question, finding.answer, finding.sentence) for finding in findings]
    caption = (
        "Errors are root mean squares in standard deviations of each entry over the rows that the model was trained on."
    )
    table = Table("verdict", ("question", "answer", "why"), rows, caption)
    return Section("verdict", "Verdict", "How far this model can be trusted.", [*warnings(found), table])


def warnings(found: Evidence) -> list[Part]:
    """What makes the numbers look better, or worse, than they are."""
    subject, notices = found.subject, []
    if subject.fits == 0:
        notices.append(Notice("This model has never been fitted: it is judged as it was initialised.", "warning"))
    if not subject.unseen:
        which = "All numbers below" if not subject.unseen_steps else "Numbers over several steps"
        text = (
            f"{which} come from rows that the model was trained on, so they flatter it."
            " Give data that it has not seen with --data, or fit it with mbrl fit, which holds episodes out."
        )
        notices.append(Notice(text, "warning"))
    return [*notices]
