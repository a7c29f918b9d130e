"""Whole batches between native spaces and platform units agree with the environment's edge, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from envs.errors import UserError
from envs.spaces import ActionScaling, FlatObservation
from mbrl.data.native import Units

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
NESTED = spaces.Dict(
    {
        "goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "arm": spaces.Tuple([spaces.Box(-9, 9, (2, 2), np.float32), spaces.Box(0, 9, (1,), np.int64)]),
    }
)
ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 7.0], np.float32)),
    spaces.Box(-3.0, 1.0, (2, 2), np.float64),
    spaces.Discrete(3, start=-1),
]


def test_observations_are_flattened_as_the_environment_does() -> None:
    units, one = Units(NESTED, BOX, "set"), FlatObservation(NESTED, "set")
    NESTED.seed(0)
    samples = [NESTED.sample() for _ in range(5)]
    batch = {
        "goal": np.stack([s["goal"] for s in samples]).astype(np.float32).astype(np.float64),
        "arm": tuple(np.stack([s["arm"][i] for s in samples]) for i in range(2)),
    }
    flat = units.flat(batch)
    assert np.array_equal(flat, np.stack([one(s) for s in samples]).astype(np.float32))
    back = units.nested(flat)
    assert np.array_equal(back["goal"], batch["goal"])
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(back["arm"], batch["arm"], strict=True))


@pytest.mark.parametrize("space", ACTIONS)
def test_actions_are_scaled_as_the_environment_does(space: spaces.Space[Any]) -> None:
    units, one = Units(BOX, space, "set"), ActionScaling(space, "set")
    if one.spec.discrete:
        platform = np.eye(3, dtype=np.float32)
        expected = np.array([one(i) for i in range(3)])
    else:
        platform = np.random.default_rng(0).uniform(-1, 1, (5, one.spec.size)).astype(np.float32)
        expected = np.stack([one(row) for row in platform])
    native = units.to_native(platform)
    assert np.array_equal(native, expected)
    assert np.allclose(units.from_native(native), platform, atol=1e-6)


def test_wrong_shapes_are_named() -> None:
    units = Units(NESTED, ACTIONS[2], "set")
    good = {"goal": np.zeros((4, 2)), "arm": (np.zeros((4, 2, 2)), np.zeros((4, 1)))}
    assert units.flat(good).shape == (4, 7)
    with pytest.raises(UserError, match=r"observations\['goal'\].*\(4, 3\)"):
        units.flat(good | {"goal": np.zeros((4, 3))})
    with pytest.raises(UserError, match=r"observations\['arm'\].*missing"):
        units.flat({"goal": np.zeros((4, 2))})
    with pytest.raises(UserError, match="differ in length"):
        units.flat(good | {"goal": np.zeros((3, 2))})
    with pytest.raises(UserError, match=r"actions, row 1: 2.*from -1 to 1"):
        units.from_native(np.array([0, 2]))
    with pytest.raises(UserError, match="cannot hold"):
        units.nested(np.full((1, 7), 0.5, np.float32))  # half an integer


def test_images_are_refused() -> None:
    with pytest.raises(UserError, match="image observations"):
        Units(spaces.Box(0, 255, (64, 64, 3), np.uint8), BOX, "set")
