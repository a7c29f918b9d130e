"""Small things that several agents share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec
from mbrl.clock import Clock
from mbrl.models.base import DynamicsModel
from mbrl.planning.base import Planner


def random_action(action: ActionSpec, slots: int, generator: Generator, limit: float = 1.0) -> Tensor:
    """Uniform actions ``[slots, A]`` in [-limit, limit], or one-hot choices."""
    if action.discrete:
        choice = torch.randint(action.size, (slots,), generator=generator, device=generator.device)
        return torch.nn.functional.one_hot(choice, action.size).float()
    uniform = torch.rand(slots, action.size, generator=generator, device=generator.device)
    return (uniform * 2.0 - 1.0) * limit


def check_exploration(spec: EnvSpec, std: float) -> None:
    """Refuse a spread of exploration that :func:`explored` cannot use."""
    if not 0.0 <= std < math.inf:
        raise UserError("exploration_std", std, "give a finite number of at least 0")
    if spec.action.discrete and std:
        raise UserError("exploration_std", std, f"{spec.id} has discrete actions; leave it at 0")


def explored(action: Tensor, std: float, generator: Generator) -> Tensor:
    """Planned actions ``[N, A]`` with Gaussian noise, inside the range."""
    noise = torch.randn(action.shape, generator=generator, device=action.device)
    return (action + std * noise).clamp(-1.0, 1.0)


def check_particles(planner: Planner, model: DynamicsModel) -> None:
    """A planner that imagines several particles says so in attributes; the model may refuse the number."""
    particles, propagation = (getattr(planner, name, None) for name in ("particles", "propagation"))
    if particles is None or propagation is None:
        return
    try:
        model.check_particles(particles, propagation)
    except UserError as error:
        field = "agent.init_args.planner.init_args.particles"
        raise UserError(field, error.seen, error.fix) from error


def updates_owed(clock: Clock, warmup_steps: int, updates_per_step: int) -> int:
    """Gradient steps for the env steps of this tick that lie after the warm-up.

    Counted by env steps, not by ticks: with several environments in parallel the ratio stays the same.
    """
    return updates_per_step * (clock.env_steps - max(clock.previous_env_steps, min(warmup_steps, clock.env_steps)))


class RunningMean:
    """Means by name since they were last asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Not every name need come every time."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means, and start anew; empty when nothing was added."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, dict[str, float] | dict[str, int]]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
