"""True dynamics of Gymnasium's classic-control tasks: float64, vectorised over rows, one loop over time.

Physics states are the environments' own ``state`` vectors. Observations here are float64, the environments' are
rounded to float32. Discrete actions are indices, ``[H, B]`` and ``[B]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from torch import Tensor

from envs.errors import UserError


class ClassicPhysics(ABC):
    """What the tasks share: the loop over time. A task gives ``step``."""

    state_size: int
    can_start_from_obs = True

    @abstractmethod
    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Next states ``[B, S]``."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True reward ``[...]``."""

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States ``[H+1, B, S]`` from ``state [B, S]`` under ``actions [H, B, A]`` (discrete: ``[H, B]``)."""
        states = [state.double()]
        for action in actions.double():
            states.append(self.step(states[-1], action))
        return torch.stack(states)

    def observe(self, state: Tensor) -> Tensor:
        """Flat observations ``[..., D]``."""
        return state

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """Exact up to the observation's rounding to float32."""
        return obs.double()

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True termination ``[...]``; never, unless a task says otherwise."""
        return torch.zeros(next_state.shape[:-1], dtype=torch.bool, device=next_state.device)


class Pendulum(ClassicPhysics):
    """Pendulum-v1; state ``(theta, theta_dot)``."""

    state_size = 2

    def __init__(self, env: PendulumEnv) -> None:
        self.g, self.m, self.l, self.dt = float(env.g), float(env.m), float(env.l), float(env.dt)
        self.max_speed, self.max_torque = float(env.max_speed), float(env.max_torque)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        gravity, torque = 3.0 * self.g / (2.0 * self.l), 3.0 / (self.m * self.l**2)
        speed = speed + (gravity * angle.sin() + torque * self._torque(action)) * self.dt
        speed = speed.clamp(-self.max_speed, self.max_speed)
        return torch.stack((angle + speed * self.dt, speed), -1)

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack((angle.cos(), angle.sin(), speed), -1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        folded = torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
        return -(folded.square() + 0.1 * speed.square() + 0.001 * self._torque(action).square())

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """Exact up to whole turns and the observation's rounding to float32."""
        obs = obs.double()
        return torch.stack((torch.atan2(obs[..., 1], obs[..., 0]), obs[..., 2]), -1)

    def _torque(self, action: Tensor) -> Tensor:
        return action[..., 0].clamp(-self.max_torque, self.max_torque)


class CartPole(ClassicPhysics):
    """CartPole-v1; state ``(x, x_dot, theta, theta_dot)``."""

    state_size = 4

    def __init__(self, env: CartPoleEnv) -> None:
        self.gravity, self.force, self.tau = float(env.gravity), float(env.force_mag), float(env.tau)
        self.masspole, self.total_mass = float(env.masspole), float(env.total_mass)
        self.length, self.polemass_length = float(env.length), float(env.polemass_length)
        self.euler = env.kinematics_integrator == "euler"
        self.limits = (float(env.x_threshold), float(env.theta_threshold_radians))
        self.sutton_barto = bool(env._sutton_barto_reward)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        x, x_dot, angle, angle_dot = state.unbind(-1)
        x_acc, angle_acc = self._accelerations(angle, angle_dot, action)
        new_x_dot, new_angle_dot = x_dot + self.tau * x_acc, angle_dot + self.tau * angle_acc
        if self.euler:
            x, angle = x + self.tau * x_dot, angle + self.tau * angle_dot
        else:
            x, angle = x + self.tau * new_x_dot, angle + self.tau * new_angle_dot
        return torch.stack((x, new_x_dot, angle, new_angle_dot), -1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return (next_state[..., 0].abs() > self.limits[0]) | (next_state[..., 2].abs() > self.limits[1])

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        fallen = self.terminated(state, action, next_state).to(next_state.dtype)
        return -fallen if self.sutton_barto else torch.ones_like(fallen)

    def _accelerations(self, angle: Tensor, angle_dot: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        force = torch.where(action == 1, self.force, -self.force)
        cos, sin = angle.cos(), angle.sin()
        push = (force + self.polemass_length * angle_dot.square() * sin) / self.total_mass
        inertia = self.length * (4.0 / 3.0 - self.masspole * cos.square() / self.total_mass)
        angle_acc = (self.gravity * sin - cos * push) / inertia
        return push - self.polemass_length * angle_acc * cos / self.total_mass, angle_acc


class MountainCar(ClassicPhysics):
    """MountainCar-v0 and MountainCarContinuous-v0; state ``(position, velocity)``.

    The continuous environment computes in float32: rollouts agree to about 1e-7 a step.
    """

    state_size = 2

    def __init__(self, env: MountainCarEnv | Continuous_MountainCarEnv) -> None:
        self.continuous = isinstance(env, Continuous_MountainCarEnv)
        self.power = float(env.power if isinstance(env, Continuous_MountainCarEnv) else env.force)
        self.gravity = 0.0025 if isinstance(env, Continuous_MountainCarEnv) else float(env.gravity)
        self.low, self.high, self.max_speed = float(env.min_position), float(env.max_position), float(env.max_speed)
        self.goal = (float(env.goal_position), float(env.goal_velocity))

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        position, speed = state.unbind(-1)
        force = action[..., 0].clamp(-1.0, 1.0) if self.continuous else action - 1.0
        speed = (speed + force * self.power - self.gravity * (3.0 * position).cos()).clamp(
            -self.max_speed, self.max_speed
        )
        position = (position + speed).clamp(self.low, self.high)
        speed = torch.where((position == self.low) & (speed < 0), torch.zeros_like(speed), speed)
        return torch.stack((position, speed), -1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return (next_state[..., 0] >= self.goal[0]) & (next_state[..., 1] >= self.goal[1])

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        if not self.continuous:
            return torch.full_like(next_state[..., 0], -1.0)
        reached = self.terminated(state, action, next_state).to(next_state.dtype)
        return 100.0 * reached - 0.1 * action[..., 0].square()


class Acrobot(ClassicPhysics):
    """Acrobot-v1; state ``(theta1, theta2, theta1_dot, theta2_dot)``, one Runge-Kutta step a decision."""

    state_size = 4

    def __init__(self, env: AcrobotEnv) -> None:
        if env.torque_noise_max > 0:
            raise UserError("torque_noise_max", env.torque_noise_max, "noisy torques have no deterministic physics")
        self.m1, self.m2 = float(env.LINK_MASS_1), float(env.LINK_MASS_2)
        self.l1, self.inertia = float(env.LINK_LENGTH_1), float(env.LINK_MOI)
        self.lc1, self.lc2 = float(env.LINK_COM_POS_1), float(env.LINK_COM_POS_2)
        self.dt, self.g = float(env.dt), 9.8
        self.max_speeds = (float(env.MAX_VEL_1), float(env.MAX_VEL_2))
        self.torques = tuple(float(t) for t in env.AVAIL_TORQUE)
        self.book = env.book_or_nips != "nips"

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        torque = state.new_tensor(self.torques)[action.long()]
        state = self._runge_kutta(state, torque)
        angles = _fold(state[..., :2])
        limits = state.new_tensor(self.max_speeds)
        return torch.cat((angles, torch.minimum(torch.maximum(state[..., 2:], -limits), limits)), -1)

    def observe(self, state: Tensor) -> Tensor:
        first, second = state[..., 0], state[..., 1]
        return torch.stack((first.cos(), first.sin(), second.cos(), second.sin(), state[..., 2], state[..., 3]), -1)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        first, second = next_state[..., 0], next_state[..., 1]
        return -first.cos() - (second + first).cos() > 1.0

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.terminated(state, action, next_state).to(next_state.dtype) - 1.0

    def state_from_obs(self, obs: Tensor) -> Tensor:
        obs = obs.double()
        angles = torch.atan2(obs[..., [1, 3]], obs[..., [0, 2]])
        return torch.cat((angles, obs[..., 4:6]), -1)

    def _runge_kutta(self, state: Tensor, torque: Tensor) -> Tensor:
        half = self.dt / 2.0
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + half * k1, torque)
        k3 = self._derivative(state + half * k2, torque)
        k4 = self._derivative(state + self.dt * k3, torque)
        return state + self.dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    def _derivative(self, state: Tensor, torque: Tensor) -> Tensor:
        """Equations of motion as in Sutton and Barto, Reinforcement Learning (1998), example 11.3."""
        a1, a2, v1, v2 = state.unbind(-1)
        m1, m2, l1, lc1, lc2, inertia = self.m1, self.m2, self.l1, self.lc1, self.lc2, self.inertia
        cos2, sin2 = a2.cos(), a2.sin()
        d1 = m1 * lc1**2 + m2 * (l1**2 + lc2**2 + 2.0 * l1 * lc2 * cos2) + 2.0 * inertia
        d2 = m2 * (lc2**2 + l1 * lc2 * cos2) + inertia
        phi2 = m2 * lc2 * self.g * (a1 + a2 - math.pi / 2.0).cos()
        coupling = m2 * l1 * lc2 * sin2
        weight = (m1 * lc1 + m2 * l1) * self.g * (a1 - math.pi / 2.0).cos()
        phi1 = -coupling * v2.square() - 2.0 * coupling * v2 * v1 + weight + phi2
        drive = torque + d2 / d1 * phi1 - phi2
        if self.book:
            drive = drive - coupling * v1.square()
        acc2 = drive / (m2 * lc2**2 + inertia - d2.square() / d1)
        acc1 = -(d2 * acc2 + phi1) / d1
        return torch.stack((v1, v2, acc1, acc2), -1)


def _fold(angle: Tensor) -> Tensor:
    """Into [-pi, pi]."""
    turns = torch.where(angle.abs() > math.pi, torch.round(angle / (2.0 * math.pi)), torch.zeros_like(angle))
    return angle - turns * (2.0 * math.pi)


TABLE: dict[type, Callable[[Any], ClassicPhysics]] = {
    PendulumEnv: Pendulum,
    CartPoleEnv: CartPole,
    MountainCarEnv: MountainCar,
    Continuous_MountainCarEnv: MountainCar,
    AcrobotEnv: Acrobot,
}
