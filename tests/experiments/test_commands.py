"""The command line from end to end, in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.config import resolve
from experiments.metrics import comparable, read_records
from experiments.session import Session

MY_ENV = '''
import gymnasium as gym
import numpy as np
import torch


class MyEnv(gym.Env):
    """A point that is pushed towards the origin."""

    max_episode_steps = 20
    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action):
        self.x = np.clip(self.x + 0.1 * np.asarray(action, np.float32), -10, 10).astype(np.float32)
        return self.x, float(-self.x[0] ** 2), bool(abs(self.x[0]) > 3), False, {}

    @staticmethod
    def reward_fn(obs, action, next_obs):
        return -next_obs[:, 0].square()

    @staticmethod
    def termination_fn(obs, action, next_obs):
        return next_obs[:, 0].abs() > 3
'''


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_env.py").write_text(MY_ENV)
    shutil.copy(Path(__file__).with_name("toy_agent.py"), tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("my_env", "toy_agent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(run: Path, kind: str) -> list[dict[str, object]]:
    return [comparable(record) for record in read_records(run / "metrics.jsonl") if record["event"] == kind]


def test_an_environment_from_any_directory_trains(elsewhere: Path) -> None:
    command = ["train", "random", "--env", "my_env:MyEnv", "--steps=200", "--num-envs=2", "--quiet"]
    assert main(command) == 0
    run = elsewhere / "runs" / "random-my_env-MyEnv-s0-1"
    assert len(events(run, "evaluation")) == 1
    assert len(events(run, "episode")) >= 8
    assert main(command) == 0
    assert (elsewhere / "runs" / "random-my_env-MyEnv-s0-2").is_dir()


def test_pets_trains_in_an_environment_from_any_directory(elsewhere: Path) -> None:
    command = ["train", "pets", "--env", "my_env:MyEnv", "--steps=120", "--quiet", "--out=run"]
    small = ["--agent.init_args.warmup_steps=40", "--evaluation.episodes=4", "--agent.init_args.fit_every=40"]
    assert main([*command, *small, "--agent.init_args.planner.init_args.horizon=8"]) == 0
    learned = events(elsewhere / "run", "evaluation")[-1]["return_mean"]
    assert main(["train", "random", "--env=my_env:MyEnv", "--steps=0", "--quiet", "--out=r", small[1]]) == 0
    by_chance = events(elsewhere / "r", "evaluation")[-1]["return_mean"]
    assert isinstance(learned, float)
    assert isinstance(by_chance, float)
    assert learned > by_chance + 0.5


def test_the_configuration_of_a_run_repeats_it(elsewhere: Path) -> None:
    command = ["train", "random", "--env=Pendulum-v1", "--steps=250", "--seed=4", "--evaluation.episodes=2", "--quiet"]
    assert main([*command, "--out=a"]) == 0
    assert main(["train", "a/config.yaml", "--out=b", "--quiet"]) == 0
    assert list(map(comparable, read_records(Path("a/metrics.jsonl")))) == list(
        map(comparable, read_records(Path("b/metrics.jsonl")))
    )
    assert Path("a/config.yaml").read_text() == Path("b/config.yaml").read_text()
    origin = json.loads(Path("a/versions.json").read_text())
    assert origin["command"][:2] == ["mbrl", "train"]
    assert origin["packages"]["torch"]


def test_evaluate_sees_what_the_run_saw_at_its_end(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "random", "--env=Pendulum-v1", "--steps=220", "--evaluation.episodes=3", "--quiet", "--out=run"]
    assert main([*command, "--agent.class_path=toy_agent.ToyAgent"]) == 0
    trained = capsys.readouterr().out.split(",")[0]
    before = (elsewhere / "run" / "metrics.jsonl").read_bytes()
    for best in ([], ["--best"]):
        assert main(["evaluate", "run", "--trust=toy_agent", *best]) == 0
        assert trained in capsys.readouterr().out
    assert (elsewhere / "run" / "metrics.jsonl").read_bytes() == before


def test_evaluation_starts_do_not_depend_on_the_seed_and_leave_no_trace(elsewhere: Path) -> None:
    command = ["train", "random", "--env=Pendulum-v1", "--steps=210", "--evaluation.episodes=2", "--quiet"]
    assert main([*command, "--agent.class_path=toy_agent.ToyAgent", "--out=often", "--evaluation.every=80"]) == 0
    assert main([*command, "--agent.class_path=toy_agent.ToyAgent", "--out=once"]) == 0
    for kind in ("episode", "update"):
        assert events(Path("often"), kind) == events(Path("once"), kind)
    assert events(Path("often"), "evaluation")[-1] == events(Path("once"), "evaluation")[-1]


def test_an_agent_that_learns_nothing_is_just_evaluated(elsewhere: Path) -> None:
    short = ["--evaluation.episodes=1", "--env.max_episode_steps=40", "--quiet", "--out=run"]
    assert main(["train", "oracle-mpc", "--env=mbrl/CartPoleBalance-v0", *short]) == 0
    only = list(read_records(Path("run/metrics.jsonl")))
    assert [record["event"] for record in only] == ["evaluation"]
    assert only[0]["lengths"] == [40]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("recipes", "pets"),
        ("envs", "mbrl/CartPoleSwingUp-v0"),
        ("models", "ProbabilisticEnsemble"),
        ("planners", "ICEM"),
        ("agents", "RandomAgent"),
    ],
)
def test_list(kind: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    assert expected in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_check_env_says_what_it_found(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "my_env:MyEnv"]) == 0
    assert "reward" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from experiments.cli import make_parser as m; m().format_help(); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_video_or_one_line(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "random", "--env=Pendulum-v1", "--steps=4", "--quiet", "--out=run"]
    assert main([*command, "--video=true", "--evaluation.episodes=1", "--env.max_episode_steps=20"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "video:" in line]
    assert len(said) == 1
    made = list(Path("run/videos").glob("*.mp4")) if Path("run/videos").is_dir() else []
    assert bool(made) == said[0].startswith("video: ")
    assert all(path.stat().st_size > 1000 for path in made)


def test_numbers_that_underflow_are_flushed_while_a_run_lives() -> None:
    """They slow matrix products several times; afterwards arithmetic is as it was."""
    tiny = torch.tensor(1e-40)
    session = Session(resolve("random", [], "Pendulum-v1"))
    inside = float(tiny * 0.5)
    session.close()
    assert inside == 0.0
    assert float(tiny * 0.5) > 0.0


def test_recipes_of_the_project_are_recorded_by_their_place_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("agent: RandomAgent\nsteps: 0\nevaluation: {episodes: 1}\n")
    for recipe in ("random", "mine.yaml"):
        assert main(["train", recipe, "--env", "CartPole-v1", "--out", recipe[:4], "--steps", "0", "--quiet"]) == 0
    sources = [json.loads((tmp_path / run / "versions.json").read_text())["sources"] for run in ("rand", "mine")]
    assert sources == [["experiments/recipes/random.yaml"], ["mine.yaml"]]
