"""Small models with known dynamics, for planners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, EnvSpec
from mbrl.models.base import DynamicsModel, State, Step


def make_spec(obs_size: int = 2, actions: int = 1, discrete: bool = False, **known: Any) -> EnvSpec:
    action = (
        ActionSpec("discrete", actions)
        if discrete
        else ActionSpec("continuous", actions, (-1,) * actions, (1,) * actions)
    )
    return EnvSpec(id="Toy-v0", version="0", fingerprint="0", obs_size=obs_size, action=action, **known)


class LinearModel(DynamicsModel):
    """A double integrator with quadratic cost: x' = A x + B a (+ noise), reward -(x' Q x' + a R a)."""

    A = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    B = torch.tensor([[0.0], [0.5]])
    Q = torch.diag(torch.tensor([1.0, 0.1]))
    R = torch.tensor([[1.0]])

    def __init__(self, spec: EnvSpec | None = None, noise: float = 0.0) -> None:
        super().__init__(spec or make_spec())
        self.noise = noise
        self.rows: list[int] = []

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        self.rows.append(len(action))
        after = state.obs @ self.A.T + action @ self.B.T
        if self.noise:
            after = after + self.noise * torch.randn(1, 2, generator=generator)
        reward = -((after @ self.Q) * after).sum(-1) - ((action @ self.R) * action).sum(-1)
        never = torch.zeros(len(action), dtype=torch.bool)
        return Step(State(after), reward, never, never)


class Corridor(DynamicsModel):
    """Discrete: choice 0 steps left, 1 stays, 2 steps right; the reward is the new place."""

    def __init__(self) -> None:
        super().__init__(make_spec(1, 3, discrete=True))

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        after = state.obs + action[..., 2:] - action[..., :1]
        never = torch.zeros(len(action), dtype=torch.bool)
        return Step(State(after), after[..., 0], never, never)


@pytest.fixture
def linear() -> type[LinearModel]:
    return LinearModel


@pytest.fixture
def corridor() -> type[Corridor]:
    return Corridor


@pytest.fixture
def toy_spec() -> Callable[..., EnvSpec]:
    return make_spec
