"""True dynamics of Gymnasium's MuJoCo v5 tasks, through ``mujoco.rollout``.

A physics state is MuJoCo's ``mjSTATE_FULLPHYSICS``: time, ``qpos``, ``qvel`` and what else the model integrates.
Rollouts reproduce ``env.step`` to rounding; only the constraint solver's warm start is not part of the state
(measured over 20 steps: no difference in Hopper, HalfCheetah, Walker2d and Swimmer, up to 2e-18 elsewhere).

What is read from ``qpos`` and ``qvel`` is exact. Positions of bodies and sites (Reacher's fingertip, the tip of
InvertedDoublePendulum) are computed here at the state itself, whereas the environment shows where they were when
MuJoCo last evaluated them: at the last Runge-Kutta stage, which is no function of the state. Measured on 6,000
random transitions, rewards differ by 6e-7 in the median, 4e-4 at the 99th percentile and 5e-3 at most (Reacher, in a
step that hits a joint limit), and by 4e-6, 6e-5 and 2e-4 (InvertedDoublePendulum); no termination differed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from mujoco import rollout
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import UserError
from envs.knowledge.terms import Inside, Range
from envs.physics.kinematics import Chain

_ROLLOUT_NUMBERS = 2**23
"""Numbers of output a single call may produce (64 MiB): more rows are simulated in chunks."""


class MujocoPhysics(ABC):
    """What the tasks share: batched simulation with a copy of the environment's own model.

    ``threads`` is the number of threads that simulate; the result does not depend on it.
    """

    can_start_from_obs = True

    def __init__(self, env: Any, threads: int = 1) -> None:
        self.model: mujoco.MjModel = copy.copy(env.model)  # changed masses, frictions, gains … come along
        self.frame_skip = int(env.frame_skip)
        self.threads = threads
        self.dt = float(env.dt)
        self.nq, self.nv = int(self.model.nq), int(self.model.nv)
        self.state_size = int(mujoco.mj_stateSize(self.model, _FULL))
        self._engine: rollout.Rollout | None = None
        self._data: list[mujoco.MjData] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_data": []}

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States ``[H+1, B, S]`` from ``state [B, S]`` under ``actions [H, B, A]``, simulated on the CPU.

        As in the environment, controls beyond their range act as if clipped to it.
        """
        start: NDArray[np.float64] = state.detach().double().cpu().contiguous().numpy()
        control: NDArray[np.float64] = actions.detach().double().cpu().transpose(0, 1).contiguous().numpy()
        horizon, rows = actions.shape[0], state.shape[0]
        out = np.empty((horizon + 1, rows, self.state_size))
        out[0] = start
        if horizon:
            size = max(1, _ROLLOUT_NUMBERS // (horizon * self.frame_skip * self.state_size))
            for low in range(0, rows, size):
                out[1:, low : low + size] = self._simulate(start[low : low + size], control[low : low + size])
        return torch.as_tensor(out, device=state.device)

    def _simulate(self, start: NDArray[np.float64], control: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._engine is None:
            self._engine = rollout.Rollout(nthread=self.threads if self.threads > 1 else 0)
            self._data = [mujoco.MjData(self.model) for _ in range(self.threads)]
        held = np.repeat(control, self.frame_skip, axis=1)
        states, _ = self._engine.rollout(self.model, self._data, start, held)
        ends: NDArray[np.float64] = states[:, self.frame_skip - 1 :: self.frame_skip].swapaxes(0, 1)
        return ends

    def qpos(self, state: Tensor) -> Tensor:
        return state[..., 1 : 1 + self.nq]

    def qvel(self, state: Tensor) -> Tensor:
        return state[..., 1 + self.nq : 1 + self.nq + self.nv]

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Flat observations ``[..., D]``."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True reward ``[...]``."""

    @abstractmethod
    def state_from_obs(self, obs: Tensor) -> Tensor:
        """A state ``[B, S]`` at time 0 that shows ``obs``; UserError where it is not determined."""

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True termination ``[...]``; never, unless a task says otherwise."""
        return torch.zeros(next_state.shape[:-1], dtype=torch.bool, device=next_state.device)

    def _state(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        state = torch.zeros((*qpos.shape[:-1], self.state_size), dtype=torch.float64, device=qpos.device)
        state[..., 1 : 1 + self.nq] = qpos
        state[..., 1 + self.nq : 1 + self.nq + self.nv] = qvel
        return state


_FULL = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)


class InvertedPendulum(MujocoPhysics):
    """InvertedPendulum-v5: all of the state is observed."""

    def observe(self, state: Tensor) -> Tensor:
        return torch.cat((self.qpos(state), self.qvel(state)), -1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        obs = self.observe(next_state)
        return (obs[..., 1].abs() > 0.2) | ~obs.isfinite().all(-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return 1.0 - self.terminated(state, action, next_state).to(next_state.dtype)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        return self._state(obs[..., : self.nq], obs[..., self.nq :])


class Runner(MujocoPhysics):
    """HalfCheetah, Hopper, Walker2d, Swimmer: forward velocity of the root, a control cost, perhaps a healthy set.

    Args:
        hidden: leading positions that the environment may exclude from the observation. The dynamics do not depend
            on them, so :meth:`state_from_obs` sets them to 0.
        clip: velocities are observed clipped to ``±clip``.
        healthy: set of healthy ``(qpos, qvel)``.
    """

    def __init__(
        self,
        env: Any,
        threads: int = 1,
        hidden: int = 1,
        clip: float = float("inf"),
        healthy: Inside | None = None,
        can_start_from_obs: bool = True,
    ) -> None:
        super().__init__(env, threads)
        self.hidden = hidden if env._exclude_current_positions_from_observation else 0
        self.clip = clip
        self.healthy = healthy
        self.can_start_from_obs = can_start_from_obs
        self.forward_weight = float(env._forward_reward_weight)
        self.control_weight = float(env._ctrl_cost_weight)
        self.healthy_reward = float(env._healthy_reward) if healthy is not None else 0.0
        self.ends = healthy is not None and bool(env._terminate_when_unhealthy)

    def observe(self, state: Tensor) -> Tensor:
        velocity = self.qvel(state).clamp(-self.clip, self.clip)
        return torch.cat((self.qpos(state)[..., self.hidden :], velocity), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        velocity = (self.qpos(next_state)[..., 0] - self.qpos(state)[..., 0]) / self.dt
        reward = self.forward_weight * velocity - self.control_weight * action.square().sum(-1)
        if self.healthy is None:
            return reward
        return reward + self.healthy_reward * self.healthy(self._bodies(next_state)).to(reward.dtype)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        if self.healthy is None or not self.ends:
            return super().terminated(state, action, next_state)
        return ~self.healthy(self._bodies(next_state))

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """Exact where velocities are observed unclipped; Hopper's beyond 10 are taken as 10."""
        if not self.can_start_from_obs:
            raise UserError(
                "state_from_obs",
                "Walker2d-v5",
                "its observation clips velocities that it often reaches, so the state is not determined; "
                "start from sim_state",
            )
        split = self.nq - self.hidden
        hidden = obs.new_zeros((*obs.shape[:-1], self.hidden))
        return self._state(torch.cat((hidden, obs[..., :split]), -1), obs[..., split:])

    def _bodies(self, state: Tensor) -> Tensor:
        return torch.cat((self.qpos(state), self.qvel(state)), -1)


class Reacher(MujocoPhysics):
    """Reacher-v5. The target's own velocities, not observed, are 0 and stay 0."""

    def __init__(self, env: Any, threads: int = 1) -> None:
        super().__init__(env, threads)
        self.fingertip = Chain(self.model, int(self.model.body("fingertip").id))
        self.target = Chain(self.model, int(self.model.body("target").id))
        self.distance_weight = float(env._reward_dist_weight)
        self.control_weight = float(env._reward_control_weight)

    def observe(self, state: Tensor) -> Tensor:
        qpos = self.qpos(state)
        arm, offset = qpos[..., :2], self._offset(state)
        return torch.cat((arm.cos(), arm.sin(), qpos[..., 2:], self.qvel(state)[..., :2], offset[..., :2]), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(self._offset(next_state), dim=-1)
        return -self.distance_weight * distance - self.control_weight * action.square().sum(-1)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        arm = torch.atan2(obs[..., 2:4], obs[..., :2])
        still = torch.zeros_like(arm)
        return self._state(torch.cat((arm, obs[..., 4:6]), -1), torch.cat((obs[..., 6:8], still), -1))

    def _offset(self, state: Tensor) -> Tensor:
        qpos = self.qpos(state)
        return self.fingertip.position(qpos) - self.target.position(qpos)


class InvertedDoublePendulum(MujocoPhysics):
    """InvertedDoublePendulum-v5.

    The last observation, the constraint force on the cart, depends on the action and on the solver as well; it is
    given as 0, which is right unless the cart touches an end of its rail.
    """

    def __init__(self, env: Any, threads: int = 1) -> None:
        super().__init__(env, threads)
        body, point = int(self.model.site_bodyid[0]), tuple(float(v) for v in self.model.site_pos[0])
        self.tip = Chain(self.model, body, (point[0], point[1], point[2]))
        self.healthy_reward = float(env._healthy_reward)

    def observe(self, state: Tensor) -> Tensor:
        qpos, qvel = self.qpos(state), self.qvel(state).clamp(-10.0, 10.0)
        poles = qpos[..., 1:]
        return torch.cat((qpos[..., :1], poles.sin(), poles.cos(), qvel, torch.zeros_like(qpos[..., :1])), -1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.tip.position(self.qpos(next_state))[..., 2] <= 1.0

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        tip, qvel = self.tip.position(self.qpos(next_state)), self.qvel(next_state)
        distance = 0.01 * tip[..., 0].square() + (tip[..., 2] - 2.0).square()
        velocity = 1e-3 * qvel[..., 1].square() + 5e-3 * qvel[..., 2].square()
        return self.healthy_reward * (tip[..., 2] > 1.0).to(tip.dtype) - distance - velocity

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """Exact for velocities within ±10; larger ones, reached in a fall, are taken as 10."""
        poles = torch.atan2(obs[..., 1:3], obs[..., 3:5])
        return self._state(torch.cat((obs[..., :1], poles), -1), obs[..., 5:8])


class Pusher(MujocoPhysics):
    """Pusher-v5. Bodies are shown where they were one substep before: ``qpos - timestep * qvel`` (Euler's method).

    Exact after a step; in the state of a reset, which the environment shows without that delay, about 1e-4 off.
    """

    def __init__(self, env: Any, threads: int = 1) -> None:
        super().__init__(env, threads)
        bodies = ("tips_arm", "object", "goal")
        self.hand, self.thing, self.goal = (Chain(self.model, int(self.model.body(name).id)) for name in bodies)
        self.near_weight = float(env._reward_near_weight)
        self.distance_weight = float(env._reward_dist_weight)
        self.control_weight = float(env._reward_control_weight)
        self.timestep = float(self.model.opt.timestep)

    def observe(self, state: Tensor) -> Tensor:
        return torch.cat((self.qpos(state)[..., :7], self.qvel(state)[..., :7], *self._bodies(state)), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        hand, thing, goal = self._bodies(next_state)
        near: Tensor = torch.linalg.vector_norm(thing - hand, dim=-1)
        far: Tensor = torch.linalg.vector_norm(thing - goal, dim=-1)
        control = action.square().sum(-1)
        return -self.near_weight * near - self.distance_weight * far - self.control_weight * control

    can_start_from_obs = False

    def state_from_obs(self, obs: Tensor) -> Tensor:
        raise UserError(
            "state_from_obs", "Pusher-v5", "the object's velocity is not observed, so the state is not determined"
        )

    def _bodies(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qpos = self.qpos(state) - self.timestep * self.qvel(state)
        return self.hand.position(qpos), self.thing.position(qpos), self.goal.position(qpos)


def _swimmer(env: Any, threads: int) -> Runner:
    return Runner(env, threads, hidden=2)


def _half_cheetah(env: Any, threads: int) -> Runner:
    return Runner(env, threads)


def _hopper(env: Any, threads: int) -> Runner:
    nq = int(env.model.nq)
    box = Inside(
        bounds=((1, _range(env._healthy_z_range)), (2, _range(env._healthy_angle_range))),
        every=((2, nq + int(env.model.nv)), _range(env._healthy_state_range)),
    )
    return Runner(env, threads, clip=10.0, healthy=box)


def _walker2d(env: Any, threads: int) -> Runner:
    box = Inside(bounds=((1, _range(env._healthy_z_range)), (2, _range(env._healthy_angle_range))))
    return Runner(env, threads, clip=10.0, healthy=box, can_start_from_obs=False)


def _range(limits: Any) -> Range:
    return float(limits[0]), float(limits[1])


TABLE: dict[type, Callable[[Any, int], MujocoPhysics]] = {
    InvertedPendulumEnv: InvertedPendulum,
    InvertedDoublePendulumEnv: InvertedDoublePendulum,
    ReacherEnv: Reacher,
    PusherEnv: Pusher,
    SwimmerEnv: _swimmer,
    HalfCheetahEnv: _half_cheetah,
    HopperEnv: _hopper,
    Walker2dEnv: _walker2d,
}
