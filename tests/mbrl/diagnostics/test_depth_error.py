"""Errors by depth: exact for a model that is wrong by a known amount, and measured on the newest rows only."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.depth_error import depth_error
from mbrl.models.base import DynamicsModel, State, Step

SPEC = EnvSpec("Line-v0", "0", "0", 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)


class Adds(DynamicsModel):
    """The state grows by the action and by ``wrong``."""

    def __init__(self, wrong: float) -> None:
        super().__init__(SPEC)
        self.wrong = wrong

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        zeros = torch.zeros(len(action))
        return Step(State(state.obs + action + self.wrong), zeros, zeros > 0, zeros > 0)


def line(lengths: list[int], bend: int | None = None) -> ReplayBuffer:
    """Episodes of a sum of random actions; from row ``bend`` on the world adds 1 more each step."""
    buffer, generator, row = ReplayBuffer(1000), torch.Generator().manual_seed(0), 0
    for episode, length in enumerate(lengths):
        action = torch.rand(length, 1, generator=generator) - 0.5
        bent = (torch.arange(row, row + length) >= (1000 if bend is None else bend)).float()[:, None]
        obs = torch.cat([torch.zeros(1, 1), (action + bent).cumsum(0)])
        step, no = torch.arange(length), torch.zeros(length, dtype=torch.bool)
        same = torch.full((length,), episode)
        buffer.extend(Transitions(obs[:-1], action, no.float(), obs[1:], no, no, same, step, same * 0))
        row += length
    return buffer


def test_a_constant_error_adds_up_with_depth(generator: Generator) -> None:
    buffer = line([20, 20, 20])
    scale = buffer.all().obs.std()
    errors = depth_error(Adds(0.1), buffer, 60, generator, depths=(1, 3, 8))
    for depth in (1, 3, 8):
        assert abs(errors[f"error_at_{depth}"] - 0.1 * depth / scale) < 1e-4
    assert max(depth_error(Adds(0.0), buffer, 60, generator).values()) < 1e-5  # the control


def test_only_the_newest_rows_are_asked(generator: Generator) -> None:
    buffer = line([20, 20, 20], bend=40)
    assert depth_error(Adds(1.0), buffer, 20, generator)["error_at_3"] < 1e-4
    assert depth_error(Adds(1.0), buffer, 60, generator)["error_at_3"] > 0.1


def test_depths_that_no_episode_reaches_are_left_out(generator: Generator) -> None:
    assert set(depth_error(Adds(0.0), line([4] * 5), 20, generator, depths=(1, 4, 5))) == {"error_at_1", "error_at_4"}
