"""Tasks with discrete actions, from the command line: agents learn with learned rewards and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.metrics import read_records

JUDGED = ["--evaluation.every=0", "--evaluation.episodes=5", "--evaluation.num_envs=5", "--quiet"]


def trained(recipe: str, env: str, steps: int, where: Path, *words: str) -> list[dict[str, Any]]:
    command = ["train", recipe, "--env", env, "--steps", str(steps), "--out", str(where / recipe), *JUDGED, *words]
    assert main(command) == 0
    return [*read_records(where / recipe / "metrics.jsonl")]


def last_return(records: list[dict[str, Any]]) -> float:
    return float(records[-1]["return_mean"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mbpo_balances_the_pole_on_what_it_learned_of_reward_and_end(tmp_path: Path) -> None:
    """Seeds 0 and 1 got 176 and 456 of 500 after 500 steps; random actions get 22."""
    records = trained("mbpo-fast", "CartPole-v1", 500, tmp_path, "--agent.learner.compile=false")
    assert any(record["event"] == "fit" and record["imagined_ends"] > 0 for record in records), "ends were imagined"
    assert last_return(records) > 100.0
    assert last_return(trained("random", "CartPole-v1", 0, tmp_path)) < 50.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pets_swings_the_acrobot_up_on_what_it_learned_of_the_end(tmp_path: Path) -> None:
    """After its 1,000 random decisions of 4 steps seed 0 got -160; random actions get about -470."""
    records = trained("pets", "Acrobot-v1", 1200, tmp_path)
    assert last_return(records) > -300.0
    assert last_return(trained("random", "Acrobot-v1", 0, tmp_path, "--env.action_repeat=4")) < -350.0
