"""What agents log of their models: the old errors are unchanged, calibration is added, training is not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from envs.registry import env_spec
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.depth_error import depth_error
from mbrl.diagnostics.judge import judge
from mbrl.fitting import Fitter
from mbrl.models.ensemble import ProbabilisticEnsemble

PENDULUM = env_spec("Pendulum-v1")


def swings(generator: Generator, episodes: int = 12, length: int = 20, noise: float = 0.05) -> ReplayBuffer:
    """A pendulum-like system with noise of a known size on the velocity."""
    buffer = ReplayBuffer(episodes * length)
    for episode in range(episodes):
        angle, speed = torch.randn(2, generator=generator)
        action, path = torch.rand(length, 1, generator=generator) * 2 - 1, []
        for push in action[:, 0]:
            path.append(torch.stack([angle.cos(), angle.sin(), speed]))
            speed = 0.9 * speed + 0.3 * push + 0.2 * angle.sin() + noise * torch.randn((), generator=generator)
            angle = angle + 0.05 * speed
        path.append(torch.stack([angle.cos(), angle.sin(), speed]))
        obs, step = torch.stack(path), torch.arange(length)
        no = torch.zeros(length, dtype=torch.bool)
        buffer.extend(Transitions(obs[:-1], action, no.float(), obs[1:], no, no, step * 0 + episode, step, step * 0))
    return buffer


def fitted(buffer: ReplayBuffer, generator: Generator) -> ProbabilisticEnsemble:
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(PENDULUM, members=2, hidden=32)
    Fitter(holdout=0.0, max_updates=400, batch_size=64).fit(model, buffer.all(), generator)
    return model


def test_errors_and_draws_are_those_of_depth_error(generator: Generator) -> None:
    buffer = swings(generator)
    model = fitted(buffer, generator)
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    found, errors = judge(model, buffer, 60, one), depth_error(model, buffer, 60, other)
    assert {name: found[name] for name in errors} == errors
    assert torch.equal(one.get_state(), other.get_state())
    assert set(found) - set(errors) == {"coverage_50", "coverage_90", "nll"}


@pytest.mark.parametrize("shift", [0.0, 4.0, -3.0])
def test_coverage_and_likelihood_follow_the_stated_spread(generator: Generator, shift: float) -> None:
    """``shift`` is added to every log-variance after the fit: 4 is intervals about seven times as wide."""
    buffer = swings(generator)
    model = fitted(buffer, generator)
    fresh = swings(generator)
    plain = judge(model, fresh, 200, generator)
    with torch.no_grad():
        size = model.target_size
        model.biases[-1][..., size : 2 * size] += shift
        model.max_log_var += max(shift, 0.0)
        model.min_log_var += min(shift, 0.0)
    found = judge(model, fresh, 200, generator)
    if shift == 0.0:
        assert 0.75 < found["coverage_90"] <= 1.0
    else:
        assert (found["coverage_50"] > plain["coverage_50"]) == (shift > 0)
        assert (found["coverage_90"] > 0.97) == (shift > 0)
        assert found["nll"] > plain["nll"]


def test_only_the_newest_rows_count(generator: Generator) -> None:
    buffer, model = swings(generator), None
    model = fitted(buffer, generator)
    strange = swings(generator, noise=2.0)
    both = ReplayBuffer(1000)
    both.extend(buffer.all())
    tail = strange.all()[:40]
    tail.episode += 100
    both.extend(tail)
    newest, everything = (judge(model, both, rows, generator) for rows in (40, 280))
    assert newest["coverage_90"] < everything["coverage_90"] - 0.1
    assert newest["error_at_1"] > 2 * everything["error_at_1"]


def test_a_model_without_a_distribution_has_errors_only(generator: Generator, tmp_path: Path) -> None:
    buffer = swings(generator)
    model = ProbabilisticEnsemble(PENDULUM, members=2, hidden=8, probabilistic=False)
    model.prepare(buffer.all())
    found: dict[str, Any] = judge(model, buffer, 60, generator)
    assert set(found) == {"error_at_1", "error_at_3", "error_at_8"}
