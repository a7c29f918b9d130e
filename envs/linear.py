"""Linear systems with a quadratic cost: the tasks whose best controller is known in closed form (LQR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.spec import QuadraticCost
from envs.torch_env import FromObs, TorchEnv

INF = float("inf")


def _same(obs: Tensor) -> Tensor:
    return obs


def _diagonal(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(v if i == j else 0.0 for j in range(len(values))) for i, v in enumerate(values))


class DoubleIntegrator(TorchEnv):
    """Bring a mass on a line to rest at the origin; never terminates.

    State and observation ``(x, x')``; action in [-1, 1], times ``force`` newtons, held over the step (exact
    discretisation). Reward ``-(x^2 + 0.1 x'^2 + 0.1 a^2)`` of the state before the step, as in LQR.
    """

    dt = 0.1
    defaults: ClassVar[Mapping[str, float]] = {"mass": 1.0, "force": 1.0}
    state_size = 2
    obs_high: ClassVar[Mapping[str, float]] = {"x": INF, "x_dot": INF}
    quadratic = QuadraticCost(q=_diagonal(1.0, 0.1), r=_diagonal(0.1), goal=(0.0, 0.0))
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_same)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        mass, force = params.unbind(-1)
        x, x_dot = state.unbind(-1)
        h, acc = DoubleIntegrator.dt, action[..., 0] * force / mass
        return torch.stack([x + h * x_dot + 0.5 * h**2 * acc, x_dot + h * acc], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return -(obs[..., 0].square() + 0.1 * obs[..., 1].square() + 0.1 * action[..., 0].square())

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.uniform(-1.0, 1.0, 2)

    def draw(self, canvas: Any) -> None:
        canvas.line((-3.0, 0.0), (3.0, 0.0))
        canvas.box((float(self.state[0]), 0.15), 0.3, 0.3)


class MassSpringDamper(TorchEnv):
    """Two masses in a row, wall - spring - mass 1 - spring - mass 2; hold the second at 0.5 m by pushing the first.

    State and observation ``(x1, x1', x2, x2')`` as displacements from rest; dampers beside the springs; four
    semi-implicit Euler substeps. Action in [-1, 1], times ``force`` newtons. Reward
    ``-((x2 - 0.5)^2 + 0.05 x1'^2 + 0.05 x2'^2 + 0.01 a^2)`` of the state before the step. Never terminates.
    """

    dt = 0.1
    defaults: ClassVar[Mapping[str, float]] = {
        "mass_1": 1.0,
        "mass_2": 1.0,
        "stiffness": 2.0,
        "damping": 0.1,
        "force": 2.0,
    }
    state_size = 4
    obs_high: ClassVar[Mapping[str, float]] = {"x_1": INF, "x_1_dot": INF, "x_2": INF, "x_2_dot": INF}
    quadratic = QuadraticCost(q=_diagonal(0.0, 0.05, 1.0, 0.05), r=_diagonal(0.01), goal=(0.0, 0.0, 0.5, 0.0))
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_same)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        mass_1, mass_2, stiffness, damping, force = params.unbind(-1)
        x1, v1, x2, v2 = state.unbind(-1)
        push, h = action[..., 0] * force, MassSpringDamper.dt / 4
        for _ in range(4):
            wall = stiffness * x1 + damping * v1
            between = stiffness * (x2 - x1) + damping * (v2 - v1)
            v1, v2 = v1 + h * (push - wall + between) / mass_1, v2 - h * between / mass_2
            x1, x2 = x1 + h * v1, x2 + h * v2
        return torch.stack([x1, v1, x2, v2], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        _, v1, x2, v2 = obs.unbind(-1)
        speed = v1.square() + v2.square()
        return -((x2 - 0.5).square() + 0.05 * speed + 0.01 * action[..., 0].square())

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        return rng.uniform(-0.2, 0.2, 4)

    def draw(self, canvas: Any) -> None:
        first, second = -1.0 + float(self.state[0]), 1.0 + float(self.state[2])
        canvas.line((-3.0, 0.0), (first, 0.0))
        canvas.line((first, 0.0), (second, 0.0))
        canvas.box((first, 0.0), 0.4, 0.4)
        canvas.box((second, 0.0), 0.4, 0.4)
