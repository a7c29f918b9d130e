"""The true dynamics as a model are those of the environment."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs import UserError, env_spec, make_env
from envs.spec import EnvSpec
from mbrl.models.base import State
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import Objective

TASKS = ["Pendulum-v1", "mbrl/CartPoleSwingUp-v0", "InvertedPendulum-v5", "HalfCheetah-v5", "CartPole-v1"]


def random_actions(spec: EnvSpec, length: int, generator: Generator) -> Tensor:
    if spec.action.discrete:
        choice = torch.randint(spec.action.size, (length, 1), generator=generator)
        return torch.nn.functional.one_hot(choice, spec.action.size).float()
    return torch.rand(length, 1, spec.action.size, generator=generator) * 2 - 1


def start(env: Any, seed: int = 3) -> tuple[Tensor, Tensor]:
    obs, _ = env.reset(seed=seed)
    return torch.as_tensor(obs).float()[None], torch.as_tensor(env.sim_state())[None]


@pytest.mark.parametrize("id", TASKS)
def test_follows_the_environment(id: str, generator: Generator) -> None:
    env = make_env(id)
    model = Simulator(env.env_spec)
    obs, sim_state = start(env)
    actions = random_actions(env.env_spec, 20, generator)
    path = model.rollout(model.encode(obs, sim_state=sim_state), actions, None)
    for h in range(20):
        action = actions[h, 0]
        seen, reward, terminated, *_ = env.step(
            action.argmax().item() if env.env_spec.action.discrete else action.numpy()
        )
        torch.testing.assert_close(path.states.obs[h + 1, 0, 0], torch.as_tensor(seen).float(), rtol=1e-5, atol=2e-6)
        assert path.reward[h, 0, 0].item() == pytest.approx(reward, abs=1e-5)
        assert bool(path.terminated[h, 0, 0]) == terminated
        assert not path.truncated[h, 0, 0]
        if terminated:
            break
    torch.testing.assert_close(path.states.physics[h + 1, 0, 0], torch.as_tensor(env.sim_state()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("id", ["Pendulum-v1", "mbrl/CartPoleSwingUp-v0", "HalfCheetah-v5"])
def test_starts_from_an_observation(id: str, generator: Generator) -> None:
    env = make_env(id)
    model = Simulator(env.env_spec)
    obs, sim_state = start(env)
    actions = random_actions(env.env_spec, 5, generator)
    with_state, without = (model.rollout(model.encode(obs, sim_state=s), actions, None) for s in (sim_state, None))
    torch.testing.assert_close(without.states.obs, with_state.states.obs, rtol=1e-3, atol=1e-3)
    assert not torch.equal(without.states.obs[-1], without.states.obs[0])


def test_step_is_a_rollout_of_one(generator: Generator) -> None:
    model = Simulator(env_spec("Pendulum-v1"))
    state = model.encode(torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]]))
    actions = torch.rand(3, 2, 1, generator=generator) * 2 - 1
    path, reward = model.rollout(state, actions, None), []
    for action in actions:
        step = model.step(state, action, None)
        state = step.state
        reward.append(step.reward)
    torch.testing.assert_close(state.obs, path.states.obs[-1, 0])
    torch.testing.assert_close(torch.stack(reward), path.reward[:, 0])


def test_particles_share_one_computation(generator: Generator) -> None:
    model = Simulator(env_spec("Pendulum-v1"))
    path = model.rollout(model.encode(torch.tensor([[1.0, 0.0, 0.5]])), torch.zeros(4, 1, 1), generator, particles=3)
    assert path.reward.shape == (4, 3, 1)
    assert path.states.obs.shape == (5, 3, 1, 3)
    assert path.reward.stride(1) == 0  # views, not copies


def test_physics_parameters_are_those_of_the_spec() -> None:
    obs, actions = torch.tensor([[1.0, 0.0, 0.5]]), torch.zeros(4, 1, 1)
    ends = []
    for gravity in (10.0, 5.0):
        model = Simulator(env_spec("Pendulum-v1", params={"gravity": gravity}))
        assert model.spec.params["gravity"] == gravity
        ends.append(model.rollout(model.encode(obs), actions, None).states.obs[-1])
    assert (ends[0] - ends[1]).abs().max() > 0.01


def test_planning_with_it(generator: Generator) -> None:
    model = Simulator(env_spec("Pendulum-v1"))
    state = model.encode(torch.tensor([[1.0, 0.0, 0.3], [0.99, 0.14, 0.0]]))
    plan = ICEM(model.spec, horizon=20, particles=2).plan(model, Objective(), state, None, generator=generator)
    assert (plan.value > -3.0).all()
    nothing = model.rollout(state, torch.zeros_like(plan.actions), None).reward.sum(0)[0]
    assert (plan.value > nothing).all()


def test_copies_and_pickles() -> None:
    model = Simulator(env_spec("HalfCheetah-v5"))
    env = make_env("HalfCheetah-v5")
    state = model.encode(*start(env)[:1], sim_state=start(env)[1])
    actions = torch.zeros(2, 1, 6)
    expected = model.rollout(state, actions, None).states.obs
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.rollout(state, actions, None).states.obs, expected)


def test_says_what_is_missing() -> None:
    model = Simulator(env_spec("Pendulum-v1"))
    with pytest.raises(UserError, match="2 entries"):
        model.encode(torch.zeros(1, 3), sim_state=torch.zeros(1, 5))
    with pytest.raises(UserError, match="encode"):
        model.step(State(torch.zeros(1, 3)), torch.zeros(1, 1), None)
    with pytest.raises(UserError, match="action_repeat"):
        Simulator(replace(env_spec("Pendulum-v1"), action_repeat=2))
    with pytest.raises(UserError):
        Simulator(replace(env_spec("Pendulum-v1"), id="Ant-v5", params={}))


def test_observation_that_does_not_determine_the_state() -> None:
    model = Simulator(env_spec("Walker2d-v5"))
    with pytest.raises(UserError, match="sim_state"):
        model.encode(torch.zeros(1, 17))
