"""What the benchmark of bodies, blocks and doors is built of: rows, open-loop errors, drives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from envs.tasks import Task, make_tasks
from experiments.benchmarks import continual_bodies
from experiments.benchmarks._body_courses import COURSES, Course, collect
from experiments.benchmarks._body_drives import Act, Search, at_random, drive, following, planning
from experiments.benchmarks._body_errors import DIVERGED, STRIDE, judged, open_loop, scale_of, windows_of
from mbrl.data.transitions import Transitions
from mbrl.models.simulator import Simulator

STEPS = 30
HINGE = 8
"""Entry of the door's observation."""


@pytest.fixture(scope="module")
def doors() -> list[Task]:
    return [make_tasks("door-handles").task(id) for id in (0, 3)]


@pytest.fixture(scope="module")
def course() -> Course:
    return dataclasses.replace(COURSES["door-handles"], steps=STEPS, driven_steps=STEPS)


@pytest.fixture(scope="module")
def rows(doors: list[Task], course: Course) -> list[Transitions]:
    return [collect(task, course, 6, seed=0) for task in doors]


def test_episodes_are_whole_and_repeat_under_their_seed(
    doors: list[Task], course: Course, rows: list[Transitions]
) -> None:
    one = rows[1]
    assert one.obs.shape == (STEPS, 6, 14)
    assert one.task is not None
    assert set(one.task.flatten().tolist()) == {3}
    assert float(one.action.abs().max()) <= 1.0
    torch.testing.assert_close(one.obs[1:], one.next_obs[:-1], rtol=0, atol=0)
    again, other = (collect(doors[1], course, 6, seed) for seed in (0, 1))
    torch.testing.assert_close(again.next_obs, one.next_obs, rtol=0, atol=0)
    assert not torch.equal(other.obs[0], one.obs[0])


def test_only_the_experts_half_opens_the_door(rows: list[Transitions]) -> None:
    opened = torch.cat([task.next_obs[..., HINGE].amax(0) for task in rows])
    assert float((opened[::2] > 0.1).float().mean()) >= 0.5  # noise keeps the finger from some handles
    assert bool((opened[1::2] < 0.1).all())


def test_without_an_expert_actions_are_uniform() -> None:
    found = collect(
        make_tasks("halfcheetah-bodies").task(0), dataclasses.replace(COURSES["halfcheetah-bodies"], steps=50), 4, 0
    )
    assert float(found.action.std()) == pytest.approx(1 / math.sqrt(3), abs=0.02)


def test_what_stays_put_in_one_task_is_measured_by_another(rows: list[Transitions]) -> None:
    moving, fixed = rows[1], rows[0].map(lambda x: x.clone())
    fixed.next_obs[..., HINGE + 1] = 0.0
    alone, together = scale_of([fixed]), scale_of([fixed, moving])
    assert float(alone[HINGE + 1]) == 1.0
    assert 0.0 < float(together[HINGE + 1]) < 1.0


def test_windows_begin_every_few_steps_and_stay_inside_episodes(rows: list[Transitions]) -> None:
    found = windows_of(rows[0], 15)
    assert found.obs.shape[:2] == (15, 6 * ((STEPS - 15) // STRIDE + 1))
    torch.testing.assert_close(found.step[-1] - found.step[0], torch.full_like(found.step[0], 14))
    assert bool((found.episode == found.episode[0]).all())


def test_true_dynamics_have_no_error_and_those_of_another_handle_have(
    doors: list[Task], rows: list[Transitions]
) -> None:
    scale, own, other = scale_of(rows), Simulator(doors[1].spec), Simulator(doors[0].spec)
    right, wrong, still = (open_loop(model, rows[1], scale, (1, 15)).errors for model in (own, other, None))
    assert all(error is not None and error < 1e-3 for error in right)
    for errors in (wrong, still):
        assert errors[1] is not None
        assert errors[1] > 0.1


def test_rollouts_that_diverge_are_counted_not_averaged() -> None:
    squares = torch.ones(3, 4)
    squares[1, 0] = 2 * DIVERGED**2  # comes back later: it is lost all the same
    squares[2, 1] = torch.nan
    found = judged(squares, (1, 2, 3))
    assert found.errors == [1.0, 1.0, 1.0]
    assert found.diverged == [0.0, 0.25, 0.5]
    assert judged(torch.full((1, 2), torch.inf), (1,)).errors == [None]


def chance() -> Act:
    return at_random(torch.Generator().manual_seed(0))


def test_an_expert_succeeds_and_chance_does_not(doors: list[Task], course: Course) -> None:
    assert course.expert is not None
    good = drive(doors[0], course, following(course.expert), 2, seed=0)
    poor = drive(doors[0], course, chance(), 2, seed=0)
    assert (good.reached, good.held) == (1.0, 1.0)
    assert (poor.reached, poor.held) == (0.0, 0.0)
    assert min(good.returns) > max(poor.returns)


def test_planning_with_true_dynamics_earns_more_than_chance() -> None:
    """The block's state is told to the simulator, which its observation does not determine."""
    task, search = make_tasks("push-density").task(1), Search(horizon=8, candidates=16, iterations=2, elites=4)
    course = dataclasses.replace(COURSES["push-density"], driven_steps=12)
    planned = drive(task, course, planning(Simulator(task.spec), task, search, 0), 1, seed=0)
    assert planned.returns[0] > drive(task, course, chance(), 1, seed=0).returns[0] + 1.0


def test_running_knows_no_success() -> None:
    course = dataclasses.replace(COURSES["halfcheetah-bodies"], driven_steps=3)
    found = drive(make_tasks("halfcheetah-bodies").task(0), course, chance(), 2, seed=0)
    assert found.reached is None
    assert len(found.returns) == 2


def test_claims_can_fail() -> None:
    def seeds(**ends: float) -> list[dict[str, Any]]:
        names = {"hypernet": ends["ours"], "finetune one head": 1.0, "hypernet beta 0": ends["loose"]}
        return [{"learners": {name: {"just": 0.1, "end": end} for name, end in names.items()}}]

    assert all(line.endswith("yes") for line in continual_bodies.claim_lines(seeds(ours=0.2, loose=2.0)))
    assert all(line.endswith("NO") for line in continual_bodies.claim_lines(seeds(ours=1.5, loose=0.5)))
