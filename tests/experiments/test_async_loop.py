"""A run whose environments are played while it learns: it learns, stops, goes on, and says what cannot be so played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.loops.asynchronous import AsyncLoop
from experiments.metrics import read_records

STEPS = 600
AGENT = ["warmup_steps=100", "fit_every=200", "rollouts_per_step=1", "batch_size=8", "learner.hidden=8"]
AGENT += ["learner.compile=false", "model.hidden=8", "fitter.max_epochs=1", "log_every=100"]
RUN = ["num_envs=4", "evaluation={every: 300, episodes: 2}", "checkpoint.every=200", "env.max_episode_steps=50"]
RUN += ["workers.environments=1", "workers.round_steps=10", "workers.imagination=0"]
WORDS = [*(f"--agent.{word}" for word in AGENT), *(f"--{word}" for word in RUN), "--quiet", "--ray", "--async"]


def dies_at(monkeypatch: pytest.MonkeyPatch, env_steps: int) -> None:
    advance = AsyncLoop.advance

    def dying(loop: AsyncLoop) -> None:
        if loop.clock.env_steps >= env_steps:
            raise KeyboardInterrupt
        advance(loop)

    monkeypatch.setattr(AsyncLoop, "advance", dying)


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run / "metrics.jsonl") if record["event"] == name]


def test_a_run_learns_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, 350)
        assert main(["train", "mbpo-fast", "--env", "Pendulum-v1", f"--steps={STEPS}", f"--out={run}", *WORDS]) == 130
    assert main(["resume", str(run), "--quiet", "--ray"]) == 0
    assert [record["env_steps"] >= STEPS for record in events(run, "evaluation")] == [False, True]
    assert len(events(run, "fit")) == 3
    last = list(read_records(run / "metrics.jsonl"))[-1]
    assert last["updates"] >= last["env_steps"] - 100  # as many as without workers
    episodes = events(run, "episode")
    assert {record["length"] for record in episodes} == {50}
    numbers = [record["episode"] for record in episodes]
    assert len(set(numbers)) == len(numbers) >= 6
    assert all(-900.0 < record["return"] < 0.0 for record in episodes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pets", "--env", "Pendulum-v1", "--ray"], "--async: 'MPCAgent'"),
        (["hypercrl", "--env", "tasks:pendulum-five", "--ray"], "--async: 'ContinualMPCAgent'"),
        (["mbpo-fast", "--env", "Pendulum-v1"], "--async: True: it needs workers: add --ray"),
    ],
    ids=["planner", "sequence", "no workers"],
)
def test_what_cannot_be_played_so_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--async", "--steps=100", f"--out={tmp_path / 'run'}", "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
