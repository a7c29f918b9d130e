"""A small system (position, velocity, angles) that shows itself in every kind of observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, Angle, EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.base import State
from mbrl.models.ensemble import ProbabilisticEnsemble

LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[Angle, ...]]] = {
    "plain": (("p", "v"), ()),
    "pair": (("p", "cos", "v", "sin"), (Angle(cos=1, sin=3),)),
    "raw": (("theta", "p", "v"), (Angle(raw=0),)),
    "wrapped": (("v", "phi", "p"), (Angle(raw=1, wrapped=True),)),
    "mixed": (
        ("sin", "phi", "p", "cos", "theta", "v"),
        (Angle(raw=4), Angle(cos=3, sin=0), Angle(raw=1, wrapped=True)),
    ),
}
DRIFT_REWARD = 0.5


@dataclass(frozen=True)
class Reward:
    """``p' - 0.1 v^2 - 0.05 a``, written for rows ``[B, ...]``."""

    p: int
    v: int

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        effort = action.float() if action.dim() == 1 else action[:, 0]
        return next_obs[:, self.p] - 0.1 * obs[:, self.v] ** 2 - 0.05 * effort


@dataclass(frozen=True)
class TooFar:
    p: int

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[:, self.p] > 0.8


def wrap(angle: Tensor) -> Tensor:
    return torch.atan2(angle.sin(), angle.cos())


@dataclass(frozen=True)
class System:
    """The system under one layout, and what its spec tells."""

    layout: str = "pair"
    reward: str = "known"  # known, learned, or partly (the rest is DRIFT_REWARD * sin(theta))
    end: str = "known"  # or learned
    discrete: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return LAYOUTS[self.layout][0]

    @property
    def spec(self) -> EnvSpec:
        p, v = self.names.index("p"), self.names.index("v")
        return EnvSpec(
            id="System-v0",
            version="0",
            fingerprint="0",
            obs_size=len(self.names),
            action=ActionSpec("discrete", 3) if self.discrete else ActionSpec("continuous", 1, (-2.0,), (2.0,)),
            angles=LAYOUTS[self.layout][1],
            reward_terms={} if self.reward == "learned" else {"reward": Reward(p, v)},
            reward_complete=self.reward == "known",
            termination=TooFar(p) if self.end == "known" else None,
        )

    def show(self, p: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        columns = {"p": p, "v": v, "theta": theta, "cos": theta.cos(), "sin": theta.sin(), "phi": wrap(2 * theta)}
        return torch.stack([columns[name] for name in self.names], -1)

    def data(self, rows: int, seed: int = 0, spread: float = 1.0) -> Transitions:
        """Random transitions; angles anywhere, also across the seam."""
        generator = torch.Generator().manual_seed(seed)
        p, v = (spread * (2 * torch.rand(2, rows, generator=generator) - 1)).unbind(0)
        theta = math.pi * (2 * torch.rand(rows, generator=generator) - 1)
        if self.discrete:
            choice = torch.randint(3, (rows,), generator=generator)
            action, push = torch.nn.functional.one_hot(choice, 3).float(), choice - 1.0
        else:
            action = 2 * torch.rand(rows, 1, generator=generator) - 1
            push = action[:, 0]
        obs = self.show(p, v, theta)
        next_v = v + 0.2 * push - 0.1 * theta.sin()
        next_theta = theta + 0.3 * next_v
        next_obs = self.show(p + 0.1 * next_v, next_v, next_theta)
        spec = System(self.layout, "known", "known", self.discrete).spec
        reward = spec.known_reward(obs, action, next_obs)
        if self.reward == "partly":
            reward = reward + DRIFT_REWARD * theta.sin()
        ids = torch.arange(rows)
        ended = next_obs[:, self.names.index("p")] > 0.8
        return Transitions(obs, action, reward, next_obs, ended, ids < 0, ids, ids * 0, ids * 0)


def ready(system: System, rows: int = 300, seed: int = 0, **options: Any) -> ProbabilisticEnsemble:
    """An ensemble with statistics of real data and weights of some size everywhere, log-variance included."""
    torch.manual_seed(seed)
    model = ProbabilisticEnsemble(system.spec, **{"members": 3, "hidden": 16, **options})
    model.prepare(system.data(rows, seed))
    with torch.no_grad():
        for bias in model.biases:
            bias.normal_(0.0, 0.3)
        model.max_log_var.add_(torch.randn_like(model.max_log_var))
        model.min_log_var.normal_(-4.0, 0.5)
        if model.learns_end:  # about half of the rows end
            data = system.data(rows, seed)
            logit = model.predict(State(data.obs), data.action).end_logit
            assert logit is not None
            model.biases[-1][..., -1:] -= logit.median(1, keepdim=True).values
    return model


def constant_drift(drifts: list[float], **options: Any) -> ProbabilisticEnsemble:
    """Deterministic members of which member ``e`` moves every entry of the plain observation by ``drifts[e]``."""
    spec = System("plain", "known", "known").spec
    model = ProbabilisticEnsemble(spec, members=len(drifts), hidden=4, probabilistic=False, **options)
    with torch.no_grad():
        for parameter in [*model.weights, *model.biases]:
            parameter.zero_()
        model.biases[-1].copy_(torch.tensor(drifts).view(-1, 1, 1).expand(-1, 1, 2))
    return model


@pytest.fixture
def system() -> type[System]:
    return System


@pytest.fixture
def make_ready() -> Callable[..., ProbabilisticEnsemble]:
    return ready


@pytest.fixture
def drifting() -> Callable[..., ProbabilisticEnsemble]:
    return constant_drift


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def seeded_generator() -> Callable[[int], Generator]:
    return lambda seed: torch.Generator().manual_seed(seed)
