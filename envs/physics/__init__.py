"""True dynamics of Gymnasium's tasks as batched functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from envs.errors import UserError
from envs.physics import classic_control
from envs.physics.base import Physics

__all__ = ["Physics", "physics_for"]


def physics_for(env: gym.Env[Any, Any], threads: int = 1) -> Physics:
    """The true dynamics of ``env`` with the parameters it has now; later changes of ``env`` do not reach them.

    Args:
        env: an environment whose innermost class is one of Gymnasium's; wrappers are looked through.
        threads: threads that simulate, where the simulation is MuJoCo's.

    Raises:
        UserError: no physics is known for this environment.
    """
    inner = env.unwrapped
    table = _table(threads)
    if type(inner) in table:
        return table[type(inner)](inner)
    seen = env.spec.id if env.spec is not None else type(inner).__name__
    known = sorted(kind.__name__.removesuffix("Env") for kind in table)
    why = f"its true dynamics are not offered as batched functions; they are for {', '.join(known)}"
    raise UserError("physics", seen, why, known)


def _table(threads: int) -> dict[type, Callable[[Any], Physics]]:
    table: dict[type, Callable[[Any], Physics]] = dict(classic_control.TABLE.items())
    try:
        from envs.physics import mujoco
    except gym.error.DependencyNotInstalled:
        return table  # without MuJoCo there is no such environment to simulate
    for kind, build in mujoco.TABLE.items():
        table[kind] = _threaded(build, threads)
    return table


def _threaded(build: Callable[[Any, int], Physics], threads: int) -> Callable[[Any], Physics]:
    return lambda env: build(env, threads)
