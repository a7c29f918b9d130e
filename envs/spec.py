"""What the platform knows of an environment.

An :class:`EnvSpec` is the contract between an environment and everything above it: shapes, action units,
time limits, and the pieces of the task that are *known* as functions, so that no model wastes capacity on them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from envs.errors import UserError

KnownFunction = Callable[..., Tensor]
"""``(obs [B, D], action [B, A], next_obs [B, D][, params [K]]) -> [B]``: picklable, batched torch, environment units.

Discrete actions arrive as their index, ``[B]``. Leave ``params`` out of the signature when the piece does not
depend on the physics parameters.
"""


@dataclass(frozen=True)
class ActionSpec:
    """Kind and units of an action.

    Inside the platform a continuous action lies in ``[-1, 1]`` and a discrete one is one-hot; ``to_env`` gives the
    environment's own units.
    """

    kind: Literal["continuous", "discrete"]
    size: int
    """Width of the platform's action vector: dimensions of a Box, choices of a Discrete."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def discrete(self) -> bool:
        return self.kind == "discrete"

    def to_env(self, action: Tensor) -> Tensor:
        """Platform action ``[..., A]`` to environment units: ``[..., A]``, or the index ``[...]`` when discrete."""
        if self.discrete:
            return action.argmax(-1)
        low, high = self._bounds(action)
        return low + (action + 1.0) * 0.5 * (high - low)

    def from_env(self, action: Tensor) -> Tensor:
        """Inverse of :meth:`to_env`."""
        if self.discrete:
            return torch.nn.functional.one_hot(action.long(), self.size).float()
        low, high = self._bounds(action)
        return (action - low) / (high - low) * 2.0 - 1.0

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low), like.new_tensor(self.high)


@dataclass(frozen=True)
class Angle:
    """An angle in the observation, so that models can predict its *difference* and advance it by rotation.

    Either a pair of entries ``cos``/``sin``, or one ``raw`` entry in radians (``wrapped`` when the environment
    folds it into (-pi, pi]).
    """

    cos: int | None = None
    sin: int | None = None
    raw: int | None = None
    wrapped: bool = False

    def __post_init__(self) -> None:
        pair = self.cos is not None and self.sin is not None
        if pair == (self.raw is not None):
            raise ValueError(f"Angle: give either cos and sin, or raw; got {self}")


@dataclass(frozen=True)
class QuadraticCost:
    """``(obs - goal)' Q (obs - goal) + action' R action``: reward is minus this cost, action in environment units."""

    q: tuple[tuple[float, ...], ...]
    r: tuple[tuple[float, ...], ...]
    goal: tuple[float, ...]


@dataclass(frozen=True)
class EnvSpec:
    """Everything known about one environment. Frozen and picklable.

    ``reward_terms`` are the terms of the reward that are exact functions of ``(obs, action, next_obs)``;
    when ``reward_complete`` their sum *is* the reward, otherwise a model learns the rest. ``termination`` is None
    when it is not known (a model learns it).
    """

    id: str
    version: str
    fingerprint: str
    obs_size: int
    action: ActionSpec
    layout: Mapping[str, slice] = field(default_factory=dict)
    max_episode_steps: int | None = None
    action_repeat: int = 1
    dt: float | None = None
    """Seconds per decision."""
    params: Mapping[str, float] = field(default_factory=dict)
    """Physics parameters in force, by name; known pieces get their values as a vector in this order."""
    angles: tuple[Angle, ...] = ()
    reward_terms: Mapping[str, KnownFunction] = field(default_factory=dict)
    reward_complete: bool = False
    termination: KnownFunction | None = None
    costs: Mapping[str, KnownFunction] = field(default_factory=dict)
    quadratic: QuadraticCost | None = None

    def __post_init__(self) -> None:
        for name in ("layout", "params", "reward_terms", "costs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in values.items()}
        return _rebuild_spec, (plain,)

    def known_reward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Sum of the known reward terms, ``[B]``; ``action`` in platform units."""
        env_action = self.action.to_env(action)
        total = obs.new_zeros(torch.broadcast_shapes(obs.shape[:-1], action.shape[:-1], next_obs.shape[:-1]))
        for term in self.reward_terms.values():
            total = total + self._call(term, obs, env_action, next_obs)
        return total

    def known_termination(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Whether ``next_obs`` ends the episode, ``[B]`` bool. Ask only when ``termination`` is known."""
        if self.termination is None:
            raise ValueError(f"{self.id}: termination is not known; let the model learn it")
        return self._call(self.termination, obs, self.action.to_env(action), next_obs).bool()

    def known_cost(self, name: str, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Constraint cost of that name, ``[B]``; ``action`` in platform units."""
        if name not in self.costs:
            known = ", ".join(self.costs) or "none"
            raise UserError("cost", name, f"{self.id} knows these constraint costs: {known}", self.costs)
        return self._call(self.costs[name], obs, self.action.to_env(action), next_obs)

    def _call(self, function: KnownFunction, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Known pieces are written for one batch dimension, so leading ones (particles, members) are folded into it."""
        widths = (1, 0 if self.action.discrete else 1, 1)
        inputs = [
            (x, x.shape[: x.dim() - w], x.shape[x.dim() - w :])
            for x, w in zip((obs, action, next_obs), widths, strict=True)
        ]
        lead = torch.broadcast_shapes(*(shape for _, shape, _ in inputs))
        rows = [x.expand(*lead, *own).reshape(lead.numel(), *own) for x, _, own in inputs]
        if takes_params(function):
            rows.append(obs.new_tensor(list(self.params.values())))
        found = function(*rows)
        if found.shape != (lead.numel(),):
            name = getattr(function, "__qualname__", type(function).__name__)
            fix = f"for {lead.numel()} rows it must give shape ({lead.numel()},): one value a row"
            raise UserError(f"{self.id}: {name}", tuple(found.shape), fix)
        return found.reshape(lead)


def _rebuild_spec(values: dict[str, Any]) -> EnvSpec:
    return EnvSpec(**values)


@functools.lru_cache(maxsize=512)
def takes_params(function: KnownFunction) -> bool:
    """Whether a known piece wants the physics vector as a fourth argument."""
    return len(inspect.signature(function).parameters) >= 4


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Termination of a task that never ends: ``[B]`` of False."""
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device)
