"""Everything that is measured of a model, before anything is said or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from experiments.diagnosis.subject import Subject
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.baselines import LinearBaseline
from mbrl.diagnostics.calibration import DATA_NLL, LEVELS, Calibration, calibrate
from mbrl.diagnostics.modes import Drift, Modes, drift, modes
from mbrl.diagnostics.open_loop import (
    Ends,
    Growth,
    OpenLoop,
    Paths,
    ends,
    growth,
    open_loop,
    pick_depth,
    sample_paths,
)
from mbrl.diagnostics.predictive import predictive, uncertainties
from mbrl.diagnostics.ranking import Ranking, rank
from mbrl.diagnostics.rows import Units, row_errors
from mbrl.diagnostics.shift import ShiftTest, shift_tests
from mbrl.diagnostics.spectra import Spectra, spectra
from mbrl.models.base import LatentLinear
from mbrl.models.koopman.base import KoopmanModel

DEEPEST = 25
MOST_ROWS, MOST_SPECTRA, MOST_FOR_MODES = 2000, 300, 5000
WINDOWS = 256
REENCODED = 5
"""The period that a model is also tried with which does not re-encode by itself"""


@dataclass(frozen=True)
class Evidence:
    """What was measured; None or empty where the model does not offer it."""

    subject: Subject
    units: Units
    steps: int
    """Rows of the one-step judgements"""
    errors: OpenLoop
    growth: Growth | None
    ends: Ends
    calibration: Calibration | None
    rankings: list[Ranking]
    shifts: list[ShiftTest]
    spectra: Spectra | None
    linear_radius: float
    paths: Paths
    modes: Modes | None = None
    drift: Drift | None = None


def measure(subject: Subject, seed: int = 0) -> Evidence:
    """Judge the subject. The same subject and seed give the same numbers."""
    luck, model = torch.Generator().manual_seed(seed), subject.model
    units = Units.of(model.spec, subject.reference)
    linear = LinearBaseline.fit(model.spec, subject.reference)
    depth = pick_depth(subject.windows.all(), DEEPEST)
    errors = open_loop(model, subject.windows, linear, units, depth, luck)
    rows = some(subject.steps.all(), MOST_ROWS, luck)
    said, missed = predictive(model, rows, units), row_errors(model, rows, units)
    return Evidence(
        subject=subject,
        units=units,
        steps=len(rows),
        errors=errors,
        growth=growth(errors.overall(errors.model)),
        ends=ends(model, rows),
        calibration=None if said is None else calibrate(said),
        rankings=[rank(kind, value, missed) for kind, value in uncertainties(model, rows).items()],
        shifts=shift_tests(model, rows, units.obs, luck),
        spectra=spectra(model, rows[:MOST_SPECTRA], units.obs),
        linear_radius=float(torch.linalg.eigvals(linear.state_matrix()).abs().max()),
        paths=sample_paths(model, subject.windows, units, depth, luck),
        modes=_modes(subject, luck),
        drift=_drift(subject, depth, luck),
    )


def _modes(subject: Subject, luck: Generator) -> Modes | None:
    if not isinstance(subject.model, LatentLinear):
        return None
    return modes(subject.model, some(subject.steps.all(), MOST_FOR_MODES, luck))


def _drift(subject: Subject, depth: int, luck: Generator) -> Drift | None:
    """Never re-encoding against the model's own period."""
    model = subject.model
    if not isinstance(model, KoopmanModel):
        return None
    return drift(model, subject.windows.windows(WINDOWS, depth, luck), (0, model.reencode_every or REENCODED))


def some(rows: Transitions, most: int, generator: Generator) -> Transitions:
    """At most that many rows, drawn without replacement, in random order."""
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


def numbers(found: Evidence) -> dict[str, Any]:
    """Everything measured as plain names and numbers (and tensors, for :func:`experiments.diagnosis.fit.plain`)."""
    subject = found.subject
    return {
        "subject": subject.title,
        "model": type(subject.model).__name__,
        "env": subject.model.spec.id,
        "fits": subject.fits,
        "rows": {
            "one_step": found.steps,
            "one_step_unseen": subject.unseen_steps,
            "windows_unseen": subject.unseen_windows,
            "provenance": subject.provenance,
        },
        "open_loop": _open_loop(found.errors, found.units) | {"growth": found.growth and vars(found.growth)},
        "ends": vars(found.ends),
        "calibration": found.calibration and _calibration(found.calibration),
        "ranking": {r.estimator: _ranking(r) for r in found.rankings},
        "shift": [{"shift": s.shift, "estimator": s.estimator, "auroc": s.auroc} for s in found.shifts],
        "spectra": _spectra(found),
        "modes": found.modes and _modes_numbers(found.modes, found.drift),
    }


def _open_loop(errors: OpenLoop, units: Units) -> dict[str, Any]:
    kinds = {"model": errors.model, "persistence": errors.persistence, "linear": errors.linear}
    return {
        "unit": "standard deviations of each entry over the rows that the model was trained on",
        "depths": errors.depths,
        "windows": errors.windows,
        "windows_available": errors.available,
        "overall": {name: errors.overall(value) for name, value in kinds.items()},
        "by_entry": {name: dict(zip(errors.names, value.T, strict=True)) for name, value in kinds.items()},
        "standard_deviation": dict(zip(errors.names, units.obs, strict=True)),
        "reward": errors.reward,
        "reward_learned": errors.learns_reward,
    }


def _calibration(found: Calibration) -> dict[str, Any]:
    by_output = {
        name: {
            **{f"coverage_{round(100 * level)}": found.covered[level][i] for level in LEVELS},
            "ks": found.ks[i],
            "calibration_error": found.error[i],
            "spread": found.spread[i],
            "sharpness": found.sharpness[i],
        }
        for i, name in enumerate(found.names)
    }
    overall = {f"coverage_{round(100 * level)}": found.overall(level) for level in LEVELS}
    overall |= {"ks": float(found.ks.mean()), "calibration_error": float(found.error.mean())}
    overall |= {"nll": found.nll, "nll_per_output": found.nll_per_output, "nll_per_output_of_the_data": DATA_NLL}
    return {"confidence": found.confidence, "overall": overall, "by_output": by_output}


def _ranking(found: Ranking) -> dict[str, float]:
    oracle = float(found.oracle.mean())
    areas = {"area": found.area, "random_area": found.random_area, "oracle_area": oracle}
    return {"spearman": found.spearman, "gain": found.gain, **areas}


def _spectra(found: Evidence) -> dict[str, Any] | None:
    if found.spectra is None:
        return None
    radius = found.spectra.radius
    return {
        "of": found.spectra.source,
        "states": len(radius),
        "radius": quantiles(radius),
        "share_above_1": float((radius > 1.0).double().mean()),
        "stretch": quantiles(found.spectra.stretch),
        "radius_of_the_linear_baseline": found.linear_radius,
    }


def _modes_numbers(found: Modes, grown: Drift | None) -> dict[str, Any]:
    columns = {"real": found.values.real, "imag": found.values.imag, "residual": found.residual}
    columns |= {"change": found.change, "spread": found.spread}
    closure = None if grown is None else {f"reencode_{period}": error for period, error in grown.closure.items()}
    return {
        "rows": found.rows,
        "modes": {**columns, "trust": found.trust()},
        "closure_error": found.closure,
        "spectral_radius": found.radius,
        "condition_of_eigenvectors": found.condition,
        "condition_of_gram": found.features.condition,
        "cutoff": found.features.cutoff,
        "rank": found.features.rank,
        "closure_by_depth": closure,
        "diverged": grown and {f"reencode_{period}": share for period, share in grown.diverged.items()},
    }


def quantiles(x: Tensor) -> dict[str, float]:
    """Five, fifty and ninety-five per cent."""
    return {f"q{round(100 * share)}": float(x.double().quantile(share)) for share in (0.05, 0.5, 0.95)}
