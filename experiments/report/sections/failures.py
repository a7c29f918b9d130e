"""Everything that did not go as asked, in full."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.pages.parts import Code, Fold, Part, Section, Table
from experiments.report._status import Dropped
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._shared import plural, where


def failures(comparison: Comparison) -> Section | None:
    """Failed, unfinished and missing runs with their errors, and runs that are not asked for any more; else None."""
    bad = [run for run in comparison.runs if run.state != "done"]
    dropped: list[Part] = [_dropped(comparison.dropped)] if comparison.dropped else []
    if not bad:
        lead = f"{plural(len(comparison.dropped), 'run')} on disk count in nothing on this page."
        return Section("failures", "Failures", f"No run failed. {lead}", dropped) if dropped else None
    lead = (
        f"{plural(len(bad), 'run')} of {len(comparison.runs):,} did not end as asked. Their learning curves are drawn"
        " as far as they came; means, intervals and verdicts are of finished runs alone, so the numbers of an agent"
        " whose runs are listed here are better than they should be."
    )
    errors: list[Part] = [Fold(f"Error of {where(run)}", [Code(run.error)]) for run in bad if run.error]
    return Section("failures", "Failures", lead, [_table(bad), *errors, *dropped])


def _table(bad: list[Run]) -> Table:
    columns = ["agent", "environment", "seed", "state", "env steps reached", "last evaluation", "error"]
    rows = [(run.agent, run.env, run.seed, run.state, _reached(run), run.last, _what(run)) for run in bad]
    return Table("failures", columns, rows, "Runs that failed, did not finish, or were never there")


def _dropped(runs: Sequence[Dropped]) -> Table:
    rows = [(run.agent, run.env, run.seed, run.folder) for run in runs]
    columns = ["agent", "environment", "seed", "folder"]
    return Table("dropped", columns, rows, "Runs on disk that are not part of this suite any more, left out here")


def _reached(run: Run) -> int | None:
    return run.evaluations[-1].env_steps if run.evaluations else None


def _what(run: Run) -> str | None:
    """The error's last line says what happened; those before it, where."""
    return run.error.strip().splitlines()[-1][:160] if run.error and run.error.strip() else None
