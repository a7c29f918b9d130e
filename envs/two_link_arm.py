"""A two-link arm without inertia that reaches for a goal: the small task of imitation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import UserError
from envs.spec import Angle
from envs.torch_env import FromObs, TorchEnv

INF = float("inf")
LINKS = (0.1, 0.11)
"""Lengths in metres, as those of Gymnasium's Reacher."""
GOAL_UNITS = 5.0
"""Observed goals are metres times this, of order 1."""
SUCCESS = 0.02
"""Metres between tip and goal that count as reached."""
GOAL_RADIUS, GOAL_ANGLE = (0.085, 0.185), 0.4 * np.pi
"""Goals lie in this part of a ring before the arm: away from its base, and from where it is stretched out."""
START = (0.0, 0.5 * np.pi)
"""The pose around which episodes begin."""
NEVER = -1.0


def tip(joints: Tensor) -> Tensor:
    """Where the arm ends, ``[..., 2]`` metres, with its joints at ``[..., 2]`` radians."""
    first, second = joints[..., 0], joints.sum(-1)
    x, y = LINKS[0] * first.cos() + LINKS[1] * second.cos(), LINKS[0] * first.sin() + LINKS[1] * second.sin()
    return torch.stack([x, y], -1)


def joints_at(place: Tensor) -> Tensor:
    """The joints ``[..., 2]`` with which the tip is at ``[..., 2]`` metres, the elbow bent to the right of the way
    there; the nearest such pose where the arm is too short or too long.
    """
    near, far = LINKS
    bend = (place.square().sum(-1) - near**2 - far**2) / (2.0 * near * far)
    elbow = bend.clamp(-1.0, 1.0).acos()
    aside = torch.atan2(far * elbow.sin(), near + far * elbow.cos())
    return torch.stack([torch.atan2(place[..., 1], place[..., 0]) - aside, elbow], -1)


def seek_goal(obs: Tensor, speed: float, gain: float = 0.2) -> Tensor:
    """The expert: platform actions ``[..., 2]`` that turn both joints by ``gain`` of their way to the goal each step.

    ``obs`` as :class:`TwoLinkReach` gives it, ``speed`` its parameter. Seen from outside, ``[joints, goal]`` moves by
    itself: the joints relax exponentially towards a nonlinear function of the goal.
    """
    way = joints_at(obs[..., 2:4] / GOAL_UNITS) - obs[..., :2]
    return (gain * way / (speed * TwoLinkReach.dt)).clamp(-1.0, 1.0)


def _state_from_obs(obs: Tensor) -> Tensor:
    """With a goal that stays: an observation does not tell that it will move."""
    goal = obs[..., 2:4] / GOAL_UNITS
    return torch.cat([obs[..., :2], goal, goal, torch.full_like(obs[..., :1], NEVER)], -1)


class TwoLinkReach(TorchEnv):
    """Bring the tip of an arm of two links (0.1 m, 0.11 m) to a goal, which may move once on the way.

    Kinematic: an action in [-1, 1]^2, times ``speed`` rad/s, is the joints' velocity for the step of 0.1 s. State
    ``(q1, q2, goal x, goal y, later goal x, later goal y, steps until it moves)``; observation
    ``(q1, q2, 5 goal x, 5 goal y)``. Reward: minus the distance from tip to goal in metres after the step; a last
    reward of at least ``-SUCCESS`` is a success. Never terminates.

    Args:
        params: ``speed``.
        render_mode: as in Gymnasium.
        switch_at: the step after which the goal is the later one, at least 1; None: it stays.
    """

    dt = 0.1
    defaults: ClassVar[Mapping[str, float]] = {"speed": 5.0}
    state_size = 7
    obs_high: ClassVar[Mapping[str, float]] = {"q1": INF, "q2": INF, "goal_x": INF, "goal_y": INF}
    action_high = (1.0, 1.0)
    angles = (Angle(raw=0), Angle(raw=1))
    state_from_obs: ClassVar[FromObs | None] = staticmethod(_state_from_obs)

    def __init__(
        self, params: Mapping[str, float] | None = None, render_mode: str | None = None, switch_at: int | None = None
    ) -> None:
        if switch_at is not None and (isinstance(switch_at, bool) or not isinstance(switch_at, int) or switch_at < 1):
            raise UserError(
                "switch_at", switch_at, "give the step at which the goal moves, at least 1, or leave it out"
            )
        super().__init__(params, render_mode)
        self.switch_at = switch_at

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        joints, goal, later = state[..., :2], state[..., 2:4], state[..., 4:6]
        left = state[..., 6:] - 1.0
        turned = joints + TwoLinkReach.dt * params[..., :1] * action
        return torch.cat([turned, torch.where(left == 0.0, later, goal), later, left], -1)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        return torch.cat([state[..., :2], GOAL_UNITS * state[..., 2:4]], -1)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        apart: Tensor = torch.linalg.vector_norm(tip(next_obs[..., :2]) - next_obs[..., 2:4] / GOAL_UNITS, dim=-1)
        return -apart

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        pose = np.array(START) + rng.uniform(-0.2, 0.2, 2)
        return np.concatenate([pose, _draw_goal(rng), _draw_goal(rng), [NEVER]])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first = super().reset(seed=seed, options=options)
        if self.switch_at is not None:
            self.state[6] = float(self.switch_at)
        return first

    def draw(self, canvas: Any) -> None:
        from envs.drawing import BLUE, BROWN, GREEN

        scale, (q1, q2, goal_x, goal_y) = 8.0, self.state[:4].tolist()
        elbow = (scale * LINKS[0] * np.cos(q1), scale * LINKS[0] * np.sin(q1))
        reach = scale * LINKS[1]
        hand = (elbow[0] + reach * np.cos(q1 + q2), elbow[1] + reach * np.sin(q1 + q2))
        canvas.disc((scale * goal_x, scale * goal_y), scale * SUCCESS, GREEN)
        canvas.line((0.0, 0.0), elbow, BROWN, 0.08)
        canvas.line(elbow, hand, BLUE, 0.08)
        canvas.disc((0.0, 0.0), 0.06)


def _draw_goal(rng: np.random.Generator) -> NDArray[np.float64]:
    radius, angle = rng.uniform(*GOAL_RADIUS), rng.uniform(-GOAL_ANGLE, GOAL_ANGLE)
    place: NDArray[np.float64] = radius * np.array([np.cos(angle), np.sin(angle)])
    return place
