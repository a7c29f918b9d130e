"""The router: which task, when it changes unseen, and when it is a new one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from envs.errors import UserError
from envs.spec import EnvSpec
from experiments.benchmarks import _continual_router as routing
from experiments.benchmarks._pendulums import PENDULUMS, exploring, pendulum
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.router import Route, Router, Thresholds, calibrate, error_scale
from mbrl.models.simulator import Simulator

THREE = (0, 2, 3)


@pytest.fixture(scope="module")
def specs() -> list[EnvSpec]:
    return [pendulum(*physics) for physics in PENDULUMS]


@pytest.fixture(scope="module")
def models(specs: list[EnvSpec]) -> dict[int, DynamicsModel]:
    """The true physics of three pendulums: what is tested is the router."""
    return {task: Simulator(specs[task]) for task in THREE}


@pytest.fixture(scope="module")
def scale(specs: list[EnvSpec]) -> torch.Tensor:
    return error_scale(exploring(specs, THREE, 100, seed=77))


def follow(router: Router, stream: Transitions) -> list[Route]:
    return [router.update(stream.obs[i], stream.action[i], stream.next_obs[i]) for i in range(len(stream))]


def router_of(models: dict[int, DynamicsModel], scale: torch.Tensor, known: Sequence[int] = THREE) -> Router:
    router = Router(scale, Thresholds(shift=0.005, reuse=0.005))
    for task in known:
        router.add(task, models[task])
    return router


def test_hidden_switches_are_found(specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor) -> None:
    router, order = router_of(models, scale), [0, 2, 3, 0]
    router.start(0)
    routes = follow(router, exploring(specs, order, 100, seed=1))
    assert {route.task for route in routes[:100]} == {0}
    for k, task in list(enumerate(order))[1:]:
        assert routes[100 * k + 64].task == task
        assert [route.event for route in routes[100 * k : 100 * (k + 1)]].count("switch") == 1


def test_an_unseen_task_is_new_and_a_seen_one_after_it_is_not(
    specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor
) -> None:
    router = router_of(models, scale, known=[0, 3])
    router.start(0)
    routes = follow(router, exploring(specs, [0, 2, 3], 100, seed=2))
    assert (routes[164].task, routes[195].task) == (None, None)
    assert "new" in {route.event for route in routes[100:164]}
    assert routes[264].task == 3
    router.add(2, models[2])  # the control: known, it is found
    router.start(0)
    assert follow(router, exploring(specs, [0, 2], 100, seed=2))[164].task == 2


def test_models_told_apart_by_nothing_are_not_found(
    specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor
) -> None:
    """The control: under the names of other tasks the answer is wrong."""
    router = router_of({0: models[2], 2: models[3], 3: models[0]}, scale)
    assert {route.task for route in follow(router, exploring(specs, [0], 40, seed=3))[31:]} == {3}


def test_starting_unknown_it_asks_all(
    specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor
) -> None:
    routes = follow(router_of(models, scale), exploring(specs, [2], 33, seed=4))
    assert routes[30].task is None
    assert (routes[31].task, routes[31].event) == (2, "switch")


def test_thresholds_part_own_from_foreign(
    specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor
) -> None:
    blurred = {task: _Blurred(specs[task]) for task in THREE}
    streams = {task: exploring(specs, [task], 200, seed=10 + task) for task in THREE}
    found = calibrate(blurred, streams, scale)
    assert 1e-4 < found.shift <= found.reuse < 0.05
    with pytest.raises(UserError, match="two tasks"):
        calibrate({0: blurred[0]}, {0: streams[0]}, scale)
    with pytest.raises(UserError, match="consecutive rows"):
        calibrate(blurred, {task: stream[:20] for task, stream in streams.items()}, scale)


class _Blurred(Simulator):
    """Predicts with an error of its own, always the same."""

    def step(self, state, action, generator):  # type: ignore[no-untyped-def]
        step = super().step(state, action, generator)
        step.state.obs = step.state.obs + 0.01
        return step


def test_resume(specs: list[EnvSpec], models: dict[int, DynamicsModel], scale: torch.Tensor) -> None:
    stream = exploring(specs, [0, 3], 100, seed=5)
    whole, first, second = (router_of(models, scale) for _ in range(3))
    whole.start(0)
    first.start(0)
    routes = follow(first, stream[:120])
    second.load_state_dict(first.state_dict())
    assert follow(whole, stream) == routes + follow(second, stream[120:])


def test_an_unknown_id_is_named(models: dict[int, DynamicsModel], scale: torch.Tensor) -> None:
    with pytest.raises(UserError, match="known: 0, 2, 3"):
        router_of(models, scale).start(1)


def test_the_benchmark_counts_delays() -> None:
    switches = [{"to": 1, "delay": 10}, {"to": 2, "delay": None}, {"to": 1, "delay": 64}]
    assert routing.share(switches) == pytest.approx(1 / 3)
    assert routing.share(switches, to=1) == 0.5
