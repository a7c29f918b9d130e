"""The forced Van der Pol oscillator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.integrators import rk4
from envs.torch_env import FromObs, TorchEnv

INF = float("inf")


def _same(obs: Tensor) -> Tensor:
    return obs


class VanDerPol(TorchEnv):
    """Bring ``x'' = mu (1 - x^2) x' - x + gain a`` to rest in the middle of its limit cycle; never terminates.

    The equation of Van der Pol (1926), "On relaxation-oscillations", by RK4. State and observation ``(x, x')``;
    action in [-1, 1]; reward ``-(x^2 + 0.1 x'^2 + 0.01 a^2)`` with the state after the step.
    """

    dt = 0.1
    defaults: ClassVar[Mapping[str, float]] = {"mu": 1.0, "gain": 2.0}
    state_size = 2
    obs_high: ClassVar[Mapping[str, float]] = {"x": INF, "x_dot": INF}
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_same)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        mu, gain = params.unbind(-1)
        push = action[..., 0] * gain

        def field(now: Tensor) -> Tensor:
            x, x_dot = now.unbind(-1)
            return torch.stack([x_dot, mu * (1.0 - x.square()) * x_dot - x + push], -1)

        return rk4(field, state, VanDerPol.dt)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        x, x_dot = next_obs.unbind(-1)
        return -(x.square() + 0.1 * x_dot.square() + 0.01 * action[..., 0].square())

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.uniform(-2.0, 2.0, 2)

    def draw(self, canvas: Any) -> None:
        canvas.line((-3.0, 0.0), (3.0, 0.0))
        canvas.line((0.0, -2.0), (0.0, 2.0))
        canvas.disc((float(self.state[0]), 0.5 * float(self.state[1])), 0.08)
