"""Base of the platform's own environments: one batched torch function is both the environment and its true model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import UserError
from envs.spec import Angle, QuadraticCost, takes_params
from envs.variants import checked_params

FromObs = Callable[[Tensor], Tensor]
"""``obs [..., D] -> state [..., S]``."""


class TorchEnv(gym.Env[Any, NDArray[np.float32]]):
    """A deterministic environment written as batched torch functions of a state ``[..., S]`` in float64.

    A subclass gives class attributes and static functions; ``params [K]`` are the values of :attr:`defaults` in that
    order (or ``[..., K]``, one row an instance). Actions arrive in environment units. Observations are float64, so
    that known pieces agree with the environment to rounding.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (Gymnasium's type)

    dt: ClassVar[float]
    """Seconds a step."""
    defaults: ClassVar[Mapping[str, float]] = {}
    """Physics parameters by name, SI units."""
    state_size: ClassVar[int]
    obs_high: ClassVar[Mapping[str, float]]
    """Entry of the observation -> largest magnitude."""
    action_high: ClassVar[tuple[float, ...]] = (1.0,)
    angles: ClassVar[tuple[Angle, ...]] = ()
    quadratic: ClassVar[QuadraticCost | None] = None
    reward_fn: ClassVar[Callable[..., Tensor]]
    """Static ``(obs, action, next_obs[, params]) -> [...]``."""
    state_from_obs: ClassVar[FromObs | None] = None
    """Static ``[..., D] -> [..., S]`` where the observation determines the state."""

    def __init__(self, params: Mapping[str, float] | None = None, render_mode: str | None = None) -> None:
        self.params = dict(self.defaults)
        self.set_params(params or {})
        self.render_mode = render_mode
        self.state = np.zeros(self.state_size)
        self._obs: Tensor = self.observe(torch.from_numpy(self.state))
        high = np.array(list(self.obs_high.values()))
        self.layout = {name: slice(i, i + 1) for i, name in enumerate(self.obs_high)}
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float64)
        limit = np.array(self.action_high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-limit, limit, dtype=np.float32)

    @staticmethod
    def dynamics(state: Tensor, action: Tensor, params: Tensor) -> Tensor:
        """The next state ``[..., S]`` of ``state [..., S]`` under ``action [..., A]``."""
        raise NotImplementedError

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        """The flat observation ``[..., D]`` of ``state [..., S]``."""
        return state

    @staticmethod
    def termination_fn(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Whether ``next_obs`` ends the episode, ``[...]`` bool."""
        return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)

    @staticmethod
    def initial(rng: np.random.Generator) -> NDArray[np.float64]:
        """A start state ``[S]``."""
        raise NotImplementedError

    def set_params(self, params: Mapping[str, float]) -> None:
        """Change physics parameters by name; the others stay."""
        self.params.update(checked_params(params, tuple(self.defaults), type(self).__name__))
        self._params = torch.tensor(list(self.params.values()), dtype=torch.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.asarray(self.initial(self.np_random), dtype=np.float64)
        return self._observed(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, control = self._obs, torch.from_numpy(np.asarray(action, dtype=np.float64))
        with torch.inference_mode():
            next_state = self.dynamics(torch.from_numpy(self.state), control, self._params)
            next_obs = self.observe(next_state)
            reward = call_known(self.reward_fn, obs, control, next_obs, self._params)
            ended = call_known(self.termination_fn, obs, control, next_obs, self._params)
        self.state, self._obs = next_state.numpy(), next_obs
        return self.as_observation(next_obs), float(reward), bool(ended), False, {}

    def as_observation(self, flat: Tensor) -> Any:
        """What the environment hands out for a flat observation ``[D]``; Dict environments split it here."""
        return flat.numpy().copy()

    def sim_state(self) -> NDArray[np.float64]:
        """The physics state ``[S]``."""
        return self.state.copy()

    def get_state(self) -> dict[str, Any]:
        """All that a step depends on; :meth:`set_state` restores it exactly."""
        return {"state": self.state.copy(), "params": dict(self.params)}

    def set_state(self, state: Mapping[str, Any]) -> Any:
        """Restore what :meth:`get_state` returned and hand out the observation there."""
        self.set_params(state["params"])
        self.state = np.array(state["state"], dtype=np.float64)
        return self._observed()

    def _observed(self) -> Any:
        self._obs = self.observe(torch.from_numpy(self.state))
        return self.as_observation(self._obs)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """An RGB image ``[H, W, 3]`` when made with ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        from envs.drawing import Canvas  # pygame is needed for pictures only

        canvas = Canvas()
        self.draw(canvas)
        return canvas.image()

    def draw(self, canvas: Any) -> None:
        """Draw the state on a :class:`envs.drawing.Canvas`: one bar an entry of the observation, unless overridden."""
        canvas.bars(self.observe(torch.from_numpy(self.state)).tolist())

    @classmethod
    def physics(cls, params: Mapping[str, float] | None = None) -> TorchPhysics:
        """The true dynamics, batched; see :class:`envs.physics.base.Physics`."""
        return TorchPhysics(cls, checked_params(params or {}, tuple(cls.defaults), cls.__name__))


class TorchPhysics:
    """:class:`envs.physics.base.Physics` of a :class:`TorchEnv`; runs on the device and in the dtype of the state."""

    def __init__(self, env_class: type[TorchEnv], params: Mapping[str, float]) -> None:
        self.env_class = env_class
        self.params = torch.tensor(list({**env_class.defaults, **params}.values()), dtype=torch.float64)
        self.state_size = env_class.state_size
        self.can_start_from_obs = env_class.state_from_obs is not None

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States ``[H+1, B, S]`` reached from ``state [B, S]`` under ``actions [H, B, A]``."""
        params, states = self.params.to(state), [state]
        for action in actions.to(state.dtype):
            states.append(self.env_class.dynamics(states[-1], action, params))
        return torch.stack(states)

    def observe(self, state: Tensor) -> Tensor:
        """``[..., S] -> [..., D]``."""
        return self.env_class.observe(state)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """``[...]``."""
        return self._known(self.env_class.reward_fn, state, action, next_state)

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """``[...]`` bool."""
        return self._known(self.env_class.termination_fn, state, action, next_state)

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """``[..., D] -> [..., S]``; :class:`UserError` where the observation does not determine the state."""
        if self.env_class.state_from_obs is None:
            fix = "its state does not follow from an observation; start from sim_state."
            raise UserError("environment", self.env_class.__name__, fix)
        return self.env_class.state_from_obs(obs)

    def _known(self, function: Callable[..., Tensor], state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        obs, next_obs = self.observe(state), self.observe(next_state)
        return call_known(function, obs, action.to(state.dtype), next_obs, self.params.to(state))


def call_known(
    function: Callable[..., Tensor], obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor
) -> Tensor:
    """Call a known piece, with ``params`` if its signature asks for them."""
    return function(obs, action, next_obs, params) if takes_params(function) else function(obs, action, next_obs)
