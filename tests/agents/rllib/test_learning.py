"""Whole runs: Ray begins and ends with them, and the recipe learns what it promises; without learning it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from experiments.cli import main
from experiments.metrics import read_records


def test_a_run_starts_ray_ends_it_and_is_evaluated_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ray.is_initialized()
    command = ["train", "rllib-ppo", "--env", "CartPole-v1", f"--out={tmp_path / 'run'}", "--steps=64", "--quiet"]
    command += [f"--agent.kwargs.{word}" for word in ("train_batch_size_per_learner=64", "minibatch_size=32")]
    command += ["--env.max_episode_steps=30", "--evaluation.episodes=2", "--num_envs=2"]
    assert main(command) == 0
    assert not ray.is_initialized()
    told = capsys.readouterr()
    assert "API stack" not in told.err
    monkeypatch.setattr(ray, "init", None)
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # no --trust: the checkpoint holds no code
    assert told.out.partition(" over")[0] in capsys.readouterr().out


def last_evaluation(out: Path, *more: str) -> float:
    assert main(["train", "rllib-ppo", "--env", "CartPole-v1", "--seed=1", f"--out={out}", "--quiet", *more]) == 0
    found = [record for record in read_records(out / "metrics.jsonl") if record["event"] == "evaluation"]
    return float(found[-1]["return_mean"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ppo_balances_the_pole(tmp_path: Path) -> None:
    assert last_evaluation(tmp_path / "learned") >= 400.0
    assert last_evaluation(tmp_path / "idle", "--agent.kwargs.lr=0.0", "--steps=2048") < 100.0
