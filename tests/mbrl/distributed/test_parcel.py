"""Objects of tensors on their way to other processes: the same thing comes out, new numbers go into what is there."""

from __future__ import annotations

import torch
from torch import nn

from agents.actor_critic.learner import ActorCritic
from envs.registry import env_spec
from mbrl import seeding
from mbrl.distributed.parcel import Parcel, Replica
from mbrl.imagination import PolicyChooser
from mbrl.models.base import State
from mbrl.models.ensemble import ProbabilisticEnsemble

CPU = torch.device("cpu")


def test_a_bound_model_comes_out_as_it_went_in() -> None:
    for options in ({}, {"inference_dtype": "bfloat16"}):
        torch.manual_seed(0)
        model = ProbabilisticEnsemble(env_spec("Pendulum-v1"), 3, 16, 2, **options)  # type: ignore[arg-type]
        bound = Replica(CPU).open(Parcel.of(model.bind()))
        state, action = State(torch.randn(20, 3)), torch.rand(20, 1)
        one, other = (m.step(state, action, seeding.generator(0, "step")) for m in (model.bind(), bound))
        assert torch.equal(one.state.obs, other.state.obs)
        assert torch.equal(one.member, other.member)


def test_compiled_code_stays_at_home() -> None:
    model = ProbabilisticEnsemble(env_spec("Pendulum-v1"), 2, 8, 1, compile=True)
    bound = Replica(CPU).open(Parcel.of(model.bind()))
    assert bound._advance is not None
    learner = ActorCritic(env_spec("Pendulum-v1"), hidden=8, compile=True)
    act = Replica(CPU).open(Parcel.of(PolicyChooser(learner.behaviour())))
    obs = torch.randn(16, 3)
    there = act.policy(obs, seeding.generator(0, "act"))
    assert torch.equal(there, learner.act(obs, seeding.generator(0, "act")))


def test_new_numbers_go_into_the_tensors_that_are_there() -> None:
    model, replica = nn.Linear(3, 2), Replica(CPU)
    first = replica.open(Parcel.of(model))
    weight = first.weight
    with torch.no_grad():
        model.weight.add_(1.0)
    second = replica.open(Parcel.of(model))
    assert second is first
    assert second.weight is weight
    assert torch.equal(second.weight, model.weight)
    assert replica.open(Parcel.of(nn.Linear(4, 2))) is not first  # another shape is another thing


def test_a_parcel_is_a_copy_and_knows_its_like() -> None:
    weights = torch.tensor([0.0, float("nan"), 1.0])
    values = {"weights": weights, "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0), "name": "a"}
    parcel = Parcel.of(values)
    assert parcel.same(Parcel.of(values))
    assert not parcel.same(Parcel.of(values | {"name": "b"}))
    assert not parcel.same(Parcel.of(values | {"half": torch.zeros(2, dtype=torch.bfloat16)}))
    opened = Replica(CPU).open(parcel)
    weights.add_(1.0)
    assert not parcel.same(Parcel.of(values))
    opened["weights"].sub_(1.0)
    assert Replica(CPU).open(parcel)["weights"][[0, 2]].tolist() == [0.0, 1.0]


def test_what_is_one_tensor_stays_one() -> None:
    shared = nn.Parameter(torch.ones(2))
    opened = Replica(CPU).open(Parcel.of({"a": shared, "b": [shared], "c": shared.detach().clone()}))
    assert opened["a"] is opened["b"][0]
    assert isinstance(opened["a"], nn.Parameter)
    assert opened["c"] is not opened["a"]


def test_every_tensor_and_device_becomes_the_workers_own() -> None:
    opened = Replica(torch.device("meta")).open(Parcel.of((torch.ones(2), CPU, nn.Linear(2, 1))))
    assert opened[0].device.type == "meta"
    assert opened[1].type == "meta"
    assert opened[2].weight.device.type == "meta"
