"""What the numbers mean, in plain words. Thresholds are stated where they are used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch import Tensor

from experiments.diagnosis.evidence import Evidence
from mbrl.diagnostics.modes import TRUSTED
from mbrl.diagnostics.ranking import Ranking

RANKS, RANKS_SOMEWHAT = 0.5, 0.2
"""Rank correlations from which uncertainty orders errors well, and somewhat"""
NOTICES, NOTICES_SOMEWHAT = 0.8, 0.6
"""AUROC from which a shift is noticed, and somewhat"""


@dataclass(frozen=True)
class Finding:
    """One question about the model, answered."""

    question: str
    answer: str
    """yes, partly, no, unknown; or a depth"""
    sentence: str


def verdict(found: Evidence) -> list[Finding]:
    """The findings in the order of their weight; those that rest on rows it was trained on say so in the answer."""
    findings = [
        _against("predicting no change", found, found.errors.persistence, "Is it better than predicting no change?"),
        _against("a linear model", found, found.errors.linear, "Is it better than a linear model?"),
        _useful(found),
        _calibrated(found),
        _ranks(found),
        _notices(found),
        *_modes(found),
    ]
    if found.subject.unseen:
        return findings
    return [replace(finding, answer=f"{finding.answer}, on rows it was trained on") for finding in findings]


def _against(other: str, found: Evidence, theirs: Tensor, question: str) -> Finding:
    errors = found.errors
    own, base, deepest = errors.overall(errors.model), errors.overall(theirs), len(errors.model)
    better = own < base
    numbers = f"error {number(own[0])} against {number(base[0])} after 1 step"
    if deepest > 1:
        numbers += f", {number(own[-1])} against {number(base[-1])} after {deepest}"
    if bool(better.all()):
        return Finding(question, "yes", f"It beats {other} at every depth: {numbers}.")
    if not bool(better.any()):
        return Finding(question, "no", f"It does not beat {other} at any depth: {numbers}.")
    first = errors.useful_depth(base)
    where = f"up to depth {first}" if first else f"at {int(better.sum())} of {deepest} depths, but not at the first"
    return Finding(question, "partly", f"It beats {other} {where}: {numbers}.")


def _useful(found: Evidence) -> Finding:
    errors = found.errors
    depth = min(errors.useful_depth(errors.overall(errors.persistence)), errors.useful_depth(1.0))
    deepest = len(errors.model)
    question = "Up to which depth is it of use?"
    means = "below predicting no change and below one standard deviation"
    if depth == 0:
        return Finding(question, "none", f"At no depth is its error {means}.")
    if depth == deepest:
        tried = f"At least up to depth {depth}, the deepest that was tried, its error is {means}."
        return Finding(question, f"{depth} or more", tried)
    return Finding(question, f"{depth}", f"Up to depth {depth} its error is {means}; beyond it is not.")


def _calibrated(found: Evidence) -> Finding:
    question, calibration = "Are its intervals honest?", found.calibration
    if calibration is None:
        return Finding(question, "unknown", "It states no distribution, so there are no intervals to judge.")
    fifty, ninety = (f"{100 * calibration.overall(level):.0f} %" for level in (0.5, 0.9))
    numbers = f"its 50 % intervals hold {fifty} of what came, its 90 % intervals {ninety}"
    words = {
        "calibrated": ("yes", "It is calibrated"),
        "overconfident": ("no", "It is overconfident: what came lies outside too often"),
        "underconfident": ("partly", "It is underconfident: it is right more often than it says"),
        "of the wrong shape": (
            "no",
            "Its distribution has the wrong shape: too wide in the middle, too narrow outside",
        ),
    }
    answer, said = words[calibration.confidence]
    return Finding(question, answer, f"{said} ({numbers}).")


def best_ranking(found: Evidence) -> Ranking | None:
    """The estimator that orders errors best."""
    return max(found.rankings, key=lambda ranking: ranking.spearman, default=None)


def _ranks(found: Evidence) -> Finding:
    question, best = "Is it unsure where it is wrong?", best_ranking(found)
    if best is None:
        return Finding(question, "unknown", "It offers no uncertainty, or one that is the same everywhere.")
    numbers = f"rank correlation with the error {best.spearman:.2f} by {best.estimator}"
    if len(found.rankings) > 1:
        numbers += f", the best of {len(found.rankings)} estimators"
    if best.spearman >= RANKS:
        return Finding(question, "yes", f"Its uncertainty orders its errors well ({numbers}).")
    if best.spearman >= RANKS_SOMEWHAT:
        return Finding(question, "partly", f"Its uncertainty orders its errors to some degree ({numbers}).")
    return Finding(question, "no", f"Its uncertainty says next to nothing of its errors ({numbers}).")


def _notices(found: Evidence) -> Finding:
    """By the estimator that is best over all shifts together, so that none is picked for each shift apart."""
    question = "Does it notice what is far from its data?"
    if not found.shifts:
        return Finding(question, "unknown", "It offers no uncertainty to notice it with.")
    by: dict[str, dict[str, float]] = {}
    for test in found.shifts:
        by.setdefault(test.estimator, {})[test.shift] = test.auroc
    estimator, areas = max(by.items(), key=lambda item: sum(item[1].values()) / len(item[1]))
    parts = [
        ("notices", [s for s, area in areas.items() if area >= NOTICES]),
        ("notices somewhat", [s for s, area in areas.items() if NOTICES_SOMEWHAT <= area < NOTICES]),
        ("does not notice", [s for s, area in areas.items() if area < NOTICES_SOMEWHAT]),
    ]
    sentence = "; ".join(f"{does} {_listed(shifts, areas)}" for does, shifts in parts if shifts)
    pushed = [area for shift, area in areas.items() if shift.startswith("states")] or list(areas.values())
    answer = "yes" if pushed[-1] >= NOTICES else "partly" if pushed[-1] >= NOTICES_SOMEWHAT else "no"
    return Finding(question, answer, f"By {estimator} it {sentence} (AUROC; 0.5 is chance).")


def _modes(found: Evidence) -> list[Finding]:
    """Asked of models alone that are linear in a lifted state. Functions that are constant on the rows do not count."""
    if found.modes is None:
        return []
    trust, rows = Counter[str](found.modes.trust()), f"{found.modes.rows:,} rows"
    told = sum(trust[name] for name in ("trust", "doubt", "spurious", "unseen"))
    question = "Which of its modes can be trusted?"
    if not told:
        return [Finding(question, "none", f"All of its modes are constant on {rows}.")]
    parts = [f"{trust['trust']} of {told} evolve linearly as the model says, to {100 * TRUSTED:.0f} % a step or better"]
    words = {"doubt": "are doubtful", "spurious": "are spurious", "unseen": "are zero on all rows"}
    parts += [f"{trust[name]} {said}" for name, said in words.items() if trust[name]]
    more = f"{trust['constant']} more {'is' if trust['constant'] == 1 else 'are'} constant"
    constant = f" {more}." if trust["constant"] else ""
    answer = f"{trust['trust']} of {told}" if trust["trust"] else "none"
    return [Finding(question, answer, f"On {rows} {', '.join(parts)}.{constant}")]


def _listed(shifts: list[str], areas: dict[str, float]) -> str:
    return ", ".join(f"{shift} ({areas[shift]:.2f})" for shift in shifts)


def number(x: Tensor | float) -> str:
    """Two significant digits."""
    value = float(x)
    return f"{value:.2g}" if value < 1000 else f"{value:.1e}"


def summary(found: Evidence) -> str:
    """A few lines for the terminal."""
    lines = [found.subject.title, *found.subject.provenance]
    return "\n".join([*lines, *(f"- {finding.sentence}" for finding in verdict(found))])
