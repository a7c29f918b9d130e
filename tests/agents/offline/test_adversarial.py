"""RAMBO: the adversary moves the model towards outcomes of low value; the policy begins as a copy of the data's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from agents.offline.adversarial import AdversarialStep, Critic, imitate
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import State
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.agents.offline.controls import random_rows, spec_of
from tests.agents.offline.pendulum_data import SPEC, play, wandering

STEPS = 200


def height(obs: Tensor) -> Tensor:
    """A fixed value: high where the pendulum stands, and turns fast."""
    return 10.0 * obs[:, 0] + 0.5 * obs[:, 2].square()


def mean_value(model: ProbabilisticEnsemble, rows: Transitions) -> float:
    with torch.no_grad():
        next_obs, _ = model.predict(State(rows.obs), rows.action).sample(8, Generator().manual_seed(9))
        return float(height(next_obs.flatten(0, 2)).mean())


def test_the_adversary_lowers_the_value_of_outcomes_and_the_likelihood_holds_it_back() -> None:
    draw = Generator().manual_seed(0)
    rows = play(wandering(draw), 10, draw)
    train, held = rows[:1600], rows[1600:]
    values, surprises = {}, {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = ProbabilisticEnsemble(SPEC, members=1, hidden=32, layers=1)
        # few steps: a model that is sure of every outcome has none to choose among
        Fitter(holdout=0.0, max_updates=150, batch_size=128).fit(model, train, Generator().manual_seed(0))
        adversary = AdversarialStep(model, weight, lr=3e-4)
        critic, luck = Critic(height, lambda obs, action: height(obs), 0.99), Generator().manual_seed(1)
        for _ in range(STEPS):
            pick, real = (torch.randint(len(train), (128,), generator=luck) for _ in range(2))
            adversary(train.obs[pick], train.action[pick], train[real], critic, luck)
        values[weight] = mean_value(model, held)
        with torch.no_grad():
            said = model.predict(State(held.obs), held.action).log_prob(held.next_obs, held.reward)
        surprises[weight] = -float(said.mean())
    assert values[1.0] < values[0.0] - 0.1, values
    assert surprises[1.0] < surprises[0.0] + 0.5, surprises


@pytest.mark.parametrize("held", [True, False])
def test_without_weight_it_trains_on_the_data(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real rows become likelier; they do not where their likelihood is left out."""
    model, rows = undertrained()
    before, draw = surprise(model, rows), Generator().manual_seed(1)
    if not held:
        nothing = torch.zeros((), requires_grad=True)
        monkeypatch.setattr(model, "loss", lambda batch: (0.0 * nothing, {}))
    adversary, critic = AdversarialStep(model, 0.0, lr=1e-3), Critic(height, lambda obs, action: height(obs), 0.99)
    for _ in range(50):
        pick, real = torch.randint(len(rows), (2, 128), generator=draw)
        adversary(rows.obs[pick], rows.action[pick], rows[real], critic, draw)
    assert (surprise(model, rows) < before - 0.2) is held


def undertrained() -> tuple[ProbabilisticEnsemble, Transitions]:
    draw = Generator().manual_seed(0)
    rows = play(wandering(draw), 2, draw)
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(SPEC, members=1, hidden=16, layers=1)
    Fitter(holdout=0.0, max_updates=20, batch_size=128).fit(model, rows, draw)
    return model, rows


@torch.no_grad()
def surprise(model: ProbabilisticEnsemble, rows: Transitions) -> float:
    return -float(model.predict(State(rows.obs), rows.action).log_prob(rows.next_obs, rows.reward).mean())


def test_the_scale_of_values_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages are standardised: their unit and their offset change nothing, their sign does."""
    after = []
    for scale, offset in ((1.0, 0.0), (1000.0, 50.0), (-1.0, 0.0)):
        model, rows = undertrained()
        adversary, draw = AdversarialStep(model, 1.0, lr=1e-3), Generator().manual_seed(1)
        monkeypatch.setattr(
            adversary, "_advantage", lambda step, *_, s=scale, o=offset: s * height(step.state.obs).detach() + o
        )
        for _ in range(5):
            adversary(rows.obs, rows.action, rows, Critic(height, lambda obs, action: height(obs), 0.99), draw)
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(after[0], after[1], atol=2e-4, rtol=0.0)
    assert float((after[0] - after[2]).abs().max()) > 2e-3


def test_outcomes_are_weighed_by_the_mixture_of_the_elites() -> None:
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(SPEC, members=3, elites=2, hidden=8, layers=1)
    rows, draw = play(wandering(Generator().manual_seed(0)), 1, Generator().manual_seed(0))[:8], Generator()
    noise = torch.randn(8, model.noise_size, generator=draw)
    step = model.step_with_noise(State(rows.obs), rows.action, noise)
    found = AdversarialStep(model, 1.0, 1e-3)._log_prob(rows.obs, rows.action, step)
    each = model.predict(State(rows.obs), rows.action).log_prob(step.state.obs, step.reward)[:2]
    assert torch.allclose(found, each.exp().mean(0).log(), atol=1e-4)


def test_ended_rows_have_no_value_beyond() -> None:
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(SPEC, members=1, hidden=8, layers=1)
    rows = play(wandering(Generator().manual_seed(0)), 1, Generator().manual_seed(0))[:4]
    step = model.step_with_noise(State(rows.obs), rows.action, torch.zeros(4, model.noise_size))
    step.terminated = torch.tensor([True, False, True, False])
    critic = Critic(lambda obs: torch.full((4,), 7.0), lambda obs, action: torch.full((4,), 2.0), 0.5)
    found = AdversarialStep(model, 1.0, 1e-3)._advantage(step, rows.obs, rows.action, critic)
    assert torch.allclose(found - step.reward, torch.tensor([-2.0, 1.5, -2.0, 1.5]))


@pytest.mark.parametrize("lr", [0.0, 1e-2])
def test_the_policy_is_cloned(lr: float) -> None:
    learner = ActorCritic(spec_of(), hidden=16, layers=1)
    rows, draw = random_rows(64), Generator().manual_seed(0)
    rows.action = torch.tanh(rows.obs[:, :2]) * 0.8
    vectors = {name: vector.clone() for name, vector in learner.vectors.items()}
    errors = [imitate(learner, rows, lr, draw) for _ in range(300)]
    gap = float((learner.act(rows.obs, None) - rows.action).square().mean())
    assert (gap < 0.02 and errors[-1] < 0.2 * errors[0]) == (lr > 0.0)
    assert torch.equal(learner.vectors["critic"], vectors["critic"])
    assert float(learner.vectors["policy"][-1]) == math.log(learner.alpha)
