"""Gymnasium's robots with bodies of other sizes: links of Reacher, limbs of HalfCheetah."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from envs.access import mujoco_state
from envs.mujoco_params import CompiledParams
from envs.physics import mujoco as physics
from envs.spec import Angle, never

FINGER = 0.01
"""Metres by which Reacher's fingertip stands out from its second link."""
LIMBS: Mapping[str, tuple[str, ...]] = {
    "torso": ("torso",),
    "thigh": ("bthigh", "fthigh"),
    "shin": ("bshin", "fshin"),
    "foot": ("bfoot", "ffoot"),
}
"""Body part -> the cheetah's geoms."""
SIZES = (0.2, 5.0)
CONTROL_COST = 0.1
TOTAL_MASS = 14.0
"""Kilograms of the cheetah, as its file demands."""


class ReacherLinks(CompiledParams, ReacherEnv):
    """Reacher-v5 with links of other lengths (metres); mass follows length.

    The fingertip stands 1 cm out from the second link, as in Gymnasium. Targets are drawn as there, within 0.2 m of
    the base, so short arms cannot reach all of them. All else as Reacher-v5.
    """

    defaults: ClassVar[Mapping[str, float]] = {"link_1": 0.1, "link_2": 0.1}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"link_1": (0.02, 0.5), "link_2": (0.02, 0.5)}
    layout: ClassVar[Mapping[str, slice]] = {
        "cos": slice(0, 2),
        "sin": slice(2, 4),
        "target": slice(4, 6),
        "qvel": slice(6, 8),
        "offset": slice(8, 10),
    }
    angles = (Angle(cos=0, sin=2), Angle(cos=1, sin=3))

    def __init__(self, render_mode: str | None = None, width: int = 480, height: int = 480) -> None:
        super().__init__(render_mode=render_mode, width=width, height=height)
        self.start_params()

    @staticmethod
    def edit(spec: Any, params: Mapping[str, float]) -> None:
        for link, name in enumerate(("link_1", "link_2")):
            spec.geom(f"link{link}").fromto[3] = params[name]
        spec.body("body1").pos[0] = params["link_1"]
        spec.body("fingertip").pos[0] = params["link_2"] + FINGER

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        apart: Tensor = torch.linalg.vector_norm(next_obs[..., 8:10], dim=-1)
        return -apart - action.square().sum(-1)

    termination_fn = staticmethod(never)

    @classmethod
    def physics(cls, params: Mapping[str, float] | None = None) -> physics.Reacher:
        """The true dynamics, batched; see :class:`envs.physics.base.Physics`."""
        env = cls()
        env.set_params(params or {})
        return physics.Reacher(env)


class HalfCheetahBodies(CompiledParams, HalfCheetahEnv):
    """HalfCheetah-v5 with body parts of other sizes, or gravity from another direction.

    ``torso``, ``thigh``, ``shin`` and ``foot`` are factors on the ``size`` of those geoms in the model's file: the
    radius of the torso, radius and length of the others (front and back). The total mass stays 14 kg, as the file
    demands, and is shared out anew. Gravity (m/s^2) is turned by ``tilt`` rad about the axis across the running
    direction: positive pulls forward.

    Observation (18): forward speed over the last step (m/s; 0 at a reset), positions without x, velocities; with the
    speed in it the reward, ``speed - 0.1 |a|^2`` after the step, is known exactly. After the body sequence of Huang et
    al. (2021), "Continual model-based reinforcement learning with hypernetworks".
    """

    defaults: ClassVar[Mapping[str, float]] = {
        "torso": 1.0,
        "thigh": 1.0,
        "shin": 1.0,
        "foot": 1.0,
        "gravity": 9.81,
        "tilt": 0.0,
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(LIMBS, SIZES) | {"tilt": (-1.5, 1.5)}
    layout: ClassVar[Mapping[str, slice]] = {"speed": slice(0, 1), "qpos": slice(1, 9), "qvel": slice(9, 18)}
    angles = (Angle(raw=2),)

    def __init__(self, render_mode: str | None = None, width: int = 480, height: int = 480) -> None:
        self._speed = 0.0
        super().__init__(render_mode=render_mode, width=width, height=height)
        self.observation_space = Box(-np.inf, np.inf, (18,), np.float64)
        self.start_params()

    @staticmethod
    def edit(spec: Any, params: Mapping[str, float]) -> None:
        for part, geoms in LIMBS.items():
            for name in geoms:
                spec.geom(name).size = params[part] * np.asarray(spec.geom(name).size)
        spec.compiler.settotalmass = -1.0  # the compiler's own way is deprecated; :meth:`finish` does it
        pull, tilt = params["gravity"], params["tilt"]
        spec.option.gravity = [pull * math.sin(tilt), 0.0, -pull * math.cos(tilt)]

    @staticmethod
    def finish(model: Any) -> None:
        mujoco.mj_setTotalmass(model, TOTAL_MASS)
        mujoco.mj_setConst(model, mujoco.MjData(model))

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[..., 0] - CONTROL_COST * action.square().sum(-1)

    termination_fn = staticmethod(never)

    @classmethod
    def physics(cls, params: Mapping[str, float] | None = None) -> CheetahPhysics:
        """The true dynamics, batched; see :class:`envs.physics.base.Physics`."""
        env = cls()
        env.set_params(params or {})
        return CheetahPhysics(env)

    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        before = float(self.data.qpos[0])
        super().do_simulation(ctrl, n_frames)
        self._speed = (float(self.data.qpos[0]) - before) / self.dt

    def reset_model(self) -> NDArray[np.float64]:
        self._speed = 0.0
        first: NDArray[np.float64] = super().reset_model()  # type: ignore[no-untyped-call]
        return first

    def sim_state(self) -> NDArray[np.float64]:
        """``mjSTATE_FULLPHYSICS``, then the speed over the last step."""
        return np.append(mujoco_state(self.model, self.data), self._speed)

    def _get_obs(self) -> NDArray[np.float64]:
        return np.concatenate(([self._speed], self.data.qpos[1:], self.data.qvel))


class CheetahPhysics:
    """True dynamics of :class:`HalfCheetahBodies`: those of HalfCheetah, and the speed over the last step.

    Nothing depends on x: :meth:`state_from_obs` sets it to 0.
    """

    can_start_from_obs = True

    def __init__(self, env: HalfCheetahBodies) -> None:
        self.inner = physics.Runner(env)
        self.state_size = self.inner.state_size + 1

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States ``[H+1, B, S]`` reached from ``state [B, S]`` under ``actions [H, B, A]``."""
        states = self.inner.rollout(state[..., :-1], actions)
        x = self.inner.qpos(states)[..., 0]
        speed = torch.cat((state[None, ..., -1].to(x), (x[1:] - x[:-1]) / self.inner.dt))
        return torch.cat((states, speed[..., None]), -1)

    def observe(self, state: Tensor) -> Tensor:
        """``[..., S] -> [..., D]``."""
        return torch.cat((state[..., -1:], self.inner.observe(state[..., :-1])), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """``[...]``."""
        return next_state[..., -1] - CONTROL_COST * action.square().sum(-1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Never: ``[...]`` bool."""
        return self.inner.terminated(state, action, next_state)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """``[B, D] -> [B, S]``."""
        inner = self.inner.state_from_obs(obs[..., 1:])
        return torch.cat((inner, obs[..., :1].to(inner)), -1)
