"""A dynamics model as an environment: one at a time, or many in one call of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import UserError
from envs.spaces import checked_index
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.record import from_dict
from mbrl.imagination.rollout import LEAST_ROWS
from mbrl.imagination.starts import Starts, StartSource, StartTable
from mbrl.models.base import DynamicsModel, State, Step

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Info = dict[str, Any]

NOISE_BLOCK = 64
"""Steps for which a row's random numbers are drawn at once."""


@runtime_checkable
class StepsWithNoise(Protocol):
    """Models whose step takes its random numbers as an argument, so that each row can have a stream of its own."""

    @property
    def noise_size(self) -> int:
        """Numbers a row and step uses."""

    def step_with_noise(self, state: State, action: Tensor, noise: Tensor) -> Step:
        """As ``step``, with standard normal ``noise [B, noise_size]``; a row's result depends on that row alone."""


class _Slots:
    """``N`` episodes inside a model, stepped together.

    Every slot has one random stream, started by its reset seed: it chooses the start state, and gives the noise of
    the slot's steps where the model is a :class:`StepsWithNoise`. Very small batches round differently from larger
    ones, so rows are filled up: an episode alone and among others then differs in the last bits at most.
    """

    def __init__(self, model: DynamicsModel, starts: Tensor | StartSource, slots: int) -> None:
        self.model, self.slots = model, slots
        self.source: StartSource = StartTable(Starts(starts)) if isinstance(starts, Tensor) else starts
        self.rows = slots + -slots % LEAST_ROWS
        self.streams = [torch.Generator() for _ in range(slots)]
        self.shared = torch.Generator()
        self.noise_size = model.noise_size if isinstance(model, StepsWithNoise) else 0
        self.noise = torch.zeros(NOISE_BLOCK, self.rows, self.noise_size)
        self.used = np.zeros(slots, dtype=np.int64)
        self.elapsed = np.zeros(slots, dtype=np.int64)
        self.state: State | None = None

    @property
    def obs(self) -> Floats:
        """``[N, D]``"""
        shown: Floats = self._to_numpy(self.model.decode(self._current()))
        return shown

    def seed(self, seeds: Mapping[int, int]) -> None:
        """Start the streams of these slots anew; and the stream that models share which take no noise."""
        for slot, seed in seeds.items():
            self.streams[slot].manual_seed(seeding.derive_seed(seed, "model-env"))
        if seeds:
            self.shared = seeding.generator(0, "model-env", *seeds.values())

    def begin(self, mask: Bools) -> None:
        """A new episode in the slots of ``mask [N]``."""
        chosen = np.flatnonzero(mask).tolist()
        fresh = Starts.cat([self.source.draw(1, self.streams[slot]) for slot in chosen]).encode(self.model)
        where = torch.zeros(self.rows, dtype=torch.long)
        where[chosen] = torch.arange(len(chosen))
        spread = fresh[where]
        taken = torch.zeros(self.rows, dtype=torch.bool)
        taken[chosen] = True
        self.state = spread if self.state is None else spread.where(taken.to(self._device()), self.state)
        self.elapsed[mask] = 0
        for slot in chosen:
            self._refill(slot)

    def step(self, action: Tensor, active: Bools) -> tuple[Floats, Bools, Bools]:
        """Reward, terminated, truncated ``[N]`` after platform actions ``[N, A]``.

        Slots that are not ``active [N]`` draw no random numbers. A prediction that is no finite number is not taken:
        the slot stays where it is, gets no reward, and is truncated.
        """
        before = self._current()
        device = self._device()
        padded = torch.cat([action, action.new_zeros(self.rows - self.slots, action.shape[1])]).to(device)
        step = self._move(before, padded, active)
        finite = self.model.decode(step.state).isfinite().flatten(1).all(1) & step.reward.isfinite()
        self.state = step.state.where(finite, before)
        self.elapsed[active] += 1
        reward = torch.where(finite, step.reward, torch.zeros_like(step.reward))
        truncated = step.truncated | ~finite
        return self._to_numpy(reward), self._to_numpy(step.terminated & finite), self._to_numpy(truncated)

    def _move(self, state: State, action: Tensor, active: Bools) -> Step:
        if not isinstance(self.model, StepsWithNoise):
            return self.model.step(state, action, self.shared)
        which = torch.zeros(self.rows, dtype=torch.long)
        which[: self.slots] = torch.from_numpy(self.used)
        noise = self.noise[which, torch.arange(self.rows)]
        self.used[active] += 1
        for slot in np.flatnonzero(self.used == NOISE_BLOCK).tolist():
            self._refill(slot)
        return self.model.step_with_noise(state, action, noise.to(action.device))

    def _refill(self, slot: int) -> None:
        self.noise[:, slot] = torch.randn(NOISE_BLOCK, self.noise_size, generator=self.streams[slot])
        self.used[slot] = 0

    def _current(self) -> State:
        if self.state is None:
            raise RuntimeError("call reset() first")
        return self.state

    def _device(self) -> torch.device:
        return self.model.decode(self._current()).device

    def _to_numpy(self, rows: Tensor) -> Any:
        return rows[: self.slots].cpu().numpy().copy()

    def get_state(self, slot: int) -> Info:
        """All that the slot's episode depends on: arrays and plain values."""
        return {
            "state": _arrays(self._current()[slot : slot + 1].to("cpu").to_dict()),
            "stream": self.streams[slot].get_state().numpy(),
            "shared": self.shared.get_state().numpy(),
            "noise": self.noise[:, slot].numpy().copy(),
            "used": int(self.used[slot]),
            "elapsed": int(self.elapsed[slot]),
        }

    def set_state(self, slot: int, saved: Mapping[str, Any]) -> None:
        """Bring back what :meth:`get_state` told."""
        row = from_dict(_tensors(saved["state"])).to(self._device())
        assert isinstance(row, State)
        taken = torch.zeros(self.rows, dtype=torch.bool, device=self._device())
        taken[slot] = True
        self.state = row[torch.zeros(self.rows, dtype=torch.long)].where(taken, self._current())
        self.streams[slot].set_state(torch.from_numpy(np.array(saved["stream"], dtype=np.uint8)))
        self.shared.set_state(torch.from_numpy(np.array(saved["shared"], dtype=np.uint8)))
        self.noise[:, slot] = torch.from_numpy(np.array(saved["noise"], dtype=np.float32))
        self.used[slot], self.elapsed[slot] = int(saved["used"]), int(saved["elapsed"])


class ModelEnv(gym.Env[Floats, Any]):
    """A dynamics model as a Gymnasium environment, in the platform's units.

    Observations are the model's, ``[D]`` float32; actions lie in [-1, 1]^A or are an index. An episode starts in a
    random one of ``starts`` and moves with sampled noise; it is terminated where the model says so, truncated at the
    step limit, outside the model's validity box, or where a prediction is no finite number (which is not shown).
    ``reset(seed=...)`` fixes everything that follows. The model is asked as it is at each step: a fit in between is
    seen, unless ``model.bind()`` is given.

    Args:
        model: any model.
        starts: observations ``[M, D]`` to start from, or a source of start states; on the model's device.
        max_episode_steps: step limit of an episode; None for no limit.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium declares it so)

    def __init__(
        self, model: DynamicsModel, starts: Tensor | StartSource, max_episode_steps: int | None = None
    ) -> None:
        self.max_episode_steps = self._limit = _checked_limit(max_episode_steps)
        self.model_spec = model.spec
        self.observation_space, self.action_space = spaces_of(model.spec)
        self._slots, self._seeded = _Slots(model, starts, 1), False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats, Info]:
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._slots.seed({0: seed})
            self._seeded = True
        self._slots.begin(np.ones(1, dtype=np.bool_))
        obs: Floats = self._slots.obs[0]
        return obs, {}

    def step(self, action: Any) -> tuple[Floats, float, bool, bool, Info]:
        rows = platform_actions(self.model_spec, np.asarray(action)[None])
        reward, terminated, truncated = self._slots.step(rows, np.ones(1, dtype=np.bool_))
        late = self._limit is not None and self._slots.elapsed[0] >= self._limit
        return self._slots.obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]) or bool(late), {}

    def get_state(self) -> Info:
        """All that the episode depends on: arrays and plain values."""
        return self._slots.get_state(0)

    def set_state(self, state: Mapping[str, Any]) -> Floats:
        """Bring back what :meth:`get_state` told; the observation there. Reset at least once before."""
        self._slots.set_state(0, state)
        obs: Floats = self._slots.obs[0]
        return obs


class ModelVectorEnv(gym.vector.VectorEnv[Floats, Any, Any]):
    """``N`` episodes in one model, moved by one call a step; each is what :class:`ModelEnv` with its seed is.

    Where the model draws no random numbers or is a :class:`StepsWithNoise` (an ensemble is) that holds exactly, up to
    the rounding of matrix products, whose order of summation may depend on ``N`` (seen: 1e-7 a step). Other models,
    ``ensemble.bind()`` too, draw the noise of all rows from one stream: then rows are alike in distribution only.

    ``reset(seed=s)`` seeds row ``i`` with ``s + i``; a list gives each its own. All three ways of Gymnasium to begin
    the next episode are offered: ``SAME_STEP`` (the step that ends an episode returns the next one's first
    observation, the last one is in ``infos["final_obs"]``; stable-baselines3 works so), ``NEXT_STEP`` (the next step
    does, whatever the action; RLlib works so) and ``DISABLED`` (``reset(options={"reset_mask": mask})``).

    Args:
        model: any model.
        starts: observations ``[M, D]`` to start from, or a source of start states; on the model's device.
        num_envs: ``N``.
        max_episode_steps: step limit of an episode; None for no limit.
        autoreset_mode: how the next episode begins.
    """

    def __init__(
        self,
        model: DynamicsModel,
        starts: Tensor | StartSource,
        num_envs: int,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        super().__init__()
        if num_envs < 1:
            raise UserError("num_envs", num_envs, "give a whole number of at least 1")
        self.num_envs, self.max_episode_steps = num_envs, _checked_limit(max_episode_steps)
        self.autoreset_mode = autoreset_mode
        self.metadata = {"render_modes": [], "autoreset_mode": autoreset_mode}
        self.model_spec = model.spec
        self.single_observation_space, self.single_action_space = spaces_of(model.spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._slots = _Slots(model, starts, num_envs)
        self._seeded = np.zeros(num_envs, dtype=np.bool_)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[Floats, Info]:
        """All rows begin anew, or those of ``options["reset_mask"] [N]``; observations ``[N, D]`` of all rows."""
        super().reset(seed=int(seed) if isinstance(seed, Integral) else None)
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise UserError("reset_mask", mask, f"give {self.num_envs} truth values, at least one of them true")
        self._seed(self._seeds(seed), mask)
        self._begin(mask)
        return self._slots.obs, {}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence):
            if len(seed) != self.num_envs:
                raise UserError("seed", seed, f"give one seed, or a list of {self.num_envs}")
            return [*seed]
        return [seed + i for i in range(self.num_envs)]

    def _seed(self, seeds: Sequence[int | None], mask: Bools) -> None:
        given: dict[int, int] = {}
        for slot in np.flatnonzero(mask).tolist():
            value = seeds[slot]
            if value is None and not self._seeded[slot]:
                value = int(self.np_random.integers(2**31))
            if value is not None:
                given[slot] = value
        self._slots.seed(given)
        self._seeded[mask] = True

    def _begin(self, mask: Bools) -> None:
        self._slots.begin(mask)
        self._ended = self._ended & ~mask

    def step(self, actions: Any) -> tuple[Floats, NDArray[np.float64], Bools, Bools, Info]:
        waiting = self._ended
        if waiting.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise RuntimeError(f"episodes in rows {np.flatnonzero(waiting).tolist()} ended: reset them by a reset_mask")
        reward, terminated, truncated = self._slots.step(platform_actions(self.model_spec, actions), ~waiting)
        if self.max_episode_steps is not None:
            truncated = truncated | (self._slots.elapsed >= self.max_episode_steps)
        if waiting.any():
            self._begin(waiting)
        reward, terminated, truncated = np.where(waiting, 0.0, reward), terminated & ~waiting, truncated & ~waiting
        self._ended, infos = terminated | truncated, Info()
        if self._ended.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._renew()
        return self._slots.obs, reward.astype(np.float64), terminated, truncated, infos

    def _renew(self) -> Info:
        """Begin the next episode where one ended; where those ended goes to the infos."""
        infos, last = Info(), self._slots.obs
        for slot in np.flatnonzero(self._ended).tolist():
            infos = self._add_info(infos, {"final_obs": last[slot], "final_info": {}}, slot)
        self._begin(self._ended)
        return infos


def spaces_of(spec: EnvSpec) -> tuple[gym.spaces.Box, gym.Space[Any]]:
    """Observation and action space in the platform's units."""
    obs = gym.spaces.Box(-np.inf, np.inf, (spec.obs_size,), np.float32)
    if spec.action.discrete:
        return obs, gym.spaces.Discrete(spec.action.size)
    return obs, gym.spaces.Box(-1.0, 1.0, (spec.action.size,), np.float32)


def platform_actions(spec: EnvSpec, actions: Any) -> Tensor:
    """Actions of an environment's user as ``[N, A]``: clipped to [-1, 1], or one-hot of indices ``[N]``.

    Raises:
        UserError: what is no index of a choice.
    """
    if spec.action.discrete:
        indices = [
            checked_index(action, spec.action.size, spec.id)
            for action in np.atleast_1d(np.asarray(actions, dtype=object))
        ]
        return spec.action.from_env(torch.tensor(indices))
    return torch.as_tensor(np.asarray(actions, dtype=np.float32)).clamp(-1.0, 1.0)


def _checked_limit(steps: int | None) -> int | None:
    if steps is not None and steps < 1:
        raise UserError("max_episode_steps", steps, "give a whole number of at least 1, or None")
    return steps


def _arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().copy()
    return {name: _arrays(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return {name: _tensors(part) for name, part in value.items()} if isinstance(value, Mapping) else value
