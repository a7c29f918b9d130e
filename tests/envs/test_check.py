"""check_env: everything registered passes, everything broken is caught, with what to change."""

from __future__ import annotations

import gymnasium as gym
import pytest

from envs import check_env
from envs.check import CheckReport, Finding
from envs.registry import OWN, OWN_MUJOCO
from envs.rendering import NO_GL, working_gl

GYMNASIUM = ["Pendulum-v1", "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
MUJOCO = ["InvertedPendulum-v5", "Reacher-v5", "Hopper-v5", "HalfCheetah-v5"]


def finding(report: CheckReport, name: str) -> Finding:
    return next(f for f in report.findings if f.name == name)


@pytest.mark.parametrize("id", [*OWN, *GYMNASIUM, *MUJOCO])
def test_registered_environments_pass(id: str) -> None:
    report = check_env(id, render=id not in MUJOCO)
    assert [f for f in report.findings if f.status != "ok"] == []
    assert report.ok
    assert report.restorability == ("exact" if id in OWN else "replayable")
    assert {"gymnasium", "stable-baselines3", "known pieces"} <= {f.name for f in report.findings}


def test_own_ids_are_those_in_gymnasiums_registry() -> None:
    assert {id for id in gym.registry if id.startswith("mbrl/")} == {*OWN, *OWN_MUJOCO}


def test_dm_control_passes() -> None:
    pytest.importorskip("shimmy")
    assert check_env("dmc:cartpole-swingup", steps=200, render=False).ok


def test_mujoco_is_drawn() -> None:
    if working_gl() is None:
        pytest.skip(NO_GL)
    assert "pixels" in finding(check_env("Reacher-v5", steps=50), "rendering").seen


def test_a_users_environment_passes() -> None:
    report = check_env("sample_envs:Slider")
    assert report.ok
    assert report.restorability == "replayable"
    assert "whole reward" in finding(report, "known pieces").seen


BROKEN = {
    "WrongReward": ("known pieces", "reward: off by"),
    "WrongTermination": ("known pieces", "termination: off by"),
    "RaisingReward": ("known pieces", "IndexError"),
    "UnbatchedReward": ("known pieces", "reward: off by"),
    "UnpicklableReward": ("pickling of the spec", "lambda"),
    "NanReward": ("stepping", "reward: nan"),
    "NanObservation": ("stepping", "observation[1]: inf"),
    "OutsideSpace": ("observations", "outside the space"),
    "GlobalRandom": ("determinism", "differ from step"),
    "BadRestore": ("get_state/set_state", "differs after set_state"),
    "MethodReward": ("construction", "staticmethod"),
    "Unbuildable": ("construction", "no licence"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_environments_are_caught(name: str) -> None:
    report = check_env(f"sample_envs:{name}", steps=200)
    where, what = BROKEN[name]
    failed = [f for f in report.findings if f.status == "fail"]
    assert not report.ok
    assert any(f.name == where and what in f.seen for f in failed), report.lines()
    assert all(f.fix for f in failed)
    if name in ("GlobalRandom", "BadRestore"):
        assert report.restorability == "not restorable"


@pytest.mark.parametrize(("name", "where"), [("HugeObservation", "observations"), ("Endless", "episodes")])
def test_doubtful_environments_are_warned_of(name: str, where: str) -> None:
    assert finding(check_env(f"sample_envs:{name}", steps=200), where).status == "warn"


def test_the_report_prints_one_line_a_finding() -> None:
    report = CheckReport("x", (Finding("a", "ok", "fine"), Finding("b", "fail", "bad", "mend it")), "replayable")
    assert report.lines() == [
        "x: 1 ok, 0 warn, 1 fail; replayable",
        "  ok    a: fine",
        "  fail  b: bad -> mend it",
    ]
