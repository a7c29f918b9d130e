"""A report of runs on disk: complete, and the same every time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.report.build import build_report

NASTY = "<img src=x onerror=alert(1)>"


def write_run(root: Path, agent: str, seed: int, level: float) -> None:
    folder = root / "Pole-v1" / agent / f"seed{seed}"
    folder.mkdir(parents=True)
    config = f"agent: {{class_path: agents.Some, init_args: {{size: {len(agent)}}}}}\nenv: {{id: Pole-v1}}\n"
    (folder / "config.yaml").write_text(f"{config}steps: 200\nseed: {seed}\n")
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0"}}))
    records = [
        {
            "event": "evaluation",
            "env_steps": steps,
            "updates": steps,
            "seconds": steps / 10,
            "return_mean": level + seed,
            "returns": [level + seed],
            "evaluation_seconds": 0.5,
        }
        for steps in (100, 200)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for agent, level in (("good", 50.0), (NASTY, 10.0)):
        for seed in range(3):
            write_run(tmp_path / "runs", agent, seed, level)
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_runs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    page = build_report(root)
    assert page == root / "report" / "index.html"
    first = contents(page.parent)
    assert {"index.html", "runs.csv", "curves.csv", "summary.csv", "improvement.png"} <= set(first)
    assert contents(build_report(root, tmp_path / "elsewhere").parent) == first
    assert contents(build_report(root).parent) == first  # over itself
    write_run(root, "third", 0, 20.0)
    assert contents(build_report(root).parent)["index.html"] != first["index.html"]


def test_every_run_and_every_evaluation_is_in_the_data(root: Path) -> None:
    folder = build_report(root).parent
    runs = list(csv.DictReader((folder / "runs.csv").open()))
    assert len(runs) == 6
    assert {row["agent"] for row in runs} == {"good", NASTY}
    assert len(list(csv.DictReader((folder / "curves.csv").open()))) == 12


def test_labels_cannot_become_markup(root: Path) -> None:
    text = build_report(root).read_text()
    assert "<img" not in text
    assert "onerror" in text


def test_a_folder_without_runs_makes_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
