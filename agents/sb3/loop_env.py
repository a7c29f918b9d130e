"""The loop's environments as a stable-baselines3 ``VecEnv``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.external import Environments
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_env import spaces_of


class LoopEnv(VecEnv):
    """Flat observations ``[N, D]``; actions in [-1, 1] ``[N, A]``, or an index ``[N]``.

    Each step calls back into the loop, which counts it. Reset seeds are the loop's business, so :meth:`reset` only
    shows where the environments are and :meth:`seed` changes nothing.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        super().__init__(num_envs, *spaces_of(spec))
        self.spec = spec
        self.environments: Environments | None = None
        self.transitions: Transitions | None = None
        """What happened in the last step."""
        self._actions: NDArray[Any] = np.zeros(0)

    def observations(self) -> NDArray[np.float32]:
        """``[N, D]`` now; zeros as long as there are no environments."""
        if self.environments is None:
            return np.zeros((self.num_envs, self.spec.obs_size), dtype=np.float32)
        obs: NDArray[np.float32] = self.environments.current()[0].cpu().numpy()
        return obs

    def reset(self) -> NDArray[np.float32]:
        return self.observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        assert self.environments is not None
        action = torch.as_tensor(self._actions)
        rows = self.environments.collect(self.spec.action.from_env(action) if self.spec.action.discrete else action)
        self.transitions = rows
        ended: NDArray[np.bool_] = (rows.terminated | rows.truncated).numpy()
        cut = (rows.truncated & ~rows.terminated).tolist()
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": slot} for slot in cut]
        for slot in np.flatnonzero(ended).tolist():
            infos[slot]["terminal_observation"] = rows.next_obs[slot].numpy()
        return self.observations(), rows.reward.numpy().copy(), ended, infos  # PPO adds to the rewards in place

    def seed(self, seed: int | None = None) -> list[None]:
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name != "render_mode":
            raise AttributeError(f"the loop's environments do not offer {attr_name!r}")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name!r} cannot be set: the environments belong to the loop")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise AttributeError(f"{method_name!r} cannot be called: the environments belong to the loop")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def close(self) -> None:
        """Nothing: the loop closes its environments."""
