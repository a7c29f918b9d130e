"""The horizon over a run, as published; and that a schedule that is switched off is noticed."""

from __future__ import annotations

import math

import pytest

from envs.errors import UserError
from mbrl.imagination.schedule import HorizonSchedule

PUBLISHED = {  # epochs e0, e1 and horizons k0, k1, of 1,000 env steps each
    "InvertedPendulum": (1, 15, 1, 1),
    "Hopper": (20, 150, 1, 15),
    "Ant": (20, 100, 1, 25),
    "Humanoid": (20, 300, 1, 25),
}


def check_published(schedule: HorizonSchedule, e0: int, e1: int, k0: int, k1: int) -> None:
    """At every epoch's start the horizon is the published formula's."""
    for epoch in range(e1 + 20):
        share = min(max((epoch - e0) / (e1 - e0), 0), 1)
        assert schedule(1000 * epoch) == math.floor(k0 + share * (k1 - k0) + 1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules(name: str) -> None:
    e0, e1, k0, k1 = PUBLISHED[name]
    check_published(HorizonSchedule(1000 * e0, 1000 * e1, k0, k1), e0, e1, k0, k1)


EXPLORED = 5000
"""Random steps before the first published epoch."""


@pytest.mark.parametrize("every", [1000, 1])
@pytest.mark.parametrize("name", ["Hopper", "Ant"])
def test_epochs_after_the_exploration_are_exact_within_epochs_too(name: str, every: int) -> None:
    e0, e1, k0, k1 = PUBLISHED[name]
    schedule = HorizonSchedule(EXPLORED + 1000 * e0, EXPLORED + 1000 * e1, k0, k1, every)
    found, published = [], []
    for t in range(0, EXPLORED + 1000 * (e1 + 3), 250):
        share = min(max(((t - EXPLORED) // 1000 - e0) / (e1 - e0), 0), 1)
        published.append(math.floor(k0 + share * (k1 - k0) + 1e-9))
        found.append(schedule(t))
    assert (found == published) == (every == 1000)


def test_the_horizon_grows_at_the_very_step() -> None:
    schedule = HorizonSchedule(4000, 8000, 1, 3)
    assert [schedule(t) for t in (0, 4000, 5999, 6000, 7999, 8000, 10**7)] == [1, 1, 1, 2, 2, 3, 3]
    thirds = HorizonSchedule(0, 3, 1, 4)
    assert [thirds(t) for t in range(5)] == [1, 2, 3, 4, 4]


def test_a_schedule_that_is_switched_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HorizonSchedule, "__call__", lambda self, env_steps: self.start_horizon)
    with pytest.raises(AssertionError):
        check_published(HorizonSchedule(20_000, 150_000, 1, 15), *PUBLISHED["Hopper"])


def test_equal_times_jump_and_horizons_may_shrink() -> None:
    jump = HorizonSchedule(500, 500, 1, 5)
    assert [jump(t) for t in (0, 499, 500, 501)] == [1, 1, 5, 5]
    down = HorizonSchedule(0, 10, 3, 1)
    assert [down(t) for t in (0, 1, 5, 6, 10)] == [3, 2, 2, 1, 1]


@pytest.mark.parametrize("arguments", [(10, 5, 1, 1), (-1, 5, 1, 1), (0, 5, 0, 1), (0, 5, 1, 0), (0, 5, 1, 1, 0)])
def test_bad_schedules_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        HorizonSchedule(*arguments)
