"""Small learners and random rows for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from envs.spec import ActionSpec, EnvSpec
from mbrl.data.transitions import Transitions

OBS, ACTIONS = 3, 2


def spec_of(kind: str) -> EnvSpec:
    action = (
        ActionSpec("discrete", ACTIONS) if kind == "discrete" else ActionSpec("continuous", ACTIONS, (-1, -1), (1, 1))
    )
    return EnvSpec("toy", "0", "", OBS, action)


@pytest.fixture
def make() -> Callable[..., ActorCritic]:
    """``make(kind="continuous", seed=0, **options)``: a learner of small networks."""

    def build(kind: str = "continuous", seed: int = 0, **options: Any) -> ActorCritic:
        learner = ActorCritic(spec_of(kind), **{"hidden": 8, "lr": 1e-2} | options)
        learner.seed(seed)
        return learner

    return build


@pytest.fixture
def rows() -> Callable[..., Transitions]:
    """``rows(updates, batch, kind="continuous", seed=0)``: random batches ``[U, B, ...]``."""

    def draw(updates: int, batch: int, kind: str = "continuous", seed: int = 0, **extra: Tensor) -> Transitions:
        generator, lead = Generator().manual_seed(seed), (updates, batch)
        obs, next_obs = torch.randn(2, *lead, OBS, generator=generator)
        action = torch.rand(*lead, ACTIONS, generator=generator) * 2 - 1
        if kind == "discrete":
            action = torch.nn.functional.one_hot(action.argmax(-1), ACTIONS).float()
        reward = torch.randn(lead, generator=generator)
        ended = torch.rand(lead, generator=generator) < 0.3
        ids = torch.zeros(lead, dtype=torch.int64)
        return Transitions(obs, action, reward, next_obs, ended, ~ended, ids, ids, ids, extra=extra)

    return draw
