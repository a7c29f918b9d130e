"""The pool: seeds, true successors, ids, and exact restoring."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import pytest
import torch

from envs import EnvPool, PoolStep, UserError, make_env


def seed_of(slot: int, episode: int) -> int:
    return 1000 * slot + episode


def pool_of(id: str, n: int = 3, asynchronous: bool = False, **kwargs: Any) -> EnvPool:
    return EnvPool(functools.partial(make_env, id, **kwargs), n, seed_of, asynchronous)


def play(pool: EnvPool, steps: int, rng: np.random.Generator) -> list[PoolStep]:
    size, rounds = pool.spec.action.size, []
    for _ in range(steps):
        rounds.append(pool.step(rng.uniform(-1, 1, (pool.num_envs, size))))  # one-hot by its largest when discrete
        pool.reset_ended()
    return rounds


def assert_same(one: list[PoolStep], other: list[PoolStep]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        for name in PoolStep.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


def test_steps_agree_with_the_environment_alone() -> None:
    pool, rng = pool_of("CartPole-v1"), np.random.default_rng(0)
    first = pool.reset()
    rounds = play(pool, 60, rng)
    rng = np.random.default_rng(0)
    actions = np.stack([rng.uniform(-1, 1, (3, 2)).argmax(-1) for _ in range(60)])
    for slot in range(3):
        env, episode, count = make_env("CartPole-v1"), 0, 0
        obs, _ = env.reset(seed=seed_of(slot, 0))
        np.testing.assert_array_equal(first[slot], obs)
        for step, action in zip(rounds, actions[:, slot], strict=True):
            np.testing.assert_array_equal(step.obs[slot], obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(step.next_obs[slot], obs)
            assert (step.reward[slot], step.terminated[slot], step.truncated[slot]) == (reward, terminated, truncated)
            assert (step.episode[slot], step.step[slot]) == (episode * 3 + slot, count)
            count += 1
            if terminated or truncated:
                episode, count = episode + 1, 0
                obs, _ = env.reset(seed=seed_of(slot, episode))
        assert episode > 0


def test_sim_state_is_that_of_before_the_step() -> None:
    pool = pool_of("Pendulum-v1")
    pool.reset()
    before = pool.sim_states()
    step = pool.step(np.zeros((3, 1)))
    assert before is not None
    assert step.sim_state is not None
    np.testing.assert_array_equal(step.sim_state, before)
    np.testing.assert_allclose(np.cos(before[:, 0]), step.obs[:, 0], atol=1e-6)
    assert pool_of("sample_envs:Slider").sim_states() is None


def test_stepping_past_an_end_is_refused() -> None:
    pool = pool_of("sample_envs:Slider", max_episode_steps=2)
    with pytest.raises(RuntimeError, match="reset"):
        pool.step(np.zeros((3, 1)))
    pool.reset()
    pool.step(np.zeros((3, 1)))
    assert not pool.is_first.any()
    assert pool.step(np.zeros((3, 1))).truncated.all()
    with pytest.raises(RuntimeError, match="reset_ended"):
        pool.step(np.zeros((3, 1)))
    pool.reset_ended()
    assert pool.is_first.all()
    with pytest.raises(ValueError, match="shape"):
        pool.step(np.zeros((2, 1)))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("moment", [0, 1, 23, 60])
@pytest.mark.parametrize("id", ["mbrl/CartPoleBalance-v0", "CartPole-v1", "Hopper-v5", "mbrl/PointGoal-v0"])
def test_restored_pools_continue_to_the_bit(id: str, moment: int) -> None:
    pool, rng = pool_of(id), np.random.default_rng(moment)
    pool.reset()
    play(pool, moment, rng)
    state, dice = through_a_file(pool.state_dict()), rng.bit_generator.state
    rest = play(pool, 30, rng)
    again = pool_of(id)
    again.load_state_dict(state)
    rng.bit_generator.state = dice
    assert_same(rest, play(again, 30, rng))


def test_a_pool_saved_between_an_end_and_its_reset() -> None:
    pool = pool_of("sample_envs:Slider", max_episode_steps=2)
    pool.reset()
    pool.step(np.zeros((3, 1)))
    pool.step(np.ones((3, 1)))
    again = pool_of("sample_envs:Slider", max_episode_steps=2)
    again.load_state_dict(through_a_file(pool.state_dict()))
    np.testing.assert_array_equal(again.obs, pool.obs)
    np.testing.assert_array_equal(again.reset_ended(), pool.reset_ended())
    np.testing.assert_array_equal(again.episode_ids, [3, 4, 5])


def test_the_time_limit_is_restored_with_the_state() -> None:
    pool = pool_of("mbrl/CartPoleSwingUp-v0", max_episode_steps=10)
    pool.reset()
    play(pool, 7, np.random.default_rng(0))
    again = pool_of("mbrl/CartPoleSwingUp-v0", max_episode_steps=10)
    again.load_state_dict(through_a_file(pool.state_dict()))
    ends = [bool(step.truncated.all()) for step in play(again, 3, np.random.default_rng(1))]
    assert ends == [False, False, True]


def test_an_unstarted_pool_is_restored_unstarted() -> None:
    again = pool_of("Pendulum-v1")
    again.load_state_dict(through_a_file(pool_of("Pendulum-v1").state_dict()))
    np.testing.assert_array_equal(again.reset(), pool_of("Pendulum-v1").reset())


def test_restoring_says_what_differs() -> None:
    pool = pool_of("sample_envs:GlobalRandom")
    pool.reset()
    play(pool, 5, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"differs by .* in slot 0.*get_state"):
        pool_of("sample_envs:GlobalRandom").load_state_dict(pool.state_dict())
    with pytest.raises(UserError, match="num_envs"):
        pool_of("sample_envs:GlobalRandom", n=2).load_state_dict(pool.state_dict())
    with pytest.raises(UserError, match="fingerprint"):
        pool_of("sample_envs:Slider").load_state_dict(pool.state_dict())


def test_worker_processes_give_the_same_data_and_restore() -> None:
    apart, together = pool_of("Pendulum-v1", 2, asynchronous=True), pool_of("Pendulum-v1", 2)
    try:
        np.testing.assert_array_equal(apart.reset(), together.reset())
        rounds = [play(pool, 205, np.random.default_rng(3)) for pool in (apart, together)]
        assert_same(*rounds)
        apart.load_state_dict(through_a_file(together.state_dict()))
        assert_same(*[play(pool, 5, np.random.default_rng(4)) for pool in (apart, together)])
    finally:
        apart.close()


def test_a_workers_user_error_arrives_whole() -> None:
    pool = pool_of("sample_envs:NanObservation", 2, asynchronous=True)
    try:
        pool.reset()
        with pytest.raises(UserError, match=r"NanObservation: observation\[1\]"):
            pool.step(np.zeros((2, 1)))
    finally:
        pool.close()


def test_a_pool_needs_an_environment() -> None:
    with pytest.raises(UserError, match="num_envs"):
        pool_of("Pendulum-v1", 0)
