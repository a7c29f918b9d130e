"""Dyna keeps its books as published: horizon, capacity, real share, elites, ends; and a mechanism off is noticed."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents import dyna
from agents.actor_critic.learner import ActorCritic
from agents.dyna import DynaAgent
from agents.planning_dyna import PlanningDynaAgent
from envs.errors import UserError
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from mbrl.clock import Clock
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination import HorizonSchedule, imagine
from mbrl.imagination.filters import UncertaintyPenalty
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.planning.cem import ICEM

PENDULUM = "InvertedPendulum-v5"
WARMUP, EVERY, ROLLOUTS, BATCH, REAL = 40, 20, 3, 20, 0.15
MODEL = partial(ProbabilisticEnsemble, members=4, elites=2, hidden=8, layers=1)
LEARNER = partial(ActorCritic, hidden=8, layers=1)
PUBLISHED: dict[str, Any] = {
    "warmup_steps": WARMUP,
    "fit_every": EVERY,
    "rollouts_per_step": ROLLOUTS,
    "retain_steps": 2 * EVERY,
    "updates_per_step": 2,
    "batch_size": BATCH,
    "real_ratio": REAL,
}


def make_agent(kind: type[DynaAgent] = DynaAgent, **changes: Any) -> DynaAgent:
    options = PUBLISHED | {"horizon": HorizonSchedule(60, 100, 1, 3)} | changes
    torch.manual_seed(0)
    agent = kind(
        env_spec(PENDULUM), model=MODEL, learner=LEARNER, fitter=Fitter(max_epochs=2, batch_size=16), **options
    )
    agent.seed(0)
    return agent


class Script:
    """Runs an agent in real environments and writes down what it does."""

    def __init__(self, agent: DynaAgent, num_envs: int = 1) -> None:
        self.agent, self.clock, self.generator = agent, Clock(), torch.Generator().manual_seed(1)
        self.pool = EnvPool(partial(make_env, PENDULUM), num_envs, lambda slot, episode: 100 * slot + episode)
        self.pool.reset()
        self.state = agent.initial_actor_state(num_envs)
        self.batches: list[Transitions] = []
        self.elites: list[tuple[Tensor, Tensor]] = []
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.capacities: dict[int, int] = {}
        self._watch(agent)

    def _watch(self, agent: Any) -> None:
        update, set_elites = agent.learner.update, agent.model.set_elites

        def seen_update(batches: Transitions, generator: Generator) -> dict[str, float]:
            self.batches.append(batches.clone())
            found: dict[str, float] = update(batches, generator)
            return found

        def seen_elites(score: Tensor) -> None:
            set_elites(score)
            self.elites.append((score.clone(), agent.model.get_buffer("elites").clone()))

        agent.learner.update, agent.model.set_elites = seen_update, seen_elites

    def play(self, steps: int) -> Script:
        while self.clock.env_steps < steps:
            self.round()
        return self

    def round(self) -> None:
        obs, first = torch.from_numpy(self.pool.obs), torch.from_numpy(self.pool.is_first)
        action, self.state, extra = self.agent.act(obs, self.state, first, "explore", self.generator)
        self.agent.observe(to_transitions(self.pool.step(action.numpy()), action, extra, version=0))
        self.clock.tick(self.pool.num_envs)
        for event, values in self.agent.update(self.clock).items():
            self.events.append((self.clock.env_steps, event, values))
        self.capacities[self.clock.env_steps] = self.agent.imagined.capacity
        self.pool.reset_ended()


def check_books(script: Script) -> None:
    """Every number of a run of 140 env steps as published."""
    agent, clock = script.agent, script.clock
    fits = [(step, values) for step, event, values in script.events if event == "fit"]
    # fits begin with the end of the warm-up, F env steps apart; k grows from 1 at 60 to 3 at 100
    assert [step for step, _ in fits] == [40, 60, 80, 100, 120, 140]
    assert [values["horizon"] for _, values in fits] == [1, 1, 2, 3, 3, 3]
    # capacity = k * rollouts a step * retained steps
    assert [script.capacities[step] for step, _ in fits] == [120, 120, 240, 360, 360, 360]
    # UTD counts from the end of the warm-up
    assert clock.updates == agent.learner.updates == 2 * (140 - WARMUP)
    check_shares(script)
    for score, elites in script.elites:
        assert set(elites.tolist()) == set(score.argsort()[:2].tolist())
    imagined = agent.imagined.ring.all()
    ends = agent.model.spec.known_termination(imagined.obs, imagined.action, imagined.next_obs)
    assert torch.equal(ends, imagined.terminated)
    assert any(int(s) > 0 for s in imagined.step)
    assert ends.any()
    # the newest fit's rollouts: nothing comes after an end
    newest = imagined[-int(fits[-1][1]["imagined_rows"]) :]
    over = {(int(e), int(s) + 1) for e, s, t in zip(newest.episode, newest.step, newest.terminated, strict=True) if t}
    assert not over & {(int(e), int(s)) for e, s in zip(newest.episode, newest.step, strict=True)}


def check_shares(script: Script) -> None:
    """The first 3 of every 20 rows are rows of the real buffer, the others are none."""
    real = {tuple(row) for row in script.agent.buffers["real"].all().obs.tolist()}
    real_next = {tuple(row) for row in script.agent.buffers["real"].all().next_obs.tolist()}
    for batches in script.batches:
        for batch, after in zip(batches.obs.tolist(), batches.next_obs.tolist(), strict=True):
            known = [tuple(o) in real and tuple(n) in real_next for o, n in zip(batch, after, strict=True)]
            assert known == [True] * round(REAL * BATCH) + [False] * (BATCH - round(REAL * BATCH))


def test_the_books_are_kept() -> None:
    check_books(Script(make_agent()).play(140))


def no_elites(agent: Any) -> None:
    agent.model.set_elites = lambda score: agent.model.get_buffer("elites").copy_(score.argsort()[-2:])


def endless(agent: Any) -> None:
    bind = agent.model.bind

    def bound(*args: Any) -> Any:
        model = bind(*args)
        step = model.step

        def never_ends(*args: Any) -> Any:
            made = step(*args)
            made.terminated = torch.zeros_like(made.terminated)
            return made

        model.step = never_ends
        return model

    agent.model.bind = bound


OFF: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None]] = {
    "horizon schedule": ({"horizon": HorizonSchedule(60, 100, 1, 1)}, None),
    "retain window": ({"retain_steps": EVERY}, None),
    "real share": ({"real_ratio": 0.0}, None),
    "updates per step": ({"updates_per_step": 1}, None),
    "fit interval": ({"fit_every": EVERY + 5}, None),
    "elite choice": ({}, no_elites),
    "termination masking": ({}, endless),
}


@pytest.mark.parametrize("name", OFF)
def test_a_mechanism_that_is_off_is_noticed(name: str) -> None:
    changes, break_it = OFF[name]
    agent = make_agent(**changes)
    if break_it is not None:
        break_it(agent)
    with pytest.raises(AssertionError):
        check_books(Script(agent).play(140))


def test_updates_follow_env_steps_when_environments_run_side_by_side() -> None:
    script = Script(make_agent(), num_envs=3).play(120)
    assert script.clock.env_steps == 120
    assert script.clock.updates == 2 * (120 - WARMUP)


def test_a_restored_agent_learns_on_to_the_bit() -> None:
    script = Script(make_agent()).play(70)
    other = make_agent()
    written = io.BytesIO()
    torch.save(script.agent.state_dict(), written)
    written.seek(0)
    other.load_state_dict(torch.load(written, weights_only=True))
    other.buffers["real"].extend(script.agent.buffers["real"].all())
    clocks = [Clock(**script.clock.state_dict()) for _ in range(2)]  # type: ignore[arg-type]
    for _ in range(12):  # over the next fit
        for agent, clock in zip((script.agent, other), clocks, strict=True):
            clock.tick(1)
            agent.update(clock)
    obs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(script.agent.learner.act(obs, None), other.learner.act(obs, None))
    assert torch.equal(script.agent.imagined.ring.all().obs, other.imagined.ring.all().obs)


@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_uninterrupted(resume_is_exact: Callable[..., None]) -> None:
    """Killed past the checkpoint at 120 env steps, between two fits; the buffer of imagined rows has wrapped."""
    agent = ["warmup_steps=30", "fit_every=40", "rollouts_per_step=2", "retain_steps=60", "batch_size=20"]
    agent += [
        "updates_per_step=2",
        "learner.hidden=8",
        "learner.compile=false",
        "model.hidden=8",
        "fitter.max_epochs=2",
        "log_every=50",
    ]
    run = ["steps=200", "num_envs=2", "seed=3", "env.max_episode_steps=25", "checkpoint.every=60"]
    run += ["evaluation={every: 70, episodes: 2}", *(f"agent.{word}" for word in agent)]
    small = ["planner.horizon=3", "planner.candidates=6", "planner.iterations=1", "planner.elites=2", "proposals=1"]
    commands = {
        "mbpo-fast": ["train", "mbpo-fast", "--env", "Pendulum-v1"],
        "mbpo-mpc": ["train", "mbpo-mpc", "--env", "Pendulum-v1", *(f"--agent.{word}" for word in small)],
    }
    resume_is_exact(
        {name: [*words, *(f"--{word}" for word in run), "--quiet"] for name, words in commands.items()}, 133
    )


def test_exploring_samples_and_evaluating_does_not(generator: Generator) -> None:
    agent = Script(make_agent()).play(60).agent
    obs = torch.zeros(8, 4)

    def acts(mode: Any) -> Tensor:
        first = torch.ones(8, dtype=torch.bool)
        return agent.act(obs, agent.initial_actor_state(8), first, mode, generator)[0]

    assert len(set(acts("explore")[:, 0].tolist())) == 8
    assert len(set(acts("evaluate")[:, 0].tolist())) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"real_ratio": 1.5},
        {"updates_per_step": 0},
        {"fit_every": 0},
        {"warmup_steps": 0},
        {"batch_size": 0},
        {"model_from": -1},
    ],
)
def test_bad_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        make_agent(**option)


# -- what is imagined ----------------------------------------------------------------------------------------------


def test_imagination_acts_with_samples_of_the_policy(generator: Generator) -> None:
    agent = Script(make_agent()).play(45).agent
    one = agent.buffers["real"].sample(1, generator)
    agent.starts = lambda buffer, n, generator: one[torch.zeros(n, dtype=torch.long)]  # type: ignore[assignment]
    rows = agent.imagine(1, counter=9)
    assert len(rows.obs.unique(dim=0)) == 1
    assert len(rows.action.unique()) == len(rows) == ROLLOUTS * EVERY


def test_imagination_starts_from_states_all_over_the_real_data() -> None:
    agent = Script(make_agent()).play(45).agent
    begun = agent.imagine(1, counter=9).obs.unique(dim=0)
    real = {tuple(row) for row in agent.buffers["real"].all().obs.tolist()}
    assert {tuple(row) for row in begun.tolist()} <= real
    assert len(begun) > len(real) / 2  # 60 draws of 45 states


def test_filters_act_on_what_is_imagined() -> None:
    plain = Script(make_agent()).play(45).agent
    penalised = Script(make_agent(filters=[UncertaintyPenalty("std_of_means", 5.0)])).play(45).agent
    rows = [agent.imagine(1, counter=9) for agent in (plain, penalised)]
    assert "uncertainty" not in rows[0].extra
    assert torch.equal(rows[0].obs, rows[1].obs)
    torch.testing.assert_close(rows[1].reward, rows[0].reward - 5.0 * rows[1].extra["uncertainty"])
    assert rows[1].extra["uncertainty"].min() > 0.0


def test_every_fit_imagines_with_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def noted(*arguments: Any, seed: int, **how: Any) -> Transitions:
        seeds.append(seed)
        return imagine(*arguments, seed=seed, **how)

    monkeypatch.setattr(dyna, "imagine", noted)
    for run_seed in (0, 1):
        agent = make_agent()
        agent.seed(run_seed)
        Script(agent).play(100)
    assert len(seeds) == len(set(seeds)) == 8  # four fits a run


def test_imagined_rows_are_used_from_the_step_on_that_was_asked_for() -> None:
    script = Script(make_agent(model_from=80)).play(100)
    fits = {step: values for step, event, values in script.events if event == "fit"}
    assert {step: "imagined_rows" in values for step, values in fits.items()} == {
        40: False,
        60: False,
        80: True,
        100: True,
    }
    assert {step: size > 1 for step, size in script.capacities.items()} == {step: step >= 80 for step in range(1, 101)}
    real = {tuple(row) for row in script.agent.buffers["real"].all().obs.tolist()}
    share = [
        sum(tuple(obs) in real for obs in batch) / BATCH for batches in script.batches for batch in batches.obs.tolist()
    ]
    before = 2 * (79 - WARMUP)
    assert set(share[:before]) == {1.0}
    assert share[-1] < 1.0


# -- planning when it decides --------------------------------------------------------------------------------------


def test_the_policy_proposes_and_the_critics_judge_the_end(generator: Generator) -> None:
    planner = partial(ICEM, horizon=4, candidates=20, iterations=2, particles=2)
    agent = make_agent(PlanningDynaAgent, planner=planner, proposals=3)
    assert isinstance(agent, PlanningDynaAgent)
    Script(agent).play(62)
    state = agent.model.encode(torch.zeros(5, 4))
    proposals = agent.propose(agent.model.bind(), state, generator)
    assert proposals.shape == (4, 3, 5, 1)
    torch.testing.assert_close(proposals[0].std(0, correction=0) > 0, torch.ones(5, 1, dtype=torch.bool))
    first = torch.ones(5, dtype=torch.bool)

    def plan() -> Tensor:
        luck = torch.Generator().manual_seed(3)
        return agent.act(state.obs, agent.initial_actor_state(5), first, "evaluate", luck)[0]

    searched, given = agent.planner.plan, []

    def seen(*args: Any, **options: Any) -> Any:
        given.append(args[4])
        return searched(*args, **options)

    agent.planner.plan = seen  # type: ignore[method-assign]
    before = plan()
    assert given[0].shape == proposals.shape
    agent.learner.value = lambda obs, generator: 1000.0 * obs[:, 1]  # type: ignore[method-assign]
    assert not torch.equal(plan(), before)  # the value of the last state matters


def test_the_planner_forgets_at_an_episodes_start_and_only_there(generator: Generator) -> None:
    planner = partial(ICEM, horizon=4, candidates=20, iterations=2, particles=2)
    agent = make_agent(PlanningDynaAgent, planner=planner, proposals=0)
    assert isinstance(agent, PlanningDynaAgent)
    Script(agent).play(62)
    searched, given = agent.planner.plan, []

    def seen(*arguments: Any, **options: Any) -> Any:
        given.append(arguments[3])
        return searched(*arguments, **options)

    agent.planner.plan = seen  # type: ignore[method-assign]
    obs, state = torch.zeros(2, 4), agent.initial_actor_state(2)
    _, state, _ = agent.act(obs, state, torch.tensor([True, True]), "explore", generator)
    agent.act(obs, state, torch.tensor([True, False]), "explore", generator)
    fresh = agent.planner.initial(2)
    for name, value in vars(given[1]).items():
        assert torch.equal(value[0], vars(fresh)[name][0]), name
        assert torch.equal(value[1], vars(state.warm_start)[name][1]), name  # type: ignore[attr-defined]
    assert not torch.equal(given[1].mean[1], fresh.mean[1])  # type: ignore[attr-defined]
