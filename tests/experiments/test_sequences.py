"""Runs over sequences of tasks: what is recorded, killed and continued, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from experiments.config import resolve
from experiments.metrics import comparable, read_records
from experiments.run import RunDirectory
from experiments.session import Session, evaluate_run, reopen
from experiments.task_evaluation import judged_windows
from experiments.task_runs import task_runs

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--tasks.steps=60",
    "--agent.warmup_steps=20",
    "--agent.fit_every=20",
    "--agent.fitter.updates=10",
    "--agent.planner.horizon=5",
    "--agent.planner.candidates=10",
    "--agent.planner.iterations=1",
    "--evaluation.episodes=2",
    "--env.max_episode_steps=30",
]


def train(out: str, *more: str, recipe: str = "hypercrl", env: str = "tasks:pendulum-five") -> list[str]:
    return ["train", recipe, "--env", env, "--out", out, "--quiet", "--checkpoint.every=25", *SMALL, *more]


def records(run: Path) -> list[dict[str, Any]]:
    return [comparable(record) for record in read_records(run / "metrics.jsonl")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_after_each_task_all_so_far_are_judged(place: Path) -> None:
    assert main(train("run", "--tasks.order=[2,0,4]", "--num-envs=2")) == 0
    found = records(place / "run")
    judged = [(r["learned"], r["position"], r["task"]) for r in found if r["event"] == "task_evaluation"]
    assert judged == [(0, 0, 2), (1, 0, 2), (1, 1, 0), (2, 0, 2), (2, 1, 0), (2, 2, 4)]
    last = [r for r in found if r["event"] == "task_evaluation"][-1]
    assert {"name", "returns", "error_at_1", "error_at_5", "error_at_25", "rollouts", "diverged"} <= set(last)
    ends = [r for r in found if r["event"] == "task"]
    assert [r["env_steps"] for r in ends] == [60, 120, 180]
    assert all(r["stored_rows"] == 0 for r in ends)
    overall = [r for r in found if r["event"] == "evaluation"]
    means = [r["return_mean"] for r in found if r["event"] == "task_evaluation" and r["learned"] == 2]
    assert overall[-1]["returns"] == means
    assert overall[-1]["return_mean"] == pytest.approx(np.mean(means))
    episodes = [r["episode"] for r in found if r["event"] == "episode"]
    assert len(episodes) == len({*episodes})  # a new task goes on counting
    assert {r["task"] for r in found if r["event"] == "fit"} == {0, 2, 4}


@pytest.mark.parametrize("recipe", ["hypercrl", "hypercrl-coreset", "hypercrl-si"])
def test_killed_in_the_middle_of_the_third_task_and_resumed(place: Path, recipe: str) -> None:
    """The kill is real. Step 155 is 5 after a checkpoint, in the middle of an episode, after two tasks have ended."""
    short = ["--tasks.order=[0,1,2]"]
    assert main(train("whole", *short, recipe=recipe)) == 0
    code = f"""
import os, signal
from experiments.loops.continual import ContinualLoop
from experiments.cli import main
advance = ContinualLoop.advance
def dying(loop):
    loop.clock.env_steps == 155 and os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)
ContinualLoop.advance = dying
main({train("killed", *short, recipe=recipe)!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    state = CheckpointStore(place / "killed" / "checkpoints").load_latest()
    assert state is not None
    assert state["sequence"]["position"] == 2
    assert state["clock"]["env_steps"] == 150
    assert main(["resume", "killed", "--quiet"]) == 0
    assert records(place / "killed") == records(place / "whole")
    assert main(train("other", *short, "--seed=1", recipe=recipe)) == 0
    assert records(place / "other") != records(place / "whole")


def test_no_transition_of_an_old_task_is_kept_but_by_a_replay(place: Path) -> None:
    for recipe, kept in (("hypercrl", 0), ("hypercrl-coreset", 50), ("hypercrl-oracle", 60)):
        resolved = resolve(recipe, [("tasks.order", [0, 1]), *_small()], "tasks:pendulum-five")
        session = Session(resolved)
        run = session.create(str(place / recipe), ["mbrl", "train", recipe])
        with session.loop(run, quiet=True) as loop:
            agent, stored = loop.agent, []
            before = loop.between

            def watched(before: Any = before, loop: Any = loop, stored: Any = stored) -> None:
                before()
                if loop.clock.env_steps == 60:
                    stored.append(len(loop.agent.buffers["real"]))

            loop.between = watched  # type: ignore[method-assign]
            loop.run()
        session.close()
        assert stored == [0]
        assert len(agent.buffers["real"]) == 0
        assert agent.tasks.stored_rows() == {0: kept, 1: kept}  # type: ignore[attr-defined]
        rows = [key for key in agent.state_dict()["model"] if "rows_inputs" in key]
        assert bool(rows) is (kept > 0)


def _small() -> list[tuple[str, Any]]:
    from experiments.commands import dotted

    return dotted(SMALL)


def test_evaluate_plays_every_task_that_had_begun(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("run", "--tasks.order=[0,2]")) == 0
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    said = capsys.readouterr().out
    assert "over 2 tasks" in said
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
        "gravity 10, mass 1, length 1",
        "gravity 4, mass 1, length 1",
    ]
    assert main(["evaluate", "run", "--best"]) == 0


def test_a_single_environment_is_a_sequence_of_one(place: Path) -> None:
    assert main(train("run", env="tasks:pendulum-five/3")) == 0
    assert [r["name"] for r in records(place / "run") if r["event"] == "task"] == ["tasks:pendulum-five/3"]


def test_random_goes_through_a_sequence(place: Path) -> None:
    assert main(["train", "random", "--env", "tasks:pendulum-five", "--steps=100", "--out=r", "--quiet"]) == 0
    judged = [r for r in records(place / "r") if r["event"] == "task_evaluation"]
    assert len(judged) == 15
    assert not any("error_at_1" in r for r in judged)


MINE = """
from envs.tasks import TaskSequence
def two():
    return TaskSequence.of_variants("mine", "Pendulum-v1", {"light": {"mass": 1.0}, "heavy": {"mass": 2.0}})
def mixed():
    return TaskSequence.of_envs("mixed", ["Pendulum-v1", "MountainCarContinuous-v0"])
def twice():
    from envs.tasks import Task
    return TaskSequence("twice", [Task(3, "a", "Pendulum-v1"), Task(3, "b", "Pendulum-v1")])
def number():
    return 3
"""


def test_a_sequence_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "my_tasks.py").write_text(MINE)
    assert main(train("run", env="tasks:my_tasks:two")) == 0
    assert [r["name"] for r in records(place / "run") if r["event"] == "task"] == ["light", "heavy"]
    capsys.readouterr()
    assert main(["resume", "run"]) == 2
    assert "--trust my_tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "tasks:pendulum-fiv"], "Did you mean pendulum-five"),
        (["--env", "tasks:pendulum-five", "--tasks.order=[0,7]"], "tasks 0 to 4"),
        (["--env", "tasks:pendulum-five", "--tasks.order=[1,1]"], "each once"),
        (["--env", "tasks:pendulum-five", "--tasks.order=3"], "give a list of places"),
        (["--env", "tasks:pendulum-five", "--tasks.steps=0"], "tasks.steps"),
        (["--env", "tasks:pendulum-five", "--steps=500", "--tasks.steps=200"], "make 1000"),
        (["--env", "tasks:pendulum-five", "--steps=501"], "500"),
        (["--env", "tasks:pendulum-five", "--env.params.gravity=3"], "differ in this"),
        (["--env", "Pendulum-v1", "--tasks.order=[1]"], "one task only"),
        (["--env", "tasks:my_tasks:mixed"], "observation size"),
        (["--env", "tasks:my_tasks:twice"], "task id: 3"),
        (["--env", "tasks:my_tasks:number"], "gave int; let it be a function"),
        (["--env", "tasks:my_tasks:nothing"], "is not in my_tasks"),
        (["--env", "tasks:pendulum-five/9"], "named by their place"),
        (["--env", "tasks:pendulum-five", "--agent.model.class_path=ProbabilisticEnsemble"], "ContinualFitter"),
    ],
)
def test_what_is_refused(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    (place / "my_tasks.py").write_text(MINE)
    assert main(["train", "hypercrl", "--out=run", "--quiet", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1, error
    assert said in error
    assert not (place / "run").exists()


def test_an_agent_that_knows_no_tasks_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pets", "--env", "tasks:pendulum-five", "--out=run", "--steps=500"]) == 2
    assert "hypercrl" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_uneven_steps_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "random", "--env", "tasks:pendulum-five", "--out=run", "--steps=501"]) == 2
    assert "500" in capsys.readouterr().err


def test_judged_rows_are_those_of_the_task_and_of_no_seed() -> None:
    config = resolve("hypercrl", [("tasks.order", [0, 2])], "tasks:pendulum-five").config
    first, other = (task.env for task in task_runs(config))
    again = judged_windows(first, 10_000)
    assert torch.equal(judged_windows(first, 10_000).obs, again.obs)
    assert again.obs.shape == (256, 25, 3)
    assert not torch.equal(judged_windows(other, 10_000).next_obs, again.next_obs)
    short = judged_windows(dataclasses.replace(first, max_episode_steps=7), 10_000)
    assert short.obs.shape == (256, 5, 3)


def test_typed_steps_go_before_a_recipes() -> None:
    for recipe in ("hypercrl", "random"):
        assert resolve(recipe, [("steps", 500)], "tasks:pendulum-five").config.steps == 500
        assert resolve(recipe, [("tasks.steps", 70)], "tasks:pendulum-five").config.steps == 350


def test_films_are_of_the_newest_task_that_was_learned(place: Path) -> None:
    """Killed in the random steps of a task, the film and the evaluation are of the task before."""
    words = [*_small(), ("tasks.order", [2, 0])]
    session = Session(resolve("hypercrl", words, "tasks:pendulum-five"))
    with session.loop(session.create(str(place / "run"), ["mbrl"]), quiet=True) as loop:
        between = loop.between

        def stopping() -> None:
            between()
            if loop.clock.env_steps == 70:
                loop.save()
                raise KeyboardInterrupt

        loop.between = stopping  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    session.close()
    again, run = reopen(RunDirectory.open(place / "run"), []), RunDirectory.open(place / "run")
    _, found = evaluate_run(again, run)
    assert found["names"] == ["gravity 4, mass 1, length 1"]
    with again.showing() as config:
        assert config.env.id == "tasks:pendulum-five/2"
        assert again.agent._bound_model().spec.params["gravity"] == 4.0  # type: ignore[attr-defined]
    again.close()


@pytest.mark.parametrize("words", [["diagnose", "run"], ["train", "sac", "--env", "model:run", "--steps=10"]])
def test_what_needs_one_model_says_that_there_are_several(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train("run", "--tasks.order=[0]")) == 0
    capsys.readouterr()
    assert main(words) == 2
    assert "task" in capsys.readouterr().err
