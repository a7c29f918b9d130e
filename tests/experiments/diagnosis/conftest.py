"""A small run, and a fit on its transitions, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.diagnosis.fit import run_fit

TINY = [
    "--agent.model.members=2",
    "--agent.model.hidden=8",
    "--agent.planner.particles=2",
    "--agent.planner.candidates=4",
    "--agent.planner.horizon=2",
    "--agent.planner.iterations=1",
    "--agent.fitter.first_updates=30",
    "--agent.warmup_steps=250",
    "--agent.fit_every=50",
    "--evaluation.episodes=1",
    "--evaluation.num_envs=1",
    "--env.max_episode_steps=30",
]
SMALL: list[tuple[str, Any]] = [
    ("agent.model.members", 2),
    ("agent.model.hidden", 8),
    ("agent.planner.particles", 2),
    ("agent.fitter.first_updates", 40),
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve episodes of 30 steps and a bit of another; fitted at 250, 300 and 350 of 370 env steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = ["train", "pets", "--env", "Pendulum-v1", "--steps=370", f"--out={out}", "--quiet", *TINY]
    assert main(command) == 0
    return out


@pytest.fixture(scope="session")
def fit(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_fit("pets", run, str(tmp_path_factory.mktemp("fits") / "fit"), SMALL, [])
