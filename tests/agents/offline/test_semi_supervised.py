"""SS-ORL: which actions are hidden, what takes their place, what is learned from, and the exact state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator

from agents.actor_critic import ActorCritic
from agents.offline.semi_supervised import SemiSupervisedAgent
from envs.errors import UserError
from experiments.config import resolve
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.models.inverse import WindowedInverse
from tests.agents.offline.pendulum_data import SPEC, filled, noisy_swing_up, play

EPISODES = 10


def rows() -> Transitions:
    draw = Generator().manual_seed(0)
    return play(noisy_swing_up(draw), EPISODES, draw)


def made(**changes: Any) -> SemiSupervisedAgent:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "learner": partial(ActorCritic, hidden=8, layers=1),
        "inverse": partial(WindowedInverse, hidden=16, steps=150, dropout=0.0, lr=5e-3),
        "share": 0.3,
        "batch_size": 16,
        "round_updates": 2,
        "log_every": 2,
    }
    agent = SemiSupervisedAgent(SPEC, **(options | changes))
    agent.seed(0)
    agent.load(filled(rows()))
    return agent


def test_all_rows_are_learned_from_and_only_known_actions_are_true() -> None:
    agent, true = made(), rows()
    report = agent.update(Clock())["fit"]
    data = agent.data.all()
    known = data.extra["has_action"].bool()
    assert len(data) == len(true)
    assert int(known.sum()) == 3 * 200 == report["labelled_rows"]
    assert torch.equal(data.action[known], true.action[known])
    assert bool(data.action.isfinite().all())
    assert not torch.equal(data.action, true.action)
    assert report["label_r2"] > 0.3


def test_labels_are_made_once_and_not_from_what_is_hidden() -> None:
    agent = made()
    agent.update(Clock())
    labelled = agent.data
    assert "fit" not in agent.update(Clock())
    assert agent.data is labelled
    other = made()
    spoiled = filled(rows())
    hidden = ~labelled.all().extra["has_action"].bool()
    spoiled.columns["action"][hidden] = 0.77
    other.load(spoiled)
    other.update(Clock())
    assert torch.equal(other.data.all().action, labelled.all().action)


def test_without_proxies_only_labelled_rows_are_there() -> None:
    agent = made(proxies=False)
    agent.update(Clock())
    assert len(agent.data) == 600
    assert bool(agent.data.all().extra["has_action"].all())


def test_state_comes_back_to_the_bit() -> None:
    agent, other, clock = made(), made(), Clock()
    agent.update(clock)
    other.load_state_dict(agent.state_dict())
    other.load(filled(rows()))
    logged = agent.update(clock), other.update(Clock(updates=2))
    assert logged[0] == logged[1]
    assert torch.equal(*(each.data.all().action for each in (agent, other)))
    assert torch.equal(*(each.learner.vectors["critic"] for each in (agent, other)))


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="share"):
        made(share=0.0)


def test_the_recipe_builds_it() -> None:
    agent = resolve("ss-orl", [("data", "some.hdf5")], env="Pendulum-v1").config.agent(SPEC)
    assert isinstance(agent, SemiSupervisedAgent)
