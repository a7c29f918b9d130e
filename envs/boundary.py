"""The edge of the platform around one Gymnasium environment: flat observations, actions in [-1, 1], what is known."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from envs import access
from envs.errors import UserError
from envs.knowledge import Knowledge, knowledge_for
from envs.rendering import NO_GL, gl_backend, working_gl
from envs.spaces import ActionScaling, FlatObservation
from envs.spec import EnvSpec, KnownFunction
from envs.variants import checked_params, variant_of

Info = dict[str, Any]

LARGEST = np.float64(np.finfo(np.float32).max)
"""Observations and rewards are learned from in float32; what is larger would be infinite there."""

CONTRACT: Mapping[str, str] = {
    "reset": "reset(self, *, seed=None, options=None), which returns (observation, info)",
    "step": "step(self, action), which returns (observation, reward, terminated, truncated, info)",
}
"""The methods that an environment must have, in the words of an error message."""

CALLERS = frozenset({__name__, "gymnasium.core", "gymnasium.wrappers.common"})
"""Modules that call an environment: an error raised in one of them is about how it is called, or what it returns."""

_log = logging.getLogger(__name__)

LEARNABLE = ("reward", "termination")


class BoundaryEnv(gym.Wrapper[Any, Any, Any, Any]):
    """One environment in the platform's units.

    Observations are flat ``[D]`` in the environment's own dtype; actions are ``[A]`` in [-1, 1] (clipped) or an index
    from 0. Known pieces of the task come from static methods of the environment's class (``reward_fn``,
    ``termination_fn``, both ``(obs, action, next_obs[, params]) -> [B]`` in torch; ``reward_terms``, ``costs``,
    ``angles``, ``layout``, ``quadratic``) or, for Gymnasium's tasks, from :mod:`envs.knowledge`.

    ``reset(options={"params": {...}})`` sets physics parameters for one episode; the next reset without them returns
    to those of construction. The parameters in force are in ``info["params"]`` then.

    Args:
        env: the environment, with its time limit.
        id: how the user named it; used in messages and in the spec.
        params: physics parameters by name, see :mod:`envs.variants`.
        action_repeat: each decision is repeated this often; rewards are summed; an end stops it. With repeats the
            reward is no function of (obs, action, next_obs) any more, so no reward terms are known.
        learn: known pieces that the spec shall not tell, ``reward`` or ``termination``, so that models learn them.
        kwargs: constructor arguments to record in the fingerprint.

    Raises:
        UserError: an unsupported space or parameter, now; a non-finite observation, reward or action, at its step;
            whatever the environment itself raises, with that as its cause.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        id: str = "",
        *,
        params: Mapping[str, float] | None = None,
        action_repeat: int = 1,
        learn: Sequence[str] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env)
        self.id = id or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        if isinstance(action_repeat, bool) or not isinstance(action_repeat, int) or action_repeat < 1:
            raise UserError(f"{self.id}: action_repeat", action_repeat, "give a whole number of at least 1.")
        for piece in learn:
            if piece not in LEARNABLE:
                raise UserError(f"{self.id}: learn", piece, f"pieces are {' and '.join(LEARNABLE)}.", LEARNABLE)
        self.action_repeat, self._learn = action_repeat, frozenset(learn)
        self._flat = FlatObservation(env.observation_space, self.id)
        self._scale = ActionScaling(env.action_space, self.id)
        self.observation_space, self.action_space = self._flat.space, self._scale.space
        self._variant = variant_of(env)
        self._base_params = self._checked(params or {})
        self._applied: dict[str, float] | None = {}
        self._apply(self._base_params)
        self._steps = 0
        self.env_spec: EnvSpec = self._build_spec(kwargs or {})

    @property
    def params(self) -> dict[str, float]:
        """Physics parameters in force."""
        return {} if self._variant is None else self._variant.current()

    @property
    def restorable(self) -> bool:
        """Whether the environment itself offers ``get_state`` and ``set_state``."""
        base = self.env.unwrapped
        return callable(getattr(base, "get_state", None)) and callable(getattr(base, "set_state", None))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[Any], Info]:
        rest = dict(options or {})
        changed = rest.pop("params", None)
        self._apply({**self._base_params, **self._checked(changed or {})})
        with self._foreign("reset"):
            result: Any = self.env.reset(seed=seed, options=rest or None)
        if not (isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], Mapping)):
            fix = f"reset returned a {type(result).__name__}; it must be {CONTRACT['reset']}."
            raise UserError("env", self.id, fix)
        observation, info = result[0], dict(result[1])
        self._steps = 0
        if changed:
            info["params"] = self.params
        return self._checked_obs(observation), info

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, Info]:
        env_action = self._scale(self._checked_action(action))
        total = 0.0
        try:
            for _ in range(self.action_repeat):
                self._steps += 1
                observation, reward, terminated, truncated, info = self.env.step(env_action)
                total += self._checked_reward(reward)
                if terminated or truncated:
                    break
            ends = bool(terminated), bool(truncated)
        except UserError:
            raise
        except Exception as error:  # foreign code; whatever it raises is about this environment
            raise self._broken("step", error) from error
        return self._checked_obs(observation), total, *ends, info

    def close(self) -> None:
        """Close the environment. What it raises is logged only: the work is done, and its results must not be lost."""
        try:
            super().close()  # type: ignore[no-untyped-call]
        except Exception as error:  # foreign code, as in step
            _log.warning("environment %s: close raised %s: %s", self.id, type(error).__name__, error)

    def render(self) -> Any:
        """As the environment's own; MuJoCo draws with a GL backend that works here, with or without a display.

        Raises:
            UserError: MuJoCo finds no such backend.
        """
        if access.mujoco_handles(self.env) is None or self.env.render_mode is None:
            return self.env.render()
        backend = working_gl()
        if backend is None:
            raise UserError(f"{self.id}: render_mode", self.env.render_mode, NO_GL)
        with gl_backend(backend):
            return self.env.render()

    def sim_state(self) -> NDArray[np.float64] | None:
        """The full physics state ``[S]`` in float64, or None; see :func:`envs.access.sim_state`."""
        return access.sim_state(self.env)

    def get_state(self) -> Info:
        """All that the episode depends on, of JSON values and arrays. Only where :attr:`restorable`."""
        base: Any = self.env.unwrapped
        with self._foreign("get_state"):
            return {"env": base.get_state(), "steps": self._steps}

    def set_state(self, state: Mapping[str, Any]) -> NDArray[Any] | None:
        """Restore what :meth:`get_state` returned; the time limit's count too. Reset at least once before.

        Returns the observation there ``[D]`` when the environment's own ``set_state`` does.
        """
        base: Any = self.env.unwrapped
        with self._foreign("set_state"):
            observation = base.set_state(state["env"])
        self._applied = None  # the state may carry parameters; the next reset sets them again
        self._steps = int(state["steps"])
        layer: Any = self.env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, gym.wrappers.TimeLimit):
                vars(layer)["_elapsed_steps"] = self._steps
            layer = layer.env
        return None if observation is None else self._checked_obs(observation)

    def flatten(self, observation: Any) -> NDArray[Any]:
        """The environment's own observation as ``[D]``; a non-finite one raises."""
        return self._checked_obs(observation)

    def to_native(self, action: Any) -> Any:
        """A platform action as the environment receives it."""
        return self._scale(action)

    def name_of(self, index: int) -> str:
        """A readable name of one entry of the flat observation."""
        return self._flat.name_of(index)

    def _checked(self, params: Mapping[str, Any]) -> dict[str, float]:
        if params and self._variant is None:
            fix = "this environment has no known physics parameters; give its class `params` and `set_params(dict)`."
            raise UserError(f"{self.id}: params", dict(params), fix)
        return checked_params(params, () if self._variant is None else self._variant.names, self.id)

    def _apply(self, params: dict[str, float]) -> None:
        if self._variant is not None and params != self._applied:
            with self._foreign("set_params"):
                self._variant.apply(params)
            self._applied = params

    @contextmanager
    def _foreign(self, method: str) -> Iterator[None]:
        """The environment's own code runs inside; its errors become the user's."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # foreign code; whatever it raises is about this environment
            raise self._broken(method, error) from error

    def _broken(self, method: str, error: Exception) -> UserError:
        what = f"step {self._steps} of an episode" if method == "step" else method
        raised = f"{what} raised {type(error).__name__}: {error}"
        if method in CONTRACT and isinstance(error, (TypeError, ValueError)) and _raised_by_caller(error):
            return UserError("env", self.id, f"{raised}; it must be {CONTRACT[method]}.")
        under = f", under the physics parameters {self._base_params}" if self._base_params else ""
        return UserError("env", self.id, f"{raised}{under}; mend the environment (--debug shows where).")

    def _checked_action(self, action: Any) -> Any:
        if not self._scale.spec.discrete and not np.isfinite(action).all():
            raise UserError(f"{self.id}: action", action, f"is not finite, at step {self._steps}.")
        return action

    def _checked_reward(self, reward: Any) -> float:
        value = float(reward) if isinstance(reward, float) else self._number(reward)
        if not abs(value) <= LARGEST:  # NaN too
            fix = f"{_not_finite(value)}, at step {self._steps} of an episode."
            raise UserError(f"{self.id}: reward", value, fix)
        return value

    def _number(self, reward: Any) -> float:
        """A reward that is no float: an integer, a truth value, or an array of one of them."""
        fix = f"at step {self._steps} of an episode; a reward is one number, it must be {CONTRACT['step']}."
        try:
            array = np.asarray(reward)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.id}: reward", reward, fix) from error
        if array.size != 1 or array.dtype.kind not in "fiub":
            raise UserError(f"{self.id}: reward", reward, fix)
        return float(array.item())

    def _checked_obs(self, observation: Any) -> NDArray[Any]:
        try:
            flat = self._flat(observation)
        except Exception as error:  # an observation may be any object, and convert itself in any way
            method = "step" if self._steps else "reset"
            seen = observation if observation is None or isinstance(observation, str) else type(observation).__name__
            fix = f"is no observation of {self.env.observation_space}; {method} must be {CONTRACT[method]}."
            raise UserError(f"{self.id}: observation", seen, fix) from error
        if flat.shape != self.observation_space.shape:
            fix = f"the observation_space promises shape {self.observation_space.shape}."
            raise UserError(f"{self.id}: observation", flat.shape, fix)
        if not (np.abs(flat) <= LARGEST).all():  # NaN too
            worst = int(np.flatnonzero(~(np.abs(flat) <= LARGEST))[0])
            fix = f"{_not_finite(float(flat[worst]))}, at step {self._steps} of an episode."
            raise UserError(f"{self.id}: {self._flat.name_of(worst)}", float(flat[worst]), fix)
        return flat

    def _build_spec(self, kwargs: Mapping[str, Any]) -> EnvSpec:
        known = class_knowledge(self.env, self.id) or knowledge_for(self.env)
        repeated, told = self.action_repeat > 1, "reward" not in self._learn
        obs_size = int(np.prod(self._flat.space.shape))
        dt, limit = _seconds(self.env), _limit(self.env)
        values: dict[str, Any] = {
            "id": self.id,
            "version": _version(self.env),
            "obs_size": obs_size,
            "action": self._scale.spec,
            "layout": dict(known.layout) or self._flat.layout or {"obs": slice(0, obs_size)},
            "max_episode_steps": None if limit is None else math.ceil(limit / self.action_repeat),
            "action_repeat": self.action_repeat,
            "dt": None if dt is None else dt * self.action_repeat,
            "params": {**known.params, **self.params},
        }
        fingerprint = _fingerprint({**values, "kwargs": dict(kwargs)})
        return EnvSpec(
            **values,
            fingerprint=fingerprint,
            angles=known.angles,
            reward_terms=known.reward_terms if told and not repeated else {},
            reward_complete=known.reward_complete and told and not repeated,
            termination=None if "termination" in self._learn else known.termination,
            costs={} if repeated else known.costs,
            quadratic=known.quadratic if told and not repeated else None,
        )


def try_out(make: Callable[[], BoundaryEnv]) -> None:
    """Build one environment, reset it, take one step, ask its known pieces about a few rows, and close it.

    Raises:
        UserError: it is broken in a way that the first step shows.
    """
    env = make()
    try:
        env.reset(seed=0)
        spec = env.env_spec
        env.step(0 if spec.action.discrete else np.zeros(spec.action.size, dtype=np.float32))
        obs, action = torch.zeros(3, spec.obs_size), torch.zeros(3, spec.action.size)
        spec.known_reward(obs, action, obs)  # raises where a piece does not give a value a row
        if spec.termination is not None:
            spec.known_termination(obs, action, obs)
    finally:
        env.close()


def _raised_by_caller(error: Exception) -> bool:
    """Whether the call or its result was at fault, and not a line of the environment."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in CALLERS


def _not_finite(value: float) -> str:
    return "is too large for float32" if math.isfinite(value) else "is not finite"


def class_knowledge(env: gym.Env[Any, Any], where: str) -> Knowledge | None:
    """What an environment's own class says of its task, or None when it says nothing.

    Raises:
        UserError: a piece that is no static function of three or four arguments.
    """
    base = env.unwrapped
    reward = _static_piece(base, "reward_fn", where)
    termination = _static_piece(base, "termination_fn", where)
    terms = dict(_mapping(base, "reward_terms")) or ({"reward": reward} if reward else {})
    angles, quadratic = tuple(getattr(base, "angles", None) or ()), getattr(base, "quadratic", None)
    if not (terms or termination or angles or quadratic):
        return None
    return Knowledge(
        layout=_mapping(base, "layout"),
        angles=angles,
        reward_terms=terms,
        reward_complete=reward is not None,
        termination=termination,
        costs=_mapping(base, "costs"),
        quadratic=quadratic,
    )


def _static_piece(base: Any, name: str, where: str) -> KnownFunction | None:
    piece = inspect.getattr_static(type(base), name, None)
    if piece is None:
        return None
    if not isinstance(piece, staticmethod):
        fix = "make it a @staticmethod (obs, action, next_obs[, params]) -> [B], batched torch."
        raise UserError(f"{where}: {name}", type(piece).__name__, fix)
    function: KnownFunction = piece.__func__
    count = len(inspect.signature(function).parameters)
    if count not in (3, 4):
        raise UserError(f"{where}: {name}", f"{count} arguments", "it takes (obs, action, next_obs[, params]).")
    return function


def _mapping(base: Any, name: str) -> Mapping[str, Any]:
    value = getattr(base, name, None)
    return value if isinstance(value, Mapping) else {}


def _version(env: gym.Env[Any, Any]) -> str:
    if env.spec is not None and env.spec.version is not None:
        return f"v{env.spec.version}"
    return str(getattr(env.unwrapped, "version", "v0"))


def _limit(env: gym.Env[Any, Any]) -> int | None:
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            return layer._max_episode_steps
        layer = layer.env
    steps = getattr(getattr(layer, "_env", None), "_step_limit", None)  # dm_control counts for itself
    return int(steps) if isinstance(steps, (int, float)) and math.isfinite(steps) else None


def _seconds(env: gym.Env[Any, Any]) -> float | None:
    for name in ("dt", "tau"):
        value = getattr(env.unwrapped, name, None)
        if isinstance(value, (int, float)) and value > 0:
            return float(value)
    return None


def _fingerprint(values: Mapping[str, Any]) -> str:
    """Twelve hex digits that change with anything that changes the task."""
    text = json.dumps(values, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
