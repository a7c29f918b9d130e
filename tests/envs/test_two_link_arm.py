"""The arm: its geometry, its expert, and the goal that moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import UserError, make_env, make_physics
from envs.two_link_arm import GOAL_UNITS, LINKS, SUCCESS, TwoLinkReach, joints_at, seek_goal, tip

ID = "mbrl/TwoLinkReach-v0"


def starts(number: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([TwoLinkReach.initial(rng) for _ in range(number)]))


def test_the_tip_is_where_the_links_lead() -> None:
    joints = torch.tensor([[0.0, 0.0], [np.pi / 2, 0.0], [0.0, np.pi / 2]], dtype=torch.float64)
    far, (near, last) = sum(LINKS), LINKS
    torch.testing.assert_close(tip(joints), torch.tensor([[far, 0.0], [0.0, far], [near, last]], dtype=torch.float64))


def test_joints_bring_the_tip_to_every_goal() -> None:
    goals = starts(500)[:, 2:4]
    torch.testing.assert_close(tip(joints_at(goals)), goals)
    out_of_reach = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(tip(joints_at(out_of_reach)), torch.tensor([[sum(LINKS), 0.0]], dtype=torch.float64))


def test_the_expert_arrives_and_doing_nothing_does_not() -> None:
    physics, states = make_physics(ID), starts(100)
    still = states
    for _ in range(50):
        action = seek_goal(physics.observe(states), speed=5.0)
        states = physics.rollout(states, action[None])[-1]
    reward = physics.reward(states, action, states)
    assert float(reward.min()) >= -SUCCESS / 10
    assert float((physics.reward(still, action, still) >= -SUCCESS).double().mean()) < 0.1


def test_a_goal_moves_once_at_its_step() -> None:
    env = make_env(ID, switch_at=3)
    obs, _ = env.reset(seed=0)
    goals = [obs[2:]]
    for _ in range(6):
        obs, reward, *_ = env.step(np.zeros(2, dtype=np.float32))
        goals.append(obs[2:])
        place = tip(torch.from_numpy(obs[:2].copy())).numpy()
        assert reward == pytest.approx(-float(np.linalg.norm(place - obs[2:] / GOAL_UNITS)))
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(goals)]
    assert changed == [False, False, True, False, False, False]


def test_a_goal_stays_unless_told() -> None:
    env = make_env(ID)
    first, _ = env.reset(seed=0)
    for _ in range(50):
        obs, *_ = env.step(np.ones(2, dtype=np.float32))
    assert np.array_equal(obs[2:], first[2:])
    assert np.allclose(obs[:2] - first[:2], 50 * 0.1 * 5.0)


@pytest.mark.parametrize("switch_at", [0, -1, 2.5, True])
def test_a_step_that_is_none_is_refused(switch_at: object) -> None:
    with pytest.raises(UserError, match="switch_at"):
        make_env(ID, switch_at=switch_at)
