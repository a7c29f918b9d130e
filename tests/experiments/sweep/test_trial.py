"""A trial's process: it waits behind every evaluation, and a pruned run is the beginning of the whole one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from experiments.metrics import comparable, read_records
from experiments.sweep.command import Sweep
from experiments.sweep.plan import check, make_plan
from experiments.sweep.result import last_line
from experiments.sweep.trial import TrialProcess

LEARNING = [
    "sac-fast --env Pendulum-v1 --seed=3 --steps=120 --evaluation.every=40 --evaluation.episodes=1",
    "--evaluation.num_envs=1 --env.max_episode_steps=15 --agent.learner.compile=false --agent.learner.hidden=8",
    "--agent.warmup_steps=20 --agent.batch_size=8 --agent.updates_per_step=1 --checkpoint.every=50",
]
BROKEN = '''
from gymnasium.envs.classic_control import CartPoleEnv


class Broken(CartPoleEnv):
    """Breaks down on the way."""

    def step(self, action):
        self.count = getattr(self, "count", 0) + 1
        if self.count > 25:
            raise ZeroDivisionError("the pole is made of glass")
        return super().step(action)
'''


@contextmanager
def trial(folder: Path, words: str) -> Iterator[TrialProcess]:
    """A trial as Tune drives it, without Ray."""
    job = {"folder": str(folder), "log": str(folder.parent / "log.txt"), "words": ["train", *words.split()]}
    job |= {"cwd": str(folder.parent), "metric": "return_mean"}
    made: TrialProcess = object.__new__(TrialProcess)  # what Tune adds needs Ray
    made.setup({"job": job})
    try:
        yield made
    finally:
        made.cleanup()


def records(folder: Path) -> list[dict[str, Any]]:
    return [comparable(record) for record in read_records(folder / "metrics.jsonl")]


def test_a_pruned_run_has_not_seen_a_step_more_and_can_be_resumed(tmp_path: Path) -> None:
    words = " ".join(LEARNING)
    assert main(["train", *words.split(), "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    with trial(tmp_path / "pruned", words) as made:
        first, second = made.step(), made.step()
        assert (first["steps"], first["last"], second["steps"], second["done"]) == (40, False, 80, False)
        assert (
            first["value"] == next(r for r in records(tmp_path / "whole") if r["event"] == "evaluation")["return_mean"]
        )
    assert records(tmp_path / "pruned")[-1]["env_steps"] == 80
    assert CheckpointStore(tmp_path / "pruned" / "checkpoints").found()[-1].env_steps == 80
    told = json.loads((tmp_path / "pruned" / "versions.json").read_text())["command"]
    assert told[:3] == ["mbrl", "train", "sac-fast"]
    assert main(["resume", str(tmp_path / "pruned"), "--quiet"]) == 0
    assert records(tmp_path / "pruned") == records(tmp_path / "whole")


def test_a_trial_goes_on_whenever_its_process_is_killed(tmp_path: Path) -> None:
    plan = make_plan(recipe="random", env="CartPole-v1", params={"num_envs": "[1, 2]"}, set={"steps": 60}, grace=20)
    found = check(plan)
    (tmp_path / "ledger.jsonl").write_text(
        '{"trial": 0, "params": {"num_envs": 1}}\n{"trial": 0, "steps": 40, "value": 9.0, "verdict": "prune"}\n'
    )
    sweep = Sweep(tmp_path, found)
    run, words = sweep.folder(sweep.ledger.trials[0]), " ".join(found.words({"num_envs": 1})[1:])
    with trial(run, words) as made:
        assert [made.step()["steps"] for _ in range(2)] == [20, 40]
        assert made.process is not None
        made.process.kill()
        with pytest.raises(RuntimeError, match="ended by signal 9"):
            made.step()
    assert sweep.todo() == [0]  # its verdict is known, and there is no checkpoint of then
    with trial(run, words) as made:
        assert [made.step()["steps"] for _ in range(2)] == [20, 40]
    assert sweep.todo() == []
    with trial(run, words) as made:
        told = made.step()
    assert (told["steps"], told["last"], told["done"]) == (60, True, True)
    with trial(run, words) as made:  # nobody had heard that it is complete
        assert made.step() == told


def test_an_exception_of_the_users_code_is_told_whole(tmp_path: Path) -> None:
    (tmp_path / "glass.py").write_text(BROKEN)
    words = "random --env glass:Broken --trust glass --steps=60 --evaluation.every=20 --env.max_episode_steps=10"
    with trial(tmp_path / "run", f"{words} --evaluation.episodes=1") as made:
        told: dict[str, Any] = {}
        while not told.get("done"):
            told = made.step()
    assert 'glass.py", line 11, in step' in told["error"]
    assert 'raise ZeroDivisionError("the pole is made of glass")' in told["error"]
    assert last_line(told["error"]).startswith("env: 'glass:Broken': step 6 of an episode raised ZeroDivisionError")
