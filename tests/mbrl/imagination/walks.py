"""Small models whose imagined rows can be said in advance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, EnvSpec
from mbrl.models.base import DynamicsModel, Estimator, State, Step


def spec_of(obs_size: int = 2, discrete: bool = False) -> EnvSpec:
    action = ActionSpec("discrete", 3) if discrete else ActionSpec("continuous", 1, (-2.0,), (2.0,))
    return EnvSpec(id="Walk-v0", version="0", fingerprint="0", obs_size=obs_size, action=action)


class Walk(DynamicsModel):
    """The first entry grows by the action plus noise; the second never changes. Reward is the action.

    Args:
        noise: standard deviation of the walk.
        end_at: a step beyond it is terminal.
        box: a step beyond it is truncated.
    """

    def __init__(self, noise: float = 0.0, end_at: float = torch.inf, box: float = torch.inf) -> None:
        super().__init__(spec_of())
        self.noise, self.end_at, self.box = noise, end_at, box

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        luck = torch.randn(len(action), generator=generator) if generator is not None else torch.zeros(len(action))
        here = state.obs[:, 0] + action[:, 0] + self.noise * luck
        obs = torch.stack([here, state.obs[:, 1]], 1)
        return Step(State(obs), action[:, 0].clone(), here > self.end_at, here > self.box)

    def predict(self, state: State, action: Tensor) -> None:
        raise NotImplementedError

    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        """The first entry."""
        return state.obs[:, 0].clone()


class TellingWalk(Walk):
    """Says that the member moving a row is its index modulo three."""

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        return replace(super().step(state, action, generator), member=torch.arange(len(action)) % 3)


class Constant:
    """Always the same action."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        return torch.full((len(state.obs), 1), self.value)


class Random:
    """Uniform actions."""

    def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        return torch.rand(len(state.obs), 1, generator=generator) * 2 - 1


def starts(rows: int, first: float = 0.0) -> State:
    """``rows`` states at ``first``, told apart by their second entry."""
    return State(torch.stack([torch.full((rows,), first), torch.arange(rows).float()], 1))
