"""Pushing a block of two unequal halves to a goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.arm import ArmEnv, ArmPhysics, length, move
from envs.errors import UserError
from envs.spec import Angle

GOAL = (0.0, 0.62)
"""Metres from the arm's base."""
SUCCESS = 0.04
"""Metres between block and goal."""
BLOCK_START = ((-0.05, 0.45, -0.3), (0.05, 0.49, 0.3))
"""Smallest and largest x, y (metres) and yaw (radians) at which the block begins."""
SPEED = 0.25
"""Metres a second of the expert's finger."""
TIP, BLOCK, YAW = slice(6, 8), slice(8, 10), slice(10, 12)


class PushPhysics(ArmPhysics):
    """True dynamics of :class:`ArmPush`. How deep each half sinks into the table (micrometres) is not observed."""

    can_start_from_obs = False

    def observe(self, state: Tensor) -> Tensor:
        block, moving = self.qpos(state)[..., 3:6], self.qvel(state)[..., 3:6]
        yaw = block[..., 2:]
        return torch.cat((self.arm(state), block[..., :2], yaw.cos(), yaw.sin(), moving), -1)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        fix = "how the halves rest on the table is not observed, so the state is not determined; start from sim_state"
        raise UserError("state_from_obs", "mbrl/ArmPush-v0", fix)


class ArmPush(ArmEnv):
    """Push a block to a goal with the finger of a planar arm; 10 Hz, never terminates.

    The block is two halves, 5 x 10 x 6 cm each, of their own density; each rests on the table with its own weight, so
    both inertia and friction are uneven. Observation (15): joint angles, joint velocities, finger x y, block x y,
    cos and sin of its yaw, its velocities (x, y, yaw). Reward ``-10 |block - goal| - 3 |finger - block| - 0.02 |a|^2``
    after the step, metres; success within 4 cm. After the pushing task of Huang et al. (2021), "Continual model-based
    reinforcement learning with hypernetworks", with an arm and a scene of our own.
    """

    scene = "pushing.xml"
    defaults: ClassVar[Mapping[str, float]] = {"density_left": 500.0, "density_right": 500.0, "friction": 0.4}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "density_left": (10.0, 20000.0),
        "density_right": (10.0, 20000.0),
        "friction": (0.001, 5.0),
    }
    layout: ClassVar[Mapping[str, slice]] = {
        "joints": slice(0, 3),
        "joint_velocities": slice(3, 6),
        "finger": TIP,
        "block": BLOCK,
        "yaw": YAW,
        "block_velocities": slice(12, 15),
    }
    angles = (Angle(cos=10, sin=11),)
    observer = PushPhysics

    @staticmethod
    def edit(spec: Any, params: Mapping[str, float]) -> None:
        for side in ("left", "right"):
            spec.geom(side).density = params[f"density_{side}"]
        spec.geom("table").friction[0] = params["friction"]

    def start(self, rng: np.random.Generator) -> NDArray[np.float64]:
        qpos = super().start(rng)
        qpos[3:6] = rng.uniform(*BLOCK_START)
        return qpos

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        block = next_obs[..., BLOCK]
        near = length(block - next_obs[..., TIP])
        return -10.0 * length(block - block.new_tensor(GOAL)) - 3.0 * near - 0.02 * action.square().sum(-1)

    @staticmethod
    def success(obs: Tensor) -> Tensor:
        block = obs[..., BLOCK]
        return length(block - block.new_tensor(GOAL)) <= SUCCESS


def push_expert(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Platform actions ``[3]`` that go behind the block, as seen from the goal, and push it there."""
    finger, block = obs[TIP], obs[BLOCK]
    way = np.array(GOAL) - block
    apart = float(np.hypot(*way))
    if apart < 0.4 * SUCCESS:
        return np.zeros(3)
    ahead = way / apart
    aside = np.array([-ahead[1], ahead[0]])
    behind, off = -float((finger - block) @ ahead), float((finger - block) @ aside)
    if behind > 0.04 and abs(off) < 0.015:
        velocity = min(SPEED, 0.05 + 2.0 * apart) * ahead - 3.0 * off * aside
    elif behind < 0.06 and abs(off) < 0.08:  # beside the block or before it: first out of its way
        velocity = SPEED * np.sign(off or 1.0) * aside - 0.05 * ahead
    elif behind < 0.08:
        velocity = -SPEED * ahead
    else:
        velocity = 3.0 * (behind - 0.09) * ahead - 4.0 * off * aside
    return move(obs[:3], velocity * min(1.0, SPEED / float(np.hypot(*velocity))))
