"""What of a dataset's description a learner should know before it starts, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from experiments.dataset.measure import Description

MANY_DUPLICATES = 0.001
"""Share of rows from which repeated ones are worth a warning"""
MANY_SATURATED = 0.5


@dataclass(frozen=True)
class Finding:
    """One sentence, and how grave it is: a failure is refused by `mbrl fit`, or teaches a model what is not so."""

    kind: Literal["note", "warning", "failure"]
    sentence: str


def findings(found: Description) -> list[Finding]:
    """The gravest first."""
    every = [*_values(found), *_successors(found), *_episodes(found), *_coverage(found), *_env(found)]
    order = ("failure", "warning", "note")
    return sorted(every, key=lambda finding: order.index(finding.kind))


def _values(found: Description) -> Iterator[Finding]:
    for name, count in found.rows.nonfinite.items():
        if count:
            yield Finding("failure", f"{count:,} rows have NaN or infinity in {name}; `mbrl fit` will refuse them.")
    if lacking := found.rows.without_action:
        yield Finding("note", f"{lacking:,} of {found.count:,} rows have no action: ss-orl learns from these.")
    share = found.rows.duplicates / found.count
    if found.rows.duplicates:
        kind: Literal["note", "warning"] = "warning" if share > MANY_DUPLICATES else "note"
        yield Finding(kind, f"{found.rows.duplicates:,} rows ({100 * share:.2g} %) repeat an earlier one.")


def _successors(found: Description) -> Iterator[Finding]:
    rows = found.rows
    if rows.follow < rows.pairs:
        missed = rows.pairs - rows.follow
        fix = "obs and next_obs do not tell one story: shuffled rows, or another observation under the same step"
        yield Finding(
            "failure", f"{missed:,} of {rows.pairs:,} rows have a next_obs that is not the next row's: {fix}."
        )
    if rows.ends_reset:
        why = "a model learns there that an episode's end leads to the reset"
        said = (
            f"{rows.ends_reset:,} of {rows.ends:,} episode ends have the next episode's first observation as next_obs"
        )
        yield Finding("failure", f"{said}: {why}.")
    if rows.repeated_steps:
        yield Finding("failure", f"{rows.repeated_steps:,} rows have the episode and step of another row.")


def _episodes(found: Description) -> Iterator[Finding]:
    rows, episodes = found.rows, found.episodes
    if rows.ends_inside:
        yield Finding("failure", f"{rows.ends_inside:,} rows are flagged as an end, and their episode goes on.")
    if rows.gaps:
        yield Finding("warning", f"Steps are missing at {rows.gaps:,} places inside of episodes.")
    if partial := int((~episodes.whole).sum()):
        text = f"{partial:,} of {len(episodes.whole):,} episodes are not whole (no first step, no end, or a gap)"
        yield Finding("note", f"{text}; returns and lengths are of the whole ones.")
    if not episodes.terminated.any():
        yield Finding("note", "No episode terminates: nothing can be learned here of where the task ends.")


def _coverage(found: Description) -> Iterator[Finding]:
    still = [name for name, constant in zip(found.names, found.obs.constant, strict=True) if constant]
    if still:
        shown = ", ".join(still[:6]) + (", ..." if len(still) > 6 else "")
        yield Finding("note", f"{len(still)} entries of the observation never change: {shown}.")
    if not found.discrete and (outermost := found.saturated.mean()) > MANY_SATURATED:
        yield Finding("warning", f"{100 * outermost:.0f} % of the actions are at a bound.")
    if bool(found.reward.constant.all()):
        yield Finding("warning", f"The reward is always {found.reward.mean[0]:.4g}.")


def _env(found: Description) -> Iterator[Finding]:
    if found.env_problem is not None:
        yield Finding("warning", found.env_problem)
    for note in found.notes:
        yield Finding("note", note)
