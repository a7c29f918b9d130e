"""A run directory is a dataset like any other."""

from __future__ import annotations

from pathlib import Path

from experiments.dataset import run_describe
from experiments.diagnosis.dataset import read_dataset
from mbrl.data.minari import write_minari
from mbrl.data.offline import open_dataset
from tests.mbrl.data.made import differences


def test_a_run_goes_through_the_front_door(run: Path, tmp_path: Path) -> None:
    found, rows = open_dataset(run), read_dataset(run).buffer.all()
    assert found.kind == "run directory"
    assert differences(found.rows(), rows) == []
    assert found.spec().max_episode_steps == 30
    assert found.mapped(tmp_path / "map").total_added == len(rows) == 370
    written = open_dataset(write_minari(rows, "test/run-v0", found.about, root=tmp_path))
    assert differences(written.rows(), rows) == []
    page = run_describe(str(run), tmp_path / "page")
    assert "12 episodes" not in page.read_text()  # the thirteenth had begun
    assert "370 transitions in 13 episodes of Pendulum-v1" in (page.parent / "summary.txt").read_text()
