"""What is known of Gymnasium's classic-control tasks.

Their observations are float32 roundings of a float64 state, so every piece is exact up to that rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from torch import Tensor

from envs.knowledge.base import Knowledge
from envs.knowledge.terms import Constant, ControlCost, HealthyReward, Inside, Unhealthy
from envs.spec import Angle, never


@dataclass(frozen=True)
class PendulumReward:
    """``-(theta^2 + 0.1 theta_dot^2 + 0.001 u^2)``, ``[B]``, of the state *before* the step, ``u`` clipped."""

    max_torque: float

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        angle = torch.atan2(obs[..., 1], obs[..., 0])
        torque = action[..., 0].clamp(-self.max_torque, self.max_torque)
        return -(angle.square() + 0.1 * obs[..., 2].square() + 0.001 * torque.square())


@dataclass(frozen=True)
class GoalReached:
    """Mountain car: ``position >= goal`` with at least the goal's velocity, ``[B]`` bool."""

    position: float
    velocity: float

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return (next_obs[..., 0] >= self.position) & (next_obs[..., 1] >= self.velocity)


def acrobot_swung_up(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Acrobot: ``-cos(theta1) - cos(theta1 + theta2) > 1``, ``[B]`` bool."""
    cos1, sin1, cos2, sin2 = next_obs[..., :4].unbind(-1)
    return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1.0


def acrobot_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """-1 a step, 0 on the step that reaches the goal, ``[B]``."""
    return acrobot_swung_up(obs, action, next_obs).to(next_obs.dtype) - 1.0


@dataclass(frozen=True)
class GoalBonus:
    """``bonus`` on the step that reaches the goal, ``[B]``."""

    bonus: float
    goal: GoalReached

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.bonus * self.goal(obs, action, next_obs).to(next_obs.dtype)


def pendulum(env: PendulumEnv) -> Knowledge:
    return Knowledge(
        layout={"cos": slice(0, 1), "sin": slice(1, 2), "velocity": slice(2, 3)},
        angles=(Angle(cos=0, sin=1),),
        reward_terms={"reward": PendulumReward(float(env.max_torque))},
        reward_complete=True,
        termination=never,
    )


def cartpole(env: CartPoleEnv) -> Knowledge:
    x, angle = float(env.x_threshold), float(env.theta_threshold_radians)
    upright = Inside(bounds=((0, (-x, x)), (2, (-angle, angle))), closed=True)
    if env._sutton_barto_reward:
        terms: dict[str, Any] = {"fallen": HealthyReward(1.0, upright), "step": Constant(-1.0)}
    else:
        # The step that falls is paid too; steps after it, which pay nothing, are outside any episode.
        terms = {"step": Constant(1.0)}
    names = ("position", "velocity", "angle", "angle_velocity")
    return Knowledge(
        layout={name: slice(i, i + 1) for i, name in enumerate(names)},
        angles=(Angle(raw=2),),
        reward_terms=terms,
        reward_complete=True,
        termination=Unhealthy(upright),
    )


_CAR_LAYOUT = {"position": slice(0, 1), "velocity": slice(1, 2)}


def mountain_car(env: MountainCarEnv) -> Knowledge:
    return Knowledge(
        layout=_CAR_LAYOUT,
        reward_terms={"step": Constant(-1.0)},
        reward_complete=True,
        termination=GoalReached(float(env.goal_position), float(env.goal_velocity)),
    )


def mountain_car_continuous(env: Continuous_MountainCarEnv) -> Knowledge:
    goal = GoalReached(float(env.goal_position), float(env.goal_velocity))
    return Knowledge(
        layout=_CAR_LAYOUT,
        reward_terms={"goal": GoalBonus(100.0, goal), "control": ControlCost(0.1)},
        reward_complete=True,
        termination=goal,
    )


def acrobot(env: AcrobotEnv) -> Knowledge:
    names = ("cos1", "sin1", "cos2", "sin2", "velocity1", "velocity2")
    return Knowledge(
        layout={name: slice(i, i + 1) for i, name in enumerate(names)},
        angles=(Angle(cos=0, sin=1), Angle(cos=2, sin=3)),
        reward_terms={"reward": acrobot_reward},
        reward_complete=True,
        termination=acrobot_swung_up,
    )


TABLE: dict[type, Callable[[Any], Knowledge]] = {
    PendulumEnv: pendulum,
    CartPoleEnv: cartpole,
    MountainCarEnv: mountain_car,
    Continuous_MountainCarEnv: mountain_car_continuous,
    AcrobotEnv: acrobot,
}
