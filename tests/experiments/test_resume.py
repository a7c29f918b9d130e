"""A run is killed at random moments and continued; what it wrote equals an uninterrupted run's records."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.metrics import comparable, read_records

ROOT = Path(__file__).resolve().parents[2]
TOY = ["--agent.class_path=toy_agent.ToyAgent", "--evaluation.episodes=3", "--evaluation.every=300"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(Path(__file__).with_name("toy_agent.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(run: Path) -> list[dict[str, object]]:
    return [comparable(record) for record in read_records(run / "metrics.jsonl")]


def train(out: str, *more: str, steps: int = 900, checkpoint: int = 80) -> list[str]:
    command = [
        "train",
        "random",
        "--env",
        "Pendulum-v1",
        f"--steps={steps}",
        "--num-envs=4",
        "--seed=3",
        f"--out={out}",
    ]
    return [*command, "--quiet", f"--checkpoint.every={checkpoint}", *TOY, *more]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *command], env=environment, stderr=subprocess.PIPE
    )


def wait_for_progress(process: subprocess.Popen[bytes], metrics: Path, seconds: float) -> None:
    """Until the process has written a new record, then a random moment longer; or until it ended."""
    before = metrics.stat().st_size if metrics.exists() else -1
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_size not in (before, 0):
            break
        time.sleep(0.005)
    time.sleep(seconds)


def kill_and_resume(command: list[str], run: Path, kills: int, moments: random.Random, longest: float) -> int:
    """Run to the end, killed ``kills`` times (as long as it still runs); how often it was killed."""
    process, done = start(command), 0
    while done < kills:
        wait_for_progress(process, run / "metrics.jsonl", moments.uniform(0.0, longest))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        process = start(["resume", str(run), "--trust", "toy_agent", "--quiet"])
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    return done


def test_same_seed_twice_is_identical_and_another_seed_is_not(workplace: Path) -> None:
    for out, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert main([*train(out), "--seed", seed]) == 0
    assert records(workplace / "a") == records(workplace / "b")
    assert records(workplace / "a") != records(workplace / "c")
    events = {record["event"] for record in records(workplace / "a")}
    assert events == {"episode", "evaluation", "update"}


def test_killed_and_resumed_equals_uninterrupted(workplace: Path) -> None:
    assert main(train("whole", steps=2400)) == 0
    killed = kill_and_resume(train("killed", steps=2400), workplace / "killed", 2, random.Random(7), 0.3)
    assert killed == 2
    assert records(workplace / "killed") == records(workplace / "whole")


@pytest.mark.parametrize("step", [0, 1, 5, 11])
def test_killed_before_the_first_periodic_checkpoint(workplace: Path, step: int) -> None:
    """Step 0 is before anything was written. The kill is real: the process ends without a chance to tidy up."""
    short = [*train("whole", steps=60, checkpoint=1000), "--env.max_episode_steps=4"]
    assert main(short) == 0
    doomed = [word.replace("--out=whole", "--out=killed") for word in short]
    code = f"""
import os, signal
from experiments.loops.online import OnlineLoop
from experiments.cli import main
advance, rounds = OnlineLoop.advance, iter(range(100))
def dying(loop):
    next(rounds) == {step} - 1 and os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)
OnlineLoop.advance = dying
if {step} == 0:
    OnlineLoop.save = lambda loop: os.kill(os.getpid(), signal.SIGKILL)
main({doomed!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    assert main(["resume", "killed", "--trust", "toy_agent", "--quiet"]) == 0
    assert records(workplace / "killed") == records(workplace / "whole")


@pytest.mark.parametrize("harm", ["no checkpoint", "short metrics", "other metrics", "other config"])
def test_a_run_whose_files_were_changed_is_not_continued(
    workplace: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workplace / "run"
    assert main(train("run", steps=80)) == 0
    if harm == "no checkpoint":
        for checkpoint in (run / "checkpoints").glob("step-*.pt"):
            checkpoint.unlink()
    elif harm == "other config":
        (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 80", "steps: 160"))
    else:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text[:-40] if harm == "short metrics" else text.replace("return", "Return"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["resume", "run", "--trust", "toy_agent", "--quiet"]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pets_killed_ten_times_equals_uninterrupted(workplace: Path) -> None:
    command = ["train", "pets", "--env", "Pendulum-v1", "--steps=1200", "--num-envs=4", "--quiet"]
    command += ["--checkpoint.every=40", "--evaluation.episodes=2", "--evaluation.every=200"]
    command += ["--env.max_episode_steps=40", "--agent.init_args.planner.init_args.horizon=8"]
    assert main([*command, "--out=whole"]) == 0
    killed = kill_and_resume([*command, "--out=killed"], workplace / "killed", 10, random.Random(11), 1.0)
    assert killed == 10
    assert records(workplace / "killed") == records(workplace / "whole")
