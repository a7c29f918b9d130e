"""Quadratic forms: what an environment declares, and what is fitted to rewards."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from envs.spec import ActionSpec, EnvSpec, QuadraticCost
from mbrl.data.transitions import Transitions
from mbrl.models.quadratic import QuadraticForm, QuadraticReward
from mbrl.models.quadratic_fit import fit_convex


def make_spec(obs_size: int, actions: int = 1, low: float = -1.0, high: float = 1.0) -> EnvSpec:
    action = ActionSpec("continuous", actions, (low,) * actions, (high,) * actions)
    goal, q = (1.0,) * obs_size, tuple(tuple(float(i == j) for j in range(obs_size)) for i in range(obs_size))
    r = tuple(tuple(0.3 + 0.7 * (i == j) for j in range(actions)) for i in range(actions))
    return EnvSpec("Toy-v0", "0", "0", obs_size, action, quadratic=QuadraticCost(q, r, goal))


def rows(next_obs: Tensor, action: Tensor, reward: Tensor) -> Transitions:
    no, ids = torch.zeros(len(reward), dtype=torch.bool), torch.arange(len(reward))
    return Transitions(next_obs, action, reward, next_obs, no, no, ids, ids, ids)


def draws(generator: Generator, obs_size: int, actions: int, count: int = 1500) -> tuple[Tensor, Tensor]:
    obs = 1.0 + 3.0 * torch.randn(count, obs_size, generator=generator)
    return obs, torch.rand(count, actions, generator=generator) * 2 - 1


@pytest.mark.parametrize("env", ["mbrl/DoubleIntegrator-v0", "mbrl/MassSpringDamper-v0"])
def test_a_declared_cost_is_minus_the_reward(env: str, generator: Generator) -> None:
    spec = env_spec(env)
    form = QuadraticForm.declared(spec)
    assert form is not None
    obs, action = (x.double() for x in draws(generator, spec.obs_size, 1))
    torch.testing.assert_close(form.cost(obs, action), -spec.known_reward(obs, action, obs))


def test_declared_actions_are_in_environment_units(generator: Generator) -> None:
    spec = make_spec(2, 2, low=-1.0, high=5.0)  # not centred: a linear term and a constant
    form, cost = QuadraticForm.declared(spec), spec.quadratic
    assert form is not None
    assert cost is not None
    obs, action = (x.double() for x in draws(generator, 2, 2))
    env_action, off = spec.action.to_env(action), obs - 1.0
    r = torch.tensor(cost.r, dtype=torch.float64)
    wanted = off.square().sum(-1) + ((env_action @ r) * env_action).sum(-1)
    torch.testing.assert_close(form.cost(obs, action), wanted)
    torch.testing.assert_close(form.minimiser(), torch.ones(2, dtype=torch.float64))


def test_discrete_actions_have_no_quadratic_cost() -> None:
    spec = EnvSpec("T", "0", "0", 1, ActionSpec("discrete", 2), quadratic=QuadraticCost(((1.0,),), ((1.0,),), (0.0,)))
    with pytest.raises(UserError, match="discrete"):
        QuadraticForm.declared(spec)


def test_the_fit_finds_a_convex_form(generator: Generator) -> None:
    spec = make_spec(3, 2, low=-1.0, high=5.0)
    true = QuadraticForm.declared(spec)
    assert true is not None
    obs, action = draws(generator, 3, 2)
    reward = QuadraticReward(spec)
    assert reward.r2 == -torch.inf
    reward.fit(rows(obs, action, -true.cost(obs, action).float()))
    assert float(reward.r2) == pytest.approx(1.0, abs=1e-6)
    for found, wanted in zip(reward.form()._values(), true._values(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    reward.fit(rows(obs, action, -true.cost(obs, action).float()[torch.randperm(1500, generator=generator)]))
    assert float(reward.r2) < 0.1  # the control: rewards of other rows


def test_a_concave_part_is_cut_off(generator: Generator) -> None:
    obs, action = (x.double() for x in draws(generator, 2, 1))
    (p, *_), r2 = fit_convex(obs, action, obs[:, 0].square() - obs[:, 1].square())
    assert torch.linalg.eigvalsh(p).min() > -1e-9
    assert p[0, 0] == pytest.approx(1.0, abs=0.05)
    assert 0.3 < r2 < 0.9


def test_no_other_convex_form_is_better(generator: Generator) -> None:
    """On a circle ``-cos^2`` is ``sin^2 - 1``: cutting the least-squares form misses it, descending does not."""
    angle = (torch.rand(1000, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    obs = torch.stack([angle.cos(), angle.sin()], -1)
    (p, *_), r2 = fit_convex(obs, torch.zeros(1000, 1, dtype=torch.float64), -angle.cos().square())
    assert r2 > 0.999
    assert torch.linalg.eigvalsh(p).min() > -1e-9


def test_entries_that_never_change_and_constant_rewards() -> None:
    spec = make_spec(3)
    obs, action = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(50, 1)
    obs[:, 1] = 7.0
    reward = QuadraticReward(spec)
    reward.fit(rows(obs, action, -obs[:, 0].square()))
    assert float(reward.r2) == pytest.approx(1.0, abs=1e-5)
    assert all(value.isfinite().all() for value in reward.form()._values())
    reward.fit(rows(obs, action, torch.full((50,), 2.0)))
    assert reward.r2 == 0.0  # nothing to explain


def test_everything_is_saved(generator: Generator) -> None:
    spec = make_spec(2)
    obs, action = draws(generator, 2, 1, 100)
    one, other = QuadraticReward(spec), QuadraticReward(spec)
    one.fit(rows(obs, action, -obs.square().sum(-1)))
    other.load_state_dict(one.state_dict())
    assert other.r2 == one.r2
    for a, b in zip(one.form()._values(), other.form()._values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_wide_observation_stays_cheap(generator: Generator) -> None:
    spec = make_spec(100)
    obs, action = draws(generator, 100, 1, 10_000)
    reward = QuadraticReward(spec)
    began = time.process_time()
    reward.fit(rows(obs, action, -obs.square().sum(-1)))
    assert time.process_time() - began < 1.0  # all products of 100 entries would take a minute
    assert float(reward.r2) == pytest.approx(1.0, abs=1e-5)
