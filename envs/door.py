"""Opening a door by its handle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.arm import ArmEnv, ArmPhysics, length, move
from envs.physics.kinematics import Chain

SUCCESS = 0.2
"""Radians of the door's hinge."""
HELD = 0.7
"""The grip point lies this far along the lever."""
HINGE_PLACE = (-0.2, 0.56)
"""Metres from the arm's base."""
RANGE_SLACK = 1e-3
"""Radians: MuJoCo wants a handle's range to be more than a point."""
TOUCH = 0.038
"""Metres from finger to grip point at which the expert takes the two to be in contact."""
TIP, DOOR, GRIP = slice(6, 8), slice(8, 12), slice(12, 14)
HINGE = 8


class DoorPhysics(ArmPhysics):
    """True dynamics of :class:`ArmDoor`: all of the state is observed."""

    def __init__(self, env: Any, threads: int = 1) -> None:
        super().__init__(env, threads)
        x, y, z = (float(v) for v in self.model.site("grip").pos)
        self.grip = Chain(self.model, int(self.model.body("handle").id), (x, y, z))

    def observe(self, state: Tensor) -> Tensor:
        qpos = self.qpos(state)
        grip = self.grip.position(qpos)[..., :2]
        return torch.cat((self.arm(state), qpos[..., 3:], self.qvel(state)[..., 3:], grip), -1)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        qpos, qvel = (torch.cat((obs[..., i : i + 3], obs[..., j : j + 2]), -1) for i, j in ((0, 8), (3, 10)))
        return self._state(qpos, qvel)


class ArmDoor(ArmEnv):
    """Pull a door open by its handle with the finger of a planar arm, seen from above; 10 Hz, never terminates.

    Actions: three joint velocities, and the finger's grip in [0, 1] (adhesion of up to 40 N to what it touches). The
    handle (a knob, with a lever of length ``lever`` towards the hinge) turns about the end of its stem, within
    ``handle_low .. handle_high`` rad and against a spring; there is no latch. Observation (14): joint angles, joint
    velocities, finger x y, hinge and handle angle, their velocities, grip point x y. Reward
    ``10 hinge - 3 |finger - grip point| - 0.02 |a|^2`` after the step, rad and metres; success: hinge >= 0.2 rad.
    After the door task of Huang et al. (2021), "Continual model-based reinforcement learning with hypernetworks",
    with an arm and a scene of our own.
    """

    scene = "door.xml"
    defaults: ClassVar[Mapping[str, float]] = {
        "knob": 0.012,
        "lever": 0.08,
        "handle_low": 0.0,
        "handle_high": 0.0,
        "handle_stiffness": 0.08,
        "hinge_friction": 0.3,
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "knob": (0.005, 0.05),
        "lever": (0.0, 0.15),
        "handle_low": (-1.6, 0.0),
        "handle_high": (0.0, 1.6),
        "handle_stiffness": (0.0, 10.0),
        "hinge_friction": (0.0, 10.0),
    }
    layout: ClassVar[Mapping[str, slice]] = {
        "joints": slice(0, 3),
        "joint_velocities": slice(3, 6),
        "finger": TIP,
        "door": DOOR,
        "grip_point": GRIP,
    }
    observer = DoorPhysics

    @staticmethod
    def edit(spec: Any, params: Mapping[str, float]) -> None:
        reach = max(params["lever"], 0.002)  # a capsule of no length is not compiled; this one is inside the knob
        spec.geom("knob").size[0] = params["knob"]
        spec.geom("lever").fromto[3] = -reach
        spec.site("grip").pos[0] = -HELD * params["lever"]
        handle = spec.joint("handle")
        handle.range = [params["handle_low"] - RANGE_SLACK, params["handle_high"] + RANGE_SLACK]
        handle.stiffness = [params["handle_stiffness"], 0.0, 0.0]  # a polynomial: the linear spring is its first entry
        spec.joint("hinge").frictionloss = params["hinge_friction"]

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        apart = length(next_obs[..., TIP] - next_obs[..., GRIP])
        return 10.0 * next_obs[..., HINGE] - 3.0 * apart - 0.02 * action.square().sum(-1)

    @staticmethod
    def success(obs: Tensor) -> Tensor:
        return obs[..., HINGE] >= SUCCESS


def door_expert(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Platform actions ``[4]`` that go to the grip point, hold on, and follow the arc of the door."""
    gap = obs[GRIP] - obs[TIP]
    apart = float(np.hypot(*gap))
    if apart > TOUCH:
        velocity = min(0.25, 3.0 * apart) * gap / apart
    else:
        spoke = obs[GRIP] - np.array(HINGE_PLACE)
        velocity = 0.12 * np.array([spoke[1], -spoke[0]]) / np.hypot(*spoke) + 2.0 * gap
    return np.append(move(obs[:3], velocity), 1.0)
