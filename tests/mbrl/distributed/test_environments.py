"""Environment workers: the same stream of transitions as in one process, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, remove_placement_group

from envs import BoundaryEnv, EnvPool, PoolStep, UserError, make_env
from envs.pool import Vectorize
from mbrl.distributed import environments
from mbrl.distributed.environments import RayVectorEnv, _Member
from mbrl.distributed.worker import Arithmetic

SLOTS = 4
REPLAYABLE, EXACT = "CartPole-v1", "mbrl/CartPoleBalance-v0"
Rounds = list[PoolStep]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with room for all workers; tests add the nodes that they take away."""
    size = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def pool_of(make: str | Callable[[], BoundaryEnv], workers: int = 0, slots: int = SLOTS, **options: Any) -> EnvPool:
    maker = functools.partial(make_env, make) if isinstance(make, str) else make
    vectorize: Vectorize | None = RayVectorEnv.vectorizer(workers, **options) if workers else None
    return EnvPool(maker, slots, lambda slot, episode: 1000 * slot + episode, vectorize=vectorize)


def play(pool: EnvPool, steps: int, seed: int = 0, also: Mapping[int, Callable[[], None]] | None = None) -> Rounds:
    """``also`` is done before the steps of these numbers."""
    rng, rounds = np.random.default_rng(seed), []
    for number in range(steps):
        if also and number in also:
            also[number]()
        rounds.append(pool.step(rng.uniform(-1, 1, (pool.num_envs, pool.spec.action.size))))
        pool.reset_ended()
    return rounds


def same(one: Rounds, other: Rounds) -> bool:
    columns = PoolStep.__dataclass_fields__
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in columns]
    return all(np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype for a, b in pairs)


@functools.cache
def in_process(env: str, steps: int) -> Rounds:
    pool = pool_of(env)
    pool.reset()
    return play(pool, steps)


@contextlib.contextmanager
def taking_all_cpus() -> Iterator[None]:
    """Of the head."""
    taken = placement_group([{"CPU": 2}])
    try:
        assert taken.wait(30)
        yield
    finally:
        remove_placement_group(taken)


def members_of(pool: EnvPool) -> list[_Member]:
    found: list[_Member] = pool._envs.members
    return found


def kill(pool: EnvPool, place: int) -> None:
    """SIGKILL the process of one worker."""
    os.kill(ray.get(members_of(pool)[place].actor.ready.remote()), signal.SIGKILL)


@pytest.mark.parametrize(("env", "workers"), [(REPLAYABLE, 3), (EXACT, 2)])
def test_any_number_of_workers_sees_the_same(cluster: Cluster, env: str, workers: int) -> None:
    pool = pool_of(env, workers)
    try:
        np.testing.assert_array_equal(pool.reset(), pool_of(env).reset())
        rounds = play(pool, 200)
    finally:
        pool.close()
    assert same(rounds, in_process(env, 200))
    assert sum(int(step.ended.sum()) for step in rounds) > SLOTS  # episodes have ended, of every length


def test_a_killed_worker_changes_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where its episodes only begin again, the stream differs."""
    pool = pool_of(REPLAYABLE, 1)
    lost = {5: functools.partial(kill, pool, 0)}
    try:
        pool.reset()
        assert same(play(pool, 100, also=lost), in_process(REPLAYABLE, 100))
        monkeypatch.setattr(_Member, "stepped", _forgetting)
        unstarted = pool_of(REPLAYABLE).state_dict()
        pool.load_state_dict(unstarted)
        pool.reset()
        assert not same(play(pool, 8, also=lost), in_process(REPLAYABLE, 8))
    finally:
        pool.close()


def _forgetting(member: _Member, actions: Any, seen: Any) -> None:
    member.sim_states = seen.sim_states
    for past in member.past:
        past.obs = None  # so that it is not noticed


@pytest.mark.parametrize(("env", "moments"), [(REPLAYABLE, {0: 0, 47: 1, 48: 1}), (EXACT, {5: 0, 47: 1})])
@pytest.mark.slow
def test_killed_again_and_again(
    cluster: Cluster, env: str, moments: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, within episodes, and again as soon as it is back."""
    monkeypatch.setattr(environments, "SNAPSHOT_EVERY", 7)
    pool = pool_of(env, 2)
    try:
        pool.reset()
        lost = {number: functools.partial(kill, pool, place) for number, place in moments.items()}
        assert same(play(pool, 100, also=lost), in_process(env, 100))
    finally:
        pool.close()


@pytest.mark.slow
def test_a_lost_machine_changes_nothing(cluster: Cluster) -> None:
    with taking_all_cpus():  # so that both workers go to the machine that comes then
        node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        pool = pool_of("InvertedPendulum-v5", 2)
    try:
        pool.reset()
        before = {member.actor for member in members_of(pool)}
        pids = ray.get([actor.ready.remote() for actor in before])

        def lose() -> None:
            cluster.remove_node(node, allow_graceful=False)
            for pid in pids:  # which go with a machine, but outlive one of many on a machine for a while
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        assert same(play(pool, 60, also={30: lose}), in_process("InvertedPendulum-v5", 60))
        assert before.isdisjoint(member.actor for member in members_of(pool))
    finally:
        pool.close()


@pytest.mark.parametrize("env", [REPLAYABLE, EXACT])
@pytest.mark.slow
def test_a_run_goes_on_with_workers_or_without(cluster: Cluster, env: str) -> None:
    apart, again = pool_of(env, 1), pool_of(env, 2)
    try:
        apart.reset()
        play(apart, 30)
        state = apart.state_dict()
        rest = play(apart, 40, seed=1)
        again.load_state_dict(state)
        here = pool_of(env)
        here.load_state_dict(state)
        assert same(rest, play(here, 40, seed=1))
        lost = {0: functools.partial(kill, again, 0), 20: functools.partial(kill, again, 1)}
        assert same(rest, play(again, 40, seed=1, also=lost))  # what was restored is brought back as well
    finally:
        apart.close()
        again.close()


# -- environments that are at fault ----------------------------------------------------------------------------------


def faulty(fault: str) -> Callable[[], BoundaryEnv]:
    """Makes environments whose third step has a fault. Ray's workers cannot import a test, so all of it is inside."""

    class Faulty(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float64)
        action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.steps = 0
            return np.zeros(1), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            action *= 2.0  # its own copy
            if self.steps == 3 and fault == "raises":
                raise ZeroDivisionError("my own words")
            if self.steps == 4 and fault == "raises":
                raise UserError("width", 4, "give less")
            if self.steps == 3 and fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            drift = float(np.random.default_rng().normal()) if fault == "random" else 0.0
            tiny = float((np.array([1e-310]) * 2.0)[0] > 0.0)  # 1, or 0 where such numbers are flushed
            return np.array([self.steps + drift + tiny]), 0.0, False, False, {}

    return lambda: BoundaryEnv(Faulty(), "faulty")


def steps(pool: EnvPool, number: int) -> Rounds:
    return [pool.step(np.zeros((SLOTS, 1))) for _ in range(number)]


def test_what_an_environment_raises_comes_whole_and_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Member, "revive", lambda member: pytest.fail("it is no crash"))
    with arithmetic(Arithmetic(1, True)):
        here, apart = pool_of(faulty("raises")), pool_of(faulty("raises"), 1)
        try:
            for pool in (here, apart):
                pool.reset()
            assert same(steps(here, 2), steps(apart, 2))
            compare_errors(here, apart)
        finally:
            apart.close()


def compare_errors(here: EnvPool, apart: EnvPool) -> None:
    for said in ("ZeroDivisionError: my own words", "width: 4: give less"):
        errors = []
        for pool in (here, apart):
            with pytest.raises(UserError, match=said) as caught:
                steps(pool, 1)
            errors.append(caught.value)
        assert str(errors[0]) == str(errors[1])
        assert "test_environments.py" in str(errors[1].__cause__)  # the traceback, down to the user's own line
        assert said in str(errors[1].__cause__)


@contextlib.contextmanager
def arithmetic(wanted: Arithmetic) -> Iterator[None]:
    """In this thread."""
    before = Arithmetic.here()
    wanted.apply()
    try:
        yield
    finally:
        before.apply()


@pytest.mark.slow
def test_an_environment_that_kills_its_process_is_not_retried_for_ever(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(faulty("dies"), 1)
    try:
        pool.reset()
        steps(pool, 2)
        with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"0 to 3.*3 workers in a row"):
            steps(pool, 1)
    finally:
        pool.close()
    assert len(caplog.records) == environments.MOST_CRASHES
    assert "worker process has died" in caplog.text


@pytest.mark.slow
def test_an_environment_that_does_not_replay_is_named(cluster: Cluster) -> None:
    pool = pool_of(faulty("random"), 1)
    try:
        pool.reset()
        steps(pool, 1)
        kill(pool, 0)
        with pytest.raises(UserError, match=r"environment 0: restored observation.*get_state"):
            steps(pool, 1)
    finally:
        pool.close()


# -- places ----------------------------------------------------------------------------------------------------------


def test_workers_that_find_no_place_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="environment workers"):
        pool_of(REPLAYABLE, 2, num_cpus=100.0)
    monkeypatch.setattr(environments, "PLACEMENT_SECONDS", 0.5)
    asked = r"environments 0 to 3.*0.5 CPUs asked; the cluster has 2, of which 0 are free.*fewer workers"
    with taking_all_cpus(), pytest.raises(UserError, match=asked):
        pool_of(REPLAYABLE, 1)


def test_workers_hold_neighbouring_slots_and_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "check_resources", lambda *_: None)
    monkeypatch.setattr(_Member, "launch", lambda member: None)
    monkeypatch.setattr(_Member, "await_launch", lambda member: None)
    for slots, workers, expected in ((4, 9, [1, 1, 1, 1]), (8, 3, [2, 3, 3]), (5, 1, [5])):
        envs = RayVectorEnv([lambda: None] * slots, workers)  # type: ignore[list-item,return-value]
        assert [len(member.slots) for member in envs.members] == expected
        assert [slot for member in envs.members for slot in member.slots] == list(range(slots))


def test_a_pool_has_one_kind_of_workers() -> None:
    with pytest.raises(UserError, match="asynchronous"):
        EnvPool(functools.partial(make_env, REPLAYABLE), 1, lambda *_: 0, True, vectorize=RayVectorEnv.vectorizer(1))


def test_arithmetic_is_known() -> None:
    for wanted in (Arithmetic(1, True), Arithmetic(1, False)):
        with arithmetic(wanted):
            assert Arithmetic.here() == wanted
