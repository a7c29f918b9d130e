"""Foreign learners trained inside a learned model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.benchmarks import inside_model
from experiments.cli import main


def test_it_runs_and_writes_what_is_needed_to_judge_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "inside-model", "--quick", "--repeats=1", f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "inside-model.json").read_text())
    assert record["found"][0]["fit"]["rows"] == 400
    assert {"in model", "control", "seconds"} == set(record["found"][0]["sac"])
    assert "missed" in capsys.readouterr().out  # nobody learns in a hundredth of the time


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_learners_reach_the_goal_in_the_real_task() -> None:
    """At half the benchmark's training. The control learns as long in a model that was hardly fitted, and fails."""
    sizes = dataclasses.replace(inside_model.Sizes(), training_share=0.5)
    found = inside_model.run(sizes, seed=1, control=False)
    assert found["ppo"]["in model"] >= inside_model.GOAL
    assert found["sac"]["in model"] >= inside_model.GOAL
    poor = dataclasses.replace(sizes, fitter={"max_updates": 3})
    rows = inside_model.collect(poor, seed=1)
    model, _ = inside_model.fit(poor, inside_model.env_spec(poor.env), rows, seed=1)
    misled = inside_model.in_model(inside_model.LEARNERS["ppo"], model, rows, poor, seed=1)
    assert inside_model.real_return(misled, poor) < inside_model.GOAL
