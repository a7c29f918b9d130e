"""Environments that are wrong, each in one way."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Good(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)
    max_episode_steps = 10

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action: Any) -> Any:
        return self.look(), self.reward(), False, False, {}

    def look(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reward(self) -> float:
        return 1.0


class NanReward(Good):
    def reward(self) -> float:
        return float("nan")


class NanObservation(Good):
    def look(self) -> Any:
        return np.full(2, np.nan, np.float32)


class MultiDiscrete(Good):
    action_space = spaces.MultiDiscrete([2, 3])


class Unbounded(Good):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Image(Good):
    observation_space = spaces.Box(0, 255, (32, 32, 3), np.uint8)  # type: ignore[assignment]


class Refuses(Good):
    def __init__(self) -> None:
        raise RuntimeError("no licence found")


class WrongShape(Good):
    def look(self) -> Any:
        return np.zeros(5, np.float32)


class Unrepeatable(Good):
    """Its observations do not come from its seed."""

    def look(self) -> Any:
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)


class InstanceReward(Good):
    def reward_fn(self, obs: Any, action: Any, next_obs: Any) -> Any:
        return obs.sum(-1)


class ScalarReward(Good):
    @staticmethod
    def reward_fn(obs: Any, action: Any, next_obs: Any) -> Any:
        return -next_obs[0, 0]


class ColumnEnd(Good):
    @staticmethod
    def termination_fn(obs: Any, action: Any, next_obs: Any) -> Any:
        return next_obs[:, :1] > 100.0


class NotAnEnv:
    pass


class FourValues(Good):
    def step(self, action: Any) -> Any:
        return self.look(), 1.0, False, {}


class NoReward(Good):
    def reward(self) -> Any:
        return None


class TextReward(Good):
    def reward(self) -> Any:
        return "1.0"


class TwoRewards(Good):
    def reward(self) -> Any:
        return np.ones(2)


class HugeReward(Good):
    def reward(self) -> float:
        return 1e39


class TextObservation(Good):
    def look(self) -> Any:
        return "hello"


class NoObservation(Good):
    def look(self) -> Any:
        return None


class HugeFloat64Observation(Good):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def look(self) -> Any:
        return np.array([0.0, 1e39])


class BareReset(Good):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class OldReset(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OldStep(Good):
    def step(self) -> Any:  # type: ignore[override]
        return super().step(0)


class RaisesLater(Good):
    """Its third step fails."""

    def reset(self, **kwargs: Any) -> Any:
        self.left = 3
        return super().reset(**kwargs)

    def reward(self) -> float:
        self.left -= 1
        return 1.0 / self.left


class RaisesInReset(Good):
    def reset(self, **kwargs: Any) -> Any:
        raise KeyError("goal")


class Weighted(Good):
    def __init__(self) -> None:
        self.params = {"mass": 2.0}

    def set_params(self, params: dict[str, float]) -> None:
        self.params.update(params)

    def reward(self) -> float:
        return 1.0 / self.params["mass"]


class NegativeLimit(Good):
    max_episode_steps = -3


class TextLimit(Good):
    max_episode_steps = "20"  # type: ignore[assignment]


class RaisesInClose(Good):
    def close(self) -> None:
        raise OSError("no device")


class Endless(Good):
    max_episode_steps = None  # type: ignore[assignment]


class RenderModeOnly(Good):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
