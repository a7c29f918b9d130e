"""Between an environment's spaces and flat vectors: what is accepted, how it is laid out, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.errors import UserError
from envs.spec import ActionSpec


class FlatObservation:
    """Flattens a Box, or a Dict/Tuple (nested too) of Boxes, to one vector ``[D]``.

    The vector's dtype is the Boxes' own (the common one when they differ). ``layout`` gives each Box's slice, by its
    key (``"goal"``, ``"arm/position"``, ``"0"``); a bare Box has none.

    Raises:
        UserError: images, Discrete, text and all other kinds of observation, naming the entry.
    """

    def __init__(self, space: spaces.Space[Any], where: str) -> None:
        leaves = list(_leaves(space, (), where))
        self._paths = [path for path, _ in leaves]
        sizes = [int(np.prod(box.shape)) for _, box in leaves]
        ends = np.cumsum(sizes).tolist()
        slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        named = zip(self._paths, slices, strict=True)
        self.layout = {"/".join(map(str, path)): piece for path, piece in named if path}
        dtype = np.result_type(*[box.dtype for _, box in leaves])
        low = np.concatenate([box.low.ravel() for _, box in leaves]).astype(dtype)
        high = np.concatenate([box.high.ravel() for _, box in leaves]).astype(dtype)
        self.space = spaces.Box(low, high, dtype=dtype.type)

    def __call__(self, observation: Any) -> NDArray[Any]:
        """The flat vector, always a fresh array: some environments go on writing to theirs.

        Raises:
            TypeError: the observation, or an entry, is not made of numbers.
        """
        whole = np.concatenate([np.asarray(_entry(observation, path)).ravel() for path in self._paths])
        if whole.dtype.kind not in "fiub":  # None and text would convert, to NaN or to what they spell
            raise TypeError(f"{whole.dtype} is no number")
        return whole.astype(self.space.dtype, copy=False)

    def name_of(self, index: int) -> str:
        """A readable name of one entry of the vector."""
        for name, piece in self.layout.items():
            if piece.start <= index < piece.stop:
                return f"{name}[{index - piece.start}]"
        return f"observation[{index}]"


def _leaves(
    space: spaces.Space[Any], path: tuple[Any, ...], where: str
) -> Iterator[tuple[tuple[Any, ...], spaces.Box]]:
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            yield from _leaves(sub, (*path, key), where)
    elif isinstance(space, spaces.Tuple):
        for index, sub in enumerate(space.spaces):
            yield from _leaves(sub, (*path, index), where)
    else:
        yield path, _checked_box(space, path, where)


def _checked_box(space: spaces.Space[Any], path: tuple[Any, ...], where: str) -> spaces.Box:
    field = f"{where}: observation_space" + "".join(f"[{key!r}]" for key in path)
    if not isinstance(space, spaces.Box):
        fix = "only Box observations, and Dict or Tuple of Boxes, are supported; encode it as numbers in a Box."
        raise UserError(field, space, fix)
    if space.dtype == np.uint8 and len(space.shape) == 3:
        raise UserError(field, space, "image observations are not supported; offer a state vector instead.")
    if int(np.prod(space.shape)) == 0 and not path:
        raise UserError(field, space, "an empty observation cannot be learned from; return at least one number.")
    return space


def _entry(observation: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


class ActionScaling:
    """From platform actions (``[-1, 1]^A`` float32, or an index from 0) to an environment's own.

    Values outside [-1, 1] are clipped.

    Raises:
        UserError: actions that are not a bounded, real-valued Box or Discrete; in a call, what is no index of a choice.
    """

    def __init__(self, space: spaces.Space[Any], where: str) -> None:
        field = f"{where}: action_space"
        self._env_space, self._where = space, where
        if isinstance(space, spaces.Discrete):
            self.spec = ActionSpec("discrete", int(space.n))
            self.space: spaces.Space[Any] = spaces.Discrete(int(space.n))
            self._start = int(space.start)
            return
        box = _checked_action_box(space, field)
        low, high = box.low.ravel().astype(np.float64), box.high.ravel().astype(np.float64)
        self._low, self._half_range = low, 0.5 * (high - low)
        self.spec = ActionSpec("continuous", len(low), tuple(low.tolist()), tuple(high.tolist()))
        self.space = spaces.Box(-1.0, 1.0, (len(low),), np.float32)

    def __call__(self, action: Any) -> Any:
        """A platform action ``[A]`` (or index) in the environment's units, shape and dtype."""
        if self.spec.discrete:
            return checked_index(action, self.spec.size, self._where) + self._start
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        scaled = self._low + (clipped + 1.0) * self._half_range
        return scaled.reshape(self._env_space.shape).astype(self._env_space.dtype)


def checked_index(action: Any, choices: int, where: str) -> int:
    """One discrete action as an index.

    Raises:
        UserError: no whole number from 0 to ``choices - 1``.
    """
    if isinstance(action, (int, np.integer)) and 0 <= action < choices:
        return int(action)
    try:
        chosen = np.asarray(action)
    except (TypeError, ValueError):
        chosen = np.empty(0)
    index = float(chosen.item()) if chosen.size == 1 and chosen.dtype.kind in "fiub" else -1.0
    if not (index.is_integer() and 0 <= index < choices):
        seen = chosen.item() if chosen.size == 1 else action
        raise UserError(f"{where}: action", seen, f"give a whole number from 0 to {choices - 1}")
    return int(index)


def _checked_action_box(space: spaces.Space[Any], field: str) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        fix = "only Box and Discrete actions are supported; turn several choices into one Discrete or into a Box."
        raise UserError(field, space, fix)
    if not np.issubdtype(space.dtype, np.floating):
        raise UserError(field, space, "integer actions in a Box are not supported; use Discrete or a float Box.")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        fix = "unbounded actions are not supported; give finite low and high (gymnasium.wrappers.RescaleAction helps)."
        raise UserError(field, space, fix)
    if space.low.size == 0 or not (space.low < space.high).all():
        raise UserError(field, space, "every action dimension needs low < high.")
    return space
