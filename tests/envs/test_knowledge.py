"""Known pieces against the environments themselves."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from envs.knowledge import Knowledge, knowledge_for
from envs.knowledge.terms import Constant, ControlCost
from envs.knowledge.verify import Recorded, compare, record, verify_knowledge
from envs.spec import takes_params

CLASSIC = ("Pendulum-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1")
MUJOCO = (
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Pusher-v5",
    "Swimmer-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
)
ENDING = (
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Acrobot-v1",
    "InvertedPendulum-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
)
COMPLETE = (*CLASSIC, "InvertedPendulum-v5", "Reacher-v5", "Pusher-v5", "HumanoidStandup-v5")

VARIED: dict[str, tuple[str, dict[str, Any]]] = {
    "pendulum": ("Pendulum-v1", {"g": 3.0}),
    "cartpole": ("CartPole-v1", {"sutton_barto_reward": True}),
    "car": ("MountainCarContinuous-v0", {"goal_velocity": 0.01}),
    "reacher": ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.3}),
    "pusher": ("Pusher-v5", {"reward_near_weight": 2.0, "reward_control_weight": 0.3}),
    "swimmer": ("Swimmer-v5", {"exclude_current_positions_from_observation": False}),
    "cheetah": (
        "HalfCheetah-v5",
        {
            "exclude_current_positions_from_observation": False,
            "forward_reward_weight": 3.0,
            "ctrl_cost_weight": 0.7,
            "frame_skip": 5,
        },
    ),
    "hopper": (
        "Hopper-v5",
        {
            "healthy_reward": 2.0,
            "healthy_z_range": (0.9, 1.3),
            "healthy_state_range": (-4.0, 4.0),
            "exclude_current_positions_from_observation": False,
        },
    ),
    "endless hopper": ("Hopper-v5", {"terminate_when_unhealthy": False}),
    "walker": ("Walker2d-v5", {"healthy_angle_range": (-0.3, 0.2), "ctrl_cost_weight": 0.5}),
    "ant": ("Ant-v5", {"include_cfrc_ext_in_observation": False, "healthy_z_range": (0.4, 0.8)}),
    "whole ant": ("Ant-v5", {"exclude_current_positions_from_observation": False, "contact_force_range": (-0.1, 0.1)}),
    "humanoid": ("Humanoid-v5", {"include_cvel_in_observation": False, "healthy_z_range": (1.2, 1.5)}),
    "bare humanoid": ("Humanoid-v5", {"include_cfrc_ext_in_observation": False}),
    "standup": ("HumanoidStandup-v5", {"uph_cost_weight": 2.0, "exclude_current_positions_from_observation": False}),
    "bare standup": ("HumanoidStandup-v5", {"include_cfrc_ext_in_observation": False}),
}


@functools.cache
def transitions(id: str) -> Recorded:
    # Random actions rarely reach these goals.
    steps = 8000 if id in ("Acrobot-v1", "MountainCar-v0") else 2500
    return record(gym.make(id), steps, seed=1)


@pytest.mark.parametrize("id", [*CLASSIC, *MUJOCO])
def test_every_piece_agrees_with_the_environment(id: str) -> None:
    known = knowledge_for(gym.make(id))
    assert [str(m) for m in compare(transitions(id), known)] == []
    if id in ENDING:
        assert transitions(id).terminated.any(), "no terminating transition was tried"


@pytest.mark.parametrize("name", VARIED)
def test_constructor_arguments_are_respected(name: str) -> None:
    id, arguments = VARIED[name]
    env = gym.make(id, **arguments)
    assert [str(m) for m in verify_knowledge(env, knowledge_for(env), 600)] == []


def test_what_is_complete_is_as_stated() -> None:
    for id in (*CLASSIC, *MUJOCO):
        assert knowledge_for(gym.make(id)).reward_complete == (id in COMPLETE), id
    positions = {"exclude_current_positions_from_observation": False}
    for id in ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5"):
        assert knowledge_for(gym.make(id, **positions)).reward_complete, id


@pytest.mark.parametrize("id", [*CLASSIC, *MUJOCO])
def test_layout_covers_the_observation_and_angles_lie_in_it(id: str) -> None:
    env = gym.make(id)
    known, size = knowledge_for(env), transitions(id).obs.shape[1]
    covered = [i for entries in known.layout.values() for i in range(entries.start, entries.stop)]
    assert covered == list(range(size))
    obs = transitions(id).obs
    for angle in known.angles:
        if angle.raw is None:
            assert torch.allclose(obs[:, angle.cos] ** 2 + obs[:, angle.sin] ** 2, torch.ones(()).double(), atol=1e-6)
        else:
            assert 0 <= angle.raw < size


@pytest.mark.parametrize("id", [*CLASSIC, *MUJOCO])
def test_pieces_pickle_broadcast_and_keep_device_and_dtype(id: str) -> None:
    known = knowledge_for(gym.make(id))
    pieces = [*known.reward_terms.values(), *([known.termination] if known.termination else [])]
    assert pickle.loads(pickle.dumps(pieces)) == pieces
    recorded = transitions(id)
    obs, action, next_obs = (
        x[:12].reshape(3, 4, *x.shape[1:]) for x in (recorded.obs, recorded.action, recorded.next_obs)
    )
    for piece in pieces:
        assert not takes_params(piece)
        assert piece(obs.float(), action, next_obs.float()).shape == (3, 4)
    for term in known.reward_terms.values():
        narrow = action.float() if action.is_floating_point() else action
        assert term(obs.float(), narrow, next_obs.float()).dtype == torch.float32


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("Reacher-v5", {"reward_ctrl": ControlCost(0.1)}, "reward_ctrl"),
    ("HalfCheetah-v5", {"reward_ctrl": ControlCost(0.1001)}, "reward_ctrl"),
    ("InvertedPendulum-v5", {"reward_survive": Constant(1.0)}, "reward_survive"),
    ("Pendulum-v1", {"reward": ControlCost(0.001)}, "reward"),
    ("MountainCarContinuous-v0", {"goal": Constant(0.0)}, "reward"),
]


@pytest.mark.parametrize(("id", "terms", "named"), WRONG)
def test_a_wrong_reward_term_is_found(id: str, terms: dict[str, Any], named: str) -> None:
    known = knowledge_for(gym.make(id))
    wrong = dataclasses.replace(known, reward_terms={**known.reward_terms, **terms})
    found = {m.name: m for m in compare(transitions(id), wrong)}
    assert named in found
    assert found[named].max_error > 0
    assert "next_obs" in found[named].example


@pytest.mark.parametrize("id", ENDING)
def test_a_wrong_termination_is_found(id: str) -> None:
    known = knowledge_for(gym.make(id))
    wrong = dataclasses.replace(known, termination=knowledge_for(gym.make("Pendulum-v1")).termination)
    assert [m.name for m in compare(transitions(id), wrong)] == ["termination"]


def _pair(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs[..., :2]


def _scaled(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    return -params[0] * action.square().sum(-1)


def test_pieces_that_cannot_be_compared_are_named() -> None:
    recorded = transitions("HalfCheetah-v5")
    found = compare(recorded, Knowledge(reward_terms={"secret": Constant(1.0), "reward_ctrl": _pair}))
    assert {m.name for m in found} == {"secret", "reward_ctrl"}
    assert "info['secret']" in str(found[0])
    assert "shape" in str(found[1])


def test_pieces_get_the_parameters_they_ask_for() -> None:
    recorded, terms = transitions("HalfCheetah-v5"), {"reward_ctrl": _scaled}
    assert compare(recorded, Knowledge(reward_terms=terms, params={"weight": 0.1})) == []
    assert len(compare(recorded, Knowledge(reward_terms=terms, params={"weight": 0.2}))) == 1


def test_a_piece_that_gives_nan_is_found() -> None:
    recorded = transitions("HalfCheetah-v5")
    (found,) = compare(recorded, Knowledge(reward_terms={"reward_ctrl": Constant(float("nan"))}))
    assert np.isnan(found.max_error)


class OtherPendulum(PendulumEnv):
    """A subclass that may do anything."""


def test_nothing_is_claimed_of_what_may_differ() -> None:
    assert knowledge_for(OtherPendulum()) == Knowledge()
    assert knowledge_for(gym.make("Hopper-v4")) == Knowledge()
    halved = gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: 0.5 * float(reward))
    assert knowledge_for(halved) == Knowledge()
    assert knowledge_for(gym.wrappers.RecordEpisodeStatistics(gym.make("Pendulum-v1"))).reward_complete
