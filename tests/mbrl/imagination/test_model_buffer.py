"""The model buffer's capacity and rows, where imagination starts, and the real share of every batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer, flatten
from mbrl.data.transitions import Transitions
from mbrl.imagination import model_buffer
from mbrl.imagination.model_buffer import ModelBuffer, mixed_batches, published_capacity
from mbrl.imagination.starts import BufferStarts, Starts, StartSampler, StartTable


def rows_of(first: int, count: int, source: float = 0.0, **extra: torch.Tensor) -> Transitions:
    """Rows numbered from ``first`` in ``obs`` and ``episode``; ``reward`` tells their source."""
    number = torch.arange(first, first + count)
    zero = torch.zeros(count)
    obs = torch.stack([number.float(), zero], 1)
    never = torch.zeros(count, dtype=torch.bool)
    reward = torch.full((count,), source)
    return Transitions(
        obs, zero[:, None], reward, obs + 1, never, never, number, number * 0, number * 0, extra=dict(extra)
    )


def buffer_of(count: int, source: float = 0.0) -> ReplayBuffer:
    buffer = ReplayBuffer(max(1, count))
    if count:
        buffer.extend(rows_of(0, count, source))
    return buffer


# -- capacity -----------------------------------------------------------------------------------------------------


def test_published_capacity() -> None:
    """Retain * k * 400 * 1,000: 100,000 rollouts every 250 steps."""
    assert published_capacity(1, 1, rollouts=100_000, every=250) == 400_000
    assert published_capacity(15, 1, rollouts=100_000, every=250) == 15 * 400_000
    assert published_capacity(25, 5, rollouts=100_000, every=1000) == 5 * 25 * 100_000
    assert published_capacity(2, 3, rollouts=50, every=10, epoch_steps=100) == 3 * 2 * 500
    with pytest.raises(UserError):
        published_capacity(0, 1, 1, 1)


def numbers(buffer: ModelBuffer) -> list[int]:
    return buffer.ring.all().episode.tolist() if len(buffer) else []


def script(buffer: ModelBuffer) -> list[list[int]]:
    """What is in the buffer over a scripted run in which the capacity grows, then shrinks."""
    seen = []
    for i, capacity in enumerate([4, 4, 8, 8, 3]):
        buffer.resize(capacity)
        buffer.extend(rows_of(3 * i, 3))
        seen.append(numbers(buffer))
    return seen


EXPECTED = [[0, 1, 2], [2, 3, 4, 5], [2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]


def test_capacity_follows_and_the_newest_rows_stay() -> None:
    assert script(ModelBuffer()) == EXPECTED


def test_a_capacity_that_does_not_follow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelBuffer, "resize", lambda self, capacity: None)
    assert script(ModelBuffer(4)) != EXPECTED


def test_shrinking_keeps_the_newest_rows_and_their_weights() -> None:
    buffer = ModelBuffer(6)
    buffer.extend(rows_of(0, 9))
    buffer.ring.set_weights(buffer.ring.ids[-1:], torch.tensor([5.0]))
    buffer.resize(2)
    assert numbers(buffer) == [7, 8]
    assert buffer.ring.weights(buffer.ring.ids).tolist() == [1.0, 5.0]


def test_extra_columns_are_those_of_the_first_rows() -> None:
    buffer = ModelBuffer(5)
    buffer.extend(rows_of(0, 0))
    assert len(buffer) == 0
    buffer.extend(rows_of(0, 3, depth=torch.tensor([0, 1, 2])))
    assert buffer.ring.extra == {"depth": ()}
    assert buffer.ring.all().extra["depth"].tolist() == [0, 1, 2]
    buffer.clear()
    assert (len(buffer), buffer.capacity) == (0, 5)
    buffer.extend(rows_of(0, 1))
    assert buffer.ring.extra == {}


@pytest.mark.parametrize("added", [0, 3, 12])
def test_state_dict_brings_back_the_same_rows_and_draws(added: int, generator: Generator) -> None:
    buffer, again = ModelBuffer(5), ModelBuffer()
    if added:
        buffer.extend(rows_of(0, added, depth=torch.arange(added)))
        buffer.ring.set_weights(buffer.ring.ids[-1:], torch.tensor([2.0]))
    again.load_state_dict(buffer.state_dict())
    assert (again.capacity, len(again), again.ring.total_added) == (5, min(added, 5), added)
    for both in (buffer, again):
        if added:
            both.extend(rows_of(100, 2, depth=torch.arange(2)))
    if added:
        one = buffer.ring.sample(50, torch.Generator().manual_seed(1), weighted=True)
        other = again.ring.sample(50, torch.Generator().manual_seed(1), weighted=True)
        assert all(torch.equal(flatten(one)[name], flatten(other)[name]) for name in flatten(one))


# -- batches ------------------------------------------------------------------------------------------------------


def check_share(batches: Transitions, reals: int) -> None:
    """The first ``reals`` rows of every batch are real, and no others."""
    imagined = batches.reward == 1.0
    assert not imagined[:, :reals].any()
    assert imagined[:, reals:].all()


@pytest.mark.parametrize(
    ("ratio", "size", "reals"),
    [(0.05, 256, 12), (0.0, 256, 0), (0.5, 256, 128), (1.0, 256, 256), (0.05, 128, 6), (0.05, 100, 5), (0.29, 100, 29)],
)
def test_the_real_share_of_every_batch_is_exact(ratio: float, size: int, reals: int, generator: Generator) -> None:
    """Rounded down as published, though 0.29 * 100 is 28.999999999999996."""
    batches = mixed_batches(buffer_of(50), buffer_of(400, 1.0), ratio, 7, size, generator)
    assert batches.obs.shape == (7, size, 2)
    assert batches.reward.shape == (7, size)
    check_share(batches, reals)


def test_a_share_that_is_not_kept_is_noticed(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    """Drawing rows from both sources at once has the right share on average only."""

    def pooled(*args: Any) -> Any:
        pool = ReplayBuffer(256)
        pool.extend(rows_of(0, 12))
        pool.extend(rows_of(0, 244, 1.0))
        return original(pool, *args[1:])

    original = model_buffer._gather
    monkeypatch.setattr(model_buffer, "_gather", pooled)
    batches = mixed_batches(buffer_of(50), buffer_of(400, 1.0), 0.05, 7, 256, generator)
    with pytest.raises(AssertionError):
        check_share(batches, 12)


@pytest.mark.parametrize("imagined", [None, ReplayBuffer(5)])
def test_all_real_while_nothing_is_imagined(imagined: ReplayBuffer | None, generator: Generator) -> None:
    check_share(mixed_batches(buffer_of(50), imagined, 0.05, 3, 16, generator), 16)


def test_rows_are_drawn_uniformly_and_whole(generator: Generator) -> None:
    batches = mixed_batches(buffer_of(5), buffer_of(10, 1.0), 0.5, 500, 20, generator)
    assert torch.equal(batches.obs[..., 0].long(), batches.episode)
    assert torch.equal(batches.next_obs, batches.obs + 1)
    for part, count in ((batches.episode[:, :10], 5), (batches.episode[:, 10:], 10)):
        share = part.flatten().bincount(minlength=count) / part.numel()
        assert (share - 1 / count).abs().max() < 0.02


def test_extra_columns_come_when_asked_for(generator: Generator) -> None:
    real, imagined = ReplayBuffer(9, {"weight_of": ()}), ReplayBuffer(9, {"weight_of": (), "depth": ()})
    real.extend(rows_of(0, 9, weight_of=torch.ones(9)))
    imagined.extend(rows_of(0, 9, 1.0, weight_of=torch.zeros(9), depth=torch.ones(9)))
    assert mixed_batches(real, imagined, 0.5, 2, 4, generator).extra == {}
    batches = mixed_batches(real, imagined, 0.5, 2, 4, generator, extra=("weight_of",))
    assert batches.extra["weight_of"].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2
    with pytest.raises(UserError, match="depth"):
        mixed_batches(real, imagined, 0.5, 2, 4, generator, extra=("depth",))


@pytest.mark.parametrize(("ratio", "updates", "size"), [(-0.1, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0)])
def test_bad_batches_are_refused(ratio: float, updates: int, size: int, generator: Generator) -> None:
    with pytest.raises(UserError):
        mixed_batches(buffer_of(5), None, ratio, updates, size, generator)


# -- starts -------------------------------------------------------------------------------------------------------


def test_starts_are_uniform_or_weighted(generator: Generator) -> None:
    buffer = buffer_of(4)
    buffer.set_weights(buffer.ids, torch.tensor([0.0, 1.0, 0.0, 3.0]))
    for sampler, expected in ((StartSampler(), [0.25] * 4), (StartSampler(weighted=True), [0.0, 0.25, 0.0, 0.75])):
        drawn = sampler(buffer, 4000, generator).episode.bincount(minlength=4) / 4000
        assert (drawn - torch.tensor(expected)).abs().max() < 0.03
        source = BufferStarts(buffer, sampler).draw(4000, generator).obs[:, 0].long().bincount(minlength=4) / 4000
        assert (source - torch.tensor(expected)).abs().max() < 0.03


def test_a_table_of_starts(generator: Generator) -> None:
    table = StartTable(Starts(torch.arange(3.0)[:, None]))
    drawn = table.draw(3000, generator).obs[:, 0].long().bincount(minlength=3) / 3000
    assert (drawn - 1 / 3).abs().max() < 0.03
    with pytest.raises(UserError, match="at least one"):
        StartTable(Starts(torch.zeros(0, 1)))
