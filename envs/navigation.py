"""A point that must find its way around an obstacle to a goal: the small goal-conditioned task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.torch_env import FromObs, TorchEnv

INF = float("inf")
LAYOUT: Mapping[str, slice] = {"achieved_goal": slice(0, 2), "desired_goal": slice(2, 4), "observation": slice(4, 8)}


def _state_from_obs(obs: Tensor) -> Tensor:
    return torch.cat([obs[..., 4:8], obs[..., 2:4]], -1)


class PointGoal(TorchEnv):
    """Steer a point mass in the square [-1, 1]^2 from the left of a round pillar to a goal on its right.

    State ``(x, y, x', y', goal x, goal y)``; pillar and walls push back like stiff springs. Observation: a Dict of
    ``achieved_goal`` (position), ``desired_goal`` and ``observation`` (position, velocity), flattened in that order.
    Action in [-1, 1]^2, times ``force`` newtons. Reward: minus the distance to the goal after the step, less
    ``0.01 |a|^2``. Never terminates.
    """

    dt = 0.1
    defaults: ClassVar[Mapping[str, float]] = {
        "mass": 1.0,
        "drag": 1.0,
        "force": 2.0,
        "pillar_radius": 0.3,
        "stiffness": 200.0,
    }
    state_size = 6
    obs_high: ClassVar[Mapping[str, float]] = {}
    action_high = (1.0, 1.0)
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_state_from_obs)

    def __init__(self, params: Mapping[str, float] | None = None, render_mode: str | None = None) -> None:
        super().__init__(params, render_mode)
        self.layout = dict(LAYOUT)
        goal = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
        anywhere = {size: gym.spaces.Box(-INF, INF, (size,), np.float64) for size in (2, 4)}
        self.observation_space = gym.spaces.Dict(
            {"achieved_goal": anywhere[2], "desired_goal": goal, "observation": anywhere[4]}
        )

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        mass, drag, force, radius, stiffness = (p.unsqueeze(-1) for p in params.unbind(-1))
        place, speed, goal = state[..., :2], state[..., 2:4], state[..., 4:]
        h = PointGoal.dt / 4
        for _ in range(4):
            apart = torch.linalg.vector_norm(place, dim=-1, keepdim=True)
            pillar = (radius - apart).clamp(min=0.0) * place / apart.clamp(min=1e-9)
            walls = place.clamp(-1.0, 1.0) - place
            speed = speed + h * (action * force - drag * speed + stiffness * (pillar + walls)) / mass
            place = place + h * speed
        return torch.cat([place, speed, goal], -1)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        return torch.cat([state[..., :2], state[..., 4:6], state[..., :4]], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(next_obs[..., 0:2] - next_obs[..., 2:4], dim=-1)
        return -distance - 0.01 * action.square().sum(-1)

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        start, goal = rng.uniform((-0.9, -0.3), (-0.6, 0.3)), rng.uniform((0.6, -0.3), (0.9, 0.3))
        return np.concatenate([start, np.zeros(2), goal])

    def as_observation(self, flat: Tensor) -> dict[str, NDArray[np.float64]]:
        return {name: flat[piece].numpy().copy() for name, piece in LAYOUT.items()}

    def draw(self, canvas: Any) -> None:
        from envs.drawing import BLACK, GREEN

        x, y, _, _, goal_x, goal_y = (1.8 * self.state).tolist()
        canvas.disc((0.0, 0.0), 1.8 * self.params["pillar_radius"], BLACK)
        canvas.disc((goal_x, goal_y), 0.1, GREEN)
        canvas.disc((x, y), 0.08)
