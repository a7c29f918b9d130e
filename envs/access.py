"""Reading the full physics state of the simulators that the platform knows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


def mujoco_handles(env: gym.Env[Any, Any]) -> tuple[Any, Any] | None:
    """``(MjModel, MjData)`` of a Gymnasium MuJoCo task or of a dm_control task, or None."""
    base = env.unwrapped
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    if not _is_mujoco(model):
        physics = getattr(base, "physics", None) or getattr(getattr(base, "_env", None), "physics", None)
        model = getattr(getattr(physics, "model", None), "ptr", None)
        data = getattr(getattr(physics, "data", None), "ptr", None)
    return (model, data) if _is_mujoco(model) else None


def _is_mujoco(model: object) -> bool:
    return type(model).__module__.startswith("mujoco") and type(model).__name__ == "MjModel"


def is_classic(env: gym.Env[Any, Any]) -> bool:
    """Whether this is one of Gymnasium's classic-control tasks."""
    return type(env.unwrapped).__module__.startswith("gymnasium.envs.classic_control")


def sim_state(env: gym.Env[Any, Any]) -> NDArray[np.float64] | None:
    """The full physics state ``[S]`` in float64, or None where the environment offers none.

    MuJoCo: ``mjSTATE_FULLPHYSICS``; classic control: the environment's ``state``; any other environment: what its
    own method ``sim_state()`` returns.
    """
    base: Any = env.unwrapped
    if callable(getattr(base, "sim_state", None)):
        return np.array(base.sim_state(), dtype=np.float64)
    if is_classic(env):
        return None if base.state is None else np.array(base.state, dtype=np.float64)
    handles = mujoco_handles(env)
    return None if handles is None else mujoco_state(*handles)


def mujoco_state(model: Any, data: Any, kind: Any = None) -> NDArray[np.float64]:
    """A state vector ``[S]`` of that ``mjtState``; None: ``mjSTATE_FULLPHYSICS``."""
    import mujoco  # optional for users of other simulators

    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS if kind is None else kind
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state
