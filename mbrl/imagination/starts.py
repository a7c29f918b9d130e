"""Where imagination starts: states that were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State


class StartSampler:
    """Draws rows of real data to start from, with replacement.

    Args:
        weighted: by the buffer's weights, which are kept by row id; else uniformly.
    """

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def __call__(self, buffer: ReplayBuffer, n: int, generator: Generator) -> Transitions:
        """``n`` rows; imagination starts from their ``obs``."""
        return buffer.sample(n, generator, self.weighted)


@dataclass
class Starts(Record):
    """What ``B`` states are encoded from."""

    obs: Tensor
    """``[B, D]``"""
    task: Tensor | None = None
    """``[B]``"""
    sim_state: Tensor | None = None
    """``[B, S]``, for simulators"""

    @classmethod
    def of(cls, rows: Transitions) -> Starts:
        """The states in which ``rows`` began."""
        return cls(rows.obs, rows.task, rows.sim_state)

    def encode(self, model: DynamicsModel) -> State:
        return model.encode(self.obs, self.task, self.sim_state)


class StartSource(Protocol):
    """Gives start states one after the other."""

    def draw(self, n: int, generator: Generator) -> Starts:
        """``n`` of them, with replacement."""


class StartTable:
    """A fixed table of start states, drawn uniformly.

    Args:
        rows: the states, at least one.
    """

    def __init__(self, rows: Starts) -> None:
        if not len(rows.obs):
            raise UserError("starts", 0, "give at least one observation to start from")
        self.rows = rows

    def draw(self, n: int, generator: Generator) -> Starts:
        device = self.rows.obs.device
        return self.rows[torch.randint(len(self.rows.obs), (n,), generator=generator).to(device)]


class BufferStarts:
    """Start states from a replay buffer as it is at the time of the draw.

    Args:
        buffer: real data, on the CPU.
        sampler: how rows are drawn (default: uniformly).
    """

    def __init__(self, buffer: ReplayBuffer, sampler: StartSampler | None = None) -> None:
        self.buffer, self.sampler = buffer, sampler or StartSampler()

    def draw(self, n: int, generator: Generator) -> Starts:
        return Starts.of(self.sampler(self.buffer, n, generator))
