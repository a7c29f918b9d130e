"""Checkpoints and buffer segments: exact, atomic, and no dearer for a longer buffer."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import UserError
from experiments.checkpoint import CheckpointStore, global_random_states, set_global_random_states
from experiments.segments import BufferStore
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions


def rows(first: int, count: int) -> Transitions:
    number = torch.arange(first, first + count)
    return Transitions(
        obs=torch.stack([number, -number], 1).float(),
        action=number[:, None] * 0.5,
        reward=number.float(),
        next_obs=torch.stack([number + 1, -number], 1).float(),
        terminated=number % 7 == 0,
        truncated=number % 5 == 0,
        episode=number // 10,
        step=number % 10,
        policy_version=number // 3,
        sim_state=torch.stack([number, number, number], 1).double() / 3,
        extra={"value": number.float() * 2},
    )


def filled(total: int, capacity: int = 50) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, extra={"value": ()})
    for first in range(0, total, 8):
        buffer.extend(rows(first, min(8, total - first)))
    return buffer


def assert_equal(one: ReplayBuffer, other: ReplayBuffer) -> None:
    assert one.total_added == other.total_added
    mine, theirs = one.all().to_dict(), other.all().to_dict()
    for name, column in mine.items():
        if isinstance(column, torch.Tensor):
            assert column.dtype == theirs[name].dtype, name
            assert torch.equal(column, theirs[name]), name
    assert torch.equal(one.all().extra["value"], other.all().extra["value"])


@pytest.mark.parametrize("total", [0, 1, 7, 16, 49, 50, 51, 117, 240])
def test_rows_come_back_to_the_bit(tmp_path: Path, total: int) -> None:
    store, buffer = BufferStore(tmp_path / "b", segment_rows=16), ReplayBuffer(50, extra={"value": ()})
    for first in range(0, total, 8):
        buffer.extend(rows(first, min(8, total - first)))
        store.append(buffer)
        store.prune(buffer.total_added - len(buffer))
    back = ReplayBuffer(50, extra={"value": ()})
    BufferStore(tmp_path / "b").restore(back, total)
    if total:
        assert_equal(back, buffer)
    assert len(list((tmp_path / "b").glob("segment-*"))) <= 50 // 16 + 2


def test_rows_after_the_count_are_forgotten_and_written_again(tmp_path: Path) -> None:
    first = BufferStore(tmp_path / "b", segment_rows=16)
    first.append(filled(40))
    store, buffer = BufferStore(tmp_path / "b"), ReplayBuffer(50, extra={"value": ()})
    store.restore(buffer, 21)
    assert_equal(buffer, filled(21))
    buffer.extend(rows(500, 30))
    store.append(buffer)
    back = ReplayBuffer(50, extra={"value": ()})
    BufferStore(tmp_path / "b").restore(back, 51)
    assert_equal(back, buffer)


def test_an_append_larger_than_the_ring(tmp_path: Path) -> None:
    store = BufferStore(tmp_path / "b", segment_rows=16)
    store.append(filled(200))
    back = ReplayBuffer(50, extra={"value": ()})
    BufferStore(tmp_path / "b").restore(back, 200)
    assert_equal(back, filled(200))


def test_the_price_does_not_grow_with_the_buffer(tmp_path: Path) -> None:
    sizes = []
    for name, total in (("small", 100), ("large", 6000)):
        store, buffer = CheckpointStore(tmp_path / name), filled(total, capacity=10_000)
        store.save(total, {}, {"real": buffer})
        before = written(tmp_path / name)
        buffer.extend(rows(total, 8))
        store.save(total + 8, {}, {"real": buffer})
        sizes.append(written(tmp_path / name) - before)
    assert sizes[1] == sizes[0]


def written(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and path.suffix == ".bin") + max(
        path.stat().st_size for path in directory.glob("step-*.pt")
    )


def test_weights_are_kept_whole(tmp_path: Path) -> None:
    store, buffer = CheckpointStore(tmp_path), filled(60)
    buffer.set_weights(torch.tensor([15, 59]), torch.tensor([0.25, 3.0]))
    store.save(60, {}, {"real": buffer})
    back = ReplayBuffer(50, extra={"value": ()})
    again = CheckpointStore(tmp_path)
    state = again.load_latest()
    assert state is not None
    again.restore_buffers(state, {"real": back})
    assert torch.equal(back.weights(back.ids), buffer.weights(buffer.ids))


def test_the_newest_two_are_kept_and_both_can_be_loaded(tmp_path: Path) -> None:
    store, buffer = CheckpointStore(tmp_path), ReplayBuffer(20, extra={"value": ()})
    for step in range(0, 200, 10):
        buffer.extend(rows(step, 10))
        store.save(step, {"x": torch.tensor(step)}, {"real": buffer})
    assert [found.env_steps for found in store.found()] == [180, 190]
    store.found()[-1].path.unlink()
    again, back = CheckpointStore(tmp_path), ReplayBuffer(20, extra={"value": ()})
    state = again.load_latest()
    assert state is not None
    assert state["x"] == 180
    again.restore_buffers(state, {"real": back})
    assert back.all().reward.tolist() == list(range(170, 190))


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failure_at_any_write_loses_nothing(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system call that makes a checkpoint durable fails once, in turn; the one before is whole each time."""
    real = getattr(os, broken)
    for allowed in range(12):
        place = tmp_path / f"{broken}-{allowed}"
        store, buffer = CheckpointStore(place), filled(30)
        store.save(30, {"x": torch.arange(5)}, {"real": buffer})
        buffer.extend(rows(30, 40))
        monkeypatch.setattr(os, broken, fail_after(real, allowed))
        failed = False
        try:
            store.save(70, {"x": torch.arange(6)}, {"real": buffer})
        except UserError as error:
            failed = "space" in str(error)
        monkeypatch.setattr(os, broken, real)
        again, back = CheckpointStore(place), ReplayBuffer(50, extra={"value": ()})
        state = again.load_latest()
        assert state is not None
        again.restore_buffers(state, {"real": back})
        assert_equal(back, filled(30) if len(state["x"]) == 5 else buffer)
        assert not list(place.rglob("*.part"))
        if not failed:
            assert len(state["x"]) == 6
            return
    pytest.fail("a checkpoint makes more than twelve such calls; raise the bound")


def fail_after(real: Any, allowed: int) -> Any:
    left = [allowed]

    def call(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    return call


def drawn() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.normal(), torch.rand(3).tolist()]


def test_global_random_states_come_back() -> None:
    random.gauss(0, 1)
    np.random.normal()
    state = global_random_states()
    expected = drawn()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    set_global_random_states(state)
    assert drawn() == expected


@pytest.mark.parametrize(
    "odd", [np.zeros(1), np.float64(1.0), {1, 2}, object()], ids=["array", "number", "set", "object"]
)
def test_what_could_not_be_read_back_is_not_written(odd: Any, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"agent\.memory\[1\]"):
        store.save(0, {"agent": {"memory": [1, odd]}}, {})
    assert store.load_latest() is None
    store.save(0, {"agent": {"memory": [1, torch.zeros(1), None, True, "text", 2.0]}}, {})
    assert store.load_latest() is not None


@pytest.mark.parametrize("more", [0, 7])
def test_rows_that_were_forgotten_stay_away(tmp_path: Path, more: int) -> None:
    """Told to forget between two checkpoints, and before some rows were ever written."""
    store, buffer = CheckpointStore(tmp_path), filled(20)
    store.save(1, {}, {"real": buffer})
    buffer.extend(rows(20, 5))
    buffer.forget()
    assert len(buffer) == 0
    if more:
        buffer.extend(rows(25, more))
    store.save(2, {}, {"real": buffer})
    state, again = CheckpointStore(tmp_path).load_latest(), ReplayBuffer(50, buffer.extra)
    assert state is not None
    CheckpointStore(tmp_path).restore_buffers(state, {"real": again})
    assert (len(again), again.total_added, again.forgotten) == (more, 25 + more, 25)
    if more:
        assert torch.equal(again.all().obs, buffer.all().obs)
        assert again.ids.tolist() == list(range(25, 32))
    again.extend(rows(32, 3))  # it goes on counting
    assert again.ids[-1] == 24 + more + 3
