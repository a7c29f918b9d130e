"""The MPC agent: warm-up, plans, fits, going on where it was, and that it learns."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.mpc import MPCActorState, MPCAgent, plan_gap
from envs import EnvPool, env_spec, make_env
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.played import to_transitions
from mbrl.data.record import Record, from_dict
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel, State
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from mbrl.planning.base import Plan, Planner
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import Objective
from mbrl.seeding import derive_seed

PENDULUM = env_spec("Pendulum-v1")


def luck(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def small_model(spec: EnvSpec) -> DynamicsModel:
    torch.manual_seed(0)
    return ProbabilisticEnsemble(spec, members=2, hidden=16)


def small_planner(spec: EnvSpec) -> Planner:
    return ICEM(spec, horizon=4, candidates=8, iterations=2, particles=2)


def make_agent(spec: EnvSpec = PENDULUM, **options: Any) -> MPCAgent:
    fitter = Fitter(holdout=0.0, max_updates=5, first_updates=10)
    defaults: dict[str, Any] = {"model": small_model, "planner": small_planner, "fitter": fitter}
    agent = MPCAgent(spec, **{**defaults, "warmup_steps": 20, "fit_every": 10, **options})
    agent.seed(1)
    return agent


class Run:
    """The online loop in a few lines: pool, actor state, clock, and the notes that tests look at."""

    def __init__(self, agent: MPCAgent, id: str, slots: int = 1, seed: int = 0, limit: int | None = None) -> None:
        kwargs = {} if limit is None else {"max_episode_steps": limit}
        self.pool = EnvPool(lambda: make_env(id, **kwargs), slots, lambda *place: derive_seed(seed, "env", *place))
        self.agent, self.clock = agent, Clock()
        self.generator = torch.Generator().manual_seed(seed)
        self.actor_state: Any = agent.initial_actor_state(slots)
        self.actions: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.reports: list[dict[str, Any]] = []
        self.pool.reset()

    def rounds(self, count: int) -> Run:
        for _ in range(count):
            obs, is_first = torch.from_numpy(self.pool.obs), torch.from_numpy(self.pool.is_first)
            sim = self.pool.sim_states() if self.agent.wants_sim_state else None
            sim_state = None if sim is None else torch.from_numpy(sim)
            action, self.actor_state, extra = self.agent.act(
                obs, self.actor_state, is_first, "explore", self.generator, sim_state=sim_state
            )
            transitions = to_transitions(self.pool.step(action.numpy()), action, extra, self.clock.updates)
            self.agent.observe(transitions)
            self.clock.tick(len(action))
            self.reports.append(self.agent.update(self.clock))
            self.actions.append(action)
            self.rewards.append(transitions.reward)
            self.pool.reset_ended()
        return self


# -- warm-up -------------------------------------------------------------------------------------------------------


def test_random_actions_first_then_plans() -> None:
    run = Run(make_agent(action_limit=0.4), "Pendulum-v1").rounds(40)
    value = run.agent.buffers["real"].all().extra["plan_value"]
    assert value[:20].isnan().all()
    assert value[20:].isfinite().all()
    warmup = torch.cat(run.actions[:20])
    assert warmup.abs().max() <= 0.4
    assert warmup.abs().max() > 0.25
    assert warmup.min() < 0 < warmup.max()
    assert torch.cat(run.actions[20:]).abs().max() > 0.4  # the planner's limit is its own
    fits = [i + 1 for i, report in enumerate(run.reports) if "fit" in report]
    assert fits == [20, 30, 40]
    assert [run.reports[i - 1]["fit"]["gradient_steps"] for i in fits] == [10, 5, 5]
    assert run.clock.updates == 20


def test_evaluation_plans_even_during_warm_up(generator: Generator) -> None:
    agent = make_agent()
    state = agent.initial_actor_state(2)
    first = torch.ones(2, dtype=torch.bool)
    _, _, extra = agent.act(torch.zeros(2, 3), state, first, "evaluate", generator)
    assert extra["plan_value"].isfinite().all()
    _, _, extra = agent.act(torch.zeros(2, 3), state, first, "explore", generator)
    assert extra["plan_value"].isnan().all()


def test_exploration_noise_is_for_exploring_only(generator: Generator) -> None:
    plain, noisy = make_agent(warmup_steps=0), make_agent(warmup_steps=0, exploration_std=0.5)
    obs, first = torch.randn(4, 3, generator=generator), torch.ones(4, dtype=torch.bool)
    for mode, same in (("evaluate", True), ("explore", False)):
        actions = [
            agent.act(obs, agent.initial_actor_state(4), first, mode, torch.Generator().manual_seed(0))[0]  # type: ignore[arg-type]
            for agent in (plain, noisy)
        ]
        assert torch.equal(*actions) == same
        assert actions[1].abs().max() <= 1.0


# -- warm start ----------------------------------------------------------------------------------------------------


@dataclass
class Count(Record):
    value: Tensor


class Counting(Planner):
    """Its warm start counts the plans since the episode began, its first action says that number / 100."""

    def initial(self, batch: int, device: Any = "cpu") -> Count:
        return Count(torch.zeros(batch, 1))

    def plan(
        self,
        model: DynamicsModel,
        objective: Objective,
        state: State,
        warm_start: Record | None,
        proposals: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Plan:
        assert isinstance(warm_start, Count)
        value = warm_start.value[:, 0]
        return Plan((warm_start.value / 100).expand(self.horizon, -1, -1), value, Count(warm_start.value + 1), {})


def test_the_warm_start_begins_anew_with_each_episode() -> None:
    agent = make_agent(planner=lambda spec: Counting(spec, 3), warmup_steps=0)
    run = Run(agent, "Pendulum-v1", slots=2, limit=7).rounds(20)
    rows = agent.buffers["real"].all()
    assert torch.equal(rows.extra["plan_value"].long(), rows.step)
    assert rows.step.max() == 6
    assert isinstance(run.actor_state, MPCActorState)
    torch.testing.assert_close(run.actor_state.prev_action, run.actions[-1])


def test_only_the_slot_that_begins_is_reset(generator: Generator) -> None:
    agent = make_agent(planner=lambda spec: Counting(spec, 3), warmup_steps=0)
    state: Any = agent.initial_actor_state(3)
    for is_first, expected in (([1, 1, 1], [0, 0, 0]), ([0, 0, 0], [1, 1, 1]), ([0, 1, 0], [2, 0, 2])):
        first = torch.tensor(is_first, dtype=torch.bool)
        _, state, extra = agent.act(torch.zeros(3, 3), state, first, "explore", generator)
        assert extra["plan_value"].tolist() == expected


# -- slots ---------------------------------------------------------------------------------------------------------


def test_two_slots_are_planned_in_one_call() -> None:
    run = Run(make_agent(), "Pendulum-v1", slots=2, limit=9).rounds(20)
    assert all(action.shape == (2, 1) for action in run.actions)
    rows = run.agent.buffers["real"].all()
    assert len(rows) == 40
    assert rows.extra["plan_value"][:20].isnan().all()
    assert rows.extra["plan_value"][20:].isfinite().all()
    assert [i + 1 for i, report in enumerate(run.reports) if "fit" in report] == [10, 15, 20]
    assert rows.episode.unique().tolist() == list(range(6))
    windows = run.agent.buffers["real"].windows(50, 4, torch.Generator().manual_seed(0))
    assert torch.equal(windows.next_obs[:, :-1], windows.obs[:, 1:])


def test_discrete_actions() -> None:
    spec = env_spec("CartPole-v1")
    run = Run(make_agent(spec), "CartPole-v1", slots=2).rounds(25)
    actions = torch.cat(run.actions)
    assert torch.equal(actions.sum(-1), torch.ones(50))
    assert set(actions.flatten().tolist()) == {0.0, 1.0}
    assert any("fit" in report for report in run.reports)
    with pytest.raises(UserError, match="discrete"):
        make_agent(spec, exploration_std=0.1)


def test_an_oracle_needs_no_fitter() -> None:
    planner = lambda spec: ICEM(spec, horizon=20, candidates=30, iterations=3, particles=1)  # noqa: E731
    agent = MPCAgent(PENDULUM, model=Simulator, planner=planner)
    assert agent.wants_sim_state
    assert agent.buffers == {}
    run = Run(agent, "Pendulum-v1", slots=3).rounds(120)
    assert run.reports == [{}] * 120
    assert run.clock.updates == 0
    assert torch.stack(run.rewards)[-30:].mean() > -1.0  # it swings up and stays; hanging costs 10 a step
    assert set(agent.state_dict()) == {"generator", "model"}


@pytest.mark.parametrize(
    "options",
    [{"action_limit": 0.0}, {"action_limit": 1.5}, {"fit_every": 0}, {"warmup_steps": -1}, {"model": Simulator}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        make_agent(**options)


# -- going on ------------------------------------------------------------------------------------------------------


def through_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("moment", [5, 20, 33])
@pytest.mark.parametrize("forget", [None, "generator", "fitter", "model"])
def test_saved_and_loaded_it_acts_and_fits_the_same(moment: int, forget: str | None) -> None:
    """Bit for bit, from the warm-up, the first fit, or later; leaving out a part that matters by then shows."""
    run = Run(make_agent(), "Pendulum-v1").rounds(moment)
    saved = through_disk(
        {
            "agent": run.agent.state_dict(),
            "actor_state": run.actor_state.to_dict(),
            "generator": run.generator.get_state(),
        }
    )
    rows = run.agent.buffers["real"].all()
    agent = make_agent()
    agent.seed(9)
    first = torch.ones(1, dtype=torch.bool)
    agent.act(torch.zeros(1, 3), agent.initial_actor_state(1), first, "evaluate", luck())  # it had planned before
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.mul_(0.5)
    if forget is not None:
        saved["agent"][forget] = agent.state_dict()[forget]
    agent.load_state_dict(saved["agent"])
    agent.observe(rows)
    actor_state: Any = from_dict(saved["actor_state"])
    generator = torch.Generator()
    generator.set_state(saved["generator"])
    run.actions.clear()
    run.rounds(45 - moment)
    new = run.agent.buffers["real"].all()[moment:]
    clock = Clock(env_steps=moment, previous_env_steps=moment - 1)
    actions = []
    for i in range(len(new)):
        row = new[i : i + 1]
        action, actor_state, _ = agent.act(row.obs, actor_state, row.step == 0, "explore", generator)
        actions.append(action)
        agent.observe(row)
        clock.tick(1)
        agent.update(clock)
    weights = zip(run.agent.model.state_dict().values(), agent.model.state_dict().values(), strict=True)
    same = all(map(torch.equal, run.actions, actions)) and all(torch.equal(one, other) for one, other in weights)
    nothing_missing = forget is None or (forget, moment) == ("fitter", 5)  # no optimiser yet: nothing to forget
    assert same == nothing_missing


# -- the gap between plan and life ---------------------------------------------------------------------------------


def lived(episodes: list[list[tuple[float, float]]], ends: bool, slots: int = 1) -> ReplayBuffer:
    """A buffer of episodes given as (plan value, reward) rows, ``slots`` of them side by side."""
    buffer = ReplayBuffer(1000, extra={"plan_value": ()})
    for start in range(0, len(episodes), slots):
        group = list(enumerate(episodes))[start : start + slots]
        for step in range(max(len(rows) for _, rows in group)):
            for episode, rows in group:
                if step < len(rows):
                    buffer.extend(one_row(episode, step, *rows[step], ends and step == len(rows) - 1))
    return buffer


def one_row(episode: int, step: int, value: float, reward: float, terminated: bool) -> Transitions:
    flag = torch.tensor([terminated])
    ids = [torch.tensor([x]) for x in (episode, step, 0)]
    extra = {"plan_value": torch.tensor([value])}
    zeros = torch.zeros(1, 1)
    return Transitions(zeros, zeros, torch.tensor([reward]), zeros, flag, ~flag, *ids, extra=extra)


def test_the_gap_is_planned_minus_lived() -> None:
    rows = [(10.0, 1.0), (20.0, 2.0), (30.0, 3.0), (math.nan, 4.0), (50.0, 5.0)]
    expected = [10 - 6, 20 - 9, 30 - 12]  # three steps each; the fourth had no plan, the fifth was not lived through
    assert plan_gap(lived([rows], ends=False), horizon=3, last=50) == pytest.approx(sum(expected) / 3)
    assert plan_gap(lived([rows], ends=False), horizon=6, last=50) is None
    ended = [*expected, 50 - 5]
    assert plan_gap(lived([rows], ends=True), horizon=3, last=50) == pytest.approx(sum(ended) / 4)


def test_the_gap_counts_the_last_plans_and_no_other_episode() -> None:
    bad, good = [(100.0, 0.0)] * 10, [(3.0, 1.0)] * 10
    assert plan_gap(lived([bad, good], ends=False), horizon=2, last=8) == pytest.approx(1.0)
    assert plan_gap(lived([good, bad], ends=False), horizon=2, last=8) == pytest.approx(100.0)
    assert plan_gap(lived([[(2.0, 1.0)], [(2.0, 1.0)]], ends=False), horizon=2, last=9) is None


def test_the_gap_reaches_far_enough_back_for_parallel_slots() -> None:
    buffer = lived([[(5.0, 1.0)] * 20] * 4, ends=False, slots=4)
    assert plan_gap(buffer, horizon=4, last=8, slots=4) == pytest.approx(1.0)
    assert plan_gap(buffer, horizon=4, last=2) is None  # the control: four slots counted as one
    run = Run(make_agent(), "Pendulum-v1", slots=4).rounds(20)
    assert "plan" in run.reports[-1] or "plan" in run.reports[-2] or "plan" in run.reports[-3]


# -- learning ------------------------------------------------------------------------------------------------------


def learner(shuffled: bool) -> MPCAgent:
    class Shuffling(Fitter):
        """The control: answers exchanged between rows."""

        def fit(self, model: Any, data: Transitions, generator: Generator, weights: Any = None) -> dict[str, float]:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
            data.next_obs = data.next_obs[order]
            return super().fit(model, data, generator, weights)

    torch.manual_seed(0)
    kind = Shuffling if shuffled else Fitter
    agent = MPCAgent(
        PENDULUM,
        model=lambda spec: ProbabilisticEnsemble(spec, members=3, hidden=64),
        planner=lambda spec: ICEM(spec, horizon=18, candidates=24, iterations=2, particles=3),
        fitter=kind(holdout=0.0, first_updates=400, max_updates=60, batch_size=128, lr=2e-3, max_epochs=1000),
        warmup_steps=200,
        fit_every=50,
    )
    agent.seed(0)
    return agent


def mean_reward_after_learning(shuffled: bool) -> float:
    """Four environments, 200 random and 400 planned steps; the mean reward of the last 200 planned ones."""
    run = Run(learner(shuffled), "Pendulum-v1", slots=4, seed=3).rounds(150)
    return float(torch.stack(run.rewards)[-50:].mean())


def test_it_learns_to_swing_up_and_the_control_does_not() -> None:
    learned, control = mean_reward_after_learning(False), mean_reward_after_learning(True)
    assert learned > -1.5  # random play gets about -6
    assert control < -4.0


def test_particles_that_the_elites_cannot_share_are_refused_when_the_agent_is_built() -> None:
    def planner(propagation: Any) -> Any:
        return lambda spec: ICEM(spec, horizon=4, candidates=8, particles=3, propagation=propagation)

    for propagation in ("trajectory", "step"):
        with pytest.raises(UserError, match=r"planner\.init_args\.particles: 3: .*multiple of the 2 elites"):
            make_agent(planner=planner(propagation))
    assert make_agent(planner=planner("mean")).planner.horizon == 4
    assert make_agent(planner=planner("trajectory"), model=Simulator, fitter=None).planner.horizon == 4


def test_a_fitter_that_cannot_fit_this_model_is_refused_before_anything_is_learned() -> None:
    with pytest.raises(UserError, match="weight_decay"):
        make_agent(fitter=Fitter(weight_decay=[1e-5, 1e-5, 1e-5, 1e-5, 1e-5]))
