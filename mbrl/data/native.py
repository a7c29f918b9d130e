"""Between an environment's own spaces and the platform's rows: whole batches, without building the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.registry import make_env
from envs.spaces import ActionScaling, FlatObservation

Floats = NDArray[np.float32]

OWN_SCHEMES = ("dmc", "tasks")
"""Names before a colon that run the project's own code only"""


class Units:
    """Converts observations and actions of two spaces, ``T`` rows at a time.

    Observations become flat ``[T, D]`` float32 in the layout of :class:`envs.spaces.FlatObservation`; actions become
    ``[T, A]`` float32 in [-1, 1] or one-hot.

    Raises:
        UserError: a space that the platform does not support, naming ``where``.
    """

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], where: str) -> None:
        self.where, self.observation, self.action_space = where, observation, action
        self.obs_size = int(np.prod(FlatObservation(observation, where).space.shape))
        self.action = ActionScaling(action, where).spec
        low, high = (np.asarray(bound, dtype=np.float64) for bound in (self.action.low, self.action.high))
        self._low, self._centre, self._half = low, 0.5 * (low + high), 0.5 * (high - low)

    def flat(self, observations: Any, place: str = "observations") -> Floats:
        """Observations as the space nests them, each entry ``[T, ...]``, as ``[T, D]``.

        Raises:
            UserError: an entry is missing or has another shape; the message names ``place`` and the entry.
        """
        parts = [self._entry(observations, path, box, place) for path, box in leaves(self.observation)]
        if len({len(part) for part in parts}) > 1:
            raise UserError(f"{self.where}: {place}", [len(part) for part in parts], "its entries differ in length")
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _entry(self, observations: Any, path: tuple[Any, ...], box: spaces.Box, place: str) -> Floats:
        field = f"{self.where}: {place}" + "".join(f"[{key!r}]" for key in path)
        for key in path:
            try:
                observations = observations[key]
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(field, "missing", f"the observation space is {self.observation}") from error
        array = np.asarray(observations)
        if array.shape[1:] != box.shape or array.dtype.kind not in "fiub":
            seen = f"{array.dtype} of shape {array.shape}"
            raise UserError(field, seen, f"each row must be numbers of shape {box.shape}, says the observation space")
        return as_float32(array.reshape(len(array), int(np.prod(box.shape))))

    def nested(self, flat: Floats) -> Any:
        """Inverse of :meth:`flat`, in the space's own dtypes.

        Raises:
            UserError: a value that the space's dtype cannot hold exactly.
        """
        return self._nest(self.observation, iter(self._pieces(flat)))

    def _pieces(self, flat: Floats) -> Iterator[NDArray[Any]]:
        start = 0
        for path, box in leaves(self.observation):
            size = int(np.prod(box.shape))
            part = flat[:, start : start + size]
            cast = part.astype(box.dtype)
            if not np.array_equal(as_float32(cast), part, equal_nan=True):
                raise UserError(
                    f"{self.where}: observation {path or ''}", str(box.dtype), "it cannot hold these values"
                )
            yield cast.reshape(len(flat), *box.shape)
            start += size

    def _nest(self, space: spaces.Space[Any], parts: Iterator[NDArray[Any]]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._nest(sub, parts) for key, sub in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._nest(sub, parts) for sub in space.spaces)
        return next(parts)

    def from_native(self, actions: Any, place: str = "actions") -> Floats:
        """Actions ``[T, ...]`` in the environment's units as ``[T, A]``; what is out of bounds is outside [-1, 1].

        Raises:
            UserError: another shape, or an index that is no choice.
        """
        array = np.asarray(actions)
        shape = () if self.action.discrete else self.action_space.shape
        if array.shape[1:] not in (shape, (1,) if self.action.discrete else shape) or array.dtype.kind not in "fiub":
            seen = f"{array.dtype} of shape {array.shape}"
            raise UserError(f"{self.where}: {place}", seen, f"each row must be one of {self.action_space}")
        if self.action.discrete:
            return self._one_hot(array.reshape(-1), place)
        scaled = (array.reshape(len(array), self.action.size).astype(np.float64) - self._centre) / self._half
        return as_float32(scaled)

    def _one_hot(self, actions: NDArray[Any], place: str) -> Floats:
        index = actions - self.start
        wrong = ~((index >= 0) & (index < self.action.size) & (index == np.floor(index)))
        if wrong.any():
            row = int(wrong.argmax())
            fix = f"give a whole number from {self.start} to {self.start + self.action.size - 1}"
            raise UserError(f"{self.where}: {place}, row {row}", actions[row].item(), fix)
        return np.eye(self.action.size, dtype=np.float32)[index.astype(np.int64)]

    @property
    def start(self) -> int:
        """The lowest index of a discrete action."""
        return int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else 0

    def to_native(self, actions: Floats) -> NDArray[Any]:
        """Actions ``[T, A]`` as the environment received them: :class:`envs.spaces.ActionScaling`, row by row."""
        if self.action.discrete:
            return np.asarray(actions.argmax(-1) + self.start, dtype=np.int64)
        scaled = self._low + (np.clip(actions.astype(np.float64), -1.0, 1.0) + 1.0) * self._half
        return scaled.reshape(len(actions), *(self.action_space.shape or ())).astype(self.action_space.dtype)


def platform_units(obs_size: int, action_size: int, where: str) -> Units:
    """Of rows whose environment is not known: flat observations, actions in [-1, 1]."""
    box = spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)
    return Units(box, spaces.Box(-1.0, 1.0, (action_size,), np.float32), where)


def leaves(space: spaces.Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Box]]:
    """The Boxes of a space that :class:`envs.spaces.FlatObservation` accepts, in the order of its vector."""
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            yield from leaves(sub, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, sub in enumerate(space.spaces):
            yield from leaves(sub, (*path, index))
    elif isinstance(space, spaces.Box):
        yield path, space


def as_float32(array: NDArray[Any]) -> Floats:
    """What is too large becomes infinite, and is refused where rows are checked."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def build_env(env: Mapping[str, Any], where: str, named: bool) -> BoundaryEnv:
    """The environment that the ``env`` part of a configuration describes.

    Args:
        env: ``id``, and where it matters ``params``, ``kwargs``, ``action_repeat``, ``max_episode_steps``.
        where: who says so, for messages.
        named: whether the user named it. What only a file names is built where Gymnasium or the project knows it
            already: a file must not choose which modules are imported.

    Raises:
        UserError: it is not installed here, or cannot be built.
    """
    id = env.get("id")
    if not isinstance(id, str) or not id:
        raise UserError(f"{where}: env", id, "give the id of an environment")
    if not named and id not in gym.registry and id.partition(":")[0] not in OWN_SCHEMES:
        fix = "this environment is not installed or not registered here: install its package, or name the environment"
        raise UserError(f"{where}: env", id, fix, gym.registry)
    known = ("params", "action_repeat", "max_episode_steps", "learn")
    told = {key: env[key] for key in known if env.get(key) not in (None, {}, [])}
    kwargs = env.get("kwargs") or {}
    if not isinstance(kwargs, Mapping) or set(kwargs) & {"id", "render_mode", *known}:
        raise UserError(f"{where}: env.kwargs", kwargs, "these are to be the constructor's own arguments, by name")
    try:
        return make_env(id, **told, **kwargs)
    except UserError as error:
        raise error.within(where) from error
