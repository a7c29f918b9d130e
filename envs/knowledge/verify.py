"""Checks known pieces against the environment itself, on random transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.spec import KnownFunction, takes_params

TOLERANCE = 1e-6
"""Relative to ``1 + |value|``: Gymnasium computes some costs and all classic-control observations in float32."""


class KnownPieces(Protocol):
    """The part that :class:`envs.knowledge.base.Knowledge` and :class:`envs.spec.EnvSpec` share."""

    @property
    def params(self) -> Mapping[str, float]: ...
    @property
    def reward_terms(self) -> Mapping[str, KnownFunction]: ...
    @property
    def reward_complete(self) -> bool: ...
    @property
    def termination(self) -> KnownFunction | None: ...
    @property
    def costs(self) -> Mapping[str, KnownFunction]: ...


@dataclass(frozen=True)
class Mismatch:
    """A known piece that disagrees with the environment."""

    name: str
    max_error: float
    """Largest absolute difference; NaN when the piece could not be checked or gave no number."""
    example: str
    """The worst transition, or why there is none."""

    def __str__(self) -> str:
        return f"{self.name}: off by {self.max_error:.3g}; {self.example}"


@dataclass(frozen=True)
class Recorded:
    """``N`` transitions in environment units, float64 (discrete actions: index)."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    reward: Tensor
    terminated: Tensor
    info: Mapping[str, Tensor]
    """Numbers that the environment reports on every step, ``[N]`` each."""


def verify_knowledge(
    env: gym.Env[Any, Any], known: KnownPieces, steps: int = 2000, seed: int = 0, tolerance: float = TOLERANCE
) -> list[Mismatch]:
    """Compare every known piece with ``env`` (its own action units) on ``steps`` random transitions.

    A reward term or cost is compared with the ``info`` entry of its name where the environment reports one; a
    complete reward is compared as a sum; termination must agree exactly. Returns what disagrees.
    """
    return compare(record(env, steps, seed), known, tolerance)


def compare(recorded: Recorded, known: KnownPieces, tolerance: float = TOLERANCE) -> list[Mismatch]:
    """As :func:`verify_knowledge`, on transitions that were recorded before."""
    params = recorded.obs.new_tensor(list(known.params.values()))
    found: list[Mismatch | None] = []
    values: dict[str, Tensor] = {}
    for name, piece in {**known.reward_terms, **known.costs}.items():
        values[name] = _evaluate(piece, recorded, params)
        if name in recorded.info:
            found.append(_worst(name, recorded.info[name], values[name], recorded, tolerance))
        elif name in known.costs or not known.reward_complete:
            found.append(Mismatch(name, float("nan"), f"cannot be checked: put its value in info[{name!r}]"))
    if known.reward_complete:
        total = sum((values[name] for name in known.reward_terms), torch.zeros_like(recorded.reward))
        found.append(_worst("reward", recorded.reward, total, recorded, tolerance))
    if known.termination is not None:
        ends = _evaluate(known.termination, recorded, params)
        found.append(_worst("termination", recorded.terminated, ends, recorded, 0.0))
    return [mismatch for mismatch in found if mismatch is not None]


def record(env: gym.Env[Any, Any], steps: int, seed: int) -> Recorded:
    """``steps`` random transitions. Actions are held for a random while, so that far states are visited too."""
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    rows: list[tuple[Any, ...]] = []
    infos: list[Mapping[str, Any]] = []
    observation, _ = env.reset(seed=seed)
    action, longest, left = env.action_space.sample(), _longest_hold(rng), 0
    for _ in range(steps):
        if left == 0:
            action, left = _random_action(env, rng), int(rng.integers(1, longest + 1))
        # Copies: some environments hand out an array that they go on writing to.
        before = _flat(env, observation)
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((before, action, _flat(env, observation), float(reward), bool(terminated)))
        infos.append(dict(info))
        left -= 1
        if terminated or truncated:
            observation, _ = env.reset()
            longest, left = _longest_hold(rng), 0
    return _columns(rows, infos)


def _longest_hold(rng: np.random.Generator) -> int:
    return int(2 ** rng.uniform(0, 7))


def _random_action(env: gym.Env[Any, Any], rng: np.random.Generator) -> Any:
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and rng.random() < 0.5:
        return np.where(rng.random(space.shape) < 0.5, space.low, space.high).astype(space.dtype)
    return space.sample()


def _flat(env: gym.Env[Any, Any], observation: Any) -> NDArray[np.float64]:
    if isinstance(env.observation_space, gym.spaces.Dict | gym.spaces.Tuple):
        observation = gym.spaces.flatten(env.observation_space, observation)
    return np.array(observation, dtype=np.float64).reshape(-1)


def _columns(rows: list[tuple[Any, ...]], infos: list[Mapping[str, Any]]) -> Recorded:
    obs, action, next_obs, reward, terminated = (torch.as_tensor(np.array(c)) for c in zip(*rows, strict=True))
    reported = {k for k in infos[0] if all(np.ndim(i.get(k, ())) == 0 and k in i for i in infos)}
    info = {
        k: torch.tensor([float(i[k]) for i in infos], dtype=torch.float64) for k in reported if _number(infos[0][k])
    }
    if action.is_floating_point():
        action = action.double()
    return Recorded(obs, action, next_obs, reward.double(), terminated, info)


def _number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _evaluate(piece: KnownFunction, recorded: Recorded, params: Tensor) -> Tensor:
    arguments = (recorded.obs, recorded.action, recorded.next_obs)
    return piece(*arguments, params) if takes_params(piece) else piece(*arguments)


def _worst(name: str, expected: Tensor, got: Tensor, recorded: Recorded, tolerance: float) -> Mismatch | None:
    if got.shape != expected.shape:
        return Mismatch(name, float("nan"), f"gave shape {tuple(got.shape)} instead of {tuple(expected.shape)}")
    expected, got = expected.double(), got.double()
    error = (expected - got).abs()
    row = int(torch.where(error.isnan(), torch.inf, error / (1.0 + expected.abs())).argmax())
    if bool(error[row] <= tolerance * (1.0 + expected[row].abs())):
        return None
    example = (
        f"environment {expected[row]:.8g}, known piece {got[row]:.8g} at obs {recorded.obs[row].tolist()}, "
        f"action {recorded.action[row].tolist()}, next_obs {recorded.next_obs[row].tolist()}"
    )
    return Mismatch(name, float(error[row]), example)
