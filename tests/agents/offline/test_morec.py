"""MOREC: the dynamics reward is learned once, chooses and ends imagined steps, and comes back with the agent."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator

from agents.actor_critic import ActorCritic
from agents.offline.morec import SCORE, RewardConsistentAgent
from envs.errors import UserError
from experiments.config import resolve
from mbrl.clock import Clock
from mbrl.fitting import Fitter
from mbrl.imagination.filters import UncertaintyPenalty
from mbrl.models.dynamics_reward import DynamicsReward
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from tests.agents.offline.pendulum_data import SPEC, filled, noisy_swing_up, play

STARTS, HORIZON = 16, 3
REWARD = partial(DynamicsReward, hidden=8, generator_hidden=8, steps=20, snapshot_every=5, keep=2, batch_size=16)


def made(**changes: Any) -> RewardConsistentAgent:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "learner": partial(ActorCritic, hidden=8, layers=1),
        "reward": REWARD,
        "model": partial(ProbabilisticEnsemble, members=3, elites=2, hidden=8, layers=1),
        "fitter": Fitter(max_epochs=1, batch_size=32),
        "candidates": 3,
        "threshold": 0.0,
        "horizon": HORIZON,
        "starts": STARTS,
        "refresh_every": 4,
        "batch_size": 16,
        "round_updates": 2,
        "log_every": 2,
    }
    agent = RewardConsistentAgent(SPEC, **(options | changes))
    agent.seed(0)
    draw = Generator().manual_seed(0)
    agent.load(filled(play(noisy_swing_up(draw), 1, draw)))
    return agent


def test_the_reward_is_learned_with_the_model_and_only_once() -> None:
    agent, clock = made(), Clock()
    first = agent.update(clock)
    assert first["fit"]["dynamics_reward_steps"] == 20
    assert len(agent.reward.history) == 2
    assert first["imagine"][SCORE] > 0.0
    assert first["imagine"]["imagined_rows"] == STARTS * HORIZON
    assert "fit" not in agent.update(clock)


def test_many_candidates_are_better_liked_than_one() -> None:
    scores = []
    for candidates in (1, 20):
        agent = made(candidates=candidates, temperature=0.0)
        agent.update(Clock())
        scores.append(float(agent.imagined.ring.all().extra[SCORE].mean()))
    assert scores[1] > scores[0]


def test_the_temperature_makes_the_choice_softer() -> None:
    scores = []
    for temperature in (0.0, 1e3):
        agent = made(candidates=20, temperature=temperature)
        agent.update(Clock())
        scores.append(float(agent.imagined.ring.all().extra[SCORE].mean()))
    assert scores[0] > scores[1]


@pytest.mark.parametrize(("stop", "rows"), [("terminal", STARTS), ("truncated", STARTS), ("drop", 0)])
def test_disliked_steps_end_their_rows(stop: str, rows: int) -> None:
    agent = made(threshold=1e9, stop=stop)
    agent.update(Clock())
    imagined = agent.imagined.ring
    assert len(imagined) == rows
    if rows:
        ended = {"terminal": imagined.all().terminated, "truncated": imagined.all().truncated}
        assert {name: bool(each.all()) for name, each in ended.items()} == {name: name == stop for name in ended}


def test_a_penalty_comes_after_the_choice() -> None:
    plain, doubting = made(), made(filters=[UncertaintyPenalty("largest_std", 1.0)])
    for agent in (plain, doubting):
        agent.update(Clock())
    rows = doubting.imagined.ring.all()
    taken = plain.imagined.ring.all().reward - rows.reward
    assert torch.allclose(taken, rows.extra["uncertainty"], atol=1e-5)
    assert float(taken.min()) > 0.0


def test_state_comes_back_to_the_bit() -> None:
    agent, other, clock = made(), made(), Clock()
    for _ in range(2):
        agent.update(clock)
    other.load_state_dict(agent.state_dict())
    again = Clock(updates=clock.updates)
    for _ in range(2):  # a refresh is due, which asks the dynamics reward
        logged = agent.update(clock), other.update(again)
        assert logged[0] == logged[1]
    assert torch.equal(*(each.imagined.ring.all().obs for each in (agent, other)))
    assert torch.equal(*(each.learner.vectors["critic"] for each in (agent, other)))


def test_the_truth_needs_no_choice() -> None:
    with pytest.raises(UserError, match="learn a model"):
        made(model=Simulator, fitter=None)


@pytest.mark.parametrize("recipe", ["morec-mopo", "morec-mobile"])
def test_the_recipe_builds_it(recipe: str) -> None:
    agent = resolve(recipe, [("data", "some.hdf5")], env="Pendulum-v1").config.agent(SPEC)
    assert isinstance(agent, RewardConsistentAgent)
    assert (agent.penalty is not None) == (recipe == "morec-mobile")
