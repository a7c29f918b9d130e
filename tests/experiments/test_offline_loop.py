"""Runs that learn from a dataset: what they record, how they continue, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import given_data
from experiments.cli import main
from experiments.config import resolve
from experiments.given_data import GivenData, digest
from experiments.loops.offline import OfflineLoop, attainable
from experiments.report.comparison import load
from experiments.session import Session
from experiments.tree import read_yaml
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.minari import write_minari
from mbrl.data.offline import About, BufferFolder, open_dataset
from mbrl.data.transitions import Transitions
from tests.experiments.offline_runs import ENV, records, write_recipe, write_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_recipe(tmp_path)
    write_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def train(*more: str, data: str = "set") -> list[str]:
    return ["train", "toy.yaml", f"--data={data}", "--quiet", *more]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must fail says; it leaves no run."""
    before = sorted(Path().rglob("*"))
    assert main(command) == 2
    assert sorted(Path().rglob("*")) == before
    return capsys.readouterr().err


def test_steps_are_updates_everywhere_and_the_environment_is_the_datasets(workplace: Path) -> None:
    """In records, names of checkpoints, the report and TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(train("--out=run")) == 0
    every = records(workplace / "run")
    assert {record["env_steps"] for record in every} == {0}
    assert [record["updates"] for record in records(workplace / "run", "evaluation")] == [40, 80, 100]
    assert [record["updates"] for record in records(workplace / "run", "update")] == [20, 40, 60, 80, 100]
    assert records(workplace / "run", "evaluation")[0]["lengths"] == [25, 25]
    config = read_yaml(workplace / "run" / "config.yaml")
    assert config["data"] == str(workplace / "set")
    assert (config["env"]["id"], config["env"]["max_episode_steps"]) == ("Pendulum-v1", 25)
    names = [path.name for path in sorted((workplace / "run" / "checkpoints").glob("step-*.pt"))]
    assert [name[:17] for name in names] == ["step-000000000090", "step-000000000100"]

    found = load(workplace)
    assert (found.axis, [run.state for run in found.runs]) == ("updates", ["done"])
    scalars = EventAccumulator(str(workplace / "run" / "tensorboard")).Reload().Scalars("evaluation/score")
    assert [scalar.step for scalar in scalars] == [40, 80, 100]


def test_evaluations_have_a_score_where_references_are_known(workplace: Path) -> None:
    write_set(workplace / "plain", About(env=ENV))
    assert main(train("--out=scored")) == 0
    assert main(train("--out=plain-run", data="plain")) == 0
    for record in records(workplace / "scored", "evaluation"):
        assert record["score"] == pytest.approx(float(record["return_mean"]) + 200.0)  # type: ignore[arg-type]
    assert all("score" not in record for record in records(workplace / "plain-run", "evaluation"))


def test_same_seed_twice_is_identical_and_other_data_is_not(workplace: Path) -> None:
    write_set(workplace / "other", change=1.0)
    for out, data in (("a", "set"), ("b", "set"), ("c", "other")):
        assert main(train(f"--out={out}", data=data)) == 0
    assert records(workplace / "a") == records(workplace / "b")
    assert records(workplace / "a", "update") != records(workplace / "c", "update")


def test_stopped_before_the_first_checkpoint_it_begins_anew(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(train("--out=whole")) == 0

    def stop(loop: OfflineLoop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OfflineLoop, "save", stop)
        assert main(train("--out=stopped")) == 130
    assert main(["resume", "stopped", "--quiet"]) == 0
    assert records(workplace / "stopped") == records(workplace / "whole")


def test_killed_and_resumed_equals_uninterrupted(workplace: Path) -> None:
    """Killed between two checkpoints; really: the process has no chance to tidy up."""
    assert main(train("--out=whole")) == 0
    code = f"""
import os, signal
from experiments.loops.offline import OfflineLoop
from experiments.cli import main
advance, rounds = OfflineLoop.advance, iter(range(100))
def dying(loop):
    next(rounds) == 5 and os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)
OfflineLoop.advance = dying
main({train("--out=killed")!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    assert records(workplace / "killed") != records(workplace / "whole")
    assert main(["resume", "killed", "--quiet"]) == 0
    assert records(workplace / "killed") == records(workplace / "whole")


def test_a_folder_that_is_too_large_stays_on_the_disk(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(train("--out=small")) == 0
    monkeypatch.setattr(BufferFolder, "buffer", None)  # reading it into memory would fail
    monkeypatch.setattr(given_data, "LARGE_BYTES", 100)
    assert main(train("--out=large")) == 0
    assert records(workplace / "small") == records(workplace / "large")
    write_set(workplace / "broken", change=float("nan"))
    assert main(train(data="broken")) == 2


def test_a_comparison_of_learners_from_data_runs_to_its_end(workplace: Path) -> None:
    command = ["compare", "--agents", "toy=./toy.yaml", "--envs", "Pendulum-v1", "--seeds", "1", "--out=table"]
    settings = [f"--data={workplace / 'set'}", "--evaluation.episodes=2", "--evaluation.num_envs=2", "--no-report"]
    assert main([*command, *settings, "--env.max_episode_steps=25"]) == 0
    status = json.loads((workplace / "table" / "status.json").read_text())
    assert [job["state"] for job in status["jobs"]] == ["done"]


def cut_short(run: Path) -> None:
    """The run as it was at its last but one checkpoint."""
    newest = max((run / "checkpoints").glob("step-*.pt"))
    newest.unlink()


def test_a_dataset_that_has_changed_is_not_learned_from_any_more(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train("--out=run")) == 0
    cut_short(workplace / "run")
    shutil.rmtree(workplace / "set")
    write_set(workplace / "set", change=1e-3)
    assert "the dataset has changed" in refused(["resume", "run", "--quiet"], capsys)
    shutil.rmtree(workplace / "set")
    assert "'--data'" not in refused(["resume", "run", "--quiet"], capsys)
    write_set(workplace / "set")
    before = records(workplace / "run")
    assert main(["resume", "run", "--quiet"]) == 0
    assert records(workplace / "run") == before


def test_a_run_is_evaluated_without_its_dataset(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("--out=run")) == 0
    shutil.rmtree(workplace / "set")
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 0
    last = records(workplace / "run", "evaluation")[-1]["return_mean"]
    assert f"100 updates: return {last:.2f}" in capsys.readouterr().out


def test_the_digest_is_of_the_rows_whatever_the_format(workplace: Path) -> None:
    rows = open_dataset("set").rows()
    write_minari(rows, "mbrl/toy-v0", About(env=ENV))
    config = resolve("toy.yaml", [("data", "mbrl/toy-v0")]).config
    session = Session(resolve("toy.yaml", [("data", "mbrl/toy-v0")]))
    assert config.data == "mbrl/toy-v0"
    assert session.data.identity["digest"] == digest(open_dataset("set").buffer())
    session.close()


def test_an_environment_named_by_the_user_goes_first(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve("toy.yaml", [("data", "set"), ("env.max_episode_steps", 7)]).config.env.max_episode_steps == 7
    assert resolve("toy.yaml", [("data", "set")], env="Pendulum-v1").config.env.max_episode_steps is None
    said = refused(train("--env=mbrl/CartPoleSwingUp-v0"), capsys)
    assert "5 and 1 entries" in said
    assert "another environment's" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "toy.yaml", "--env=Pendulum-v1"], "name it with --data"),
        (["train", "random", "--data=set"], "learns by acting"),
        (["train", "toy.yaml", "--data=sett"], "Did you mean set"),
        (["train", "toy.yaml", "--data=nameless"], "give --env ID"),
        (["train", "toy.yaml", "--data=set", "--env=tasks:pendulum-five"], "leave --data and --from out"),
        (["train", "toy.yaml", "--data=broken"], "NaN"),
        (["train", "toy.yaml", "--data=set", "--data=broken"], "given twice"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    workplace: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(workplace / "nameless", About())
    write_set(workplace / "broken", change=float("nan"))
    message = refused(command, capsys)
    assert message.count("error:") == 1
    assert said.lower() in message.lower()


def _buffer(rewards: list[float], terminated: bool) -> ReplayBuffer:
    count = len(rewards)
    buffer, zeros = ReplayBuffer(count), torch.zeros(count, 1)
    flags, ids = torch.zeros(count, dtype=torch.bool), torch.arange(count)
    ends = flags.clone()
    ends[-1] = terminated
    buffer.extend(Transitions(zeros, zeros, torch.tensor(rewards), zeros, ends, flags, ids * 0, ids, ids * 0))
    return buffer


def test_the_attainable_range_is_that_of_the_rewards() -> None:
    assert attainable(_buffer([-2.0, -1.0], False), 0.9) == pytest.approx((-20.0, -10.0))
    assert attainable(_buffer([-2.0, -1.0], True), 0.9) == pytest.approx((-20.0, 0.0))
    assert attainable(_buffer([1.0, 3.0], True), 0.9) == pytest.approx((0.0, 30.0))
    assert attainable(_buffer([1.0], False), 1.0) is None
    assert attainable(_buffer([1.0], False), None) is None


def test_values_out_of_range_are_flagged(workplace: Path) -> None:
    """Fresh critics say about 0, which no stream of the pendulum's rewards in the data is worth; of 0 to 1 they may."""
    assert main(train("--out=run")) == 0
    first = records(workplace / "run", "update")[0]
    rewards = open_dataset("set").rows().reward.double()
    assert first["value_high"] == pytest.approx(float(rewards.max()) * 100)
    assert first["value_low"] == pytest.approx(float(rewards.min()) * 100)
    assert first["q_outside"] is True
    write_set(workplace / "mixed", change=-float(rewards[7]) + 1.0)
    assert main(train("--out=other", data="mixed")) == 0
    assert records(workplace / "other", "update")[0]["q_outside"] is False


def test_given_data_refuses_discrete_actions_for_a_continuous_file(workplace: Path) -> None:
    from envs.errors import UserError
    from envs.registry import env_spec
    from experiments.config import EnvConfig

    with pytest.raises(UserError, match="another environment's"):
        GivenData("set", EnvConfig(id="CartPole-v1"), env_spec("CartPole-v1"))
