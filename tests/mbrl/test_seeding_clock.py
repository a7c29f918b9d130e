"""Streams of random numbers, and the clock."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mbrl import seeding
from mbrl.clock import Clock


def test_streams_are_stable_for_ever() -> None:
    """Numbers written down once: a change here breaks every run that is to be repeated."""
    assert seeding.derive_seed(0, "env", 0, 0) == 1845737685
    assert seeding.derive_seed(7, "act") == 1334977129
    assert torch.randint(10**6, (2,), generator=seeding.generator(7, "act")).tolist() == [19450, 177732]


def test_streams_differ_in_every_part() -> None:
    names = [
        (run, stream, slot, episode)
        for run in range(5)
        for stream in ("env", "act")
        for slot in range(5)
        for episode in range(20)
    ]
    seeds = {seeding.derive_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**31 for seed in seeds)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_sets_the_global_states_and_puts_them_back() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert draw() == expected[0]
    inside = []
    for seed in (5, 5, 6):
        with seeding.seeded(torch.Generator().manual_seed(seed)):
            inside.append(draw())
    assert inside[0] == inside[1]
    assert all(one != other for one, other in zip(inside[0], inside[2], strict=True))
    assert draw() == expected[1]


def test_seeded_moves_its_generator_on_and_survives_errors() -> None:
    source = torch.Generator().manual_seed(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    seen: list[tuple[float, float, float]] = []

    def fail() -> None:
        with seeding.seeded(source):
            seen.append(draw())
            raise KeyError("library code failed")

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
    assert seen[0] != seen[1]
    assert torch.equal(torch.get_rng_state(), before)


# -- clock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tick", [1, 3, 4, 7, 16])
@pytest.mark.parametrize(("every", "offset"), [(10, 0), (10, 25), (1, 1), (5, 5), (3, 200)])
def test_due_on_the_tick_that_reaches_or_passes(per_tick: int, every: int, offset: int) -> None:
    clock = Clock()
    assert not clock.due(every, offset)
    for _ in range(300 // per_tick):
        before = clock.env_steps
        clock.tick(per_tick)
        moments = range(offset, clock.env_steps + 1, every)
        passed = [moment for moment in moments if before < moment]
        assert clock.due(every, offset) == bool(passed)
        assert clock.due(every, offset) == bool(passed)  # asking changes nothing


def test_never_due_when_there_is_no_interval() -> None:
    clock = Clock()
    for _ in range(5):
        clock.tick(4)
        assert not clock.due(0)


def test_the_clock_goes_on_where_it_was() -> None:
    clock = Clock()
    clock.tick(4)
    clock.tick(4)
    clock.updates, clock.episodes, clock.phase = 7, 2, "continual"
    again = Clock()
    again.load_state_dict(clock.state_dict())
    assert again == clock
    assert [again.due(every) for every in range(1, 9)] == [clock.due(every) for every in range(1, 9)]
    assert again.due(5)
    assert not again.due(9)
