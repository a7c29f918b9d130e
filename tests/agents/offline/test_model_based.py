"""Offline agents with a model: its one fit, rollouts kept by refresh, mixed batches, exact state, the true dynamics."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic, Conservative, GradientDiversity
from agents.offline.adversarial import AdversarialDynaAgent
from agents.offline.cloning import Cloning
from agents.offline.model_based import OfflineDynaAgent, OfflineModelAgent
from agents.offline.mpc import OfflineMPCAgent, certain
from agents.offline.pessimism import BellmanInconsistency
from envs.errors import UserError
from envs.spec import EnvSpec
from experiments.config import resolve
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.fitting import Fitter
from mbrl.imagination.filters import Filter, UncertaintyPenalty
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import Objective, RewardTerm, UncertaintyTerm
from tests.agents.offline.controls import learn, tensors
from tests.agents.offline.pendulum_data import REWARD_SCALE, SPEC, filled, noisy_swing_up, play

ROUND, EVERY, STARTS, HORIZON, BATCH, REALS = 2, 4, 16, 3, 20, 5
MODEL = partial(ProbabilisticEnsemble, members=3, elites=2, hidden=8, layers=1)
LEARNER = partial(ActorCritic, hidden=8, layers=1)
OPTIONS: dict[str, Any] = {
    "horizon": HORIZON,
    "starts": STARTS,
    "refresh_every": EVERY,
    "retain": 2,
    "real_ratio": REALS / BATCH,
    "batch_size": BATCH,
    "round_updates": ROUND,
    "log_every": ROUND,
}
RAMBO = {"adversarial_every": EVERY, "adversarial_steps": 3, "pretrain_updates": 3}
RECIPES = ("mopo", "combo", "mobile", "ravl", "rambo", "offline-mpc")

METHODS: dict[str, Callable[..., OfflineModelAgent]] = {
    "mopo": partial(OfflineDynaAgent, learner=LEARNER, filters=[UncertaintyPenalty("largest_std", 1.0)], **OPTIONS),
    "combo": partial(OfflineDynaAgent, learner=partial(LEARNER, terms=[Conservative(samples=2)]), **OPTIONS),
    "mobile": partial(OfflineDynaAgent, learner=LEARNER, penalty=BellmanInconsistency(1.0, 2), **OPTIONS),
    "ravl": partial(OfflineDynaAgent, learner=partial(LEARNER, critics=4, terms=[GradientDiversity(1.0)]), **OPTIONS),
    "rambo": partial(AdversarialDynaAgent, learner=partial(LEARNER, normalize_obs=True), **OPTIONS, **RAMBO),
    "offline-mpc": partial(
        OfflineMPCAgent,
        learner=partial(Cloning, hidden=8),
        planner=partial(ICEM, horizon=3, candidates=8, iterations=2, particles=2, elites=4),
        batch_size=BATCH,
        round_updates=ROUND,
        log_every=ROUND,
    ),
}


def data(episodes: int = 1) -> ReplayBuffer:
    draw = Generator().manual_seed(0)
    rows = play(noisy_swing_up(draw), episodes, draw)
    rows.reward = rows.reward / REWARD_SCALE
    return filled(rows)


def made(method: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    parts = {"model": MODEL, "fitter": Fitter(max_epochs=2, batch_size=32)} | changes
    agent = METHODS[method](SPEC, **parts)
    agent.seed(seed)
    agent.load(data())
    return agent


def events(logged: list[dict[str, Any]], event: str) -> list[Any]:
    return [each[event] for each in logged if event in each]


def acted(agent: Any) -> Tensor:
    obs, state = data().all().obs[:4], agent.initial_actor_state(4)
    action, _, _ = agent.act(obs, state, torch.ones(4, dtype=torch.bool), "evaluate", Generator().manual_seed(2))
    return torch.as_tensor(action)


# -- the books ---------------------------------------------------------------------------------------------------------


def test_the_model_is_fitted_once_and_judged_on_held_rows() -> None:
    agent, clock = made("mopo"), Clock()
    logged = learn(agent, clock, 5 * ROUND)
    (fit,) = events(logged, "fit")
    assert fit["holdout_mse"] > 0.0
    assert fit["rows"] == len(agent.data)
    assert logged[0]["fit"] is fit
    assert (clock.updates, clock.env_steps, agent.learner.updates) == (5 * ROUND, 0, 5 * ROUND)


def test_a_run_takes_the_steps_that_it_was_told_and_no_more() -> None:
    agent, clock = made("mopo"), Clock()
    agent.expect(ROUND + 1)
    agent.update(clock)
    agent.update(clock)
    assert clock.updates == agent.learner.updates == ROUND + 1


def test_a_handful_of_rows_is_no_data_for_a_model() -> None:
    agent, few = made("mopo"), ReplayBuffer(100)
    few.extend(data().all()[:5])
    with pytest.raises(UserError, match="a model needs at least 20"):
        agent.check(few)
    made("mopo", model=Simulator, fitter=None).check(few)  # the true dynamics need none


def test_rollouts_are_made_anew_and_the_last_ones_kept() -> None:
    agent, clock = made("mopo"), Clock()
    seen: list[Tensor] = []
    imagine = agent.imagine

    def watched() -> Any:
        rows = imagine()
        seen.append(rows.obs.clone())
        return rows

    agent.imagine = watched
    logged = learn(agent, clock, 4 * EVERY)
    assert [i for i, each in enumerate(logged) if "imagine" in each] == [0, 2, 4, 6]
    assert all(report["imagined_rows"] == STARTS * HORIZON for report in events(logged, "imagine"))
    assert torch.equal(agent.imagined.ring.all().obs, torch.cat(seen[-2:]))
    # the policy has moved between them
    assert not torch.equal(seen[-1][:STARTS], seen[-2][:STARTS])


def test_the_last_refreshes_are_kept_whatever_their_sizes_are() -> None:
    agent = made("mopo")
    sizes, kept = iter([7, 3, 5, 2]), []
    rows = data().all()

    def some() -> Any:
        kept.append(rows[: next(sizes)])
        kept[-1].extra = {"depth": kept[-1].step * 0}
        return kept[-1]

    agent.imagine = some
    for _ in range(4):
        agent.refresh()
    assert torch.equal(agent.imagined.ring.all().obs, torch.cat([kept[2].obs, kept[3].obs]))


@pytest.mark.parametrize("ratio", [REALS / BATCH, 1.0])
def test_batches_say_which_rows_are_real(ratio: float) -> None:
    agent = made("mopo", real_ratio=ratio)
    learn(agent, Clock(), ROUND)
    rows = agent.draw(6)
    known = {tuple(row) for row in agent.data.all().obs.tolist()}
    found = [[tuple(obs) in known for obs in batch] for batch in rows.next_obs.tolist()]
    reals = BATCH if ratio == 1.0 else REALS
    assert rows.extra["is_real"].sum(1).tolist() == [reals] * 6
    # a start is a state of the data, but what follows in the model is not
    for batch, told in zip(found, rows.extra["is_real"].tolist(), strict=True):
        assert not any(is_known and not real for is_known, real in zip(batch, told, strict=True))
    assert bool(agent.refreshes) == (ratio < 1.0)


def test_penalties_reach_the_imagined_rewards() -> None:
    free = made("mopo", filters=[UncertaintyPenalty("largest_std", 0.0)])
    agents = [made("mopo"), free]
    rewards = []
    for agent in agents:
        learn(agent, Clock(), ROUND)
        rewards.append(agent.imagined.ring.all())
    taken = rewards[1].reward[:STARTS] - rewards[0].reward[:STARTS]
    assert torch.allclose(taken, rewards[0].extra["uncertainty"][:STARTS], atol=1e-4)
    assert bool((taken > 0.0).all())


def test_the_adversary_has_its_turns_and_its_weight_counts() -> None:
    """After one turn the model is another; with another weight it is yet another one."""
    found = []
    for weight in (0.0, 10.0):
        agent, clock = made("rambo", adversarial_weight=weight), Clock()
        learn(agent, clock, EVERY)
        fitted = weights_of(agent)
        logged = learn(agent, clock, EVERY + ROUND)
        assert len(events(logged, "adversary")) == agent.turns == 1
        found.append(weights_of(agent) - fitted)
    assert bool(found[0].any())
    assert float((found[1] - found[0]).abs().max()) > 1e-4


def weights_of(agent: Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in agent.model.parameters()])


def test_the_adversary_asks_the_smallest_critic() -> None:
    agent, seen = made("rambo", pretrain_updates=0), []
    learn(agent, Clock(), ROUND)

    def adversary(obs: Tensor, action: Tensor, real: Any, critic: Any, draw: Generator) -> Any:
        agent.generator.manual_seed(4)
        value = critic.value(obs)
        chosen = agent.learner.act(obs, agent.generator.manual_seed(4))
        seen.append((value, agent.learner.q_values(obs, chosen)))
        seen.append((critic.baseline(obs, action), agent.learner.q_values(obs, action)))
        return agent.model.step(agent.model.encode(obs), action, draw), {}

    agent.attack(adversary)
    for said, each in seen:
        assert torch.equal(said, each.amin(0))
        assert not torch.equal(said, each.amax(0))


@pytest.mark.parametrize("updates", [0, 150])
def test_the_policy_begins_as_a_copy(updates: int) -> None:
    agent = made("rambo", pretrain_updates=updates, pretrain_lr=1e-2)
    rows = agent.data.all()

    def gap() -> float:
        return float((agent.learner.act(rows.obs, None) - rows.action).square().mean())

    before = gap()
    agent.prepare(Clock())
    assert agent.pretrained
    assert (gap() < 0.5 * before) == (updates > 0)


def test_what_leaves_the_data_is_logged_and_what_runs_away_is_dropped() -> None:
    agent = made("mopo")
    (report,) = events(learn(agent, Clock(), ROUND), "imagine")
    assert report["dropped_rows"] == 0
    assert 0.0 < report["outside_share"] < 1.0
    assert report["edge_share"] == pytest.approx(1 / HORIZON)
    assert [name for name in report if name.startswith("q_at")] == [f"q_at_depth_{k}" for k in range(HORIZON + 1)]
    # a model that moves every row by 1,000
    wild = made("mopo")
    learn(wild, Clock(), ROUND)
    wild.model.target_norm.mean[:] = 1000.0
    again = wild.refresh()
    assert (again["dropped_rows"], again["imagined_rows"]) == (STARTS, 0)
    wild.filters = made("mopo", guard=None).filters
    assert wild.refresh()["imagined_rows"] > 0


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_agent_learns_on_to_the_bit(method: str) -> None:
    agent, clock = made(method), Clock()
    learn(agent, clock, 3 * ROUND)  # between two refreshes
    written = io.BytesIO()
    torch.save(agent.state_dict(), written)
    written.seek(0)
    other = made(method, seed=5)
    other.run_seed = agent.run_seed
    other.load_state_dict(torch.load(written, weights_only=True))
    before = [x.clone() for x in tensors(other.state_dict())]
    clocks = clock, Clock(**clock.state_dict())  # type: ignore[arg-type]
    logs = [learn(each, own, 7 * ROUND) for each, own in zip((agent, other), clocks, strict=True)]
    assert repr(logs[0]) == repr(logs[1])
    ends = [tensors(each.state_dict()) for each in (agent, other)]
    assert len(ends[0]) == len(ends[1]) > 8
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(before) != len(ends[0]) or not all(torch.equal(a, b) for a, b in zip(before, ends[0], strict=True))
    assert torch.equal(acted(agent), acted(other))
    assert not events(logs[1], "fit")


# -- the true dynamics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_agent_runs_under_the_true_dynamics(method: str) -> None:
    agent, clock = made(method, model=Simulator, fitter=None), Clock()
    logged = learn(agent, clock, EVERY + ROUND)
    assert not events(logged, "fit")
    assert not events(logged, "adversary")
    assert acted(agent).isfinite().all()
    if method == "offline-mpc":
        return
    rows = agent.imagined.ring.all()
    simulator = Simulator(SPEC)
    true = simulator.step(simulator.encode(rows.obs), rows.action, None)
    assert torch.allclose(true.state.obs, rows.next_obs, atol=1e-4)
    assert torch.allclose(true.reward, rows.reward, atol=1e-3)  # no penalty is left
    assert set(rows.extra) == {"depth"}


class OwnDoubt(Filter):
    """A user's own penalty, which asks for what the true dynamics do not have."""

    doubts = True

    def __call__(self, model: Any, move: Any, generator: Generator) -> Any:
        model.uncertainty(move.state, move.action, "std_of_means")
        return move


def test_a_users_own_doubt_is_left_out_under_the_true_dynamics() -> None:
    agent = made("mopo", model=Simulator, fitter=None, filters=[OwnDoubt()])
    learn(agent, Clock(), ROUND)
    assert not any(each.doubts for each in agent.filters)


def test_objectives_without_uncertainty() -> None:
    kept = certain(Objective([RewardTerm(), UncertaintyTerm(coef=-3.0)]))
    assert [type(term) for term in kept.terms] == [RewardTerm]
    with pytest.raises(UserError, match="true dynamics"):
        certain(Objective([UncertaintyTerm()]))


def test_a_pessimistic_planner_stays_where_the_model_is_sure() -> None:
    """Both plan for nothing but their doubt, of either sign."""
    doubts = []
    for coef in (-1.0, 1.0):
        agent = made("offline-mpc", objective=Objective([UncertaintyTerm(coef=coef)]), proposals=0)
        learn(agent, Clock(), ROUND)
        obs = data().all().obs[::20]
        state = agent.initial_actor_state(len(obs))
        first = torch.ones(len(obs), dtype=torch.bool)
        action, _, _ = agent.act(obs, state, first, "evaluate", Generator().manual_seed(2))
        doubts.append(float(agent.model.uncertainty(agent.model.encode(obs), action, "std_of_means").mean()))
    assert doubts[0] < 0.8 * doubts[1]


# -- settings ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "horizon": ("mopo", {"horizon": 0}),
    "starts": ("mopo", {"starts": 0}),
    "retain": ("mopo", {"retain": 0}),
    "refresh_every": ("mopo", {"refresh_every": 1}),
    "real_ratio": ("combo", {"real_ratio": 0.0}),
    "fitter": ("mopo", {"fitter": None}),
    "guard": ("mopo", {"guard": 0.0}),
    "adversarial_steps": ("rambo", {"adversarial_steps": 0}),
    "adversarial_weight": ("rambo", {"adversarial_weight": -1.0}),
    "pretrain_updates": ("rambo", {"pretrain_updates": -1}),
    "probabilistic": ("rambo", {"model": partial(MODEL, probabilistic=False)}),
    "proposals": ("offline-mpc", {"proposals": -1}),
    "particles": ("offline-mpc", {"planner": partial(ICEM, particles=3)}),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_setting_is_named(field: str) -> None:
    method, changes = WRONG[field]
    with pytest.raises(UserError, match=field):
        made(method, **changes)


def test_data_beyond_the_guard_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match="larger one, or null"):
        made("mopo", guard=2.0)
    with pytest.raises(UserError, match="--data"):
        METHODS["mopo"](SPEC, model=MODEL, fitter=Fitter()).update(Clock())


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_make_their_agents(recipe: str) -> None:
    def of(*overrides: tuple[str, Any]) -> Any:
        config = resolve(recipe, [("data", "some.hdf5"), *overrides], env="Pendulum-v1").config
        return config.agent(SPEC)

    agent, spec = of(), SPEC
    assert isinstance(spec, EnvSpec)
    assert isinstance(agent, OfflineModelAgent)
    assert agent.learned
    oracle = of(("agent.init_args.model", {"class_path": "Simulator"}), ("agent.init_args.fitter", None))
    assert not oracle.learned


PESSIMISM: dict[str, Callable[[Any], list[float]]] = {
    "mopo": lambda agent: [each.weight for each in agent.filters if isinstance(each, UncertaintyPenalty)],
    "combo": lambda agent: [each.weight for each in agent.learner.terms if isinstance(each, Conservative)],
    "mobile": lambda agent: [agent.penalty.weight],
    "ravl": lambda agent: [each.eta for each in agent.learner.terms if isinstance(each, GradientDiversity)],
    "rambo": lambda agent: [agent.adversary.weight],
    "offline-mpc": lambda agent: [-each.coef for each in agent.objective.terms if isinstance(each, UncertaintyTerm)],
}
"""What a recipe is named for, and its weight"""


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_carry_their_pessimism(recipe: str) -> None:
    agent = resolve(recipe, [("data", "some.hdf5")], env="Pendulum-v1").config.agent(SPEC)
    (weight,) = PESSIMISM[recipe](agent)
    assert weight > 0.0
