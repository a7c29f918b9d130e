"""The acrobot with a continuous torque."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.integrators import rk4
from envs.spec import Angle
from envs.torch_env import FromObs, TorchEnv

INF = float("inf")


def _state_from_obs(obs: Tensor) -> Tensor:
    cos1, sin1, cos2, sin2, rate1, rate2 = obs.unbind(-1)
    return torch.stack([torch.atan2(sin1, cos1), torch.atan2(sin2, cos2), rate1, rate2], -1)


class AcrobotContinuous(TorchEnv):
    """Swing up two links that are driven at the elbow only, and hold them there; never terminates.

    State ``(theta1, theta2, theta1', theta2')``, theta1 = 0 hanging, theta2 relative to the first link; equations of
    Sutton and Barto (1998), "Reinforcement Learning", section 11.3, with viscous friction in both joints, by RK4.
    Action in [-1, 1], times ``torque`` newton metres. Reward: height of the tip after the step, scaled to [-1, 1],
    less ``0.01 a^2``.
    """

    dt = 0.05
    defaults: ClassVar[Mapping[str, float]] = {
        "gravity": 9.81,
        "mass_1": 1.0,
        "mass_2": 1.0,
        "length_1": 1.0,
        "length_2": 1.0,
        "friction": 0.05,
        "torque": 4.0,
    }
    state_size = 4
    obs_high: ClassVar[Mapping[str, float]] = {
        "cos_1": 1.0,
        "sin_1": 1.0,
        "cos_2": 1.0,
        "sin_2": 1.0,
        "theta_1_dot": INF,
        "theta_2_dot": INF,
    }
    angles = (Angle(cos=0, sin=1), Angle(cos=2, sin=3))
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_state_from_obs)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        return rk4(_motion(action[..., 0] * params[..., 6], params), state, AcrobotContinuous.dt)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        angles = state[..., :2]
        turned = torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)
        return torch.cat([turned, state[..., 2:]], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:
        length_1, length_2 = params[..., 3], params[..., 4]
        cos1, sin1, cos2, sin2 = next_obs[..., :4].unbind(-1)
        height = -length_1 * cos1 - length_2 * (cos1 * cos2 - sin1 * sin2)
        return height / (length_1 + length_2) - 0.01 * action[..., 0].square()

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.uniform(-0.1, 0.1, 4)

    def draw(self, canvas: Any) -> None:
        from envs.drawing import BLUE, BROWN

        first, second = float(self.state[0]), float(self.state[0] + self.state[1])
        elbow = (self.params["length_1"] * np.sin(first) * 0.8, -self.params["length_1"] * np.cos(first) * 0.8)
        reach = self.params["length_2"] * 0.8
        tip = (elbow[0] + reach * np.sin(second), elbow[1] - reach * np.cos(second))
        canvas.line((0.0, 0.0), elbow, BROWN, 0.08)
        canvas.line(elbow, tip, BLUE, 0.08)
        canvas.disc((0.0, 0.0), 0.06)


def _motion(torque: Tensor, params: Tensor) -> Callable[[Tensor], Tensor]:
    """Time derivative of the state; ``d``, ``phi`` as in the book, uniform rods."""
    gravity, m1, m2, l1, l2, friction, _ = params.unbind(-1)
    coupling, swing1, swing2 = 0.5 * m2 * l1 * l2, gravity * l1 * (0.5 * m1 + m2), 0.5 * gravity * m2 * l2
    inner, outer = l1.square() * (m1 / 3.0 + m2), m2 * l2.square() / 3.0  # inertias about shoulder and elbow

    def field(state: Tensor) -> Tensor:
        theta1, theta2, rate1, rate2 = state.unbind(-1)
        bent, turn = coupling * theta2.cos(), coupling * theta2.sin()
        d1, d2 = inner + outer + 2.0 * bent, outer + bent
        phi2 = swing2 * (theta1 + theta2).sin()
        phi1 = swing1 * theta1.sin() + phi2 - turn * rate2 * (rate2 + 2.0 * rate1) + friction * rate1
        push = torque - friction * rate2 - turn * rate1.square() - phi2
        acc2 = (push + d2 / d1 * phi1) / (outer - d2.square() / d1)
        return torch.stack([rate1, rate2, -(d2 * acc2 + phi1) / d1, acc2], -1)

    return field
