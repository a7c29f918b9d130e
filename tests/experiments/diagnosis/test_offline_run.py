"""``mbrl diagnose`` of a run that learned from a dataset: those are the rows that its model has seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.diagnosis.subject import open_subject
from mbrl.data.offline import About, open_dataset, save_folder
from tests.experiments.offline_runs import ENV, write_set
from tests.mbrl.data.made import differences, play

SMALL = [
    "--agent.model.hidden=8",
    "--agent.fitter.max_updates=5",
    "--agent.learner.hidden=8",
    "--agent.batch_size=16",
    "--agent.round_updates=10",
    "--agent.refresh_every=10",
    "--agent.starts=10",
    "--evaluation.episodes=1",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    assert main(["train", "mopo", "--data=set", "--steps=10", "--quiet", "--out=run", *SMALL]) == 0
    return tmp_path / "run"


def test_it_is_judged_on_its_dataset(run: Path, tmp_path: Path) -> None:
    subject = open_subject(run, None, [])
    assert differences(subject.steps.all(), open_dataset(tmp_path / "set").rows()) == []
    assert not subject.unseen
    assert "dataset that it was fitted on" in subject.provenance[0]


def test_other_rows_are_new_to_it_and_its_own_are_not(run: Path, tmp_path: Path) -> None:
    rows = play("Pendulum-v1", episodes=6, limit=25)  # the first four are those of the dataset
    save_folder([rows], len(rows), tmp_path / "other", About(env=ENV))
    subject = open_subject(run, tmp_path / "other", [])
    assert subject.unseen
    assert len(subject.steps) == 50
    assert not open_subject(run, tmp_path / "set", []).unseen


def test_a_dataset_that_has_changed_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.parent / "set")
    write_set(run.parent / "set", change=0.5)
    assert main(["diagnose", "run"]) == 2
    assert "the dataset has changed" in capsys.readouterr().err
