"""Gymnasium's vector environments for stable-baselines3, whose own interface is older."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.errors import UserError

Mask = NDArray[np.bool_]


class VectorEnvAdapter(VecEnv):
    """Any :class:`gymnasium.vector.VectorEnv` with Box observations as a ``VecEnv``.

    Where an episode ends, the next one's first observation is returned at once, the last one is in
    ``info["terminal_observation"]``, and ``info["TimeLimit.truncated"]`` tells a truncation from a termination. An
    environment that does not reset itself in the same step is reset by a mask, so it must honour
    ``reset(options={"reset_mask": mask})``, as Gymnasium's own do. Random streams start with the first reset, at the
    seeds of :meth:`seed`; later episodes go on in them.

    Args:
        envs: the vector environment. It is closed with the adapter.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self.envs = envs
        self._same_step = envs.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP
        self._actions: Any = None
        if not isinstance(envs.single_observation_space, gym.spaces.Box):
            raise UserError("observation space", envs.single_observation_space, "only Box observations are adapted")
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin all episodes anew; observations ``[N, D]``."""
        seeds = list(self._seeds)
        options = next((option for option in self._options if option), None)
        if any(option != (options or {}) for option in self._options):
            raise UserError("options", self._options, "a vector environment takes one set of options for all rows")
        seed: Any = seeds if any(value is not None for value in seeds) else None
        obs, infos = self.envs.reset(seed=seed, options=options)
        self.reset_infos = [_row_of(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return np.array(obs)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        obs, reward, terminated, truncated, infos = self.envs.step(self._actions)
        obs, done = np.array(obs), np.asarray(terminated | truncated)
        last, begun = obs, {}
        if self._same_step:
            last, ended = infos.get("final_obs", obs), infos.get("final_info", {})
            begun = {k: v for k, v in infos.items() if k.lstrip("_") not in ("final_obs", "final_info")}
            told = [_row_of(ended if over else begun, i) for i, over in enumerate(done)]
        else:
            told = [_row_of(infos, i) for i in range(self.num_envs)]
            if done.any():
                obs, begun = self._renew(obs, done)
        for i, row in enumerate(told):
            row["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if done[i]:
                row["terminal_observation"] = np.array(last[i])
                self.reset_infos[i] = _row_of(begun, i)
        return obs, np.asarray(reward, dtype=np.float32), done, told

    def _renew(self, obs: NDArray[Any], done: Mask) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin the next episode in the rows that are ``done``; the observations of all rows."""
        fresh, infos = self.envs.reset(options={"reset_mask": done})
        return np.where(done.reshape(-1, *[1] * (obs.ndim - 1)), fresh, obs), infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment where the vector environment reaches them, else its own for every row."""
        reach = getattr(self.envs, "get_attr", None)
        values = reach(attr_name) if reach is not None else [getattr(self.envs, attr_name)] * self.envs.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        reach = getattr(self.envs, "set_attr", None)
        rows = [*self._get_indices(indices)]
        if reach is None or len(rows) < self.num_envs:
            raise UserError(attr_name, value, "this vector environment has no attributes of single rows to set")
        reach(attr_name, [value] * self.num_envs)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        reach = getattr(self.envs, "call", None)
        if reach is None:
            raise UserError("env_method", method_name, "this vector environment has no single environments to call")
        values: Sequence[Any] = reach(method_name, *method_args, **kwargs)
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment is wrapped in this class; False for rows that are no environments of their own."""
        single: Sequence[Any] = getattr(self.envs, "envs", [None] * self.num_envs)
        return [_is_wrapped(single[i], wrapper_class) for i in self._get_indices(indices)]


def _is_wrapped(env: Any, kind: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, kind):
            return True
        env = env.env
    return False


def _row_of(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What ``infos`` says of one row: entry ``x`` counts where mask ``_x`` is true."""
    found: dict[str, Any] = {}
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if (name.startswith("_") and name[1:] in infos) or (mask is not None and not mask[row]):
            continue
        found[name] = _row_of(values, row) if isinstance(values, Mapping) else values[row]
    return found
