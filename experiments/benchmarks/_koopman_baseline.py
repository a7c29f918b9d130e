"""What Koopman models are measured against: a network unrolled in time; and the pendulum on which both are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from envs.spec import EnvSpec
from mbrl.data.normalizer import Normalizer
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.koopman.deep import Lived, mlp

DT, GRAVITY, TORQUE, FRICTION = 0.05, 15.0, 3.0, 0.3
SWING, HOLD = 1.2, 3
SCALE = (1.0, 1.0, 8.0)
"""Errors are of cos, sin and velocity / 8."""


def librating(sequences: int, length: int, generator: Generator) -> Transitions:
    """``[sequences * length]`` rows of a damped pendulum swinging about its hanging point under held random torques.

    Observation and action are Pendulum-v1's, with half its torque and a friction of its own.
    """
    angle = math.pi + SWING * _uniform(sequences, generator)
    velocity, rows = torch.zeros(sequences, dtype=torch.float64), []
    torque = _uniform(sequences, generator)
    for step in range(length):
        if step % HOLD == 0:
            torque = _uniform(sequences, generator)
        obs = _show(angle, velocity)
        velocity = velocity + DT * (GRAVITY * angle.sin() + TORQUE * torque - FRICTION * velocity)
        angle = angle + DT * velocity
        rows.append((obs, torque[:, None].float(), _show(angle, velocity)))
    obs, action, next_obs = (torch.stack(column).transpose(0, 1).flatten(0, 1) for column in zip(*rows, strict=True))
    episode = torch.arange(sequences).repeat_interleave(length)
    step_ids, never = torch.arange(length).repeat(sequences), torch.zeros(len(obs), dtype=torch.bool)
    nothing = torch.zeros(len(obs))
    return Transitions(obs, action, nothing, next_obs, never, never, episode, step_ids, torch.zeros_like(episode))


def _uniform(rows: int, generator: Generator) -> Tensor:
    return 2.0 * torch.rand(rows, generator=generator, dtype=torch.float64) - 1.0


def _show(angle: Tensor, velocity: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin(), velocity], -1).float()


class UnrolledMLP(DynamicsModel):
    """``x' = f(x, u)`` in standardised observations, trained by backpropagation through ``window`` steps.

    With ``residual`` the network gives the change, ``x' = x + f(x, u)``, which is much the stronger of the two.
    """

    def __init__(self, spec: EnvSpec, window: int, hidden: int = 128, layers: int = 2, residual: bool = False) -> None:
        super().__init__(spec)
        self.window, self.residual = window, residual
        self.norm = Normalizer(spec.obs_size)
        self.net = mlp(spec.obs_size + spec.action.size, spec.obs_size, hidden, layers)

    def unroll(self, x: Tensor, actions: Tensor) -> Tensor:
        """``[H, B, D]``: standardised observations after each of ``actions [H, B, A]``."""
        path = []
        for action in actions:
            said = self.net(torch.cat([x, action], -1))
            x = x + said if self.residual else said
            path.append(x)
        return torch.stack(path)

    def open_loop(self, obs: Tensor, actions: Tensor) -> Tensor:
        """The same of raw observations."""
        return self.norm.denormalize(self.unroll(self.norm.normalize(obs), actions))

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        next_obs = self.open_loop(state.obs, action[None])[0]
        ends = self.spec.known_termination(state.obs, action, next_obs)
        return Step(State(next_obs), self.spec.known_reward(state.obs, action, next_obs), ends, torch.zeros_like(ends))

    def prepare(self, data: Transitions) -> Lived:
        self.norm.fit(data.obs)
        x, next_x = self.norm.normalize(data.obs), self.norm.normalize(data.next_obs)
        return Lived(x, next_x, x, next_x, data.action, data.reward, data.reward)

    def loss(self, batch: Lived) -> tuple[Tensor, dict[str, Tensor]]:
        truth = batch[0].map(lambda x: x.transpose(0, 1))
        error = F.mse_loss(self.unroll(truth.obs[0], truth.action), truth.next_obs)
        return error, {"prediction": error.detach()}

    def parameter_groups(self, weight_decay: float | Sequence[float]) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "weight_decay": 0.0}]
