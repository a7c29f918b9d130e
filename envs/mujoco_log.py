"""MuJoCo's own warnings, said once each instead of once for every instance, and not into a file where one stands."""

from __future__ import annotations

import logging

_seen: set[str] = set()


def say_warnings_once() -> None:
    """Send every distinct MuJoCo warning to the logger ``envs.mujoco``, once a process."""
    import mujoco

    mujoco.set_mju_user_warning(_say)


def _say(message: str) -> None:
    if message not in _seen:
        _seen.add(message)
        logging.getLogger("envs.mujoco").warning("MuJoCo: %s", message)
