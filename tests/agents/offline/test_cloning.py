"""Behaviour cloning: likelihoods, what is learned from known data, standardised observations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.offline.cloned_policy import ClonedPolicy, PolicyKind
from agents.offline.cloning import Cloning
from agents.offline.implicit_q import ImplicitQ
from envs.errors import UserError
from mbrl.data.transitions import Transitions
from tests.agents.offline.controls import random_rows, spec_of


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def known(kind: str = "continuous", updates: int = 150, spread: float = 0.0) -> Transitions:
    """Rows whose action is ``0.5 tanh(2 obs)`` of the first two entries, plus noise; or the sign of the first one."""
    rows = random_rows(updates, 64, kind=kind)
    if kind == "discrete":
        rows.action = torch.stack([rows.obs[..., 0] > 0.0, rows.obs[..., 0] <= 0.0], -1).float()
    else:
        rows.action = 0.5 * torch.tanh(2.0 * rows.obs[..., :2]) + spread * torch.randn(
            updates, 64, 2, generator=generator()
        )
    return rows


def cloned(kind: str = "continuous", rows: Transitions | None = None, **options: Any) -> Cloning:
    learner = Cloning(spec_of(kind), **{"hidden": 32, "lr": 1e-2} | options)
    learner.update(known(kind) if rows is None else rows, generator())
    return learner


# -- likelihoods -------------------------------------------------------------------------------------------------------


def test_surprise_is_the_negative_log_likelihood() -> None:
    policy, rows = ClonedPolicy(spec_of(), "gaussian", 8, 2), random_rows(16)
    params = policy.views(policy.draw(generator()))
    params[-1].copy_(torch.tensor([-0.5, 0.3]))
    normal = torch.distributions.Normal(policy.mode(params, rows.obs), params[-1].exp())
    expected = -normal.log_prob(rows.action).sum(-1)
    torch.testing.assert_close(policy.surprise(params, rows.obs, rows.action), expected)
    # actions at the bounds, which data from bounded controllers are full of
    assert bool(policy.surprise(params, rows.obs, torch.ones(16, 2)).isfinite().all())


def test_deterministic_surprise_is_the_squared_distance() -> None:
    policy, rows = ClonedPolicy(spec_of(), "deterministic", 8, 2), random_rows(16)
    params = policy.views(policy.draw(generator()))
    expected = (policy.mode(params, rows.obs) - rows.action).square().sum(-1)
    torch.testing.assert_close(policy.surprise(params, rows.obs, rows.action), expected)
    assert torch.equal(policy.sample(params, rows.obs, generator()), policy.mode(params, rows.obs))


def test_discrete_surprise_is_the_cross_entropy() -> None:
    policy, rows = ClonedPolicy(spec_of("discrete"), "gaussian", 8, 2), random_rows(16, kind="discrete")
    params = policy.views(policy.draw(generator()))
    logits = policy.network(params[:-1], rows.obs)
    expected = torch.nn.functional.cross_entropy(logits, rows.action.argmax(-1), reduction="none")
    torch.testing.assert_close(policy.surprise(params, rows.obs, rows.action), expected)
    drawn = torch.stack([policy.sample(params, rows.obs, generator(i)) for i in range(500)])
    assert bool((drawn.sum(-1) == 1.0).all())
    torch.testing.assert_close(drawn.mean(0), logits.softmax(-1), atol=0.1, rtol=0)


# -- learning ----------------------------------------------------------------------------------------------------------


def gap(learner: Cloning, rows: Transitions) -> float:
    return float((learner.act(rows.obs, None) - rows.action).abs().mean())


@pytest.mark.parametrize("policy", ["gaussian", "deterministic"])
def test_it_does_what_the_data_did(policy: PolicyKind) -> None:
    rows = known()
    shuffled = rows.clone()
    shuffled.action = rows.action.flatten(0, 1)[torch.randperm(150 * 64, generator=generator())].view(150, 64, 2)
    assert gap(cloned(policy=policy, rows=rows), rows[-1]) < 0.1
    assert gap(cloned(policy=policy, rows=shuffled), rows[-1]) > 0.25


def test_it_does_what_the_data_chose() -> None:
    rows = known("discrete")
    assert gap(cloned("discrete"), rows[-1]) < 0.05


def test_the_spread_is_that_of_the_data() -> None:
    for spread in (0.25, 0.4):
        learner = cloned(rows=known(spread=spread))
        found = learner.leaves["policy"][-1].detach().exp()
        torch.testing.assert_close(found, torch.full((2,), spread), atol=0.06, rtol=0)
        drawn = learner.act(known(updates=1)[0].obs, generator()) - learner.act(known(updates=1)[0].obs, None)
        assert float(drawn.std()) == pytest.approx(spread, abs=0.08)


def test_the_policy_carries_its_units_of_observation() -> None:
    """Data in other units give the same policy, which takes observations in those units; not without standardising."""

    def scaled(rows: Transitions) -> Transitions:
        copy = rows.clone()
        copy.obs, copy.next_obs = 100.0 * copy.obs + 5.0, 100.0 * copy.next_obs + 5.0
        return copy

    def both(**options: Any) -> tuple[Tensor, Tensor]:
        rows = known(updates=20)
        mine, theirs = cloned(rows=rows, **options), cloned(rows=scaled(rows), **options)
        return mine.act(rows.obs[0], None), theirs.act(scaled(rows).obs[0], None)

    torch.testing.assert_close(*both(), atol=1e-3, rtol=0)
    plain, other = both(normalize_obs=False)
    assert float((plain - other).abs().max()) > 0.1


def test_the_rate_follows_half_a_cosine() -> None:
    learner, rows = Cloning(spec_of(), hidden=4, lr=1e-2, cosine_updates=4), random_rows(1, 8)
    rates = []
    for _ in range(6):
        rates.append(learner.rate("policy"))
        learner.update(rows, generator())
    assert rates == pytest.approx([1e-2, 0.8535534e-2, 0.5e-2, 0.1464466e-2, 0.0, 0.0])
    assert Cloning(spec_of(), hidden=4, lr=1e-2).rate("policy") == 1e-2
    assert ImplicitQ(spec_of(), hidden=4, lr=1e-2, cosine_updates=4).rate("q") == 1e-2
    still = learner.vectors["policy"].clone()
    learner.update(rows, generator())
    assert torch.equal(learner.vectors["policy"], still)


def test_a_cosine_over_the_run_asks_how_long_it_is() -> None:
    """The same rates as with the number itself, from a state that says nothing of it."""
    rows = random_rows(3, 8)
    told, counted, other = (Cloning(spec_of(), hidden=4, lr=1e-2, cosine_updates=c) for c in ("run", 6, "run"))
    with pytest.raises(UserError, match="expect"):
        told.update(rows, generator())
    for learner, updates in ((told, 6), (other, 60)):
        learner.expect(updates)
    for learner in (told, counted, other):
        learner.update(rows, generator())
    assert told.rate("policy") == counted.rate("policy") == pytest.approx(0.5e-2)
    assert torch.equal(told.vectors["policy"], counted.vectors["policy"])
    assert not torch.equal(told.vectors["policy"], other.vectors["policy"])
    resumed = Cloning(spec_of(), hidden=4, lr=1e-2, cosine_updates="run")
    resumed.load_state_dict(told.state_dict())
    resumed.expect(6)
    for learner in (told, resumed):
        learner.update(rows, generator())
    assert torch.equal(told.vectors["policy"], resumed.vectors["policy"])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "sizes": ({"hidden": 0}, "hidden, layers"),
    "rate": ({"lr": 0.0}, "lr"),
    "cosine": ({"cosine_updates": 0}, "cosine_updates"),
    "cosine word": ({"cosine_updates": "auto"}, "cosine_updates"),
    "deterministic choice": ({"kind": "discrete", "policy": "deterministic"}, "policy"),
    "device": ({"device": "toaster"}, "device"),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("learner", [Cloning, ImplicitQ])
def test_options_that_cannot_work_are_refused(learner: type[Cloning], options: dict[str, Any], named: str) -> None:
    kind = {"kind": "continuous"} | options
    with pytest.raises(UserError, match=named):
        learner(spec_of(kind.pop("kind")), **kind)
