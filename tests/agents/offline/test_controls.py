"""The model-free controls: the cloning term, exact state, and how they rank on Pendulum data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic, BehaviourCloning, Conservative, GradientDiversity
from agents.actor_critic.terms import ActorContext
from agents.offline.base import OfflineAgent
from agents.offline.implicit_q import ImplicitQ
from envs.errors import UserError
from experiments.config import resolve
from mbrl.clock import Clock
from tests.agents.offline import pendulum_data
from tests.agents.offline.controls import CONTROLS, TD3, agent_of, learn, random_rows, spec_of, tensors


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


# -- the cloning term --------------------------------------------------------------------------------------------------


def context(chosen: Tensor, action: Tensor, scale: float = 2.0) -> ActorContext:
    """Values that are the sum of the action, times ``scale``."""
    return ActorContext(chosen, action, scale * chosen.sum(-1), torch.mean)


def test_the_term_weighs_values_by_their_size() -> None:
    chosen, action = torch.rand(16, 2, generator=generator()), torch.rand(16, 2, generator=generator(1))
    for scale in (2.0, 2000.0):
        seen = context(chosen, action, scale)
        total = BehaviourCloning(2.5)(-seen.value.mean(), seen)
        expected = -2.5 + torch.nn.functional.mse_loss(chosen, action)
        torch.testing.assert_close(total, expected)


def test_lambda_has_no_gradient() -> None:
    action = torch.rand(16, 2, generator=generator())
    chosen = action.clone().requires_grad_()  # where the square is flat
    seen = context(chosen, action)
    (gradient,) = torch.autograd.grad(BehaviourCloning(2.5)(-seen.value.mean(), seen), chosen, retain_graph=True)
    weight = 2.5 / float(seen.value.detach().abs().mean())
    torch.testing.assert_close(gradient, torch.full_like(gradient, -weight * 2.0 / 16))
    # through lambda too, values of one sign would have no gradient at all: -E[Q] / E|Q| is constant
    through = -2.5 * seen.value.mean() / seen.value.abs().mean()
    assert float(torch.autograd.grad(through, chosen)[0].abs().max()) < 1e-6


def flat(**options: Any) -> ActorCritic:
    """A deterministic learner whose critics are 0 and, without rewards, stay so."""
    learner = ActorCritic(spec_of(), **TD3, hidden=16, lr=1e-2, **options)
    for name in ("critic", "target_critic"):
        learner.vectors[name].zero_()
    return learner


def test_where_values_are_flat_the_policy_goes_to_the_data() -> None:
    rows = random_rows(150, 64)
    rows.action, rows.reward = 0.5 * rows.obs[..., :2].sign(), torch.zeros(150, 64)
    gaps = {}
    for name, terms in {"td3bc": [BehaviourCloning()], "td3": []}.items():
        learner = flat(actor_terms=terms)
        learner.update(rows, generator())
        gaps[name] = float((learner.act(rows.obs[0], None) - rows.action[0]).abs().mean())
    assert gaps["td3bc"] < 0.2
    assert gaps["td3"] > 0.4


def test_a_large_alpha_frees_the_policy() -> None:
    """All data does -0.5, and reward is for more: the action found grows with alpha."""
    rows = random_rows(150, 64)
    spread = 0.3 * torch.randn(150, 64, 2, generator=generator())
    rows.action = (spread - 0.5).clamp(-1.0, 1.0)
    rows.reward, rows.terminated = rows.action.sum(-1), torch.ones(150, 64, dtype=torch.bool)
    found = []
    for alpha in (0.0, 0.5, 10.0):
        learner = ActorCritic(spec_of(), **TD3, hidden=16, lr=1e-2, actor_terms=[BehaviourCloning(alpha)])
        learner.update(rows, generator())
        found.append(float(learner.act(rows.obs[0], None).mean()))
    assert found[0] == pytest.approx(-0.5, abs=0.1)
    assert found[0] + 0.05 < found[1] < found[2] - 0.05


def test_sampled_policies_may_have_the_term_and_choices_may_not() -> None:
    moments = {}
    for name, terms in {"with": [BehaviourCloning(0.0)], "without": []}.items():
        learner = ActorCritic(spec_of(), hidden=8, actor_terms=terms)
        learner.update(random_rows(1, 16), generator())
        moments[name] = learner.vectors["policy.mean"]
    assert not torch.allclose(moments["with"], moments["without"], rtol=0.1)
    with pytest.raises(UserError, match=r"actor_terms.*BehaviourCloning"):
        ActorCritic(spec_of("discrete"), actor_terms=[BehaviourCloning()])
    with pytest.raises(UserError, match="alpha"):
        BehaviourCloning(-1.0)


# -- conservative values -----------------------------------------------------------------------------------------------


def test_conservative_critics_value_the_data_above_other_actions() -> None:
    rows, lead = random_rows(80, 64), {}
    rows.action = 0.3 * rows.action
    for name in ("cql", "edac"):
        learner = CONTROLS[name](spec_of(), hidden=16, lr=1e-2)
        learner.update(rows, generator())
        mine, others = (learner.q_values(rows.obs[0], action) for action in (rows.action[0], rows.action[0].sign()))
        lead[name] = float((mine - others).mean())
    assert lead["cql"] > lead["edac"] + 0.5


# -- exact state -------------------------------------------------------------------------------------------------------

NAMES = ["bc", "iql", "td3bc", "cql", "edac"]
DATA = pendulum_data.filled(random_rows(500, seed=3))


def small(name: str, seed: int = 0) -> OfflineAgent:
    options = {"cosine_updates": 12} if name in ("bc", "iql") else {}
    make = partial(CONTROLS[name], hidden=8, lr=1e-2, **options)
    return agent_of(make, DATA, spec_of(), seed, batch_size=16, round_updates=4, log_every=4)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_bits(name: str) -> None:
    agents = [small(name), small(name), small(name, seed=1)]
    logs = [learn(agent, Clock(), 8) for agent in agents]
    states = [tensors(agent.state_dict()) for agent in agents]
    assert logs[0] == logs[1] != logs[2]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact_in_the_middle_of_a_cosine(name: str, tmp_path: Path) -> None:
    first, clock = small(name), Clock()
    learn(first, clock, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    rest = learn(first, clock, 12)
    second, clock = small(name, seed=9), Clock(updates=4)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert learn(second, clock, 12) == rest
    ends = [tensors(agent.state_dict()) for agent in (first, second)]
    assert len(ends[0]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    obs = random_rows(16).obs
    assert torch.equal(first.learner.act(obs, None), second.learner.act(obs, None))


def test_a_resume_that_forgets_the_count_of_updates_differs() -> None:
    """What the test above would miss if the cosine were not at work."""
    first, clock = small("iql"), Clock()
    learn(first, clock, 4)
    saved = first.state_dict()
    saved["learner"]["updates"] = 0
    learn(first, clock, 8)
    second = small("iql")
    second.load_state_dict(saved)
    learn(second, Clock(updates=4), 8)
    ends = [agent.learner.state_dict()["vectors"]["policy"] for agent in (first, second)]
    assert not torch.equal(*ends)


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_recipes_learn_from_the_data(name: str) -> None:
    config = resolve(name, env="Pendulum-v1").config
    agent = config.agent(pendulum_data.SPEC)
    assert isinstance(agent, OfflineAgent)
    agent.seed(0)
    agent.load(pendulum_data.narrow(0))
    agent.expect(config.steps)
    agent.round_updates = agent.log_every = 2
    before = [tensor.clone() for tensor in tensors(agent.learner.state_dict())]
    report = agent.update(Clock())
    assert all(torch.tensor(list(report["update"].values())).isfinite())
    assert not all(torch.equal(a, b) for a, b in zip(before, tensors(agent.learner.state_dict()), strict=True))
    if name == "iql":
        assert isinstance(agent.learner, ImplicitQ)
        assert (agent.learner.cosine_updates, agent.learner.expected) == ("run", config.steps)


@pytest.mark.parametrize(
    ("name", "kind", "weight"),
    [("td3bc", BehaviourCloning, "alpha"), ("cql", Conservative, "weight"), ("edac", GradientDiversity, "eta")],
)
def test_recipes_carry_their_term(name: str, kind: type[Any], weight: str) -> None:
    agent = resolve(name, env="Pendulum-v1").config.agent(pendulum_data.SPEC)
    assert isinstance(agent, OfflineAgent)
    assert isinstance(agent.learner, ActorCritic)
    (term,) = [term for terms in agent.learner.networks.rule.terms for term in terms]
    assert isinstance(term, kind)
    assert getattr(term, weight) > 0.0


# -- Pendulum ----------------------------------------------------------------------------------------------------------


def trained_return(name: str, data: Any, updates: int, **options: Any) -> float:
    make: Callable[..., Any] = partial(CONTROLS[name], hidden=64, **options)
    agent = agent_of(make, data, pendulum_data.SPEC, batch_size=256, round_updates=500)
    learn(agent, Clock(), updates)
    return pendulum_data.mean_return(lambda obs: agent.learner.act(obs, None))


def test_the_data_is_what_it_is_said_to_be() -> None:
    rows = pendulum_data.mixed(0)
    assert len(rows) == 10_000
    returns = rows[torch.arange(10_000)].reward.view(50, 200).sum(-1) / pendulum_data.REWARD_SCALE
    assert float(returns[:10].mean()) > -450.0  # the controller
    assert float(returns[10:].mean()) < -1200.0  # the wanderers
    assert float(rows[torch.arange(10_000)].obs.view(50, 200, 3)[:, 0, 0].max()) < -0.99  # hanging
    assert len(pendulum_data.narrow(0)) == 600


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_mixed_data_the_better_part_is_found() -> None:
    data = pendulum_data.mixed(0)
    cloned = trained_return("bc", data, 3000, lr=1e-3)
    options = {"lr": 1e-3, "gamma": 0.97, "target_share": 0.01}
    assert trained_return("iql", data, 3000, beta=10.0, **options) > cloned + 500.0
    assert trained_return("iql", data, 3000, beta=0.0, **options) < cloned + 200.0  # the same without advantages


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_narrow_data_only_the_anchored_policy_holds() -> None:
    data = pendulum_data.narrow(0)
    found = {"bc": trained_return("bc", data, 2500)}
    found |= {name: trained_return(name, data, 2500, gamma=0.97) for name in ("td3", "td3bc")}
    assert found["td3"] < found["bc"] - 300.0
    assert found["td3bc"] > found["td3"] + 200.0
