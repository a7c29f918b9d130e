"""What every test shares: one thread a process, and rendering only where it works."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Generator

torch.set_num_threads(1)

_RENDER_ONE_FRAME = """
import gymnasium
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array")
env.reset(seed=0)
assert env.render() is not None
"""


@functools.cache
def can_render() -> bool:
    """Whether MuJoCo draws a frame here; tried in another process, because a broken GL may abort it."""
    try:
        tried = subprocess.run([sys.executable, "-c", _RENDER_ONE_FRAME], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("render") and not can_render():
        pytest.skip("no GL backend draws here (try MUJOCO_GL=egl)")


@pytest.fixture
def generator() -> Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


ROOT = Path(__file__).resolve().parents[1]
DYING = """
import os, signal, sys
import experiments.session, jsonargparse, torch._dynamo, torch.utils.tensorboard
from experiments.cli import main
from experiments.loops.online import OnlineLoop

advance = OnlineLoop.advance

def dying(loop):
    if loop.clock.env_steps >= ENV_STEPS:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(loop)

OnlineLoop.advance = dying
for command in COMMANDS:
    child = os.fork()  # before torch has begun any thread, so that one interpreter serves all
    if child == 0:
        sys.exit(main(command))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""
ResumeIsExact = Callable[[Mapping[str, list[str]], int], None]


@pytest.fixture
def resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResumeIsExact:
    """Every run of ``{name: command}``, killed (SIGKILL) from that env step on and resumed, writes what the whole run
    writes. The process that resumes is another one than the one that was killed.
    """
    from experiments.cli import main
    from experiments.metrics import comparable, read_records

    def records(run: str) -> list[dict[str, object]]:
        return [comparable(record) for record in read_records(tmp_path / run / "metrics.jsonl")]

    def check(commands: Mapping[str, list[str]], env_steps: int) -> None:
        monkeypatch.chdir(tmp_path)
        doomed = [[*command, f"--out={name}-killed"] for name, command in commands.items()]
        script = DYING.replace("COMMANDS", repr(doomed)).replace("ENV_STEPS", str(env_steps))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        for name, command in commands.items():
            assert main([*command, f"--out={name}-whole"]) == 0
            assert main(["resume", f"{name}-killed", "--quiet"]) == 0
            whole, resumed = records(f"{name}-whole"), records(f"{name}-killed")
            assert {"episode", "evaluation", "update"} <= {record["event"] for record in whole}
            assert resumed == whole, name

    return check
