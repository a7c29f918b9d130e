"""Suites whose agents learn from data, or go on from one another: what is read, refused, run first and run again."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from envs.errors import UserError
from experiments.cli import main, make_parser
from experiments.compare.command import the_suite
from experiments.compare.fleet import Job, run_fleet
from experiments.compare.jobs import make_jobs
from experiments.compare.suite import Suite, read_suite
from mbrl.data.offline import About
from tests.experiments.offline_runs import ENV, records, write_recipe, write_set

ONLINE = """agent:
  class_path: OffPolicyAgent
  init_args: {learner: {class_path: ActorCritic, init_args: {hidden: 8}}, warmup_steps: 20, batch_size: 16}
steps: 60
"""
SUITE = """
agents:
  online: {recipe: ./online.yaml}
  continued: {recipe: ./online.yaml, from: learner}
  learner: {recipe: ./toy.yaml, data: set, set: {steps: 40}}
envs:
  Pendulum-v1: {steps: 60}
seeds: [0, 3]
set: {evaluation.every: 20, evaluation.episodes: 2, evaluation.num_envs: 2, env.max_episode_steps: 25}
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_recipe(tmp_path)
    write_set(tmp_path / "set")
    (tmp_path / "online.yaml").write_text(ONLINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def suite_of(text: str = SUITE) -> Suite:
    Path("mine.yaml").write_text(text)
    return read_suite(Path("mine.yaml"))


def jobs_of(text: str = SUITE, root: str = "c") -> dict[tuple[str, int], Job]:
    return {(job.agent, job.seed): job for job in make_jobs(suite_of(text), Path(root), ())}


def refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_jobs(suite_of(text), Path("c"), ())
    assert not Path("c").exists()


def test_a_suite_with_sources_is_written_back_the_same(workplace: Path) -> None:
    suite = suite_of()
    assert suite.agents["learner"].data == str(workplace / "set"), "from wherever it is called again"
    assert suite.agents["continued"].start_from == "learner"
    assert suite_of(suite.text()) == suite
    assert suite.tree()["agents"]["online"] == {"recipe": "./online.yaml", "set": {}}


def test_a_continuation_is_of_the_same_seed_and_its_digest_is_that_of_both(workplace: Path) -> None:
    jobs = jobs_of()
    for seed in (0, 3):
        learner, continued = jobs["learner", seed], jobs["continued", seed]
        assert continued.after == learner.folder
        assert continued.command[continued.command.index("--from") + 1] == str(learner.folder.resolve())
        assert (learner.steps, continued.steps, jobs["online", seed].after) == (40, 60, None)
    moved = jobs_of(root="elsewhere")
    changed = jobs_of(SUITE.replace("steps: 40", "steps: 41"))
    for key, job in jobs.items():
        assert moved[key].folder.name == job.folder.name, "where the runs lie is no setting"
        assert (changed[key].folder == job.folder) == (key[0] == "online")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("data: set", "data: nowhere"), "learner on Pendulum-v1.*nowhere"),
        (("data: set", "data: {CartPole-v1: set}"), "names no dataset for Pendulum-v1"),
        (("data: set", "data: 3"), r"agents\.learner\.data"),
        (("from: learner", "from: learnt"), "no agent of this suite and no run directory.*learner"),
        (("from: learner", "from: [learner]"), r"agents\.continued\.from"),
        (("from: learner", "from: continued"), "continued from continued"),
        (("online.yaml}", "online.yaml, from: continued}"), "does not learn from a dataset"),
        (("data: set,", "data: set, from: online,"), "leave --data out"),
        (("continued: {recipe: ./online.yaml", "continued: {recipe: random"), "cannot continue a run"),
        (("from: learner", "from: learner, set: {agent.learner.hidden: 9}"), "hidden: 8 there, 9 here"),
        (("from: learner", "from: learner, set: {agent.capacity: 50}"), "100 rows"),
        (("Pendulum-v1: {steps", "CartPole-v1: {steps"), "rows of another environment than CartPole-v1"),
        (("env.max_ep", "env.params: {gravity: 9.0}, env.max_ep"), "set env.params to the same"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(change: tuple[str, str], message: str, workplace: Path) -> None:
    assert change[0] in SUITE
    refused(SUITE.replace(*change), message)


def test_circles_are_refused(workplace: Path) -> None:
    two = SUITE.replace("online.yaml}", "online.yaml, from: continued}").replace("from: learner", "from: online")
    with pytest.raises(UserError, match="online from continued from online"):
        suite_of(two)


def test_a_dataset_that_does_not_say_its_environment_is_taken_as_it_is(workplace: Path) -> None:
    """The control of the refusal above: no environment is named, and the sizes fit."""
    shutil.rmtree("set")
    write_set(Path("set"), About(references=(-200.0, -100.0)))
    assert len(jobs_of()) == 6


# ---- flags


def from_flags(*words: str) -> Suite:
    options = make_parser().parse_args(["compare", *words])
    return the_suite(options, [])[0]


def test_flags_name_data_and_earlier_runs(workplace: Path) -> None:
    suite = from_flags(
        "--agents", "mobile", "c=sac-fast", "--envs", "Pendulum-v1", "--data", "set", "--from", "c=mobile"
    )
    assert (suite.agents["mobile"].data, suite.agents["c"].data) == (str(workplace / "set"), None)
    assert suite.agents["c"].start_from == "mobile"
    Path("mine.yaml").write_text(SUITE)
    (workplace / "other").mkdir()
    assert from_flags("mine.yaml", "--data", "other").agents["learner"].data == str(workplace / "other")
    assert from_flags("mine.yaml", "--data", "learner=other").agents["learner"].data == str(workplace / "other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--agents sac-fast --envs Pendulum-v1 --data set", "no agent here learns from a dataset"),
        ("--agents sac-fast --envs Pendulum-v1 --from mobile", "LABEL=LABEL"),
        ("--agents sac-fast --envs Pendulum-v1 --from sac=mobile", "LABEL=LABEL"),
    ],
)
def test_flags_for_nobody_are_refused(words: str, message: str, workplace: Path) -> None:
    with pytest.raises(UserError, match=message):
        from_flags(*words.split())


# ---- order


def fleet_of(jobs: list[Job], failing: str = "") -> tuple[list[str], dict[str, str | None]]:
    """Who began in which order when two may run at once, and each one's error."""
    began, errors = list[str](), dict[str, str | None]()

    async def execute(job: Job) -> tuple[int, str]:
        began.append(job.agent)
        for _ in range(3):
            await asyncio.sleep(0)
        return (1, "error: it broke\n") if job.agent == failing else (0, "")

    def changed(job: Job, state: str, error: str | None) -> None:
        if state in ("done", "failed"):
            errors[job.agent] = error

    asyncio.run(run_fleet(jobs, 2, changed, execute))
    return began, errors


def three(after: Path | None) -> list[Job]:
    child = Job("child", "e", 0, (), Path("child"), after=after)
    return [child, Job("parent", "e", 0, (), Path("parent")), Job("other", "e", 0, (), Path("other"))]


def test_what_is_continued_runs_first_and_others_do_not_wait() -> None:
    assert fleet_of(three(Path("parent")))[0] == ["parent", "other", "child"]
    assert fleet_of(three(None))[0] == ["child", "parent", "other"], "the control: in the order of the jobs"
    assert fleet_of(three(Path("done before")))[0][0] == "child"


def test_a_continuation_fails_with_what_it_continues() -> None:
    began, errors = fleet_of(three(Path("parent")), failing="parent")
    assert began == ["parent", "other"]
    assert errors == {"parent": "it broke", "other": None, "child": "the run that it continues failed (parent seed 0)"}


# ---- for real


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_and_goes_on(workplace: Path) -> None:
    Path("mine.yaml").write_text(SUITE.replace("[0, 3]", "[3]"))
    command = ["compare", "mine.yaml", "--out", "c", "--processes", "1", "--no-report"]
    assert main(command) == 0
    jobs = json.loads(Path("c/status.json").read_text())["jobs"]
    assert {job["state"] for job in jobs} == {"done"}
    runs: dict[str, Any] = {job["agent"]: Path("c") / job["folder"] for job in jobs}
    assert records(runs["learner"], "evaluation")[-1]["updates"] == 40
    told = json.loads((runs["learner"] / "versions.json").read_text())["data"]
    assert (told["rows"], told["references"]) == (100, [-200.0, -100.0])
    first, alone = (records(runs[agent], "evaluation") for agent in ("continued", "online"))
    assert first[-1]["env_steps"] == 60
    assert first[0]["returns"] != alone[0]["returns"]
    shutil.rmtree(runs["continued"])
    before = (runs["learner"] / "metrics.jsonl").stat().st_mtime_ns
    assert main(command) == 0
    assert records(runs["continued"], "evaluation") == first, "made again from the run that was kept"
    assert (runs["learner"] / "metrics.jsonl").stat().st_mtime_ns == before
    assert ENV["id"] in (runs["continued"] / "config.yaml").read_text()
