"""Runs that learn from data are killed in the middle and continued: records and weights of an unbroken run, to the bit.

The recipes are those of the command line, at tiny sizes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.offline.base import OfflineAgent
from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from tests.experiments.offline_runs import records, write_set

ROOT = Path(__file__).resolve().parents[2]
STEPS, CHECKPOINT, ROUND = 60, 30, 10
DIES_BEFORE = 5
"""The round before which it is killed: 20 updates after the last checkpoint, among them records and rollouts"""
SMALL = {
    "iql": [],
    "mopo": [
        "--agent.model.hidden=8",
        "--agent.model.members=3",
        "--agent.model.elites=2",
        "--agent.fitter.max_epochs=2",
        "--agent.horizon=2",
        "--agent.starts=20",
        "--agent.refresh_every=20",
    ],
    "h2o": ["--agent.simulator.gravity=15", "--agent.ratio.hidden=8", "--agent.first_steps=20", "--agent.simulators=2"],
}
SHARED = [
    f"--steps={STEPS}",
    f"--checkpoint.every={CHECKPOINT}",
    f"--agent.round_updates={ROUND}",
    f"--agent.log_every={ROUND}",
    "--agent.batch_size=16",
    "--agent.learner.hidden=8",
    "--evaluation.every=40",
    "--evaluation.episodes=1",
    "--evaluation.num_envs=1",
    "--quiet",
]
DYING = f"""
import os, signal, sys
from experiments.cli import main
from experiments.loops.offline import OfflineLoop
advance, rounds = OfflineLoop.advance, iter(range(100))
def dying(loop):
    next(rounds) == {DIES_BEFORE} and os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)
OfflineLoop.advance = dying
main(sys.argv[1:])
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(recipe: str, out: str) -> list[str]:
    return ["train", recipe, "--data=set", f"--out={out}", *SHARED, *SMALL[recipe]]


def kill(command: list[str]) -> None:
    """Run it in a process of its own, which is killed and has no chance to tidy up."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DYING, *command], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def weights(run: Path) -> dict[str, Any]:
    """Every tensor and number that the agent's last checkpoint holds, by its place."""
    state = CheckpointStore(run / "checkpoints").load_latest()
    assert state is not None
    return dict(leaves(state["agent"], "agent"))


def leaves(tree: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{where}.{key}")
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from leaves(value, f"{where}.{place}")
    else:
        yield where, tree


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what is not the same to the bit."""
    odd = sorted(set(one) ^ set(other))
    return odd + [name for name in one if name in other and not same(one[name], other[name])]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other)


def updates_of(run: Path) -> list[object]:
    return [record["updates"] for record in records(run, "update")]


@pytest.mark.timeout(300)  # a process of its own each
@pytest.mark.parametrize("recipe", SMALL)
def test_killed_and_resumed_equals_unbroken(recipe: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the control: a resume that forgets where the random numbers were goes another way."""
    whole, killed, other = (workplace / name for name in ("whole", "killed", "other"))
    assert main(train(recipe, "whole")) == 0
    kill(train(recipe, "killed"))
    assert updates_of(killed) == [10, 20, 30, 40, 50][: len(updates_of(killed))] != updates_of(whole)
    shutil.copytree(killed, other)
    assert main(["resume", "killed", "--quiet"]) == 0
    assert records(killed) == records(whole)
    assert len(weights(whole)) > 10
    assert differing(weights(killed), weights(whole)) == []

    load = OfflineAgent.load_state_dict

    def forgetful(agent: OfflineAgent, state: dict[str, Any]) -> None:
        load(agent, state | {"generator": torch.Generator().manual_seed(1).get_state()})

    monkeypatch.setattr(OfflineAgent, "load_state_dict", forgetful)
    assert main(["resume", "other", "--quiet"]) == 0
    assert records(other, "update")[:3] == records(whole, "update")[:3]
    assert records(other, "update")[3:] != records(whole, "update")[3:]
    assert any("learner.vectors" in name for name in differing(weights(other), weights(whole)))


def test_what_learns_along_the_run_knows_its_length_after_a_resume(workplace: Path) -> None:
    """IQL's step size falls over the run's own steps: with other steps it is another one, from the first update on."""
    assert main([*train("iql", "short"), "--steps=30", "--agent.learner.cosine_updates=60"]) == 0
    assert main([*train("iql", "long"), "--steps=60"]) == 0
    assert main([*train("iql", "own"), "--steps=30"]) == 0
    of_long = records(workplace / "long", "update")[:3]
    assert records(workplace / "short", "update") == of_long
    assert records(workplace / "own", "update") != of_long
