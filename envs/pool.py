"""Several environments stepped together, restorable to the bit without pickling anything."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from envs.boundary import BoundaryEnv
from envs.errors import UserError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PoolStep:
    """One step of ``N`` environments. ``next_obs`` is the true successor, at an episode's end too."""

    obs: Floats
    """``[N, D]``"""
    next_obs: Floats
    """``[N, D]``"""
    reward: Floats
    """``[N]``"""
    terminated: Bools
    """``[N]``"""
    truncated: Bools
    """``[N]``"""
    episode: NDArray[np.int64]
    """``[N]``, unique in the pool's life"""
    step: NDArray[np.int64]
    """``[N]``, position of this step in its episode, from 0"""
    sim_state: NDArray[np.float64] | None
    """``[N, S]``: full physics state *before* the step, where the environment offers one"""

    @property
    def ended(self) -> Bools:
        """``[N]``: the episode is over and waits for :meth:`EnvPool.reset_ended`."""
        ended: Bools = self.terminated | self.truncated
        return ended


class VectorEnvLike(Protocol):
    """What a pool asks of the vector environment that holds its slots; answers are in slot order.

    Nothing resets by itself. :class:`gymnasium.vector.SyncVectorEnv` is the model.
    """

    def reset(self, *, seed: Sequence[int], options: Mapping[str, Any] | None) -> tuple[NDArray[Any], Any]:
        """Reset the slots in ``options["reset_mask"]``, all without options; observations ``[N, D]``, and infos.

        Rows of other slots are not read.
        """

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], Bools, Bools, Any]:
        """Observations ``[N, D]``, rewards, terminated and truncated ``[N]``, infos."""

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """The method or attribute ``name`` of every environment."""

    def close(self) -> None:
        """Close every environment."""


Vectorize = Callable[[Sequence[Callable[[], gym.Env[Any, Any]]]], VectorEnvLike]
"""Puts environments together, given a maker for each slot. Makers can be pickled where the pool's own can."""


class EnvPool:
    """``N`` environments of one kind, each episode begun with a seed of its own.

    Args:
        make: builds one environment; called once a slot (in the worker process when ``asynchronous``).
        num_envs: ``N``.
        episode_seed: ``(slot, episode) -> seed`` of the ``episode``-th episode (from 0) of a slot.
        asynchronous: one worker process an environment (:class:`gymnasium.vector.AsyncVectorEnv`); rounds stay
            synchronous, so the data is the same.
        first_episode: number of each slot's first episode; a pool that follows another goes on counting.
        vectorize: holds the environments somewhere else than in this process, such as on Ray's workers
            (``mbrl.distributed``); in place of ``asynchronous``.

    Nothing resets by itself: call :meth:`reset` once, then :meth:`step`, and :meth:`reset_ended` after every step in
    which something ended (calling it after every step is fine).
    """

    def __init__(
        self,
        make: Callable[[], BoundaryEnv],
        num_envs: int,
        episode_seed: Callable[[int, int], int],
        asynchronous: bool = False,
        first_episode: int = 0,
        vectorize: Vectorize | None = None,
    ) -> None:
        if num_envs < 1:
            raise UserError("num_envs", num_envs, "give a whole number of at least 1.")
        if asynchronous and vectorize is not None:
            raise UserError("asynchronous", True, "these environments have workers already: leave it out.")
        self.num_envs, self.vectorize, self._episode_seed = num_envs, vectorize, episode_seed
        makers = [functools.partial(_Slot, make, slot, asynchronous) for slot in range(num_envs)]
        here: Any = AsyncVectorEnv if asynchronous else SyncVectorEnv
        self._envs: Any = vectorize(makers) if vectorize else here(makers, autoreset_mode=AutoresetMode.DISABLED)
        self.spec = self._call("env_spec")[0]
        self._exact: bool = self._call("restorable")[0]
        self._episode = np.full(num_envs, first_episode, dtype=np.int64)
        self._seeds = [0] * num_envs
        self._actions: list[list[NDArray[Any]]] = [[] for _ in range(num_envs)]
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._ended: Bools = np.ones(num_envs, dtype=np.bool_)
        self._obs: NDArray[Any] | None = None
        self._sim: NDArray[np.float64] | None = None

    @property
    def obs(self) -> Floats:
        """The current observations ``[N, D]``."""
        return self._current().astype(np.float32)

    @property
    def is_first(self) -> Bools:
        """``[N]``: the current observation is the first of its episode."""
        return np.equal(self._step, 0)

    @property
    def episode_ids(self) -> NDArray[np.int64]:
        """``[N]``: ids of the open episodes."""
        return self._episode * self.num_envs + np.arange(self.num_envs)

    @property
    def next_episode(self) -> int:
        """A number that no slot's episodes have had yet."""
        return int(self._episode.max()) + 1

    def reset(self) -> Floats:
        """Begin the next episode in every slot (the first one, the first time); observations ``[N, D]``."""
        if self._obs is not None:
            self._episode += 1
        return self._begin(np.ones(self.num_envs, dtype=np.bool_))

    def step(self, actions: Any) -> PoolStep:
        """Act in every slot with ``[N, A]`` in [-1, 1]; discrete: index ``[N]`` or one-hot ``[N, A]``."""
        before = self._current()
        if self._ended.any():
            raise RuntimeError(f"episodes in slots {np.flatnonzero(self._ended).tolist()} ended: call reset_ended()")
        acts = self._as_actions(actions)
        sim, episode, step = self._sim, self.episode_ids, self._step.copy()
        self._obs, reward, terminated, truncated, _ = self._guarded(self._envs.step, acts)
        self._sim = self.sim_states()
        for slot, action in enumerate(acts if not self._exact else ()):
            self._actions[slot].append(action)
        self._step = step + 1
        self._ended = terminated | truncated
        return PoolStep(
            before.astype(np.float32),
            self.obs,
            np.asarray(reward, dtype=np.float32),
            terminated,
            truncated,
            episode,
            step,
            sim,
        )

    def reset_ended(self) -> Floats:
        """Begin the next episode in the slots that ended; current observations ``[N, D]`` of all slots."""
        if self._ended.any():
            self._episode[self._ended] += 1
            self._begin(self._ended.copy())
        return self.obs

    def sim_states(self) -> NDArray[np.float64] | None:
        """Full physics states ``[N, S]`` now, or None where the environment offers none."""
        states = self._call("sim_state")
        return None if states[0] is None else np.stack(states)

    def state_dict(self) -> dict[str, Any]:
        """Where every slot is, in JSON values and tensors: seed, actions since then, current observation."""
        states = self._call("get_state") if self._exact and self._obs is not None else [None] * self.num_envs
        return {
            "num_envs": self.num_envs,
            "fingerprint": self.spec.fingerprint,
            "started": self._obs is not None,
            "slots": [
                {
                    "episode": int(self._episode[slot]),
                    "seed": self._seeds[slot],
                    "step": int(self._step[slot]),
                    "ended": bool(self._ended[slot]),
                    "actions": torch.from_numpy(np.stack(self._actions[slot])) if self._actions[slot] else None,
                    "obs": None if self._obs is None else torch.from_numpy(self._obs[slot].copy()),
                    "state": _to_plain(states[slot]),
                }
                for slot in range(self.num_envs)
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring every slot back: by its own ``set_state``, else by its episode's seed and actions.

        Raises:
            UserError: another number of environments or another task; or a slot that did not come back to the same
                observation, to the bit (then it is not deterministic).
        """
        for field, own in (("num_envs", self.num_envs), ("fingerprint", self.spec.fingerprint)):
            if state[field] != own:
                raise UserError(f"environments: {field}", own, f"the saved state has {state[field]!r}.")
        slots: Sequence[Mapping[str, Any]] = state["slots"]
        self._episode = np.array([slot["episode"] for slot in slots], dtype=np.int64)
        if not state["started"]:
            self._obs = None
            return
        self._begin(np.ones(self.num_envs, dtype=np.bool_), [slot["seed"] for slot in slots])
        plans = [_from_plain({"actions": slot["actions"], "state": slot["state"]}) for slot in slots]
        reached = self._call("restore", plans)
        saved = np.stack([slot["obs"].numpy() for slot in slots])
        start = saved if self._exact else self._current()  # a set_state that returns nothing is taken at its word
        self._actions = [[] if plan["actions"] is None else list(plan["actions"]) for plan in plans]
        self._step = np.array([slot["step"] for slot in slots], dtype=np.int64)
        self._ended = np.array([slot["ended"] for slot in slots], dtype=np.bool_)
        self._obs = np.stack([old if new is None else new for old, new in zip(start, reached, strict=True)])
        self._compare(saved, self._obs)
        self._sim = self.sim_states()

    def close(self) -> None:
        """Close every environment."""
        self._envs.close()

    def _current(self) -> NDArray[Any]:
        if self._obs is None:
            raise RuntimeError("call reset() first")
        return self._obs

    def _begin(self, mask: Bools, seeds: Sequence[int] | None = None) -> Floats:
        """Reset the slots in ``mask``, with their episodes' seeds unless ``seeds`` are given."""
        for slot in np.flatnonzero(mask).tolist():
            self._seeds[slot] = seeds[slot] if seeds else self._episode_seed(slot, int(self._episode[slot]))
            self._actions[slot] = []
        # The first reset must reach every environment; the list is long enough for the masked ones too.
        options = {"reset_mask": mask} if self._obs is not None else None
        fresh, _ = self._guarded(self._envs.reset, seed=list(self._seeds), options=options)
        self._obs = fresh if self._obs is None else np.where(mask[:, None], fresh, self._obs)
        self._step = np.where(mask, 0, self._step)
        self._ended = self._ended & ~mask
        self._sim = self.sim_states()
        return self.obs

    def _as_actions(self, actions: Any) -> NDArray[Any]:
        acts, width = np.asarray(actions), tuple[int, ...]()
        if self.spec.action.discrete:
            index = acts.argmax(-1) if acts.ndim == 2 else acts
            acts = index.astype(np.int64)
        else:
            acts, width = acts.astype(np.float32), (self.spec.action.size,)
        if acts.shape != (self.num_envs, *width):
            raise ValueError(f"actions have shape {acts.shape}, expected {(self.num_envs, *width)}")
        return acts

    def _compare(self, saved: NDArray[Any], reached: NDArray[Any]) -> None:
        for slot, (want, got) in enumerate(zip(saved, reached, strict=True)):
            if not np.array_equal(want, got):
                seen = f"differs by {np.abs(want - got).max():.3g} in slot {slot}"
                fix = (
                    "its episode does not replay to the same observation; offer get_state/set_state, or seed all of it."
                )
                raise UserError(f"{self.spec.id}: restored observation", seen, fix)

    def _call(self, name: str, *args: Any) -> tuple[Any, ...]:
        result: tuple[Any, ...] = self._guarded(self._envs.call, name, *args)
        return result

    def _guarded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the vector environment; a worker's :class:`SlotError` becomes the user's error again."""
        try:
            with warnings.catch_warnings():
                # Gymnasium warns of a worker's error, traceback and all, just before it raises the very same error.
                warnings.filterwarnings("ignore", message="(?s).*ERROR: ", module="gymnasium.vector")
                return function(*args, **kwargs)
        except SlotError as error:
            cause = error.args[0]
            raise UserError(*(cause.args[0] if isinstance(cause, SlotError) else cause)) from error


class SlotError(Exception):
    """A :class:`UserError` on its way out of a worker process: those travel with exactly one argument."""


class _Slot(gym.Wrapper[Any, Any, Any, Any]):
    """One environment of a pool: knows its slot, replays, and keeps infos at home (merging them is slow)."""

    env: BoundaryEnv

    def __init__(self, make: Callable[[], BoundaryEnv], slot: int, in_worker: bool) -> None:
        super().__init__(make())
        self._slot, self._in_worker = slot, in_worker

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._report(self.env.reset, seed=seed, options=options)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self._report(self.env.step, action)
        return obs, reward, terminated, truncated, {}

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._report(self.env.get_state)
        return state

    def restore(self, plans: Sequence[Mapping[str, Any]]) -> Any:
        """From the episode's start, or a ``state``, to where it was ``actions`` later.

        The observation there, None when it is the start or not told.
        """
        plan, obs = plans[self._slot], None
        if plan["state"] is not None:
            obs = self._report(self.env.set_state, plan["state"])
        for action in plan["actions"] if plan["actions"] is not None else ():
            obs = self._report(self.env.step, action)[0]
        return obs

    def _report(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if not self._in_worker:
                raise
            raise SlotError((error.field, str(error.seen), error.fix)) from None


def _to_plain(value: Any) -> Any:
    """Arrays inside ``value`` as tensors, NumPy's numbers as plain ones: a checkpoint holds tensors and JSON only."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _to_plain(sub) for key, sub in value.items()}
    return [_to_plain(sub) for sub in value] if isinstance(value, (list, tuple)) else value


def _from_plain(value: Any) -> Any:
    """Inverse of :func:`_to_plain`: environments see arrays."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, Mapping):
        return {key: _from_plain(sub) for key, sub in value.items()}
    return [_from_plain(sub) for sub in value] if isinstance(value, list) else value
