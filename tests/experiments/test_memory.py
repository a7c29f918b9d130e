"""Memory stays flat over a long run, and a leak would be seen."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from agents.dyna import DynaAgent
from experiments.cli import main
from experiments.loops.online import OnlineLoop

STEPS = 50_000
SETTINGS = ["num_envs=10", "evaluation={every: 10000, episodes: 2}", "checkpoint.every=5000", "seed=0"]
AGENT = ["warmup_steps=100", "fit_every=2500", "rollouts_per_step=1", "updates_per_step=1", "capacity=3000"]
AGENT += ["batch_size=8", "learner.hidden=8", "learner.compile=false", "model.hidden=8", "fitter.max_epochs=1"]


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("leak", [False, True])
def test_memory_is_flat_over_50_000_steps(leak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between env step 10,000, when every buffer has wrapped, and the end. The leak keeps what is observed."""
    seen: dict[int, int] = {}
    kept: list[Any] = []
    advance, observe = OnlineLoop.advance, DynaAgent.observe

    def watched(loop: OnlineLoop) -> None:
        advance(loop)
        if loop.clock.env_steps in (10_000, STEPS - 10):
            seen[loop.clock.env_steps] = resident_bytes()

    def leaking(agent: DynaAgent, transitions: Any) -> None:
        observe(agent, transitions)
        kept.append(transitions)

    monkeypatch.setattr(OnlineLoop, "advance", watched)
    if leak:
        monkeypatch.setattr(DynaAgent, "observe", leaking)
    words = [*(f"--{word}" for word in SETTINGS), *(f"--agent.{word}" for word in AGENT), "--quiet"]
    run = ["train", "mbpo-fast", "--env", "Pendulum-v1", "--steps", str(STEPS), f"--out={tmp_path / 'run'}"]
    assert main([*run, *words]) == 0
    grown = (seen[STEPS - 10] - seen[10_000]) / 2**20
    assert (grown < 8.0) != leak, f"{grown:.1f} MiB"
