"""Small lifted models with known dynamics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, EnvSpec
from mbrl.models.base import DynamicsModel, LinearParts, State, Step
from mbrl.models.quadratic import QuadraticReward


def make_spec(obs_size: int = 2, actions: int = 1, low: float = -1.0, high: float = 1.0, **known: Any) -> EnvSpec:
    action = ActionSpec("continuous", actions, (low,) * actions, (high,) * actions)
    return EnvSpec(id="Toy-v0", version="0", fingerprint="0", obs_size=obs_size, action=action, **known)


class LiftedModel(DynamicsModel):
    """The observation, and a constant 1 where asked, moved by given parts; reward: minus the squared observation."""

    def __init__(self, spec: EnvSpec, parts: LinearParts, constant: bool = False) -> None:
        super().__init__(spec)
        self.parts, self.constant = parts, constant
        self.reward_form = QuadraticReward(spec)
        self.lifts = 0

    def lift(self, obs: Tensor) -> Tensor:
        self.lifts += 1
        z = obs.double()
        return torch.cat([z, torch.ones_like(z[..., :1])], -1) if self.constant else z

    def linear_parts(self) -> LinearParts:
        return self.parts

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        z, u, parts = self.lift(state.obs), action.double(), self.parts
        after = z @ parts.a.T + u @ parts.b.T
        if parts.bilinear is not None:
            after = after + torch.einsum("ba,anm,bm->bn", u, parts.bilinear, z)
        obs = (after @ parts.c.T + parts.offset).to(state.obs.dtype)
        never = torch.zeros(len(action), dtype=torch.bool)
        return Step(State(obs), -obs.square().sum(-1), never, never)


def integrator(spec: EnvSpec | None = None, constant: bool = False, gravity: float = 0.0) -> LiftedModel:
    """A mass on a line; with a constant in the lift, ``gravity`` pulls on it."""
    a = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.005], [0.1]], dtype=torch.float64)
    if constant:
        a = torch.block_diag(a, torch.ones(1, 1, dtype=torch.float64))
        a[1, 2], b = -gravity, torch.cat([b, torch.zeros(1, 1, dtype=torch.float64)])
    c = torch.eye(2, len(a), dtype=torch.float64)
    parts = LinearParts(a, b, c, torch.zeros(2, dtype=torch.float64))
    return LiftedModel(spec or make_spec(), parts, constant)


def bilinear(gain: float = 1.5) -> LiftedModel:
    """``x' = 1.05 x + 0.1 (1 + gain y) u, y' = 0.98 y + 0.05 u``: what pushing does depends on, and changes, ``y``."""
    a = torch.tensor([[1.05, 0.0], [0.0, 0.98]], dtype=torch.float64)
    b = torch.tensor([[0.1], [0.05]], dtype=torch.float64)
    n = torch.tensor([[[0.0, 0.1 * gain], [0.0, 0.0]]], dtype=torch.float64)
    parts = LinearParts(a, b, torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), n)
    return LiftedModel(make_spec(), parts)
