"""Cart-pole with a continuous force: swing-up, and balancing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.spec import Angle
from envs.torch_env import FromObs, TorchEnv

INF = float("inf")
SUBSTEPS = 2


def _state_from_obs(obs: Tensor) -> Tensor:
    x, x_dot, cos, sin, theta_dot = obs.unbind(-1)
    return torch.stack([x, x_dot, torch.atan2(sin, cos), theta_dot], -1)


class CartPoleSwingUp(TorchEnv):
    """Swing a pole up and hold it there by pushing the cart; no rail, never terminates.

    State ``(x, x', theta, theta')``, theta = 0 upright; a uniform pole as in Florian (2007), "Correct equations for
    the dynamics of the cart-pole system". Two semi-implicit Euler substeps a step. Observation
    ``(x, x', cos theta, sin theta, theta')``; action in [-1, 1], times ``force`` newtons; reward
    ``cos(theta) - 0.1 x^2 - 0.01 a^2`` with the angle and position after the step.
    """

    dt = 0.04
    defaults: ClassVar[Mapping[str, float]] = {
        "gravity": 9.81,
        "mass_cart": 1.0,
        "mass_pole": 0.1,
        "half_length": 0.5,
        "force": 10.0,
    }
    state_size = 4
    obs_high: ClassVar[Mapping[str, float]] = {"x": INF, "x_dot": INF, "cos": 1.0, "sin": 1.0, "theta_dot": INF}
    angles = (Angle(cos=2, sin=3),)
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_state_from_obs)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        gravity, mass_cart, mass_pole, length, force = params.unbind(-1)
        x, x_dot, theta, theta_dot = state.unbind(-1)
        total, h = mass_cart + mass_pole, CartPoleSwingUp.dt / SUBSTEPS
        push, arm, inertia = action[..., 0] * force / total, mass_pole * length / total, length * 4.0 / 3.0
        for _ in range(SUBSTEPS):
            sin, cos = theta.sin(), theta.cos()
            pull = push + arm * theta_dot.square() * sin
            theta_acc = (gravity * sin - cos * pull) / (inertia - arm * cos.square())
            x_acc = pull - arm * theta_acc * cos
            x_dot, theta_dot = x_dot + h * x_acc, theta_dot + h * theta_acc
            x, theta = x + h * x_dot, theta + h * theta_dot
        return torch.stack([x, x_dot, theta, theta_dot], -1)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        x, x_dot, theta, theta_dot = state.unbind(-1)
        return torch.stack([x, x_dot, theta.cos(), theta.sin(), theta_dot], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[..., 2] - 0.1 * next_obs[..., 0] ** 2 - 0.01 * action[..., 0] ** 2

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return np.array([0.0, 0.0, np.pi, 0.0]) + rng.normal(0.0, 0.02, 4)

    def draw(self, canvas: Any) -> None:
        from envs.drawing import BROWN

        x, _, theta, _ = self.state.tolist()
        x = (x + 3.0) % 6.0 - 3.0  # no rail: the picture wraps around
        length = 2.0 * self.params["half_length"]
        canvas.line((-3.0, 0.0), (3.0, 0.0), width=0.01)
        canvas.box((x, 0.0), 0.5, 0.25)
        canvas.line((x, 0.0), (x + length * np.sin(theta), length * np.cos(theta)), BROWN, 0.08)
        canvas.disc((x, 0.0), 0.05)


class CartPoleTip(CartPoleSwingUp):
    """:class:`CartPoleSwingUp` with the reward ``exp(-d^2 / length^2) - 0.01 a^2``.

    ``d`` is the distance of the pole's tip from where it is when the pole stands upright over the origin, and
    ``length``, twice ``half_length``, the whole pole: lengths in publications that measure the pole itself are
    ``2 half_length`` here. The reward's scale thus moves with the pole.
    """

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:  # type: ignore[override]
        length = 2.0 * params[..., 3]
        aside = next_obs[..., 0] + length * next_obs[..., 3]
        below = length * (next_obs[..., 2] - 1.0)
        return torch.exp(-(aside**2 + below**2) / length**2) - 0.01 * action[..., 0] ** 2


class CartPoleBalance(CartPoleSwingUp):
    """Keep the pole of :class:`CartPoleSwingUp` upright: reward 1 a step, less small costs of drift and force.

    Ends when the pole leans more than 24 degrees or the cart is more than 2.4 m from the middle.
    """

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return 1.0 - 0.1 * next_obs[..., 0] ** 2 - 0.01 * action[..., 0] ** 2

    @staticmethod
    def termination_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return (next_obs[..., 0].abs() > 2.4) | (next_obs[..., 2] < float(np.cos(np.deg2rad(24.0))))

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.uniform(-0.05, 0.05, 4)
