"""The rows that imagination makes, and that nothing but its arguments decides them."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from typing import Any

import pytest
import torch
import walks
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl import seeding
from mbrl.data.buffer import flatten
from mbrl.data.transitions import Transitions
from mbrl.imagination import rollout
from mbrl.imagination.filters import Filter
from mbrl.imagination.rollout import PlannerChooser, PolicyChooser, chunk_width, cut, imagine, imagine_chunk, join
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.planning.objective import Objective
from mbrl.planning.random_shooting import RandomShooting


def same(one: Transitions, other: Transitions) -> bool:
    mine, theirs = flatten(one), flatten(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def ensemble(**options: Any) -> ProbabilisticEnsemble:
    torch.manual_seed(0)
    return ProbabilisticEnsemble(walks.spec_of(), members=3, hidden=8, **options)


def test_rows_are_what_the_model_and_the_actor_did() -> None:
    rows = imagine(walks.Walk(), walks.Constant(0.5), walks.starts(3), 2, seed=0, policy_version=7)
    assert rows.obs.tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.5, 0.0], [0.5, 1.0], [0.5, 2.0]]
    assert rows.next_obs[:, 0].tolist() == [0.5] * 3 + [1.0] * 3
    assert rows.action.tolist() == [[0.5]] * 6
    assert rows.reward.tolist() == [0.5] * 6
    assert rows.episode.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.step.tolist() == rows.extra["depth"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.policy_version.tolist() == [7] * 6
    assert set(rows.extra) == {"depth"}


def test_the_horizon_is_no_end() -> None:
    rows = imagine(walks.Walk(), walks.Constant(), walks.starts(4), 3, seed=0)
    assert not (rows.terminated | rows.truncated).any()


def check_ends(rows: Transitions, ended: Tensor, at: float) -> None:
    """``ended`` rows lie beyond ``at``; no row starts there, and no row follows one that ended."""
    assert torch.equal(ended, rows.next_obs[:, 0] > at)
    assert 0 < int(ended.sum()) < len(rows)
    last = {(int(e), int(s)) for e, s in zip(rows.episode[ended], rows.step[ended], strict=True)}
    there = {(int(e), int(s)) for e, s in zip(rows.episode, rows.step, strict=True)}
    assert not {(e, s + 1) for e, s in last} & there
    assert (rows.obs[:, 0] <= at).all()


@pytest.mark.parametrize("how", ["terminated", "truncated"])
@pytest.mark.parametrize("chunk_rows", [100, 16])
def test_a_row_after_a_predicted_end_does_not_exist(how: str, chunk_rows: int) -> None:
    model = walks.Walk(noise=1.0, **{"end_at" if how == "terminated" else "box": 1.5})
    rows = imagine(model, walks.Random(), walks.starts(50), 6, seed=1, chunk_rows=chunk_rows)
    check_ends(rows, getattr(rows, how), 1.5)
    other = {"terminated": rows.truncated, "truncated": rows.terminated}[how]
    assert not other.any()


def test_rows_that_live_on_are_all_there() -> None:
    rows = imagine(walks.Walk(noise=1.0, end_at=1.5), walks.Random(), walks.starts(50), 6, seed=1)
    for step in range(1, 6):
        before = rows[(rows.step == step - 1) & ~rows.terminated]
        now = rows[rows.step == step]
        assert torch.equal(now.episode, before.episode)
        assert torch.equal(now.obs, before.next_obs)


def test_without_masking_the_check_of_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(*args: Any, **kwargs: Any) -> Any:
        move = real(*args, **kwargs)
        hidden.append(move.step.terminated)
        return replace(move, step=replace(move.step, terminated=torch.zeros_like(move.step.terminated)))

    real, hidden = rollout._advance, list[Tensor]()
    monkeypatch.setattr(rollout, "_advance", unmasked)
    rows = imagine(walks.Walk(noise=1.0, end_at=1.5), walks.Random(), walks.starts(50), 6, seed=1)
    with pytest.raises(AssertionError):
        check_ends(rows, torch.cat([ended[:50] for ended in hidden]), 1.5)


def test_ended_rows_stand_still() -> None:
    """An actor never sees what lies beyond an end, not even in rows that are thrown away."""
    seen: list[Tensor] = []

    class Watching(walks.Constant):
        def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
            seen.append(state.obs[:, 0])
            return super().__call__(model, state, generator)

    imagine(walks.Walk(end_at=2.5), Watching(), walks.starts(20), 6, seed=0)
    assert [float(obs.max()) for obs in seen] == [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_rows_that_are_no_numbers_are_dropped() -> None:
    class Explosive(walks.Walk):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            step = super().step(state, action, generator)
            broken = (state.obs[:, 1] == 1) & (step.state.obs[:, 0] > 1.5)
            bad = torch.where(broken[:, None], torch.nan, step.state.obs)
            reward = torch.where(state.obs[:, 1] == 2, torch.inf, step.reward)
            return replace(step, state=State(bad), reward=reward)

    rows = imagine(Explosive(), walks.Constant(), walks.starts(4), 3, seed=0)
    assert rows.episode.tolist() == [0, 1, 3, 0, 3, 0, 3]


def test_member_is_told_when_the_model_tells_it() -> None:
    rows = imagine(walks.TellingWalk(), walks.Constant(), walks.starts(5), 1, seed=0)
    assert rows.extra["member"].tolist() == [0, 1, 2, 0, 1]


# -- chunks -------------------------------------------------------------------------------------------------------


def whole(model: DynamicsModel, start: State, order: list[int] | None = None) -> Transitions:
    """As ``imagine`` with chunks of 16 rows, made in ``order``."""
    chunks, width = cut(start, 16), chunk_width(start, 16)
    made: dict[int, Transitions] = {}
    for i in order or range(len(chunks)):
        made[i] = imagine_chunk(model, walks.Random(), chunks[i], 4, seed=3, index=i, chunk_rows=width)
    return join([made[i] for i in range(len(chunks))], 16)


MODELS = {"walk": lambda: walks.Walk(noise=1.0, end_at=1.0), "ensemble": lambda: ensemble().bind()}


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_chunks_does_not_matter(name: str) -> None:
    model, start = MODELS[name](), walks.starts(41)
    expected = imagine(model, walks.Random(), start, 4, seed=3, chunk_rows=16)
    assert same(whole(model, start), expected)
    assert same(whole(model, start, order=[2, 0, 1]), expected)
    assert not same(imagine(model, walks.Random(), start, 4, seed=4, chunk_rows=16), expected)


def test_one_shared_generator_would_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = torch.Generator().manual_seed(3)
    monkeypatch.setattr(seeding, "generator", lambda *stream, device: shared)
    model, start = MODELS["ensemble"](), walks.starts(41)
    first = whole(model, start)
    shared.manual_seed(3)
    assert same(whole(model, start), first)
    shared.manual_seed(3)
    assert not same(whole(model, start, order=[2, 0, 1]), first)


def _chunk_elsewhere(queue: Any, index: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(index + 100)  # nothing global may matter
    start = walks.starts(41)
    chunk = cut(start, 16)[index]
    rows = imagine_chunk(ensemble().bind(), walks.Random(), chunk, 4, seed=3, index=index, chunk_rows=16)
    queue.put({name: column.numpy() for name, column in flatten(rows).items()})


def test_another_process_makes_the_same_chunk() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_chunk_elsewhere, args=(queue, 1))
    worker.start()
    there = queue.get(timeout=60)
    worker.join(timeout=60)
    start = walks.starts(41)
    here = imagine_chunk(ensemble().bind(), walks.Random(), cut(start, 16)[1], 4, seed=3, index=1, chunk_rows=16)
    assert there.keys() == flatten(here).keys()
    for name, column in flatten(here).items():
        assert column.numpy().tobytes() == there[name].tobytes(), name


def test_the_last_chunk_is_filled_up_and_cut_off() -> None:
    seen: list[int] = []

    class Counting(walks.Constant):
        def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
            seen.append(len(state.obs))
            return super().__call__(model, state, generator)

    rows = imagine(walks.Walk(), Counting(), walks.starts(41), 1, seed=0, chunk_rows=20)
    assert seen == [20, 20, 20]
    assert rows.obs[:, 1].tolist() == rows.episode.tolist() == list(range(41))
    seen.clear()
    assert len(imagine(walks.Walk(), Counting(), walks.starts(3), 1, seed=0)) == 3
    assert seen == [rollout.LEAST_ROWS]


def test_nothing_global_is_drawn_from() -> None:
    model, before = ensemble(), torch.get_rng_state()
    imagine(model, walks.Random(), walks.starts(20), 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_bound_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bound = ensemble(), list[DynamicsModel]()
    original = model.bind
    monkeypatch.setattr(model, "bind", lambda: bound.append(original()) or bound[-1])
    imagine(model, walks.Random(), walks.starts(40), 3, seed=0, chunk_rows=16)
    assert len(bound) == 1


# -- who acts -----------------------------------------------------------------------------------------------------


def test_a_policy_sees_raw_observations() -> None:
    act = PolicyChooser(lambda obs, generator: -obs[:, :1])
    rows = imagine(walks.Walk(), act, walks.starts(2, first=3.0), 2, seed=0)
    assert rows.action[:, 0].tolist() == [-3.0, -3.0, 0.0, 0.0]


def test_a_planner_acts() -> None:
    """Reward is the action, so the plan's first action is the largest of those tried."""
    planner = RandomShooting(walks.spec_of(), horizon=1, candidates=64, particles=1)
    act = PlannerChooser(planner, Objective())
    rows = imagine(walks.Walk(), act, walks.starts(3), 2, seed=0)
    assert (rows.action > 0.7).all()
    assert len(rows) == 6


@pytest.mark.parametrize(("horizon", "chunk_rows", "rows"), [(0, 10, 3), (1, 0, 3), (1, 10, 0)])
def test_counts_below_one_are_refused(horizon: int, chunk_rows: int, rows: int) -> None:
    with pytest.raises(UserError):
        imagine(walks.Walk(), walks.Constant(), walks.starts(rows), horizon, seed=0, chunk_rows=chunk_rows)


class Doubled(Filter):
    def __call__(self, model: DynamicsModel, move: Any, generator: Generator) -> Any:
        return replace(move, step=replace(move.step, reward=2 * move.step.reward))


def test_filters_act_in_order() -> None:
    class Plus(Filter):
        def __call__(self, model: DynamicsModel, move: Any, generator: Generator) -> Any:
            return replace(move, step=replace(move.step, reward=move.step.reward + 1))

    def reward(*filters: Filter) -> float:
        return float(imagine(walks.Walk(), walks.Constant(1.0), walks.starts(1), 1, filters, seed=0).reward[0])

    assert (reward(Doubled(), Plus()), reward(Plus(), Doubled())) == (3.0, 4.0)
