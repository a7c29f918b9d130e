"""The platform's environments as RLlib makes them: by a registered name and a mapping of arguments."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.registry import Surroundings, make_env
from mbrl.imagination.model_env import spaces_of

NAME = "mbrl"
TELL_ERRORS = "tell_errors"
"""In ``env_config``: whether an environment of another process is a :class:`TellingEnv`; someone must listen."""
BROKEN = "broken"
"""In the info of an episode's last step: an error's field, value and fix as a JSON list."""


class FlatEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An environment of the platform with observations ``[D]`` in float32; actions in [-1, 1] ``[A]``, or an index."""

    env: BoundaryEnv

    def __init__(self, env: BoundaryEnv) -> None:
        super().__init__(env)
        self.observation_space, self.action_space = spaces_of(env.env_spec)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = self.env.reset(seed=seed, options=options)
        return np.asarray(obs, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return np.asarray(obs, dtype=np.float32), reward, terminated, truncated, {}


class TellingEnv(gym.Wrapper[Any, Any, Any, Any]):
    """For processes whose exceptions RLlib loses: an error ends the episode, and its last info tells of it."""

    def __init__(self, env: FlatEnv) -> None:
        super().__init__(env)
        self.problem: UserError | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(seed=seed, options=options)
        except UserError as error:
            self.problem = error
            return self._nothing(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.problem is None:
            try:
                obs, reward, *ends, info = self.env.step(action)
                return obs, float(reward), ends[0], ends[1], info
            except UserError as error:
                self.problem = error
        told = json.dumps([self.problem.field, str(self.problem.seen), self.problem.fix])
        return self._nothing(), 0.0, False, True, {BROKEN: told}

    def _nothing(self) -> Any:
        return np.zeros(self.observation_space.shape or (), dtype=np.float32)


def register(name: str = NAME) -> None:
    """Let RLlib make every environment of the platform: ``config.environment("mbrl", env_config={"id": ...})``.

    ``env_config`` holds the arguments of :func:`envs.registry.make_env`; ``id`` is needed. Ids with a scheme
    (``dmc:``, ``model:``) work in all of RLlib's processes if the scheme is registered before this is called.

    Args:
        name: what RLlib is to call it.
    """
    from ray.tune.registry import register_env

    register_env(name, functools.partial(_make, Surroundings.here()))


def _make(surroundings: Surroundings, arguments: Mapping[str, Any]) -> FlatEnv | TellingEnv:
    """One environment, in a process that may know nothing of the one that asked for it."""
    surroundings.bring()
    given = dict(arguments)  # RLlib's own mapping, with more than the arguments
    if not isinstance(given.get("id"), str):
        raise UserError("env_config.id", given.get("id"), 'name an environment: env_config={"id": "Pendulum-v1"}')
    elsewhere = getattr(arguments, "worker_index", 0) > 0
    telling = given.pop(TELL_ERRORS, False) and elsewhere
    env = FlatEnv(make_env(given.pop("id"), **given))
    return TellingEnv(env) if telling else env
