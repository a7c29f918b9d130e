"""Modes on the page of a lifted model: what is said, what is shown, and that other models have no such section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.diagnosis.evidence import Evidence, measure, numbers
from experiments.diagnosis.fit import plain, run_fit
from experiments.diagnosis.sections import modes as section
from experiments.diagnosis.subject import open_subject
from experiments.diagnosis.verdict import Finding, verdict
from experiments.pages.parts import Figure, Fold, Table
from mbrl.diagnostics.modes import Modes

QUESTION = "Which of its modes can be trusted?"
LIFTED: list[tuple[str, Any]] = [
    ("agent.model.dictionaries", [{"class_path": "GaussianRBF", "init_args": {"centres": 12, "width": 0.7}}]),
    ("agent.model.validation_steps", 5),
]


@pytest.fixture(scope="module")
def lifted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    path = run_fit("koopman-edmd", run, str(tmp_path_factory.mktemp("fits") / "edmd"), LIFTED, [])
    return measure(open_subject(path, None, []))


def modes_of(found: Evidence) -> Modes:
    assert found.modes is not None
    return found.modes


def finding(found: Evidence) -> Finding:
    return next(one for one in verdict(found) if one.question == QUESTION)


def with_modes(found: Evidence, **columns: Tensor) -> Evidence:
    return replace(found, modes=replace(modes_of(found), **columns))


def test_a_lifted_model_is_judged_on_rows_it_has_not_seen(lifted: Evidence) -> None:
    shown = section.section(lifted)
    assert shown is not None
    assert len(modes_of(lifted).values) == 1 + 3 + 12
    assert modes_of(lifted).rows == len(lifted.subject.steps)
    assert "that the model was not trained on" in shown.lead
    seen = replace(lifted, subject=replace(lifted.subject, unseen_steps=False))
    again = section.section(seen)
    assert again is not None
    assert "most of which it was trained on" in again.lead
    assert "on rows it was trained on" in finding(seen).answer


def test_residuals_on_training_rows_flatter(lifted: Evidence) -> None:
    """The control: why the rows have to be new."""
    from mbrl.diagnostics.modes import modes

    subject = lifted.subject
    train = modes(subject.model, subject.reference)
    assert train is not None
    assert train.closure < modes_of(lifted).closure


def test_the_section_shows_what_was_measured(lifted: Evidence) -> None:
    shown = section.section(lifted)
    assert shown is not None
    figures = [part.name for part in shown.parts if isinstance(part, Figure)]
    assert figures == ["mode-eigenvalues", "closure-by-depth"]
    tables = [part for part in shown.parts if isinstance(part, Table)]
    assert tables[0].rows[0][1] == "constant: tells no states apart"
    values = modes_of(lifted).values
    assert len(tables[0].rows) == int((values.imag >= 0).sum())
    assert "period, s" in tables[0].columns
    assert not any(isinstance(part, Fold) for part in shown.parts)


def test_many_modes_are_folded_and_few_rows_have_no_contours(lifted: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "SHOWN", 3)
    few = replace(lifted, modes=replace(modes_of(lifted), rows=20), drift=None)
    shown = section.section(few)
    assert shown is not None
    assert isinstance(shown.parts[-1], Fold)
    (figure,) = [part for part in shown.parts if isinstance(part, Figure)]
    assert "so there are none" in figure.caption


def test_the_finding_follows_the_residuals(lifted: Evidence) -> None:
    ones = torch.ones(16, dtype=torch.float64)
    all_good = with_modes(lifted, residual=0.02 * ones, change=ones, spread=ones)
    assert finding(all_good).answer == "16 of 16"
    half = torch.cat([0.02 * ones[:8], ones[:8]])
    assert finding(with_modes(lifted, residual=half, change=ones, spread=ones)).answer == "8 of 16"
    assert "8 are spurious" in finding(with_modes(lifted, residual=half, change=ones, spread=ones)).sentence
    still = with_modes(lifted, residual=0.02 * ones, change=0.03 * ones, spread=ones)
    assert finding(still).answer == "none"
    assert "16 are doubtful" in finding(still).sentence
    assert finding(with_modes(lifted, spread=0 * ones)).answer == "none"
    assert "zero on all rows" in finding(with_modes(lifted, residual=torch.nan * ones)).sentence


WORDS: Mapping[str, tuple[complex, float, Any, float | None]] = {
    "trust: half-life 12 steps; linear to 2 % a step": (0.944, 0.02, "trust", None),
    "trust: doubles in 0.35 s; linear to 2 % a step": (1.104, 0.02, "trust", 0.05),
    "trust: lasts; linear to 0.1 % a step": (complex(0.6, 0.8), 0.001, "trust", None),
    "doubt: half-life 12 steps; no better than no change": (0.944, 0.09, "doubt", None),
    "doubt: gone in a step; off by 20 % a step": (0.0, 0.2, "doubt", None),
    "spurious: off by 80 % a step": (0.5, 0.8, "spurious", 0.1),
    "zero on all rows": (0.5, float("nan"), "unseen", None),
}


@pytest.mark.parametrize("words", WORDS)
def test_modes_in_words(words: str) -> None:
    assert section.words_of(*WORDS[words]) == words


def test_the_numbers_are_plain(lifted: Evidence) -> None:
    record = json.loads(json.dumps(plain(numbers(lifted)), allow_nan=False))["modes"]
    assert len(record["modes"]["real"]) == len(record["modes"]["trust"]) == 16
    assert {"reencode_0"} < set(record["closure_by_depth"])
    assert record["closure_by_depth"]["reencode_0"][0] == pytest.approx(record["closure_error"], rel=0.5)
    assert record["rank"] == 16


def test_other_models_have_no_modes(fit: Path) -> None:
    found = measure(open_subject(fit, None, []))
    assert found.modes is None
    assert section.section(found) is None
    assert QUESTION not in [one.question for one in verdict(found)]
    assert numbers(found)["modes"] is None
