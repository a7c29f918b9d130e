"""Implicit Q-learning: expectiles, weights, its three losses by hand, and the bandit that tells it from cloning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.offline.cloning import Cloning
from agents.offline.implicit_q import ImplicitQ, advantage_weight, expectile_loss
from envs.errors import UserError
from mbrl.data.transitions import Transitions
from tests.agents.offline.controls import random_rows, spec_of

GAMMA = 0.99


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def mlp(params: Sequence[Tensor], x: Tensor) -> Tensor:
    for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
        x = torch.relu(x @ weight + bias)
    return (x @ params[-2] + params[-1]).squeeze(-1)


# -- the two functions -------------------------------------------------------------------------------------------------


def expectile(sample: Tensor, tau: float) -> float:
    """The minimiser of the loss over all constants, found on a fine grid."""
    grid = torch.linspace(float(sample.min()), float(sample.max()), 20_001, dtype=torch.float64)
    return float(grid[expectile_loss(sample - grid[:, None], tau).mean(-1).argmin()])


def test_expectiles_of_a_known_sample() -> None:
    sample = torch.tensor([0.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    assert expectile(sample, 0.5) == pytest.approx(3.0, abs=1e-3)  # the mean
    # at 0.9 balance asks 0.1 (3 m - 3) = 0.9 (9 - m)
    assert expectile(sample, 0.9) == pytest.approx(8.4 / 1.2, abs=1e-3)
    assert expectile(sample, 0.999) > 8.9  # nearly the largest


def test_weights_are_clipped_and_have_no_gradient() -> None:
    advantage = torch.tensor([-1e4, -1.0, 0.0, 1.0, 2.0, 1e4], requires_grad=True)
    weight = advantage_weight(advantage, 3.0)
    expected = [0.0, math.exp(-3.0), 1.0, math.exp(3.0), 100.0, 100.0]
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)
    assert not weight.requires_grad


# -- the losses --------------------------------------------------------------------------------------------------------


def small(**options: Any) -> ImplicitQ:
    return ImplicitQ(spec_of(), **{"hidden": 8, "tau": 0.8, "lr": 1e-2, "normalize_obs": False} | options)


def started(**options: Any) -> ImplicitQ:
    """A learner whose targets differ from its critics."""
    learner = small(**options)
    learner.update(random_rows(30, 32), generator())
    return learner


def by_hand(learner: ImplicitQ, rows: Transitions) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by what they move, and their gradients as flat vectors."""
    live = {name: [p.detach().clone().requires_grad_() for p in ps] for name, ps in learner.leaves.items()}
    pairs = torch.cat([rows.obs, rows.action], -1)
    best = mlp(learner.target, pairs).amin(0)
    v = mlp(live["v"], rows.obs)
    u = best - v
    side = torch.where(u.detach() < 0.0, 0.2, 0.8)
    backup = rows.reward + GAMMA * torch.where(rows.terminated, 0.0, mlp(live["v"], rows.next_obs)).detach()
    *network, log_std = live["policy"]
    mean = torch.tanh(learner.policy.network(network, rows.obs))
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(rows.action).sum(-1)
    losses = {
        "policy": -((3.0 * u.detach()).exp().clamp(max=100.0) * log_prob).mean(),
        "q": (mlp(live["q"], pairs) - backup).square().mean(-1).sum(),
        "v": (side * u.square()).mean(),
    }
    gradients = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(losses[name], live[name])]) for name in losses
    }
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def test_three_losses_each_move_their_own_network() -> None:
    learner, batches = started(), random_rows(1, 32, seed=1)
    losses, gradients = by_hand(learner, batches[0])
    for name in losses:
        learner.vectors[f"{name}.mean"].zero_()
    report = learner.update(batches, generator())
    assert report["v_loss"] == pytest.approx(float(losses["v"]), rel=1e-5)
    assert report["critic_loss"] == pytest.approx(float(losses["q"]) / 2, rel=1e-5)
    assert report["actor_loss"] == pytest.approx(float(losses["policy"]), rel=1e-5)
    for name, gradient in gradients.items():  # Adam's first moment after one step
        torch.testing.assert_close(learner.vectors[f"{name}.mean"], 0.1 * gradient, atol=1e-6, rtol=1e-4)


def test_targets_follow_slowly() -> None:
    learner = small(target_share=0.25)
    begin = learner.vectors["target_q"].clone()
    learner.update(random_rows(1, 32), generator())
    torch.testing.assert_close(learner.vectors["target_q"], begin + 0.25 * (learner.vectors["q"] - begin))


def test_only_termination_cuts_the_bootstrap() -> None:
    losses = {}
    for name in ("", "terminated", "truncated"):
        batches = random_rows(1, 32)
        if name:
            setattr(batches, name, ~getattr(batches, name))
        losses[name] = small().update(batches, generator())["critic_loss"]
    assert losses["truncated"] == losses[""]
    assert losses["terminated"] != pytest.approx(losses[""], rel=1e-3)


# -- what it learns ----------------------------------------------------------------------------------------------------


def bandit(updates: int, kind: str = "continuous") -> Transitions:
    """One decision and the end; a fifth of the rows does the good thing, +0.5, and the others -0.5."""
    rows = random_rows(updates, 64, kind=kind)
    rows.terminated = torch.ones_like(rows.terminated)
    good = torch.rand(updates, 64, generator=generator()) < 0.2
    rows.reward = good.float()
    if kind == "discrete":
        rows.action = torch.stack([good, ~good], -1).float()
    else:
        rows.action = torch.where(good, 0.5, -0.5).unsqueeze(-1).expand_as(rows.action).clone()
    return rows


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_it_prefers_the_better_part_of_the_data(kind: str) -> None:
    rows, found = bandit(150, kind), {}
    for name, options in {"iql": {"tau": 0.9, "beta": 10.0}, "beta 0": {"tau": 0.9, "beta": 0.0}}.items():
        learner = ImplicitQ(spec_of(kind), hidden=16, lr=1e-2, **options)
        learner.update(rows, generator())
        found[name] = float(learner.act(rows.obs[0], None)[..., 0].mean())
    assert found["iql"] > 0.3
    assert found["beta 0"] < 0.1  # the mean of all: -0.3, or never the rare choice


def test_the_expectile_decides_whose_value_it_is() -> None:
    rows, found = bandit(200), {}
    for tau in (0.5, 0.9):
        learner = ImplicitQ(spec_of(), tau=tau, hidden=16, lr=1e-2, target_share=0.05)
        learner.update(rows, generator())
        found[tau] = float(learner.value(rows.obs[0]).mean())
    assert found[0.5] == pytest.approx(0.2, abs=0.07)  # of the policy of the data
    assert found[0.9] == pytest.approx(0.9 * 0.2 / (0.9 * 0.2 + 0.1 * 0.8), abs=0.12)


def test_without_advantages_it_is_cloning() -> None:
    rows = random_rows(20, 32)
    learners = [ImplicitQ(spec_of(), beta=0.0, hidden=8, lr=1e-2), Cloning(spec_of(), hidden=8, lr=1e-2)]
    for learner in learners:
        learner.update(rows, generator())
    torch.testing.assert_close(*(learner.act(rows.obs[0], None) for learner in learners))
    other = ImplicitQ(spec_of(), beta=3.0, hidden=8, lr=1e-2)
    other.update(rows, generator())
    assert not torch.allclose(other.act(rows.obs[0], None), learners[1].act(rows.obs[0], None), atol=1e-3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "median of the data's worse half": ({"tau": 0.4}, "tau"),
    "the maximum": ({"tau": 1.0}, "tau"),
    "beta": ({"beta": -1.0}, "beta"),
    "critics": ({"critics": 0}, "critics"),
    "gamma": ({"gamma": 1.5}, "gamma"),
    "targets that stand still": ({"target_share": 0.0}, "target_share"),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        small(**options)
