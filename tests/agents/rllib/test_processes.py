"""RLlib in more processes than one, inside a learned model, and by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from agents.rllib import register
from experiments.cli import main
from experiments.metrics import read_records
from mbrl.distributed.cluster import connect

KWARGS = "--agent.init_args.kwargs"
SMALL = [f"{KWARGS}.train_batch_size_per_learner=64", f"{KWARGS}.minibatch_size=32", f"{KWARGS}.num_epochs=2"]
QUICK = ["--env.max_episode_steps=30", "--evaluation.episodes=2", "--quiet", "--agent.init_args.log_every=50", *SMALL]
TINY_MODEL = {
    "model": ["members=2", "hidden=8"],
    "planner": ["particles=2", "candidates=4", "horizon=2", "iterations=1"],
    "fitter": ["first_updates=20"],
}


BREAKS = """
import gymnasium as gym
import numpy as np

class Breaks(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 7:
            raise RuntimeError("the motor is cold")
        return np.zeros(2, np.float32), 0.0, False, False, {}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect("local", num_cpus=3, object_store_bytes=100 * 2**20):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Pendulum-v1 that has seen 60 steps."""
    out = tmp_path_factory.mktemp("model") / "run"
    parts = [f"--agent.init_args.{part}.init_args.{word}" for part, words in TINY_MODEL.items() for word in words]
    rest = ["--agent.init_args.warmup_steps=50", "--env.max_episode_steps=20", "--evaluation.episodes=1", "--quiet"]
    assert main(["train", "pets", "--env", "Pendulum-v1", "--steps=60", f"--out={out}", *parts, *rest]) == 0
    return out


def events(run: Path, event: str) -> list[dict[str, object]]:
    return [record for record in read_records(run / "metrics.jsonl") if record["event"] == event]


def test_other_processes_act_and_learn(cluster: None, run: Path, tmp_path: Path) -> None:
    """In a learned model, whose scheme another process has to be told of."""
    command = ["train", "rllib-ppo", "--env", f"model:{run}", f"--out={tmp_path / 'run'}", "--steps=100", *QUICK]
    workers = ["--agent.init_args.num_env_runners=1", "--agent.init_args.num_learners=1"]
    assert main([*command, *workers, "--num_envs=2"]) == 0
    assert {record["length"] for record in events(tmp_path / "run", "episode")} == {30}
    assert events(tmp_path / "run", "update")
    assert ray.is_initialized()  # whoever started it ends it


@pytest.fixture
def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command with an environment of the user's own that fails at its seventh step."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "breaks", raising=False)
    return ["train", "rllib-ppo", "--env", "breaks:Breaks", f"--out={tmp_path / 'run'}", *QUICK, "--num_envs=1"]


@pytest.mark.parametrize("runners", [0, 1])
def test_a_broken_environment_is_told_and_not_tried_for_ever(
    runners: int, cluster: None, breaking: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own too, where RLlib would say no more than that it died."""
    assert main([*breaking, f"--agent.init_args.num_env_runners={runners}"]) == 2
    assert "step 7 of an episode raised RuntimeError: the motor is cold" in capsys.readouterr().err.splitlines()[-1]


def test_more_workers_than_there_are_are_refused(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "rllib-ppo", "--env", "CartPole-v1", f"--out={tmp_path / 'run'}", *QUICK]
    assert main([*command, "--num_envs=50", "--agent.init_args.num_env_runners=50"]) == 2
    assert "num_env_runners" in capsys.readouterr().err


@pytest.mark.parametrize("id", ["Pendulum-v1", "model:"])
def test_rllib_by_itself_takes_our_environments(cluster: None, run: Path, id: str) -> None:
    from ray.rllib.algorithms.ppo import PPOConfig

    register()
    env_config = {"id": id if id != "model:" else f"model:{run}", "max_episode_steps": 20}
    config = PPOConfig().environment("mbrl", env_config=env_config)
    config.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    algorithm = config.env_runners(num_env_runners=0).build_algo()
    result = algorithm.train()
    algorithm.stop()
    assert result["env_runners"]["episode_len_max"] >= 20
    assert result["env_runners"]["episode_return_mean"] < 0.0
