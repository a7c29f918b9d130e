"""Known rewards, terminations and observation layouts of Gymnasium's tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from envs.knowledge import classic_control
from envs.knowledge.base import Knowledge

__all__ = ["Knowledge", "knowledge_for"]


def knowledge_for(env: gym.Env[Any, Any]) -> Knowledge:
    """What is known of ``env``, with its own weights and ranges; an empty :class:`Knowledge` when nothing is.

    Only the very class is looked up, as a subclass may change the task, and wrappers that change observations,
    rewards or actions make it unknown.
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.ObservationWrapper | gym.RewardWrapper | gym.ActionWrapper):
            return Knowledge()
        layer = layer.env
    build = _table().get(type(layer))
    return Knowledge() if build is None else build(layer)


def _table() -> dict[type, Callable[[Any], Knowledge]]:
    try:
        from envs.knowledge import mujoco
    except gym.error.DependencyNotInstalled:
        return classic_control.TABLE  # without MuJoCo there is no such environment to know anything of
    return classic_control.TABLE | mujoco.TABLE
