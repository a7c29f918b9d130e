"""Every model of a task sequence: tasks start and end, a bound task does not move, what is saved comes back."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.models.base import DynamicsModel, State, TaskConditioned, require
from mbrl.models.continual.base import ContinualModel
from mbrl.models.continual.flat import forward
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.mbrl.models.conftest import System
from tests.mbrl.models.continual.tasks import KINDS, fitter, learn, make, rows

PLAIN = System("plain")
every_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def predicted(model: DynamicsModel, task: int) -> Tensor:
    data = rows(task, 40, seed=5)
    return model.bind(task).step(State(data.obs), data.action, None).state.obs


# -- binding ---------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("layout", ["plain", "mixed"])
@pytest.mark.parametrize(("reward", "end"), [("known", "known"), ("partly", "learned")])
@pytest.mark.parametrize("probabilistic", [False, True])
def test_bound_says_what_the_functional_network_says(
    kind: str, layout: str, reward: str, end: str, probabilistic: bool
) -> None:
    system = System(layout, reward, end)
    model = make(kind, system, members=2, probabilistic=probabilistic)
    learn(model, range(2), seeded(), data=lambda task: rows(task, system=system))
    model.start_task(2, seeded())
    fitter().fit(model, rows(2, system=system), seeded())
    data = rows(2, 30, system)
    prepared = model.prepare(data, fit_statistics=False)
    outputs = forward(model.layers(2), prepared.inputs.expand(2, -1, -1))
    bound = model.bind()
    path = bound.rollout(State(data.obs), data.action[None], None, particles=2, propagation="all")
    change = model.slot(2).target_norm.denormalize(outputs[..., : model.target_size] * model.slot(2).varies)
    z = model.coordinates.from_obs(data.obs)
    said = model.coordinates.to_obs(z + change[..., : model.coordinates.size])
    torch.testing.assert_close(path.states.obs[1], said, atol=2e-5, rtol=1e-4)
    if model.learns_end:
        assert torch.equal(path.terminated[0], outputs[..., -1] > 0)
    if model.learns_reward:
        known = system.spec.known_reward(data.obs, data.action, said[0])
        torch.testing.assert_close(path.reward[0, 0], known + change[0, :, -1], atol=2e-5, rtol=1e-4)


def test_bound_has_no_hypernetwork_and_stays_as_it_was() -> None:
    model = make("hypernet", PLAIN)
    learn(model, range(2), seeded())
    bound, before = model.bind(0), predicted(model, 0)
    calls: list[int] = []
    generate = model.generate  # type: ignore[operator]
    model.generate = lambda *args: calls.append(1) or generate(*args)  # type: ignore[assignment,func-returns-value]
    data = rows(0, 40, seed=5)
    actions = data.action.expand(5, -1, -1)
    bound.rollout(State(data.obs), actions, None)
    assert calls == []
    model.bind(0)
    assert calls == [1]  # the control: it is counted where it runs
    with torch.no_grad():
        model.shared.add_(1.0)
    assert torch.equal(bound.step(State(data.obs), data.action, None).state.obs, before)
    assert not torch.equal(predicted(model, 0), before)


def test_binding_leaves_the_global_random_state_alone() -> None:
    model = make("hypernet", PLAIN)
    learn(model, range(1), seeded())
    before = torch.get_rng_state()
    model.bind(0)
    assert torch.equal(before, torch.get_rng_state())


def test_every_task_is_read_with_its_own_statistics() -> None:
    model = make("single", PLAIN)
    learn(model, range(2), seeded())
    assert not torch.equal(model.slot(0).target_norm.std, model.slot(1).target_norm.std)
    before = predicted(model, 0)
    model.slot(1).target_norm.std.mul_(2)
    assert torch.equal(predicted(model, 0), before)
    model.slot(0).target_norm.std.mul_(2)  # the control
    assert not torch.equal(predicted(model, 0), before)


def test_known_rewards_are_those_of_the_task() -> None:
    def scaled(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:
        return params[0] * next_obs[:, 0]

    def spec_of(task: int) -> Any:
        return dataclasses.replace(PLAIN.spec, params={"scale": 1.0 + task}, reward_terms={"reward": scaled})

    model = KINDS["finetune"](spec_of(0), hidden=8)
    learn(model, range(2), seeded(), spec=spec_of)
    fresh = KINDS["finetune"](spec_of(0), hidden=8)
    fresh.load_state_dict(through_disk(model.state_dict()))
    data = rows(1, 10)
    for one in (model, fresh):
        step = one.bind(1).step(State(data.obs), data.action, None)
        torch.testing.assert_close(step.reward, 2.0 * step.state.obs[:, 0])


# -- ids and data ------------------------------------------------------------------------------------------------------


def test_wrong_ids_and_rows_are_named() -> None:
    model, draw = make("hypernet", PLAIN), seeded()
    with pytest.raises(UserError, match="no task is open"):
        model.bind()
    with pytest.raises(UserError, match="whole number"):
        model.start_task(-1, draw)
    learn(model, range(1), draw)
    with pytest.raises(UserError, match="started before"):
        model.start_task(0, draw)
    with pytest.raises(UserError, match="known: 0"):
        model.bind(3)
    model.start_task(4, draw)
    with pytest.raises(UserError, match="task 4 is open"):
        model.start_task(5, draw)
    with pytest.raises(UserError, match="not been fitted"):
        model.end_task(4, rows(4), draw)
    mixed = type(rows(4)).cat([rows(4), rows(0)])
    for wrong in (rows(0), mixed, dataclasses.replace(rows(4), task=None)):
        with pytest.raises(UserError, match="training data: task"):
            fitter().fit(model, wrong, draw)
    with pytest.raises(UserError, match="is not open"):
        model.end_task(0, rows(0), draw)


@pytest.mark.parametrize("change", [{"obs_size": 4}, {"reward_complete": False}, {"termination": None}])
def test_tasks_of_another_kind_are_refused(change: dict[str, Any]) -> None:
    model = make("single", PLAIN)
    with pytest.raises(UserError, match="spec"):
        model.start_task(0, seeded(), dataclasses.replace(PLAIN.spec, **change))
    assert model.tasks == []  # nothing half-made
    model.start_task(0, seeded(), PLAIN.spec)


def test_capability() -> None:
    model = make("ewc", PLAIN)
    require(model, TaskConditioned).start_task(3, seeded())
    assert model.tasks == [3]
    with pytest.raises(UserError, match="HyperNetwork"):
        require(ProbabilisticEnsemble(PLAIN.spec), TaskConditioned)


# -- what is kept ------------------------------------------------------------------------------------------------------


@every_kind
def test_old_rows_are_kept_by_replays_only(kind: str) -> None:
    model = make(kind, PLAIN)
    learn(model, range(3), seeded())
    kept = {"oracle": 120, "coreset": 7}.get(kind, 0)
    assert model.stored_rows() == dict.fromkeys(range(3), kept)
    floats = sum(x.numel() for x in model.state_dict().values() if isinstance(x, Tensor))
    named = sum(sum(model.memory_bytes(task).values()) for task in model.tasks) + model.shared_bytes()
    assert floats < named < 9 * floats  # every tensor is accounted for: 1 to 8 bytes a number
    state = sum(x.numel() * x.element_size() for x in model.state_dict().values() if isinstance(x, Tensor))
    assert named == state


@every_kind
def test_restored_in_the_middle_of_the_third_task(kind: str) -> None:
    """Bit for bit: what it predicts, and what it learns from there on."""
    options = {"members": 2, "probabilistic": True, "validity": 0.5}
    model, trainer = make(kind, PLAIN, **options), fitter()
    draw = seeded()
    learn(model, range(2), draw, trainer)
    model.start_task(7, draw)
    trainer.fit(model, rows(7), draw)
    saved = through_disk({"model": model.state_dict(), "fitter": trainer.state_dict(), "draw": draw.get_state()})
    other, again, later = make(kind, PLAIN, seed=9, **options), fitter(), seeded(5)
    learn(other, range(1), later, again)  # it has lived before
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["fitter"])
    later.set_state(saved["draw"])
    assert other.tasks == [0, 1, 7]
    assert other.current == 7
    for one, trains, luck in ((model, trainer, draw), (other, again, later)):
        trains.fit(one, rows(7), luck)
        one.end_task(7, rows(7), luck)
        learn(one, range(8, 9), luck, trains)
    assert_same(model, other)


def assert_same(model: ContinualModel, other: ContinualModel) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value == theirs[name], name
    for task in model.tasks:
        assert torch.equal(predicted(model, task), predicted(other, task))


def test_a_forgotten_optimiser_would_show() -> None:
    """The control of the test above: without the fitter's state the weights differ."""
    model, trainer, draw = make("hypernet", PLAIN), fitter(), seeded()
    model.start_task(0, draw)
    trainer.fit(model, rows(0), draw)
    other = make("hypernet", PLAIN, seed=9)
    other.load_state_dict(through_disk(model.state_dict()))
    trainer.fit(model, rows(0), seeded(1))
    fitter().fit(other, rows(0), seeded(1))
    assert not torch.equal(model.shared, other.shared)
