"""Workers that act on their own: how old a policy may be, whose transitions are whose, and what a loss takes along."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from torch import Generator, Tensor

from envs import UserError, make_env
from mbrl.distributed.async_rollouts import AsyncRollouts, Rollout
from mbrl.distributed.cluster import connect

FAST, SLOW = 1, 2
"""Slots of the two workers: three environments are spread over them"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect("local", num_cpus=2, object_store_bytes=100 * 2**20):
        yield


def policy(number: float) -> Any:
    """Always acts with this number; takes long for the worker of two slots."""

    class Constant:  # inside: Ray's workers cannot import a test
        def __init__(self, value: Tensor) -> None:
            self.value = value

        def __call__(self, obs: Tensor, generator: Generator) -> Tensor:
            time.sleep(0.02 if len(obs) == 2 else 0.0)
            return self.value.expand(len(obs), 1)

    return Constant(torch.tensor(number))


def rounds(rollouts: AsyncRollouts, count: int) -> list[Rollout]:
    """The policy of version ``v`` acts with ``v / 1000``, and its stamp is ``10 v``."""
    taken = []
    for _ in range(count):
        version = rollouts.version + 1
        rollouts.publish(policy(version / 1000.0), stamp=10 * version)
        batch = rollouts.take()
        assert batch
        for rollout in batch:
            made_by = version - rollout.staleness
            assert rollout.transitions.policy_version.unique().tolist() == [10 * made_by]
            torch.testing.assert_close(rollout.transitions.action.unique(), torch.tensor([made_by / 1000.0]))
        taken += batch
        time.sleep(0.01)  # the driver learns
    return taken


def staleness(taken: list[Rollout], slots: int) -> list[int]:
    return [rollout.staleness for rollout in taken if rollout.slots == slots]


def test_nothing_is_older_than_the_bound(cluster: None) -> None:
    make = functools.partial(make_env, "Pendulum-v1", max_episode_steps=30)
    rollouts = AsyncRollouts(make, 3, run_seed=0, workers=2, round_steps=8, max_staleness=0)
    try:
        together = rounds(rollouts, 5)
        assert [rollout.staleness for rollout in together] == [0] * 10  # both, each time
        rollouts.max_staleness = 2
        apart = rounds(rollouts, 12)
        assert len(staleness(apart, FAST)) > len(staleness(apart, SLOW))
        assert max(staleness(apart, SLOW)) == 2
        os.kill(ray.get(rollouts.members[1].actor.ready.remote()), signal.SIGKILL)
        after = rounds(rollouts, 6)
        assert max(staleness(after, SLOW)) <= 2
        check_order([*together, *apart, *after])
        state = rollouts.state_dict()
        rollouts.max_staleness = 10**6  # the control
        assert max(staleness(rounds(rollouts, 30), SLOW)) > 2
    finally:
        rollouts.close()
    again = AsyncRollouts(make, 3, run_seed=0, workers=1, round_steps=8)
    again.load_state_dict(state)
    seen = max(int(rollout.transitions.episode.max()) for rollout in after)
    try:
        (first,) = rounds(again, 1)
        assert int(first.transitions.episode.min()) // 3 == seen // 3 + 1
    finally:
        again.close()


def check_order(taken: list[Rollout]) -> None:
    """Every transition once; each slot's in the order of its life, but for one loss."""
    gaps, last = 0, dict[int, tuple[int, int, Tensor]]()
    for rollout in taken:
        rows = rollout.transitions
        assert len(rows) == 8 * rollout.slots
        for episode, step, obs, after, end in zip(
            rows.episode.tolist(), rows.step.tolist(), rows.obs, rows.next_obs, rows.truncated.tolist(), strict=True
        ):
            before = last.get(episode % 3)
            if before is not None and before[0] == episode:
                assert step == before[1] + 1
                assert torch.equal(obs, before[2])
            else:
                assert step == 0
                assert before is None or episode == before[0] + 3
                gaps += before is not None and before[1] != 29
            assert end == (step == 29)
            last[episode % 3] = episode, step, after
    assert gaps == SLOW  # the slots of the worker that was killed


def test_an_error_of_an_environment_is_shown(cluster: None) -> None:
    def broken(obs: Tensor, generator: Generator) -> Tensor:
        raise ZeroDivisionError("my own words")

    rollouts = AsyncRollouts(functools.partial(make_env, "Pendulum-v1"), 1, run_seed=0, workers=1)
    try:
        rollouts.publish(broken, stamp=0)
        with pytest.raises(ZeroDivisionError, match="my own words"):
            rollouts.take()
    finally:
        rollouts.close()


@pytest.mark.parametrize(("name", "value"), [("round_steps", 0), ("max_staleness", -1)])
def test_counts_are_checked(name: str, value: int) -> None:
    with pytest.raises(UserError, match=name):
        AsyncRollouts(functools.partial(make_env, "Pendulum-v1"), 1, run_seed=0, workers=1, **{name: value})
