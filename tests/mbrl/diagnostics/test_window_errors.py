"""Errors over windows: exact for a known model, and those that run away are counted."""

from __future__ import annotations

from typing import Any

import torch

from envs import env_spec
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.window_errors import window_errors
from mbrl.models.base import Trajectory
from mbrl.models.simulator import Simulator

SPEC = env_spec("Pendulum-v1")


def lived(windows: int = 40, length: int = 10) -> Transitions:
    draw, world = torch.Generator().manual_seed(0), Simulator(SPEC)
    angle = 6.3 * torch.rand(windows, generator=draw)
    state = world.encode(torch.stack([angle.cos(), angle.sin(), 0 * angle], -1))
    action, obs = 2 * torch.rand(windows, length, 1, generator=draw) - 1, [state.obs]
    for t in range(length):
        state = world.encode(world.step(state, action[:, t], None).state.obs)
        obs.append(state.obs)
    path, zero = torch.stack(obs, 1), torch.zeros(windows, length, dtype=torch.int64)
    no = zero.bool()
    return Transitions(path[:, :-1], action, zero.float(), path[:, 1:], no, no, zero, zero, zero)


class Off(Simulator):
    """Misses the speed by a share of it, and in some rows by far too much."""

    lost = 0

    def rollout(self, *args: Any, **named: Any) -> Trajectory:
        path = super().rollout(*args, **named)
        miss = 1.0 + 0.05 * torch.arange(len(path.states.obs))[:, None, None]
        path.states.obs[..., 2] *= miss
        path.states.obs[1:, :, : self.lost, 2] += 1e6
        return path


def test_the_true_dynamics_have_no_error_and_a_wrong_one_grows_with_depth() -> None:
    windows = lived()
    true = window_errors(Simulator(SPEC), windows, (1, 5, 10))
    assert max(true.errors.values()) < 1e-4
    assert (true.rollouts, true.diverged) == (40, 0)
    wrong = window_errors(Off(SPEC), windows, (1, 5, 10)).errors
    assert 0.005 < wrong[1] < wrong[5] < wrong[10]


def test_rollouts_that_ran_away_are_counted_and_not_averaged() -> None:
    windows, model = lived(), Off(SPEC)
    model.lost = 3
    found = window_errors(model, windows, (1, 5))
    assert found.diverged == 3
    assert found.errors[5] < 1.0
    model.lost = 40
    assert window_errors(model, windows, (1, 5)).diverged == 40
