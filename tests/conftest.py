"""What every test shares: one thread a process, and rendering only where it works."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from torch import Generator

torch.set_num_threads(1)

_RENDER_ONE_FRAME = """
import gymnasium
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array")
env.reset(seed=0)
assert env.render() is not None
"""


@functools.cache
def can_render() -> bool:
    """Whether MuJoCo draws a frame here; tried in another process, because a broken GL may abort it."""
    try:
        tried = subprocess.run([sys.executable, "-c", _RENDER_ONE_FRAME], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("render") and not can_render():
        pytest.skip("no GL backend draws here (try MUJOCO_GL=egl)")


@pytest.fixture
def generator() -> Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
