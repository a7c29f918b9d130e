"""The edge of the platform: layouts, action units, refusals, non-finite values, action repeat, per-episode physics."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sample_envs
import torch
from gymnasium import spaces

from envs import BoundaryEnv, UserError, make_env
from envs.boundary import LEARNABLE, try_out
from envs.rendering import NO_GL, working_gl

BOX = sample_envs.BOX


def push(env: BoundaryEnv, steps: int) -> None:
    for _ in range(steps):
        env.step(np.ones(1))


def slider(**kwargs: Any) -> BoundaryEnv:
    return BoundaryEnv(sample_envs.Slider(), "slider", **kwargs)


def test_nested_observations_are_flattened_in_order() -> None:
    inner = spaces.Tuple((spaces.Box(0, 1, (2, 2), np.float32), BOX))
    space = spaces.Dict({"goal": BOX, "arm": inner})
    env = BoundaryEnv(sample_envs.Spaces(space))
    raw = space.sample()
    flat = env.flatten(raw)
    layout = env.env_spec.layout
    assert list(layout) == ["arm/0", "arm/1", "goal"]
    assert env.env_spec.obs_size == 8
    np.testing.assert_array_equal(flat[layout["goal"]], raw["goal"])
    np.testing.assert_array_equal(flat[layout["arm/0"]], raw["arm"][0].ravel())
    assert flat.dtype == np.float64
    assert env.name_of(4) == "arm/1[0]"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_box_keeps_its_dtype(dtype: type) -> None:
    env = BoundaryEnv(sample_envs.Spaces(spaces.Box(-1, 1, (3,), dtype)))
    obs, _ = env.reset(seed=0)
    assert obs.dtype == dtype
    assert env.observation_space.contains(obs)


def test_actions_are_rescaled_and_clipped() -> None:
    env = slider()
    env.reset(seed=0)
    for action in (-1.0, 0.0, 1.0, 5.0):
        env.step(np.array([action], np.float32))
    raw: Any = env.unwrapped
    np.testing.assert_allclose(np.ravel(raw.received), [-2.0, 0.5, 3.0, 3.0])
    native = env.env_spec.action.to_env(torch.tensor([[-1.0], [0.0], [1.0]]))
    np.testing.assert_allclose(native.ravel(), [-2.0, 0.5, 3.0])


def test_actions_keep_the_environments_shape_and_dtype() -> None:
    inner = sample_envs.Spaces(action_space=spaces.Box(-2, 2, (2, 3), np.float64))
    env = BoundaryEnv(inner)
    env.reset(seed=0)
    env.step(np.linspace(-1, 1, 6))
    assert env.action_space == spaces.Box(-1, 1, (6,), np.float32)
    np.testing.assert_allclose(inner.received[0], 2 * np.linspace(-1, 1, 6).reshape(2, 3))


@pytest.mark.parametrize("action", [-1, 3, 0.5, None, "left", np.nan, [0, 1], [[0], [1, 2]]])
def test_what_is_no_choice_is_refused_by_name(action: Any) -> None:
    """Not blamed on the environment."""
    env = BoundaryEnv(sample_envs.Spaces(action_space=spaces.Discrete(3, start=5)))
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"action: .*whole number from 0 to 2"):
        env.step(action)
    for good in (0, 2, np.int64(1), np.array([2]), 1.0):
        env.step(good)


def test_discrete_actions_count_from_zero() -> None:
    inner = sample_envs.Spaces(action_space=spaces.Discrete(3, start=5))
    env = BoundaryEnv(inner)
    env.reset(seed=0)
    env.step(0)
    env.step(np.int64(2))
    assert inner.received == [5, 7]
    assert env.action_space == spaces.Discrete(3)
    assert env.env_spec.action.discrete


REFUSED_ACTIONS = {
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(2),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "half unbounded": spaces.Box(np.array([-1.0, -1.0]), np.array([1.0, np.inf]), dtype=np.float64),
    "integer": spaces.Box(0, 3, (2,), np.int64),
    "empty range": spaces.Box(np.zeros(1), np.zeros(1), dtype=np.float64),
    "dict": spaces.Dict({"a": BOX}),
}
REFUSED_OBSERVATIONS = {
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "image in a dict": spaces.Dict({"pixels": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
    "discrete": spaces.Discrete(4),
    "text": spaces.Text(5),
    "multi-binary": spaces.MultiBinary(3),
    "discrete in a tuple": spaces.Tuple((BOX, spaces.Discrete(2))),
    "empty": spaces.Box(0, 1, (0,)),
}


@pytest.mark.parametrize("space", REFUSED_ACTIONS.values(), ids=REFUSED_ACTIONS.keys())
def test_unsupported_actions_are_refused(space: Any) -> None:
    with pytest.raises(UserError, match="action_space"):
        BoundaryEnv(sample_envs.Spaces(action_space=space))


@pytest.mark.parametrize("space", REFUSED_OBSERVATIONS.values(), ids=REFUSED_OBSERVATIONS.keys())
def test_unsupported_observations_are_refused(space: Any) -> None:
    with pytest.raises(UserError, match="observation_space"):
        BoundaryEnv(sample_envs.Spaces(space))


def test_refusals_name_the_entry() -> None:
    with pytest.raises(UserError, match=r"\['camera'\].*image"):
        BoundaryEnv(sample_envs.Spaces(spaces.Dict({"camera": spaces.Box(0, 255, (8, 8, 3), np.uint8)})))


def test_non_finite_values_name_field_and_step() -> None:
    env = make_env("sample_envs:NanObservation")
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"sample_envs:NanObservation: observation\[1\]: inf.*step 1 "):
        env.step(np.zeros(1))
    env = make_env("sample_envs:NanReward")
    env.reset(seed=0)
    with pytest.raises(UserError, match="sample_envs:NanReward: reward: nan"):
        push(env, 49)
    with pytest.raises(UserError, match="action"):
        slider().step(np.array([np.nan]))


def test_action_repeat_sums_rewards_and_stops_at_an_end() -> None:
    single, repeated = slider(), slider(action_repeat=3)
    single.reset(seed=1)
    repeated.reset(seed=1)
    rewards = [single.step(np.ones(1))[1] for _ in range(3)]
    obs, reward, *_ = repeated.step(np.ones(1))
    assert reward == sum(rewards)
    np.testing.assert_array_equal(obs, single.unwrapped.x)  # type: ignore[attr-defined]
    ended = make_env("sample_envs:Slider", action_repeat=20, max_episode_steps=50)
    ended.reset(seed=0)
    raw: Any = ended.unwrapped
    ends = [ended.step(np.zeros(1))[3] for _ in range(3)]
    assert ends == [False, False, True]
    assert len(raw.received) == 50


def test_spec_under_action_repeat() -> None:
    spec = make_env("sample_envs:Slider", action_repeat=4).env_spec
    assert (spec.action_repeat, spec.max_episode_steps, spec.dt) == (4, 13, pytest.approx(0.4))
    assert not spec.reward_terms
    assert not spec.reward_complete
    assert spec.termination is not None


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True])
def test_a_bad_action_repeat_is_refused(repeat: Any) -> None:
    with pytest.raises(UserError, match="action_repeat"):
        slider(action_repeat=repeat)


def test_class_knowledge_reaches_the_spec() -> None:
    spec = make_env("sample_envs:Slider").env_spec
    assert spec.reward_complete
    assert spec.max_episode_steps == 50
    assert dict(spec.params) == {"weight": 1.0, "mass": 2.0}
    obs = torch.tensor([[4.0, 0.0]])
    assert spec.known_reward(obs, torch.zeros(1, 1), obs).item() == -16.0
    assert spec.known_termination(obs, torch.zeros(1, 1), obs).item()
    again = pickle.loads(pickle.dumps(spec))
    assert again.fingerprint == spec.fingerprint
    assert again.known_reward(obs, torch.zeros(1, 1), obs).item() == -16.0


def test_a_reward_method_that_is_not_static_is_refused() -> None:
    with pytest.raises(UserError, match="staticmethod"):
        make_env("sample_envs:MethodReward")


def test_fingerprint_follows_the_task() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"params": {"mass": 1.0}},
        {"action_repeat": 2},
        {"max_episode_steps": 7},
        {"width": 2.0},
    ]
    prints = [make_env("sample_envs:Slider", **kwargs).env_spec.fingerprint for kwargs in variants]
    assert len(set(prints)) == len(variants)
    assert prints[1] == make_env("sample_envs:Slider", **variants[1]).env_spec.fingerprint


def test_params_of_one_episode_do_not_outlive_it() -> None:
    env = make_env("sample_envs:Slider", params={"mass": 4.0})
    _, info = env.reset(seed=0, options={"params": {"weight": 3.0}})
    assert info["params"] == {"weight": 3.0, "mass": 4.0} == env.params
    _, info = env.reset(seed=0)
    assert "params" not in info
    assert env.params == {"weight": 1.0, "mass": 4.0}


def test_unknown_params_suggest_the_nearest() -> None:
    env = make_env("sample_envs:Slider")
    with pytest.raises(UserError, match=r"'mas'.*Did you mean mass"):
        env.reset(options={"params": {"mas": 1.0}})
    with pytest.raises(UserError, match="finite number"):
        env.reset(options={"params": {"mass": float("nan")}})
    with pytest.raises(UserError, match="no known physics parameters"):
        BoundaryEnv(sample_envs.Spaces()).reset(options={"params": {"mass": 1.0}})


@pytest.mark.parametrize(("id", "size"), [("Pendulum-v1", 2), ("CartPole-v1", 4), ("Hopper-v5", 13)])
def test_sim_state_is_the_full_physics_state(id: str, size: int) -> None:
    env = make_env(id)
    env.reset(seed=0)
    state = env.sim_state()
    assert state is not None
    assert (state.shape, state.dtype) == ((size,), np.float64)
    env.step(env.action_space.sample())
    assert not np.array_equal(state, env.sim_state())


def test_no_sim_state_where_none_is_offered() -> None:
    env = slider()
    env.reset(seed=0)
    assert env.sim_state() is None


def test_mujoco_draws_without_a_display() -> None:
    if working_gl() is None:
        pytest.skip(NO_GL)
    env = make_env("Reacher-v5", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().ndim == 3
    env.close()


class Scripted(sample_envs.Spaces):
    """Returns what it is told to; a step that is an exception is raised."""

    def __init__(self, start: Any = None, then: Any = None, space: Any = BOX) -> None:
        super().__init__(space)
        self.start = (np.zeros(2), {}) if start is None else start
        self.then = (np.zeros(2), 1.0, False, False, {}) if then is None else then

    def reset(self, **kwargs: Any) -> Any:
        return self.start

    def step(self, action: Any) -> Any:
        if isinstance(self.then, Exception):
            raise self.then
        return self.then


def rewarded(reward: Any) -> BoundaryEnv:
    return BoundaryEnv(Scripted(then=(np.zeros(2), reward, False, False, {})), "mine")


@pytest.mark.parametrize("reward", [1, True, np.float32(1.0), np.ones(1), np.ones((1, 1)), np.array(1.0), [1.0]])
def test_a_reward_of_one_number_is_accepted(reward: Any) -> None:
    env = rewarded(reward)
    env.reset(seed=0)
    value = env.step(np.zeros(1))[1]
    assert type(value) is float
    assert value == 1.0


@pytest.mark.parametrize("reward", [None, "1.0", np.ones(2), [1.0, [2.0]], {}, np.array(None), 1j, 1e39, -np.inf])
def test_any_other_reward_is_refused(reward: Any) -> None:
    env = rewarded(reward)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"^mine: reward: .*step 1 "):
        env.step(np.zeros(1))


@pytest.mark.parametrize("start", [np.zeros(2), "hi", None, (np.zeros(2),), (np.zeros(2), 0.0), [0.0, 0.0]], ids=repr)
def test_what_reset_must_return(start: Any) -> None:
    env = Scripted()
    env.start = start
    with pytest.raises(UserError, match=r"'mine': reset returned a .*\(observation, info\)"):
        BoundaryEnv(env, "mine").reset(seed=0)


@pytest.mark.parametrize("obs", [None, "hello", np.array([0.0, None]), [0.0, [1.0]], {}], ids=repr)
def test_what_an_observation_must_be(obs: Any) -> None:
    for env, says in ((Scripted(start=(obs, {})), "info"), (Scripted(then=(obs, 1.0, False, False, {})), "truncated")):
        with pytest.raises(UserError, match=f"mine: observation: .*{says}"):
            try_out(lambda env=env: BoundaryEnv(env, "mine"))  # type: ignore[misc]


@pytest.mark.parametrize("then", [(np.zeros(2), 1.0, False, {}), None, 3, (np.zeros(2), 1.0, np.zeros(2), False, {})])
@pytest.mark.parametrize("limit", [None, 5])
def test_what_step_must_return(then: Any, limit: int | None) -> None:
    inner = Scripted()
    inner.then = then
    env = BoundaryEnv(inner if limit is None else gym.wrappers.TimeLimit(inner, limit), "mine")
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"'mine': step 1 of .*\(observation, reward, terminated, truncated, info\)"):
        env.step(np.zeros(1))


def test_what_step_raises_is_named_and_kept() -> None:
    fault = TypeError("no arm")
    env = BoundaryEnv(Scripted(then=fault), "mine")
    env.reset(seed=0)
    with pytest.raises(UserError, match="'mine': step 1 of an episode raised TypeError: no arm; mend") as caught:
        env.step(np.zeros(1))
    assert caught.value.__cause__ is fault


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_observations_must_fit_float32(dtype: type) -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), dtype)
    largest = float(min(np.finfo(dtype).max, np.finfo(np.float32).max))
    env = BoundaryEnv(Scripted((np.array([0.0, largest], dtype), {}), space=space), "mine")
    assert np.isfinite(env.reset()[0].astype(np.float32)).all()
    for bad in (1e39, -1e39, np.nan):
        with np.errstate(over="ignore"):
            env = BoundaryEnv(Scripted((np.array([0.0, bad]).astype(dtype), {}), space=space), "mine")
        with pytest.raises(UserError, match=r"mine: observation\[1\].*(too large for float32|not finite)"):
            env.reset()


def test_trying_out_closes_and_finds_nothing_in_a_good_one() -> None:
    closed = []

    class Closing(Scripted):
        def close(self) -> None:
            closed.append(type(self.then))

    try_out(lambda: BoundaryEnv(Closing(), "mine"))
    with pytest.raises(UserError, match="RuntimeError: no"):
        try_out(lambda: BoundaryEnv(Closing(then=RuntimeError("no")), "mine"))
    assert closed == [tuple, RuntimeError]
    try_out(lambda: make_env("CartPole-v1"))


def test_a_failing_close_is_logged_only(caplog: pytest.LogCaptureFixture) -> None:
    class Clinging(Scripted):
        def close(self) -> None:
            raise OSError("no device")

    with caplog.at_level(logging.WARNING):
        BoundaryEnv(Clinging(), "mine").close()
    assert "mine: close raised OSError: no device" in caplog.text


def test_known_pieces_can_be_left_to_the_model() -> None:
    known, part, neither = (make_env("CartPole-v1", learn=pieces).env_spec for pieces in ((), ("reward",), LEARNABLE))
    assert known.reward_complete
    assert known.termination is not None
    assert part.termination is not None
    assert (part.reward_complete, dict(part.reward_terms)) == (False, {})
    assert (neither.reward_complete, neither.termination) == (False, None)
    assert neither.angles == known.angles
    with pytest.raises(UserError, match=r"learn: 'rewards'.*Did you mean reward"):
        make_env("CartPole-v1", learn=("rewards",))
