"""From names to environments, and what a wrong name says."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sample_envs
import torch

from envs import UserError, env_spec, list_envs, make_env, make_physics, register_scheme
from envs.registry import OWN

WRONG_NAMES = {
    "Hoper-v5": "Did you mean Hopper-v5",
    "mbrl/CartPoleSwingup-v0": "Did you mean mbrl/CartPoleSwingUp-v0",
    "no_such_module:Env": "no module 'no_such_module'",
    "sample_envs:Slyder": "Did you mean sample_envs:Slider",
    "sample_envs:NotAnEnv": "not a subclass of gymnasium.Env",
    "sample_envs:BOX": "not a subclass of gymnasium.Env",
    "sample_envs:Unbuildable": "RuntimeError: no licence",
    "sample_envs:": "has no ''",
    ":Env": "env: ':Env'",
    "": "no environment of this name",
    "envs.mine:Foo": "'envs' is the platform's own package and shadows",
    "envs:Foo": "'envs' is the platform's own package and shadows",
    "code:Foo": "code.py; 'code' is Python's own module and shadows",
    "sys:Foo": "built into Python",
    "sample_envs:Slidr": "sample_envs.py)",
    "dmc:cheeta-run": "Did you mean dmc:cheetah-run",
}


@pytest.mark.parametrize("id", WRONG_NAMES)
def test_wrong_names_say_what_is_wrong(id: str) -> None:
    if id.startswith("dmc:"):
        pytest.importorskip("shimmy")
    with pytest.raises(UserError) as caught:
        make_env(id)
    assert WRONG_NAMES[id] in str(caught.value)


def test_a_module_that_fails_to_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_env_module.py").write_text("1 / 0\n")
    (tmp_path / "hungry_env_module.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        make_env("failing_env_module:Env")
    with pytest.raises(UserError, match="needs 'a_package_that_nobody_has'"):
        make_env("hungry_env_module:Env")


def test_unknown_constructor_arguments_are_user_errors() -> None:
    for id in ("Pendulum-v1", "sample_envs:Slider"):
        with pytest.raises(UserError, match="wings"):
            make_env(id, wings=2)


def test_constructor_arguments_and_limits_arrive() -> None:
    env: Any = make_env("sample_envs:Slider", width=1.25, max_episode_steps=3)
    assert env.unwrapped.width == 1.25
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]
    assert make_env("Pendulum-v1", max_episode_steps=7).env_spec.max_episode_steps == 7
    for limit in (0, 2.5, True):
        with pytest.raises(UserError, match="max_episode_steps"):
            make_env("Pendulum-v1", max_episode_steps=limit)  # type: ignore[arg-type]


def test_schemes_load() -> None:
    def load(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
        return sample_envs.Slider(width=float(name), **kwargs)

    register_scheme("slider-of", load)
    env: Any = make_env("slider-of:2.5")
    assert env.unwrapped.width == 2.5
    assert env.env_spec.id == "slider-of:2.5"


def test_dm_control_tasks() -> None:
    pytest.importorskip("shimmy")
    env = make_env("dmc:cheetah-run")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (17,)
    assert set(env.env_spec.layout) == {"position", "velocity"}
    assert env.env_spec.max_episode_steps == 1000
    assert env.sim_state() is not None


def test_every_own_environment_is_listed_and_builds() -> None:
    ids = list_envs()
    assert set(OWN) <= set(ids)
    assert "Hopper-v5" in ids
    assert "Hopper-v4" not in ids
    assert all(env_spec(id).id == id for id in OWN)


def test_physics_of_gymnasium_tasks_and_refusals() -> None:
    env = make_env("Pendulum-v1", params={"mass": 2.0})
    physics = make_physics("Pendulum-v1", params={"mass": 2.0})
    env.reset(seed=0)
    start = torch.as_tensor(env.sim_state())[None]
    env.step(np.array([0.5]))
    reached = physics.rollout(start, torch.full((1, 1, 1), 1.0, dtype=torch.float64))[-1, 0]
    np.testing.assert_allclose(reached, env.sim_state(), atol=1e-6)
    with pytest.raises(UserError, match="true dynamics"):
        make_physics("sample_envs:Slider")
    with pytest.raises(UserError, match="action_repeat"):
        make_physics("Pendulum-v1", action_repeat=2)


@pytest.mark.parametrize("limit", [-3, 0, "20", 2.5, True])
def test_a_bad_limit_of_the_class_is_refused(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_envs.Slider, "max_episode_steps", limit)
    with pytest.raises(UserError, match=r"sample_envs:Slider: max_episode_steps: .*at least 1"):
        make_env("sample_envs:Slider")


def test_a_limit_may_be_any_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_envs.Slider, "max_episode_steps", np.int64(4))
    assert make_env("sample_envs:Slider").env_spec.max_episode_steps == 4
