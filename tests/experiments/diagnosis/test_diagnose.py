"""``mbrl diagnose``: which rows count as unseen, what is said of which numbers, and the page as a whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.errors import UserError
from experiments.cli import main
from experiments.diagnosis.building import rebuild
from experiments.diagnosis.dataset import read_dataset
from experiments.diagnosis.diagnose import run_diagnosis
from experiments.diagnosis.evidence import Evidence, measure, numbers
from experiments.diagnosis.fit import plain, run_fit
from experiments.diagnosis.sections import SECTIONS, modes
from experiments.diagnosis.sections.verdict import warnings
from experiments.diagnosis.subject import held_out, last_fit, open_subject
from experiments.diagnosis.verdict import summary, verdict
from experiments.pages.parts import Choice, Figure, Fold, Table
from experiments.run import RunDirectory
from mbrl.diagnostics.calibration import calibrate
from mbrl.diagnostics.predictive import predictive
from mbrl.fitting import Fitter
from tests.experiments.diagnosis.conftest import SMALL


@pytest.fixture(scope="module")
def evidence(fit: Path) -> Evidence:
    return measure(open_subject(fit, None, []))


# -- which rows ------------------------------------------------------------------------------------------------------


def test_a_fit_is_judged_on_the_episodes_it_has_not_seen(fit: Path) -> None:
    subject, split = open_subject(fit, None, []), json.loads((fit / "fit.json").read_text())["split"]
    assert subject.unseen
    assert subject.steps.all().episode.unique().tolist() == split["heldout"]
    assert subject.reference.episode.unique().tolist() == split["train"]
    assert warnings(measure(subject)) == []


def test_the_weights_are_those_that_were_fitted(fit: Path) -> None:
    stored = torch.load(fit / "model.pt", weights_only=True)["model"]
    for name, value in open_subject(fit, None, []).model.state_dict().items():
        assert torch.equal(value, stored[name])


def test_a_run_is_judged_on_its_own_rows_with_a_warning(run: Path) -> None:
    """Twenty rows came after its last fit, which are too few to go by; its fitter holds nothing out."""
    directory = RunDirectory.open(run)
    assert last_fit(directory, 370, 370) == 350
    assert last_fit(directory, 340, 340) == 300
    assert last_fit(directory, 370, 365) is None  # not a row for each env step
    subject = open_subject(run, None, [])
    assert (subject.unseen_steps, subject.unseen_windows, len(subject.steps)) == (False, False, 370)
    assert "20 came after its last fit" in subject.provenance[0]
    assert subject.fits == 3
    assert any("trained on" in getattr(part, "text", "") for part in warnings(measure(subject)))


def test_rows_after_the_last_fit_are_enough_when_there_are_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.diagnosis.subject.LEAST_ROWS", 20)
    subject = open_subject(run, None, [])
    assert subject.unseen
    assert subject.steps.all().step.tolist() == read_dataset(run).buffer.all().step[350:].tolist()
    assert len(subject.reference) == 350


def with_fitter(run: Path, **options: Any) -> tuple[Any, Any]:
    agent: Any = rebuild(run / "config.yaml", [])
    agent.fitter = Fitter(**options)
    return agent, read_dataset(run).buffer.all()


def test_rows_that_a_fixed_holdout_kept_are_unseen(run: Path) -> None:
    agent, rows = with_fitter(run, holdout=0.2)
    mask = held_out(agent, rows, wrapped=False)
    kept: list[Tensor] = []
    seen = agent.fitter.split

    def watched(data: Any, generator: Any, window: int) -> Any:
        train, held = seen(data, generator, window)
        kept.append(held.sort().values)
        return train, held

    agent.fitter.split = watched
    agent.fitter.max_epochs = 1
    agent.fitter.fit(agent.model, rows, torch.Generator().manual_seed(5))
    assert torch.equal(mask.nonzero()[:, 0], kept[0])
    earlier = held_out(agent, rows[:200], wrapped=False)
    assert torch.equal(earlier, mask[:200])  # what is held now was held in every fit before


def test_where_the_holdout_moves_nothing_is_claimed(run: Path) -> None:
    for options in ({"holdout": 0.0, "max_updates": 5}, {"holdout": 0.2, "fresh_holdout": True}):
        agent, rows = with_fitter(run, **options)
        assert not held_out(agent, rows, wrapped=False).any()
    agent, rows = with_fitter(run, holdout=0.2, max_holdout=10)
    assert held_out(agent, rows, wrapped=False).any()
    assert not held_out(agent, rows, wrapped=True).any()


def test_other_data_is_unseen(run: Path, fit: Path, tmp_path: Path) -> None:
    other = read_dataset(run).buffer
    other.columns["obs"] += 0.01
    other.save(tmp_path / "other")
    for source in (run, fit):
        subject = open_subject(source, tmp_path / "other", [])
        assert subject.unseen
        assert len(subject.steps) == 370


def test_other_data_that_is_none_is_found_out(run: Path, fit: Path, tmp_path: Path) -> None:
    """A copy of what a model was fitted on is not new to it; the held-out episodes in it are."""
    read_dataset(run).buffer.save(tmp_path / "copy")
    assert not open_subject(run, tmp_path / "copy", []).unseen
    subject, own = open_subject(fit, tmp_path / "copy", []), open_subject(fit, None, [])
    assert subject.unseen
    assert torch.equal(subject.steps.all().obs, own.steps.all().obs)
    assert "left out" in subject.provenance[1]


def test_data_that_has_changed_since_the_fit_is_refused(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    read_dataset(run).buffer.save(data)
    named = [*SMALL, ("env.id", "Pendulum-v1"), ("agent.fitter.first_updates", 2)]
    path = run_fit("pets", data, str(tmp_path / "fit"), named, [])
    open_subject(path, None, [])
    shutil.rmtree(data)
    rows = read_dataset(run).buffer
    rows.columns["obs"][3] += 1.0
    rows.save(data)
    with pytest.raises(UserError, match="changed"):
        open_subject(path, None, [])


def test_the_true_dynamics_pass(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "oracle"
    command = ["train", "oracle-mpc", "--env", "Pendulum-v1", f"--out={source}", "--quiet", "--env.max_episode_steps=3"]
    assert main([*command, "--evaluation.episodes=1", "--evaluation.num_envs=1"]) == 0
    with pytest.raises(UserError, match="no transitions"):
        open_subject(source, None, [])
    found = measure(open_subject(source, run, []))
    assert answers(found) == ["yes", "yes", "25 or more", "unknown", "unknown", "unknown"]
    assert float(found.errors.model[:5].max()) < 1e-4
    assert found.subject.unseen
    assert [make for make in SECTIONS if make(found) is None] == [modes.section]  # it is not linear in a lifted state


@pytest.mark.parametrize("what", ["nothing", "no model"])
def test_what_is_no_model_is_refused(tmp_path: Path, what: str) -> None:
    source = tmp_path / "random"
    if what == "no model":
        command = ["train", "random", "--env", "Pendulum-v1", "--steps=20", f"--out={source}", "--quiet"]
        assert main([*command, "--evaluation.episodes=1", "--evaluation.num_envs=1"]) == 0
    with pytest.raises(UserError, match="no dynamics model" if what == "no model" else "not a run directory"):
        run_diagnosis(source, None, tmp_path / "page", [])
    assert not (tmp_path / "page").exists()


# -- what is said ----------------------------------------------------------------------------------------------------


def answers(found: Evidence) -> list[str]:
    return [finding.answer for finding in verdict(found)]


def test_the_verdict_follows_the_numbers(evidence: Evidence) -> None:
    errors = evidence.errors
    good = replace(errors, model=errors.persistence * 0.01, linear=errors.persistence * 0.5)
    assert answers(replace(evidence, errors=good))[:2] == ["yes", "yes"]
    bad = replace(good, model=errors.persistence * 2, linear=errors.persistence)
    assert answers(replace(evidence, errors=bad))[:3] == ["no", "no", "none"]
    half = good.model.clone()
    half[4:] = 50.0
    assert answers(replace(evidence, errors=replace(good, model=half)))[:3] == ["partly", "partly", "4"]
    broken = good.model.clone()
    broken[2:] = torch.nan
    assert answers(replace(evidence, errors=replace(good, model=broken)))[2] == "2"


def test_scaled_intervals_turn_the_verdict(evidence: Evidence) -> None:
    said = predictive(evidence.subject.model, evidence.subject.steps.all())
    assert said is not None
    mean, std = said.moments()
    honest = replace(said, mean=mean[None], std=std[None], target=mean + std * torch.randn_like(mean))
    for factor, answer, word in ((1.0, "yes", "calibrated"), (0.5, "no", "overconf"), (2.0, "partly", "underconf")):
        found = replace(evidence, calibration=calibrate(replace(honest, std=factor * honest.std)))
        finding = verdict(found)[3]
        assert finding.answer == answer
        assert word in finding.sentence
    assert verdict(replace(evidence, calibration=None))[3].answer == "unknown"


def test_uncertainty_that_knows_nothing_is_called_so(evidence: Evidence) -> None:
    blind = [replace(ranking, spearman=0.05) for ranking in evidence.rankings]
    wise = [*blind[:-1], replace(blind[-1], spearman=0.9)]
    assert answers(replace(evidence, rankings=blind))[4] == "no"
    assert answers(replace(evidence, rankings=wise))[4] == "yes"
    assert answers(replace(evidence, rankings=[]))[4] == "unknown"
    for area, answer in ((0.95, "yes"), (0.7, "partly"), (0.5, "no")):
        shifts = [replace(test, auroc=area) for test in evidence.shifts]
        assert answers(replace(evidence, shifts=shifts))[5] == answer
    assert answers(replace(evidence, shifts=[]))[5] == "unknown"


def test_a_model_that_offers_nothing_still_has_a_page(evidence: Evidence) -> None:
    bare = replace(evidence, calibration=None, rankings=[], shifts=[], spectra=None, growth=None)
    assert [shown.id for make in SECTIONS if (shown := make(bare)) is not None] == [
        "verdict", "depth", "calibration", "ranking", "shift", "spectra", "paths", "rows",
    ]  # fmt: skip
    json.dumps(plain(numbers(bare)), allow_nan=False)


def test_sections_show_what_was_measured(evidence: Evidence) -> None:
    sections = {shown.id: shown for make in SECTIONS if (shown := make(evidence)) is not None}
    table = next(part for part in sections["depth"].parts if isinstance(part, Table))
    overall = evidence.errors.overall(evidence.errors.model)
    assert table.rows[0][1] == float(overall[0])
    assert table.rows[-1][:2] == (len(overall), float(overall[-1]))
    windows = next(part for part in sections["paths"].parts if isinstance(part, Choice))
    assert list(windows.options) == ["typical error", "smallest error", "largest error", "upper quartile"]
    kinds = [type(part) for section in sections.values() for part in section.parts]
    assert kinds.count(Figure) >= 7
    assert Fold in kinds


def test_the_same_subject_gives_the_same_numbers(evidence: Evidence, fit: Path) -> None:
    again = measure(open_subject(fit, None, []))
    assert plain(numbers(again)) == plain(numbers(evidence))
    assert summary(again) == summary(evidence)


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_and_its_numbers(fit: Path, evidence: Evidence, tmp_path: Path) -> None:
    page = run_diagnosis(fit, None, tmp_path / "page", [])
    assert page == tmp_path / "page" / "index.html"
    record = json.loads((tmp_path / "page" / "diagnosis.json").read_text())
    assert record["open_loop"]["overall"] == plain(numbers(evidence))["open_loop"]["overall"]
    text = page.read_text()
    for finding in verdict(evidence):
        assert finding.question in text
    for name in ("error-by-depth", "calibration-curve", "risk-coverage", "eigenvalues", "paths-typical-error"):
        assert (tmp_path / "page" / f"{name}.png").stat().st_size > 1000
    assert "- It " in (tmp_path / "page" / "summary.txt").read_text()
