"""Offline to online: what a new run takes from an earlier one, what it refuses, and that it needs it only once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.dyna import DynaAgent
from agents.off_policy import OffPolicyAgent
from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from experiments.config import resolve
from experiments.loops.online import OnlineLoop
from experiments.session import Session
from experiments.tree import read_yaml
from mbrl.data.offline import open_dataset
from tests.experiments.offline_runs import records, write_recipe, write_set

ROOT = Path(__file__).resolve().parents[2]
ENSEMBLE = "{class_path: ProbabilisticEnsemble, init_args: {members: 3, elites: 2, hidden: 8, layers: 1}}"
ONLINE = """agent:
  class_path: OffPolicyAgent
  init_args: {learner: {class_path: ActorCritic, init_args: {hidden: 8}}, warmup_steps: 20, batch_size: 16}
steps: 60
evaluation: {episodes: 2, every: 20}
checkpoint: {every: 25}
"""
DYNA = f"""agent:
  class_path: DynaAgent
  init_args:
    learner: {{class_path: ActorCritic, init_args: {{hidden: 8}}}}
    model: {ENSEMBLE}
    fitter: {{class_path: Fitter, init_args: {{max_epochs: 1}}}}
    warmup_steps: 1
steps: 0
evaluation: {{episodes: 2}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a run that learned from it."""
    folder = tmp_path_factory.mktemp("made")
    recipe, run = write_recipe(folder), folder / "off"
    write_set(folder / "set")
    command = ["train", recipe, f"--data={folder / 'set'}", "--quiet", f"--out={run}", "--seed=1", "--steps=20"]
    assert main(command) == 0
    return folder


@pytest.fixture
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "off" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(tmp_path)))
    (tmp_path / "online.yaml").write_text(ONLINE)
    (tmp_path / "dyna.yaml").write_text(DYNA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def online(*more: str, recipe: str = "online.yaml") -> list[str]:
    return ["train", recipe, "--from=off", "--quiet", *more]


def state_of(run: Path) -> dict[str, Any]:
    state = CheckpointStore(run / "checkpoints").load_latest()
    assert state is not None
    return state


def began(*overrides: tuple[str, Any], recipe: str = "online.yaml") -> Session:
    """A session whose agent has taken over."""
    session = Session(resolve(recipe, [("start_from", "off"), *overrides]))
    session.take_over()
    return session


def test_learner_and_rows_are_taken_over(workplace: Path) -> None:
    session = began()
    agent, learned = session.agent, state_of(workplace / "off")["agent"]["learner"]
    assert isinstance(agent, OffPolicyAgent)
    own = agent.learner.state_dict()
    assert own["updates"] == learned["updates"] == 20
    assert all(torch.equal(vector, learned["vectors"][name]) for name, vector in own["vectors"].items())
    rows, data = agent.buffers["real"].all(), open_dataset("set").rows()
    assert torch.equal(rows.obs, data.obs)
    assert torch.equal(rows.next_obs, data.next_obs)
    assert rows.episode.unique().tolist() == [-4, -3, -2, -1]
    session.take_over()
    assert len(agent.buffers["real"]) == len(data)
    assert session.notes == ["it acts with what it was handed, and learns after agent.warmup_steps = 20 env steps"]
    session.close()


def test_without_it_the_agent_starts_anew(workplace: Path) -> None:
    """The control: the same recipe on the same environment."""
    session = Session(resolve("online.yaml", [], "Pendulum-v1"))
    session.take_over()
    assert isinstance(session.agent, OffPolicyAgent)
    assert session.agent.learner.updates == 0
    assert len(session.agent.buffers["real"]) == 0
    session.close()


def test_the_environment_is_the_earlier_runs(workplace: Path) -> None:
    assert main(online("--out=on")) == 0
    config = read_yaml(workplace / "on" / "config.yaml")
    assert config["start_from"] == str(workplace / "off")
    assert (config["env"]["id"], config["env"]["max_episode_steps"]) == ("Pendulum-v1", 25)
    steps = [record["env_steps"] for record in records(workplace / "on", "evaluation")]
    assert steps == [20, 40, 60]
    assert state_of(workplace / "on")["buffers"]["real"]["total_added"] == 100 + 60


def test_windows_never_join_old_and_new_episodes(workplace: Path) -> None:
    assert main(online("--out=on")) == 0
    rows = open_dataset("on").buffer()
    found = rows.windows(200, 5, torch.Generator().manual_seed(0))
    assert bool((found.episode == found.episode[:, :1]).all())
    assert torch.equal(found.next_obs[:, :-1], found.obs[:, 1:])
    assert {-1, 0} <= set(found.episode.flatten().tolist())


def test_stopped_before_the_first_checkpoint_it_begins_anew(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(online("--out=whole")) == 0

    def stop(loop: OnlineLoop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoop, "save", stop)
        assert main(online("--out=stopped")) == 130
    assert not list((workplace / "stopped").glob("checkpoints/step-*"))
    assert main(["resume", "stopped", "--quiet"]) == 0
    assert records(workplace / "stopped") == records(workplace / "whole")


def test_killed_and_resumed_without_the_earlier_run(workplace: Path) -> None:
    assert main(online("--out=whole")) == 0
    code = f"""
import os, signal
from experiments.loops.online import OnlineLoop
from experiments.cli import main
advance, rounds = OnlineLoop.advance, iter(range(100))
def dying(loop):
    next(rounds) == 30 and os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)
OnlineLoop.advance = dying
main({online("--out=killed")!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    shutil.rmtree(workplace / "off")
    shutil.rmtree(workplace / "set")
    assert main(["resume", "killed", "--quiet"]) == 0
    assert records(workplace / "killed") == records(workplace / "whole")


def with_model(workplace: Path) -> None:
    """The earlier run again, of an agent with a model."""
    shutil.rmtree(workplace / "off")
    text = (workplace / "toy.yaml").read_text().replace("OfflineAgent", "tests.experiments.offline_runs.WithModel")
    model = f"  init_args:\n    model: {ENSEMBLE}\n"
    (workplace / "model.yaml").write_text(text.replace("  init_args:\n", model, 1))
    assert main(["train", "model.yaml", "--data=set", "--quiet", "--out=off", "--steps=20", "--trust=tests"]) == 0


def test_the_model_comes_along_where_it_fits(workplace: Path) -> None:
    with_model(workplace)
    learned, session = state_of(workplace / "off")["agent"]["model"], began(recipe="dyna.yaml")
    assert isinstance(session.agent, DynaAgent)
    assert session.notes == []
    assert all(torch.equal(value, learned[name]) for name, value in session.agent.model.state_dict().items())
    session.close()
    other = began(("agent.model.hidden", 4), recipe="dyna.yaml")
    (note,) = other.notes
    assert note.startswith("the model begins anew: agent.model.hidden: 8 there, 4 here")
    other.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (online("--agent.learner.hidden=9"), "agent.learner.hidden: 8 there, 9 here"),
        (online("--agent.learner.critics=3"), "learner.vectors.critic is a tensor of shape"),
        (online("--agent.learner.normalize_obs=true"), "learner.normalizer"),
        (online("--agent.capacity=50"), "100 rows"),
        (online("--env=mbrl/CartPoleSwingUp-v0"), "another environment's"),
        (online("--data=set"), "leave --data out"),
        (online(recipe="random"), "cannot continue a run"),
        (online(recipe="sb3-sac"), "another library's, in which weights learned here have no place; sac-fast"),
        (online(recipe="toy.yaml"), "name it with --data"),
        (["train", "online.yaml", "--from=set"], "not a run directory"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(
    workplace: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workplace.rglob("*"))
    assert main(command) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("error:") == 1
    assert sorted(workplace.rglob("*")) == before


def test_a_dataset_that_has_changed_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(workplace / "set")
    write_set(workplace / "set", change=0.5)
    assert main(online()) == 2
    assert "the dataset has changed" in capsys.readouterr().err


def test_only_runs_that_learned_from_data_are_continued(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "online.yaml", "--env=Pendulum-v1", "--steps=0", "--quiet", "--out=fresh"]) == 0
    assert main(["train", "online.yaml", "--from=fresh", "--quiet"]) == 2
    assert "did not learn from a dataset" in capsys.readouterr().err


def test_a_learner_of_another_kind_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--agent.learner.hidden=8", "--agent.batch_size=16", "--agent.round_updates=10"]
    assert main(["train", "iql", "--data=set", "--quiet", "--out=iql", "--steps=10", *small]) == 0
    assert main(["train", "online.yaml", "--from=iql", "--quiet"]) == 2
    assert "a learner of class ImplicitQ does not go on as ActorCritic" in capsys.readouterr().err


AVERAGE = "[{class_path: PolicyAverage, init_args: {decay: 0.9}}]"


@pytest.mark.parametrize("same", [True, False])
def test_averages_are_taken_over_by_an_agent_that_has_the_same(same: bool, workplace: Path) -> None:
    shutil.rmtree("off")
    averaging = f"--agent.learner.callbacks={AVERAGE}"
    command = ["train", "toy.yaml", "--data=set", "--quiet", "--out=off", "--seed=1", "--steps=20", averaging]
    assert main(command) == 0
    callbacks = [{"class_path": "PolicyAverage", "init_args": {"decay": 0.9 if same else 0.8}}]
    session = began(("agent.learner.callbacks", callbacks))
    assert isinstance(session.agent, OffPolicyAgent)
    learned = state_of(workplace / "off")["agent"]["learner"]["callbacks"][0]
    (own,) = session.agent.learner.state_dict()["callbacks"]
    assert (own["vector"] is not None) == same
    assert own["weight"] == (learned["weight"] if same else 0.0)
    session.close()
    plain = began()
    assert isinstance(plain.agent, OffPolicyAgent)
    assert plain.agent.learner.updates == 20
    plain.close()
