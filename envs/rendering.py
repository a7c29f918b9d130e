"""Can MuJoCo draw on this machine? Asked in a process of its own, as a missing display can abort the asking one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NO_GL = "no GL backend works here; install one and name it in MUJOCO_GL (egl, osmesa, or glfw with a display)."
_PROBE = (
    "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco/>'); "
    "r = mujoco.Renderer(m, 32, 32); r.update_scene(mujoco.MjData(m)); r.render(); print('drawn')"
)


@functools.cache
def working_gl() -> str | None:
    """The GL backend that MuJoCo can draw with here (a value of ``MUJOCO_GL``), or None.

    A backend that the user has chosen in ``MUJOCO_GL`` is the only one tried. Takes a second or two the first time.
    """
    chosen = os.environ.get("MUJOCO_GL")
    display = ["glfw"] if os.environ.get("DISPLAY") or sys.platform == "darwin" else []
    candidates = [chosen] if chosen else [*display, "egl", "osmesa"]
    return next((backend for backend in candidates if _draws(backend)), None)


@contextmanager
def gl_backend(backend: str) -> Iterator[None]:
    """``MUJOCO_GL`` set to ``backend`` while renderers are built."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


def _draws(backend: str) -> bool:
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=60
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0 and "drawn" in done.stdout
