"""Batched forward kinematics of MuJoCo models with hinge and slide joints."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class _Joint:
    index: int
    slides: bool
    axis: Vector
    anchor: Vector
    reference: float


@dataclass(frozen=True)
class _Link:
    offset: Vector
    turn: tuple[Vector, Vector, Vector]
    joints: tuple[_Joint, ...]


class Chain:
    """Position of a point that is fixed to one body, as MuJoCo's ``mj_kinematics`` computes it.

    Raises:
        ValueError: a joint on the way to the body is neither a hinge nor a slide.
    """

    def __init__(self, model: mujoco.MjModel, body: int, point: Vector = (0.0, 0.0, 0.0)) -> None:
        self.point = point
        links = []
        while body != 0:
            links.append(_link(model, body))
            body = int(model.body_parentid[body])
        self.links = tuple(reversed(links))

    def position(self, qpos: Tensor) -> Tensor:
        """World position ``[..., 3]`` at joint positions ``[..., nq]``."""
        place = qpos.new_zeros((*qpos.shape[:-1], 3))
        turn = torch.eye(3, dtype=qpos.dtype, device=qpos.device).expand(*qpos.shape[:-1], 3, 3)
        for link in self.links:
            place = place + _apply(turn, link.offset)
            turn = turn @ qpos.new_tensor(link.turn)
            for joint in link.joints:
                place, turn = _move(joint, qpos[..., joint.index] - joint.reference, place, turn)
        return place + _apply(turn, self.point)


def _move(joint: _Joint, value: Tensor, place: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    if joint.slides:
        return place + _apply(turn, joint.axis) * value[..., None], turn
    anchor = place + _apply(turn, joint.anchor)
    turn = turn @ _rotation(joint.axis, value)
    return anchor - _apply(turn, joint.anchor), turn


def _apply(turn: Tensor, vector: Vector) -> Tensor:
    return turn @ turn.new_tensor(vector)


def _rotation(axis: Vector, angle: Tensor) -> Tensor:
    """Rodrigues' formula, ``[..., 3, 3]``."""
    x, y, z = axis
    cross = angle.new_tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = angle[..., None, None]
    eye = torch.eye(3, dtype=angle.dtype, device=angle.device)
    return eye + angle.sin() * cross + (1.0 - angle.cos()) * (cross @ cross)


def _link(model: mujoco.MjModel, body: int) -> _Link:
    first = int(model.body_jntadr[body])
    joints = tuple(_joint(model, first + i) for i in range(int(model.body_jntnum[body])))
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, model.body_quat[body])
    rows = matrix.reshape(3, 3)
    return _Link(_vector(model.body_pos[body]), (_vector(rows[0]), _vector(rows[1]), _vector(rows[2])), joints)


def _joint(model: mujoco.MjModel, joint: int) -> _Joint:
    kind = int(model.jnt_type[joint])
    if kind not in (int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)):
        raise ValueError(f"kinematics: joint {joint} is neither a hinge nor a slide")
    index = int(model.jnt_qposadr[joint])
    slides = kind == int(mujoco.mjtJoint.mjJNT_SLIDE)
    axis, anchor = _vector(model.jnt_axis[joint]), _vector(model.jnt_pos[joint])
    return _Joint(index, slides, axis, anchor, float(model.qpos0[index]))


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z
