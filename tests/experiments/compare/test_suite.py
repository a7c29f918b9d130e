"""Suites: what is read, what is refused, and which runs they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.errors import UserError
from experiments.compare.jobs import make_jobs
from experiments.compare.sources import with_sources
from experiments.compare.suite import SUITES, AgentEntry, EnvEntry, list_suites, make_suite, read_suite
from mbrl.data.offline import About, save_folder
from tests.mbrl.data.made import play

GOOD = """
agents:
  random: {}
  other: {recipe: random, set: {evaluation.seed: 5}}
envs:
  CartPole-v1: {steps: 300, low: 20, high: 500, source: by hand, datasets: {medium: 200.5}}
  Pendulum-v1: {}
seeds: [3, 5]
set: {steps: 200}
"""


def suite_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "mine.yaml"


def test_a_suite_is_read_and_written_back_the_same(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, GOOD))
    assert suite.name == "mine"
    assert suite.agents["other"] == AgentEntry("random", {"evaluation.seed": 5})
    assert suite.envs["CartPole-v1"].datasets == {"medium": 200.5}
    assert [*suite.seeds] == [3, 5]
    again = read_suite(suite_file(tmp_path, suite.text()))
    assert again == suite


@pytest.mark.parametrize("name", list_suites())
def test_shipped_suites_make_jobs(name: str, tmp_path: Path) -> None:
    suite = read_suite(SUITES / f"{name}.yaml")
    if any(entry.data for entry in suite.agents.values()):
        (env,) = suite.envs
        rows = play(env, episodes=2, limit=20)
        save_folder([rows], len(rows), tmp_path / "set", About(env={"id": env}))
        suite = with_sources(suite, [str(tmp_path / "set")], [])
    jobs = make_jobs(suite, tmp_path, ())
    assert len(jobs) == len(suite.agents) * len(suite.envs) * len(suite.seeds)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("envs:", "environments:"), "environments"),
        (("seeds: [3, 5]", "seeds: 0"), "seeds"),
        (("seeds: [3, 5]", "seeds: [3, 3]"), "seeds"),
        (("seeds: [3, 5]", "seeds: true"), "seeds"),
        (("steps: 300,", "stepz: 300,"), "envs.CartPole-v1.stepz"),
        (("low: 20", "low: .nan"), "envs.CartPole-v1.low"),
        (("medium: 200.5", "medium: .inf"), "envs.CartPole-v1.datasets.medium"),
        (("low: 20, ", ""), "envs.CartPole-v1.low, high"),
        (("low: 20", "low: 500"), "envs.CartPole-v1.high"),
        (("medium: 200.5", "medium: much"), "envs.CartPole-v1.datasets.medium"),
        (("other:", "../other:"), "agents"),
        (("recipe: random", "recipe: [random]"), "agents.other.recipe"),
        (("set: {steps: 200}", "budget: hours"), "budget"),
        ((GOOD, "[]"), "mine.yaml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read_suite(suite_file(tmp_path, GOOD.replace(*change)))
    assert caught.value.field.endswith(field)


def jobs_of(tmp_path: Path, settings: dict[str, Any], **entry: Any) -> list[Any]:
    envs = {"CartPole-v1": EnvEntry(**entry)}
    return make_jobs(make_suite("s", {"random": AgentEntry("random")}, envs, 2, settings), tmp_path, ())


def test_another_configuration_is_another_run(tmp_path: Path) -> None:
    plain, same, changed = (jobs_of(tmp_path, {"steps": n}) for n in (100, 100, 101))
    assert [job.folder for job in plain] == [job.folder for job in same]
    assert not {job.folder for job in plain} & {job.folder for job in changed}
    assert plain[0].folder.parent == tmp_path / "runs" / "CartPole-v1" / "random"


def test_the_nearer_setting_wins(tmp_path: Path) -> None:
    assert jobs_of(tmp_path, {"steps": 100})[0].steps == 100
    assert jobs_of(tmp_path, {"steps": 100}, steps=70)[0].steps == 70
    assert jobs_of(tmp_path, {"steps": 100}, steps=70, set={"steps": 50})[0].steps == 50


def test_every_agent_is_evaluated_alike(tmp_path: Path) -> None:
    words = jobs_of(tmp_path, {"steps": 100})[0].command
    assert "--evaluation.every=10" in words
    assert "--evaluation.every=7" in jobs_of(tmp_path, {"steps": 100, "evaluation.every": 7})[0].command


def test_a_wrong_configuration_says_whose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"random on CartPole-v1: agent\.init_args\.deep"):
        jobs_of(tmp_path, {"agent.init_args.deep": 3})


def test_code_that_only_the_file_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="elsewhere"):
        jobs_of(tmp_path, {"agent.class_path": "elsewhere.Agent"})
