"""Where imagined rows are doubted: uncertainty ranks error, the conservative term, the Bellman inconsistency."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic, Conservative
from agents.actor_critic.terms import Candidates, CriticContext
from agents.offline.model_based import OfflineDynaAgent
from agents.offline.pessimism import BellmanInconsistency, disagreement
from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import LacksCapability, State
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from tests.agents.offline.controls import random_rows, spec_of
from tests.agents.offline.pendulum_data import SPEC, filled, noisy_swing_up, play

# -- in the reward: uncertainty ranks error ----------------------------------------------------------------------------


def rank_errors(alike: bool) -> tuple[list[float], float]:
    """Spearman(uncertainty, one-step error) on data, on its states with random actions, and on anything; mean
    uncertainty on anything over that on data.

    ``alike``: the members share their first weights, their rows and their batches.
    """
    draw = Generator().manual_seed(0)
    data, other = (play(noisy_swing_up(draw), episodes, draw) for episodes in (10, 5))
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(SPEC, members=5, hidden=64, layers=2, probabilistic=False)
    if alike:
        for p in model.parameters():
            p.data.copy_(p.data[:1].clone().expand_as(p))
    batch_size, updates = (len(data), 80) if alike else (128, 700)
    Fitter(batch_size=batch_size, holdout=0.0, max_updates=updates, bootstrap=not alike).fit(model, data, draw)
    rows = len(other)
    angle, speed = math.pi * signed(rows, draw), 8.0 * signed(rows, draw)
    anywhere = torch.stack([angle.cos(), angle.sin(), speed], -1)
    sets = [(other.obs, other.action), (other.obs, signed(rows, draw, 1)), (anywhere, signed(rows, draw, 1))]
    doubts, errors = zip(*(doubt_and_error(model, data.obs.std(0), *each) for each in sets), strict=True)
    ranks = [float(spearmanr(u.numpy(), e.numpy()).statistic) for u, e in zip(doubts, errors, strict=True)]
    return ranks, float(doubts[2].mean() / doubts[0].mean())


def signed(*shape_and_generator: Any) -> Tensor:
    rows, draw, *rest = shape_and_generator
    return 2.0 * torch.rand(rows, *rest, generator=draw) - 1.0


@torch.no_grad()
def doubt_and_error(model: ProbabilisticEnsemble, std: Tensor, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    simulator = Simulator(SPEC)
    true = simulator.step(simulator.encode(obs), action, None).state.obs
    said = model.predict(State(obs), action).mean[..., : SPEC.obs_size].mean(0)
    return model.uncertainty(State(obs), action, "std_of_means"), ((said - true) / std).norm(dim=-1)


def is_told(ranks: list[float], ratio: float) -> bool:
    return min(ranks) > 0.4 and ratio > 5.0


def test_uncertainty_ranks_error() -> None:
    ranks, ratio = rank_errors(alike=False)
    assert is_told(ranks, ratio), (ranks, ratio)


def test_members_that_are_alike_tell_nothing() -> None:
    ranks, ratio = rank_errors(alike=True)
    assert not is_told(ranks, ratio), (ranks, ratio)


# -- in the critics' loss: COMBO ---------------------------------------------------------------------------------------


def hand_made(real: Tensor | None, samples: int = 10) -> CriticContext:
    """Two critics, two states, 30 actions of value ``(critic + 1) * action`` each."""
    action = torch.linspace(-1.0, 1.0, 3 * samples * 2).view(3 * samples, 2, 1)
    log_density = torch.linspace(-2.0, 1.0, 3 * samples * 2).view(3 * samples, 2)

    def evaluate(obs: Tensor, action: Tensor) -> Tensor:
        return torch.stack([action[:, 0] + obs[:, 0], 2.0 * action[:, 0] + obs[:, 0]])

    obs, predicted = torch.tensor([[0.5], [-1.0]]), torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    candidates = Candidates(action, log_density)
    return CriticContext(evaluate, obs, action[0], predicted, torch.zeros(2), candidates, real)


def by_hand(context: CriticContext, temperature: float) -> list[list[float]]:
    """``T log sum exp`` over all 30 entries, for each critic and state, in plain Python."""
    assert context.candidates is not None
    action, log_density = (x.tolist() for x in context.candidates)
    obs = context.obs.tolist()

    def one(critic: int, state: int) -> float:
        q = [(critic + 1) * a[state][0] + obs[state][0] for a in action]
        each = [math.exp((v - p[state]) / temperature) for v, p in zip(q, log_density, strict=True)]
        assert len(each) == 30
        return temperature * math.log(sum(each))

    return [[one(critic, state) for state in range(2)] for critic in range(2)]


def test_the_conservative_term_is_the_sum_by_hand() -> None:
    term, context = Conservative(weight=3.0, temperature=2.0), hand_made(None)
    pushed = by_hand(context, 2.0)
    wanted = 3.0 * sum((pushed[j][0] + pushed[j][1]) / 2 - float(context.predicted[j].mean()) for j in range(2))
    assert float(term(context)) == pytest.approx(wanted, rel=1e-5)
    # the first three entries alone are another number
    assert context.candidates is not None
    few = CriticContext(**vars(context) | {"candidates": Candidates(*(x[:3] for x in context.candidates))})
    assert float(term(few)) != pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("states", ["all", "imagined"])
def test_only_real_actions_are_pushed_up(states: Any) -> None:
    context = hand_made(torch.tensor([1.0, 0.0]))
    pushed = by_hand(context, 1.0)
    down = [sum(p) / 2 if states == "all" else p[1] for p in pushed]
    wanted = 5.0 * sum(down[j] - float(context.predicted[j, 0]) for j in range(2))
    assert float(Conservative(weight=5.0, states=states)(context)) == pytest.approx(wanted, rel=1e-5)


def test_candidates_are_of_this_state_of_the_next_and_uniform() -> None:
    found: list[CriticContext] = []

    class Watching(Conservative):
        def __call__(self, context: CriticContext) -> Tensor:
            found.append(context)
            return super().__call__(context)

    learner = ActorCritic(spec_of(), hidden=8, terms=[Watching(samples=400)])
    # by its last layer the policy says tanh(9) in the one and tanh(-9) in the other state, hardly spread
    views = learner.networks.policy_views(learner.vectors["policy"])
    for view in views[:-1]:
        view.zero_()
    views[0][0, 0] = views[2][0, 0] = 3.0
    views[4][0, :2] = 1.0
    views[5][:] = torch.tensor([-9.0, -9.0, -5.0, -5.0])
    rows = random_rows(1, 6)
    rows.obs[...], rows.next_obs[...] = 2.0, 0.0
    learner.update(rows, Generator().manual_seed(0))
    assert found[0].candidates is not None
    here, there, anywhere = found[0].candidates.action.chunk(3)
    assert float(here.min()) > 0.99
    assert float(there.max()) < -0.99
    assert float(anywhere.mean().abs()) < 0.05
    assert float(anywhere.std()) == pytest.approx(3.0**-0.5, abs=0.02)
    uniform = found[0].candidates.log_density.chunk(3)[2]
    assert torch.allclose(uniform, torch.tensor(-2.0 * math.log(2.0)))


def test_candidates_of_the_policy_come_with_their_density() -> None:
    found: list[Candidates] = []

    class Watching(Conservative):
        def __call__(self, context: CriticContext) -> Tensor:
            assert context.candidates is not None
            found.append(context.candidates)
            return super().__call__(context)

    learner = ActorCritic(spec_of(), hidden=8, terms=[Watching(samples=4)])
    # whatever the state is, tanh of a Gaussian with these means and spreads
    mean, log_std = torch.tensor([0.3, -0.2]), torch.tensor([-1.0, -0.5])
    views = learner.networks.policy_views(learner.vectors["policy"])
    for view in views[:-1]:
        view.zero_()
    views[5][:] = torch.cat([mean, log_std])
    learner.update(random_rows(1, 6), Generator().manual_seed(0))
    action, log_density = (part[:8] for part in found[0])
    gaussian = torch.distributions.Normal(mean, log_std.exp()).log_prob(action.atanh())
    torch.testing.assert_close(log_density, (gaussian - (1.0 - action.square()).log()).sum(-1), atol=1e-3, rtol=1e-3)


def test_the_term_values_the_data_above_all_else() -> None:
    gaps = {}
    for weight in (0.0, 10.0):
        learner = ActorCritic(spec_of(), hidden=16, lr=1e-2, terms=[Conservative(weight, samples=3)])
        learner.seed(0)
        rows = random_rows(1, 64).map(lambda x: x.expand(60, *x.shape[1:]))
        learner.update(rows, Generator().manual_seed(0))
        own = learner.q_values(rows.obs[0], rows.action[0])
        gaps[weight] = float((own - learner.q_values(rows.obs[0], rows.action[0].roll(1, 0))).mean())
    assert gaps[10.0] > gaps[0.0] + 0.3


def test_conservative_settings_that_cannot_work() -> None:
    with pytest.raises(UserError, match="weight, temperature"):
        Conservative(temperature=0.0)
    with pytest.raises(UserError, match="samples"):
        Conservative(samples=0)
    with pytest.raises(UserError, match="states"):
        Conservative(states="some")  # type: ignore[arg-type]
    for options in ({"kind": "discrete"}, {"policy": "deterministic"}):
        spec = spec_of(options.pop("kind", "continuous"))
        with pytest.raises(UserError, match="Conservative"):
            ActorCritic(spec, terms=[Conservative()], **options)  # type: ignore[arg-type]
    imagined = ActorCritic(spec_of(), hidden=8, terms=[Conservative(states="imagined")])
    with pytest.raises(UserError, match="is_real"):
        imagined.update(random_rows(1, 4), Generator())
    with pytest.raises(UserError, match="equally many"):
        ActorCritic(spec_of(), terms=[Conservative(samples=2), Conservative(samples=3)])


# -- in the target: MOBILE ---------------------------------------------------------------------------------------------


def test_members_that_agree_have_no_inconsistency() -> None:
    drawn = torch.randn(1, 6, 4, 3, generator=Generator().manual_seed(0))

    def value(obs: Tensor) -> Tensor:
        return obs.square().sum(-1)

    assert not disagreement(drawn.expand(5, -1, -1, -1), value).any()
    apart = drawn + torch.arange(5.0).view(5, 1, 1, 1)
    assert bool((disagreement(apart, value) > 0.1).all())


def test_inconsistency_is_the_spread_of_mean_values() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # two members, two draws: means 2 and 6
    found = disagreement(values.view(2, 2, 1, 1), lambda obs: obs[:, 0])
    assert float(found) == pytest.approx(math.sqrt(8.0))  # unbiased; the draws' own spread is no part of it


def mobile(weight: float = 2.0, samples: int = 4, elites: int = 2, **options: Any) -> OfflineDynaAgent:
    torch.manual_seed(0)
    agent = OfflineDynaAgent(
        SPEC,
        learner=partial(ActorCritic, hidden=8, layers=1),
        fitter=Fitter(max_epochs=1, batch_size=32),
        penalty=BellmanInconsistency(weight, samples),
        model=partial(ProbabilisticEnsemble, members=3, elites=elites, hidden=8, layers=1),
        **{"starts": 16, "horizon": 2, "batch_size": 20, "real_ratio": 0.25} | options,
    )
    agent.seed(0)
    agent.load(filled(play(noisy_swing_up(Generator().manual_seed(0)), 1, Generator().manual_seed(0))))
    return agent


def penalized(agent: OfflineDynaAgent, batch: Transitions) -> Tensor:
    assert agent.penalty is not None
    agent.generator.manual_seed(3)
    made, _ = agent._penalized(batch, agent.penalty)
    return made.reward


def test_the_penalty_is_the_weighted_spread_of_the_smallest_target_values() -> None:
    agent = mobile(weight=3.0, samples=5)
    agent.refresh()
    rows = agent.draw(1)[0][5:]
    level = agent.learner.target_q_values(rows.obs, rows.action).mean(1)
    last = agent.learner.networks.critic.views(agent.learner.vectors["target_critic"])[-1]
    last[0] += level[1] - level[0]  # now the one, now the other is the smallest
    assert agent.penalty is not None
    found = agent.penalty(agent.model, agent.learner, rows, Generator().manual_seed(3))
    draw = Generator().manual_seed(3)
    drawn = agent.model.predict(State(rows.obs), rows.action).sample(5, draw)[0][agent.model.get_buffer("elites")]
    flat = drawn.flatten(0, 2)
    q = agent.learner.target_q_values(flat, agent.learner.act(flat, draw)).view(2, *drawn.shape[:3])
    torch.testing.assert_close(found, 3.0 * q.amin(0).mean(1).std(0))
    for other in (q.mean(0), q[0], q[1]):  # what it would be of other values
        assert not torch.allclose(found, 3.0 * other.mean(1).std(0), rtol=1e-3)


def test_the_learner_is_given_the_penalized_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    def penalty(self: BellmanInconsistency, model: Any, learner: Any, rows: Transitions, draw: Generator) -> Tensor:
        return torch.full_like(rows.reward, 7.0)

    agent, seen = mobile(), []
    agent.refresh()
    batches = agent.draw(2)
    monkeypatch.setattr(BellmanInconsistency, "__call__", penalty)
    monkeypatch.setattr(agent.learner, "update", lambda rows, draw: seen.append(rows) or {})
    assert agent.learn(batches) == {"penalty": pytest.approx(7.0)}
    taken = batches.reward - torch.cat([rows.reward for rows in seen])
    assert not taken[:, :5].any()
    torch.testing.assert_close(taken[:, 5:], torch.full((2, 15), 7.0))


def test_real_rows_are_left_alone() -> None:
    agent = mobile()
    agent.refresh()
    batch = agent.draw(1)[0]
    taken = batch.reward - penalized(agent, batch)
    assert not taken[:5].any()
    assert bool((taken[5:] > 0.0).all())


def change_target(agent: OfflineDynaAgent) -> None:
    agent.learner.vectors["target_critic"].mul_(2.0)


def change_live(agent: OfflineDynaAgent) -> None:
    agent.learner.vectors["critic"].mul_(2.0)


def change_member(elite: bool, agent: OfflineDynaAgent) -> None:
    elites = agent.model.get_buffer("elites").tolist()
    member = next(i for i in range(3) if (i in elites) == elite)
    agent.model.weights[-1].data[member] += 1.0


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (change_target, True),
        (change_live, False),
        (partial(change_member, True), True),
        (partial(change_member, False), False),
    ],
    ids=["target critics", "live critics", "an elite", "another member"],
)
def test_target_critics_and_elites_decide(change: Callable[[OfflineDynaAgent], None], matters: bool) -> None:
    agent = mobile()
    agent.refresh()
    batch = agent.draw(1)[0]
    before = penalized(agent, batch)
    change(agent)
    assert torch.equal(before, penalized(agent, batch)) != matters


def test_a_penalty_needs_members_that_can_disagree() -> None:
    with pytest.raises(UserError, match="one elite"):
        mobile(elites=1)
    with pytest.raises(LacksCapability):
        BellmanInconsistency().check(Simulator(SPEC))
    with pytest.raises(UserError, match=r"penalty\.weight"):
        BellmanInconsistency(weight=-1.0)
    with pytest.raises(UserError, match=r"penalty\.samples"):
        BellmanInconsistency(samples=0)


# -- the target itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"backup_entropy": False}, {"target_floor": 2.0}])
def test_the_targets_options_are_heard(option: dict[str, Any]) -> None:
    rows = random_rows(1, 64).map(lambda x: x.expand(150, *x.shape[1:]))
    values = {}
    for name, options in (("usual", {}), ("changed", option)):
        learner = ActorCritic(spec_of(), hidden=16, lr=1e-2, tau=0.02, alpha=2.0, learn_alpha=False, **options)
        learner.seed(0)
        learner.update(rows, Generator().manual_seed(0))
        values[name] = float(learner.q_values(rows.obs[0], rows.action[0]).mean())
    if "target_floor" in option:  # random rewards have mean 0
        assert values["changed"] > 1.5
        assert values["changed"] > values["usual"] + 0.2
    else:  # the entropy of a wide policy is a bonus of about 2 * 1.4 a step
        assert values["changed"] < values["usual"] - 0.5


def test_target_values_are_those_of_the_target_critics() -> None:
    learner = ActorCritic(spec_of(), hidden=8)
    rows = random_rows(2, 4)
    assert torch.equal(
        learner.q_values(rows.obs[0], rows.action[0]), learner.target_q_values(rows.obs[0], rows.action[0])
    )
    learner.vectors["target_critic"].mul_(1.5)
    learner.vectors["critic"].zero_()
    assert bool(learner.target_q_values(rows.obs[0], rows.action[0]).abs().gt(0.0).any())
    assert not learner.q_values(rows.obs[0], rows.action[0]).any()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_updates_equal_the_eager_ones() -> None:
    rows = random_rows(30, 16)
    rows.extra = {"is_real": (torch.arange(16) < 5).expand(30, -1)}
    ends = []
    for compile in (False, True):
        terms = [Conservative(2.0, samples=3, states="imagined")]
        options = {"terms": terms, "backup_entropy": False, "target_floor": -1.0, "compile": compile}
        learner = ActorCritic(spec_of(), hidden=8, lr=1e-3, **options)  # type: ignore[arg-type]
        learner.seed(0)
        learner.update(rows, Generator().manual_seed(0))
        ends.append(learner.vectors)
    assert all(float((vector - ends[1][name]).abs().max()) < 1e-4 for name, vector in ends[0].items())
