"""Running a comparison: failures stay alone, kills lose nothing, what is done is not done again."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.cli import main
from experiments.compare.fleet import Job, State, failure, run_fleet
from experiments.compare.jobs import make_jobs
from experiments.compare.live import Progress, duration, headline, last_record, table
from experiments.compare.run import compare
from experiments.compare.status import Status, alone_in
from experiments.compare.suite import AgentEntry, EnvEntry, Suite, make_suite
from experiments.metrics import comparable, read_records

ROOT = Path(__file__).resolve().parents[3]


def tiny(seeds: int = 2, steps: int = 60) -> Suite:
    settings = {"evaluation.episodes": 1, "evaluation.num_envs": 1, "env.max_episode_steps": 20}
    agents = {"random": AgentEntry("random"), "again": AgentEntry("random")}
    return make_suite("tiny", agents, {"CartPole-v1": EnvEntry(steps=steps)}, seeds, settings)


class Pretended:
    """Runs that write what a run writes, at once; those of one seed fail."""

    def __init__(self, failing_seed: int | None = None) -> None:
        self.failing_seed, self.ran = failing_seed, list[Job]()
        self.at_once = self.most_at_once = 0

    async def __call__(self, job: Job) -> tuple[int, str]:
        self.ran.append(job)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if job.seed == self.failing_seed:
            return 2, "a warning\nerror: env.id: 'X': there is none\n"
        job.folder.mkdir(parents=True)
        record = {"event": "evaluation", "env_steps": job.steps, "return_mean": 7.0}
        (job.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return 0, ""


def states(status: Status) -> list[State]:
    return [state for state, _ in status.states.values()]


def test_one_failing_run_stops_no_other_and_is_named(tmp_path: Path) -> None:
    said = io.StringIO()
    status = compare(tiny(seeds=3), tmp_path / "c", 2, execute=Pretended(failing_seed=1), stream=said)
    assert states(status) == ["done", "done", "failed", "failed", "done", "done"]
    assert "failed  CartPole-v1 random seed 1 env.id: 'X': there is none (2 of 6 runs done" in said.getvalue()
    jobs = json.loads((tmp_path / "c" / "status.json").read_text())["jobs"]
    assert [job["error"] for job in jobs if job["seed"] == 1] == ["env.id: 'X': there is none"] * 2


def test_what_is_done_is_skipped_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    compare(tiny(seeds=3), tmp_path / "c", 2, execute=Pretended(failing_seed=1), stream=io.StringIO())
    again = Pretended()
    status = compare(tiny(seeds=3), tmp_path / "c", 2, execute=again, stream=io.StringIO())
    assert [job.seed for job in again.ran] == [1, 1]
    assert states(status) == ["done"] * 6
    changed = Pretended()
    compare(tiny(seeds=3, steps=61), tmp_path / "c", 2, execute=changed, stream=io.StringIO())
    assert len(changed.ran) == 6


def test_a_run_whose_records_were_cut_is_run_again(tmp_path: Path) -> None:
    suite = tiny(seeds=2)
    first = compare(suite, tmp_path / "c", 2, execute=Pretended(), stream=io.StringIO())
    cut, gone, whole, _ = (job.folder / "metrics.jsonl" for job in first.states)
    cut.write_text(json.dumps({"event": "evaluation", "env_steps": 20, "return_mean": 7.0}) + "\n")
    gone.unlink()
    again = Status(tmp_path / "c", suite, [*first.states])
    assert {job.folder for job in again.missing} == {cut.parent, gone.parent}
    assert again.states[[*first.states][2]][0] == "done", whole


def test_runs_that_a_suite_no_longer_asks_for_are_remembered(tmp_path: Path) -> None:
    compare(tiny(seeds=3), tmp_path / "c", 2, execute=Pretended(), stream=io.StringIO())
    for _ in range(2):  # once dropped they stay so
        compare(tiny(seeds=1), tmp_path / "c", 2, execute=Pretended(), stream=io.StringIO())
        dropped = json.loads((tmp_path / "c" / "status.json").read_text())["dropped"]
        assert sorted((job["agent"], job["seed"]) for job in dropped) == [
            (agent, seed) for agent in ("again", "random") for seed in (1, 2)
        ]
    compare(tiny(seeds=3), tmp_path / "c", 2, execute=Pretended(), stream=io.StringIO())
    assert json.loads((tmp_path / "c" / "status.json").read_text())["dropped"] == []


def test_what_the_suite_set_is_in_the_status(tmp_path: Path) -> None:
    compare(tiny(seeds=1), tmp_path / "c", 2, execute=Pretended(), stream=io.StringIO())
    settings = json.loads((tmp_path / "c" / "status.json").read_text())["settings"]
    assert settings["set"]["env.max_episode_steps"] == 20
    assert settings["envs"]["CartPole-v1"]["steps"] == 60


def test_no_more_processes_than_asked(tmp_path: Path) -> None:
    fleet = Pretended()
    compare(tiny(seeds=4), tmp_path / "c", 3, execute=fleet, stream=io.StringIO())
    assert fleet.most_at_once == 3


def test_an_interrupt_is_written_down() -> None:
    job, seen = Job("a", "e", 0, ("train",), Path("nowhere")), list[State]()

    async def endless(job: Job) -> tuple[int, str]:
        await asyncio.sleep(60)
        return 0, ""

    async def interrupted() -> None:
        fleet = asyncio.create_task(run_fleet([job], 1, lambda job, state, error: seen.append(state), endless))
        await asyncio.sleep(0.01)
        fleet.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fleet

    asyncio.run(interrupted())
    assert seen == ["running", "interrupted"]


def test_a_run_that_a_signal_ended_says_so() -> None:
    job = Job("a", "e", 0, ("train", "random"), Path("nowhere"))
    assert failure(job, -9, "") == "ended by signal 9 (`mbrl train random --out nowhere --quiet`)"
    assert failure(job, 1, "") == "exit code 1 without a message"


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="in use"), alone_in(tmp_path):
        pass
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no comparison"):
        compare(tiny(), tmp_path, 1, execute=Pretended())


def written(job: Job, env_steps: int, seconds: float) -> None:
    """Leave the records of a run that has come this far."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "metrics.jsonl").write_text(json.dumps({"env_steps": env_steps, "seconds": seconds}) + "\n")


def test_time_left_is_that_of_the_runs_own_records(tmp_path: Path) -> None:
    suite = tiny(seeds=2)
    jobs = make_jobs(suite, tmp_path, ())
    status = Status(tmp_path, suite, jobs)
    progress = Progress(status, processes=1)
    assert progress.seconds_left() is None
    written(jobs[0], 60, 200.0)  # done by an earlier process: it counts as well
    status.states[jobs[0]] = "done", None
    assert progress.seconds_left() == pytest.approx(3 * 200.0)
    written(jobs[1], 30, 50.0)  # of the other agent, half done: a whole run takes 100 s
    assert progress.seconds_left() == pytest.approx(50.0 + 200.0 + 100.0)
    status.states[jobs[1]] = "failed", "broken"
    assert progress.seconds_left() == pytest.approx(200.0 + 200.0)
    assert Progress(status, processes=8).seconds_left() == pytest.approx(200.0), "no less than the longest"
    assert headline(progress) == "1 of 4 runs done, about 7 min left"
    assert table(progress).row_count == 2
    assert [duration(s) for s in (12.0, 600.0, 7200.0)] == ["12 s", "10 min", "2.0 h"]


def test_the_last_whole_record_counts(tmp_path: Path) -> None:
    assert last_record(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1}\n{"env_steps": 2}\n{"env_st')
    assert last_record(tmp_path) == {"env_steps": 2}


# -- real processes --------------------------------------------------------------------------------------------------

SETTINGS = (
    "--steps=6000",
    "--evaluation.every=600",
    "--evaluation.episodes=1",
    "--evaluation.num_envs=1",
    "--checkpoint.every=200",
)
COMMAND = ["compare", "--agents=random", "--envs=CartPole-v1", "--seeds=1", "--out=c", "--no-report", *SETTINGS]


def records(folder: Path) -> list[dict[str, object]]:
    return [comparable(record) for record in read_records(folder / "metrics.jsonl")]


def wait_for(condition: object, seconds: float = 40.0) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


@pytest.mark.timeout(200)
def test_killed_it_leaves_no_process_and_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, environment = [sys.executable, "-m", "experiments.cli"], os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen([*program, *COMMAND], env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: [*tmp_path.glob("c/runs/*/*/*/checkpoints/*200*")])
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (run,) = tmp_path.glob("c/runs/*/*/*")
    assert json.loads((tmp_path / "c" / "status.json").read_text())["jobs"][0]["state"] == "running"
    wait_for(lambda: not running(run))
    assert records(run)[-1]["env_steps"] != 6000, "it was to be killed before its end"
    assert main(COMMAND) == 0
    assert main(["train", "random", "--env=CartPole-v1", "--out=whole", "--quiet", *SETTINGS]) == 0
    assert records(run) == records(tmp_path / "whole")


def running(run: Path) -> bool:
    """Whether some process still works on this run."""
    for commandline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run.relative_to(run.parents[5])).encode() in commandline.read_bytes():
                return True
        except OSError:  # it has just ended
            continue
    return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare", "nothing to compare"),
        ("compare --agents random", "nothing to compare"),
        ("compare --agents random --envs NoSuch-v1", "random on NoSuch-v1: env: 'NoSuch-v1'"),
        ("compare --agents randon --envs CartPole-v1", "Did you mean random"),
        ("compare --agents random random --envs CartPole-v1", "a label of its own"),
        ("compare nosuch", "SUITE"),
        ("compare first --envs CartPole-v1", "not both"),
        ("compare --agents sb3-td3 random --envs CartPole-v1", "sb3-td3 on CartPole-v1: agent.init_args.algorithm"),
        ("compare --agents random --envs CartPole-v1 --ray 127.0.0.1:1", "--ray: '127.0.0.1:1': nothing answers"),
        ("compare --ray first", "put the suite before --ray"),
        ("compare --agents random --envs CartPole-v1 --seeds 3 x", "seeds"),
        ("compare --agents random --envs CartPole-v1 --processes 0", "--processes"),
        ("compare --agents random --envs CartPole-v1 --seeds zwei", "seeds"),
        ("compare --agents random --envs CartPole-v1 --steps=-1", "steps"),
    ],
)
def test_bad_input(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []
