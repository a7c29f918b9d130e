"""Small environments as users write them: good ones, and one for every way to be broken."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

BOX = gym.spaces.Box(-10.0, 10.0, (2,), np.float64)


class Slider(gym.Env[Any, Any]):
    """A mass on a line: obs ``(x, v)``, action a push in [-2, 3], reward ``-weight x'^2``, ends at |x| > 3."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    max_episode_steps = 50
    dt = 0.1

    def __init__(self, render_mode: str | None = None, width: float = 3.0) -> None:
        self.observation_space = BOX
        self.action_space = gym.spaces.Box(np.array([-2.0]), np.array([3.0]), dtype=np.float64)
        self.params = {"weight": 1.0, "mass": 2.0}
        self.width = width
        self.render_mode = render_mode
        self.received: list[Any] = []

    def set_params(self, params: dict[str, float]) -> None:
        self.params.update(params)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.5, 0.5, 2)
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.received.append(action)
        x, v = self.x
        v = np.clip(v + self.dt * float(np.ravel(action)[0]) / self.params["mass"], -5.0, 5.0)
        self.x = np.array([x + self.dt * v, v])
        return self.x.copy(), self.reward(), bool(abs(self.x[0]) > self.width), False, {}

    def reward(self) -> float:
        return float(-self.params["weight"] * self.x[0] ** 2)

    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:
        return -params[0] * next_obs[:, 0] ** 2

    @staticmethod
    def termination_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[:, 0].abs() > 3.0


class WrongReward(Slider):
    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return -(obs[:, 0] ** 2)


class WrongTermination(Slider):
    @staticmethod
    def termination_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[:, 0].abs() > 1.0


class RaisingReward(Slider):
    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return obs[:, 7]


class UnbatchedReward(Slider):
    @staticmethod
    def reward_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.tensor(0.0)


class UnpicklableReward(Slider):
    reward_fn = staticmethod(lambda obs, action, next_obs: -(next_obs[:, 0] ** 2))  # type: ignore[assignment]


class MethodReward(Slider):
    def reward_fn(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:  # type: ignore[override]
        return -(next_obs[:, 0] ** 2)


class NanReward(Slider):
    def reward(self) -> float:
        return float("nan") if self.x[0] > 0.5 or self.x[1] > 0.2 else 0.0


class NanObservation(Slider):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        obs[1] = np.inf
        return obs, *rest


class OutsideSpace(Slider):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs + 100.0, *rest


class GlobalRandom(Slider):
    def step(self, action: Any) -> Any:
        return super().step(np.ravel(action) + np.random.default_rng().normal())  # a seed from the system


class BadRestore(Slider):
    def get_state(self) -> dict[str, Any]:
        return {"x": float(self.x[0])}

    def set_state(self, state: dict[str, Any]) -> None:
        self.x = np.array([state["x"], 0.0])


class HugeObservation(Slider):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs * 1e6, *rest


class Endless(Slider):
    max_episode_steps = None  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info

    @staticmethod
    def termination_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), dtype=torch.bool)


class Spaces(gym.Env[Any, Any]):
    """Any spaces; every observation is a sample, every reward 1."""

    def __init__(self, observation_space: Any = BOX, action_space: Any = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or gym.spaces.Box(-1.0, 1.0, (1,))
        self.received: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.received.append(action)
        return self.observation_space.sample(), 1.0, False, False, {}


class Unbuildable(gym.Env[Any, Any]):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


class NotAnEnv:
    pass
