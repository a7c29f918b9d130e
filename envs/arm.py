"""A planar arm of three links with a finger: what the manipulation tasks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from envs.access import mujoco_state
from envs.mujoco_params import CompiledParams, resume, snapshot
from envs.physics.kinematics import Chain
from envs.physics.mujoco import MujocoPhysics
from envs.spec import Angle, never

ASSETS = Path(__file__).with_name("assets")
LINKS = (0.28, 0.24, 0.16)
"""Lengths in metres."""
POSE = (0.55, 2.49, -1.47)
"""Joint angles around which episodes begin, radians: the finger is 0.33 m before the base."""
FRAME_SKIP = 10
"""Substeps of 0.01 s a decision: control at 10 Hz."""


class ArmEnv(CompiledParams, MujocoEnv):
    """Base of the arm's tasks: joint velocities in [-1, 1] rad/s at 10 Hz, everything about the scene observed.

    A subclass names its file in ``scene``, draws a start in :meth:`start`, and says what is observed through its
    physics (:class:`ArmPhysics`), so that environment and true model show the same numbers. The reward is its static
    ``reward_fn``; success, also a static function of an observation, is ``info["is_success"]``. Never terminates.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's type)
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 10,
    }
    scene: ClassVar[str]
    layout: ClassVar[Mapping[str, slice]]
    angles: ClassVar[tuple[Angle, ...]] = ()
    observer: ClassVar[type[ArmPhysics]]

    def __init__(self, render_mode: str | None = None, width: int = 480, height: int = 480) -> None:
        size = max(part.stop for part in self.layout.values())
        space = Box(-np.inf, np.inf, (size,), np.float64)
        super().__init__(str(ASSETS / self.scene), FRAME_SKIP, space, render_mode, width, height, camera_name="above")
        self.start_params()
        self._obs = np.zeros(size)

    @staticmethod
    @abstractmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """The whole reward ``[...]`` in environment units."""

    @staticmethod
    @abstractmethod
    def success(obs: Tensor) -> Tensor:
        """Whether the task is done at ``obs [..., D]``: ``[...]`` bool."""

    termination_fn = staticmethod(never)

    def start(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Positions ``[nq]`` at the begin of an episode; velocities are 0."""
        qpos = np.zeros(self.model.nq)
        qpos[:3] = np.array(POSE) + rng.uniform(-0.05, 0.05, 3)
        return qpos

    @classmethod
    def physics(cls, params: Mapping[str, float] | None = None) -> ArmPhysics:
        """The true dynamics, batched; see :class:`envs.physics.base.Physics`."""
        env = cls()
        env.set_params(params or {})
        return cls.observer(env)

    def set_params(self, params: Mapping[str, float]) -> None:
        super().set_params(params)
        self._physics = self.observer(self)

    def reset_model(self) -> NDArray[np.float64]:
        self.data.qpos[:], self.data.qvel[:] = self.start(self.np_random), 0.0
        mujoco.mj_forward(self.model, self.data)
        return self._observe()

    def step(self, action: NDArray[np.float32]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before, control = self._obs, np.asarray(action, dtype=np.float64)
        self.do_simulation(control, self.frame_skip)
        after = self._observe()
        rows = (torch.from_numpy(x) for x in (before, control, after))
        reward = float(self.reward_fn(*rows))
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call]
        return after, reward, False, False, {"is_success": bool(self.success(torch.from_numpy(after)))}

    def sim_state(self) -> NDArray[np.float64]:
        """``mjSTATE_FULLPHYSICS``."""
        return mujoco_state(self.model, self.data)

    def get_state(self) -> dict[str, Any]:
        """All that a step depends on; :meth:`set_state` restores it exactly."""
        return {"state": snapshot(self.model, self.data), "params": dict(self.params)}

    def set_state(self, state: Mapping[str, Any]) -> NDArray[np.float64]:  # type: ignore[override]
        """Restore what :meth:`get_state` returned and hand out the observation there."""
        self.set_params(state["params"])
        resume(self.model, self.data, np.asarray(state["state"], dtype=np.float64))
        return self._observe()

    def _observe(self) -> NDArray[np.float64]:
        self._obs = self._physics.observe(torch.from_numpy(self.sim_state())).numpy()
        return self._obs.copy()


class ArmPhysics(MujocoPhysics):
    """What the arm's tasks share as true dynamics; success and reward come from the environment's class."""

    def __init__(self, env: Any, threads: int = 1) -> None:
        super().__init__(env, threads)
        self.kind: type[ArmEnv] = type(env)
        self.tip = Chain(self.model, int(self.model.body("finger").id))

    def arm(self, state: Tensor) -> Tensor:
        """Joint angles, joint velocities and the finger's place ``[..., 3 + 3 + 2]``."""
        qpos = self.qpos(state)
        return torch.cat((qpos[..., :3], self.qvel(state)[..., :3], self.tip.position(qpos)[..., :2]), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.kind.reward_fn(self.observe(state), action, self.observe(next_state))


def tip(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """The finger's place ``[2]`` at joint angles ``[3]``."""
    headings = np.cumsum(joints)
    place: NDArray[np.float64] = np.array(LINKS) @ np.stack([np.cos(headings), np.sin(headings)], 1)
    return place


def jacobian(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivative ``[2, 3]`` of :func:`tip`."""
    headings, lengths = np.cumsum(joints), np.array(LINKS)
    links = np.stack([-lengths * np.sin(headings), lengths * np.cos(headings)])
    columns: NDArray[np.float64] = links[:, ::-1].cumsum(1)[:, ::-1]
    return columns


def move(joints: NDArray[np.float64], velocity: NDArray[np.float64], damping: float = 0.03) -> NDArray[np.float64]:
    """Joint velocities ``[3]`` in [-1, 1] that move the finger with ``velocity [2]`` m/s (damped least squares).

    All are scaled together where one would be too large, so that the direction stays.
    """
    slope = jacobian(joints)
    rates = slope.T @ np.linalg.solve(slope @ slope.T + damping**2 * np.eye(2), velocity)
    scaled: NDArray[np.float64] = rates / max(1.0, float(np.abs(rates).max()))
    return scaled


def length(vector: Tensor) -> Tensor:
    """Euclidean length over the last dimension, ``[..., K] -> [...]``."""
    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1)
    return norm
