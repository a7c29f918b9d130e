"""Changed physics: it is in force, it is recorded, and it goes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs import UserError, make_env

CHANGES: list[tuple[str, str, float]] = [
    ("mbrl/CartPoleSwingUp-v0", "gravity", 5.0),
    ("Pendulum-v1", "gravity", 5.0),
    ("Pendulum-v1", "length", 2.0),
    ("CartPole-v1", "masspole", 0.5),
    ("CartPole-v1", "length", 1.0),
    ("Acrobot-v1", "link_mass_2", 2.0),
    ("MountainCar-v0", "force", 0.002),
    ("MountainCarContinuous-v0", "power", 0.003),
    ("Hopper-v5", "gravity", 5.0),
    ("Hopper-v5", "body_mass", 2.0),
    ("Hopper-v5", "body_mass.torso", 2.0),
    ("Hopper-v5", "geom_friction.foot_geom", 0.1),
    ("Hopper-v5", "dof_damping.foot_joint", 3.0),
    ("Hopper-v5", "actuator_gear.thigh_joint", 0.5),
    ("HalfCheetah-v5", "jnt_stiffness", 2.0),
    ("HalfCheetah-v5", "density", 100.0),
]


def path(env: Any, options: dict[str, Any] | None = None) -> np.ndarray[Any, Any]:
    rows = [env.reset(seed=0, options=options)[0]]
    env.action_space.seed(0)
    for _ in range(30):
        obs, _, terminated, _, _ = env.step(env.action_space.sample())
        rows.append(obs)
        if terminated:
            env.reset(seed=1, options=options)
    return np.stack(rows)


@pytest.mark.parametrize(("id", "name", "value"), CHANGES)
def test_changes_are_in_force_recorded_and_undone(id: str, name: str, value: float) -> None:
    usual = make_env(id)
    changed = make_env(id, params={name: value})
    before, other = path(usual), path(changed)
    assert not np.array_equal(before, other)
    assert changed.env_spec.params[name] == value
    assert changed.env_spec.fingerprint != usual.env_spec.fingerprint
    np.testing.assert_array_equal(path(usual, {"params": {name: value}}), other)
    np.testing.assert_array_equal(path(usual), before)


def test_factors_multiply_and_inertia_follows_mass() -> None:
    usual, changed = (make_env("Hopper-v5", params=p) for p in ({}, {"body_mass": 2.0, "body_mass.torso": 1.5}))
    old, new = (env.unwrapped.model for env in (usual, changed))  # type: ignore[attr-defined]
    np.testing.assert_allclose(new.body("torso").mass, 3.0 * old.body("torso").mass)
    np.testing.assert_allclose(new.body("foot").mass, 2.0 * old.body("foot").mass)
    np.testing.assert_allclose(new.body("foot").inertia, 2.0 * old.body("foot").inertia)
    np.testing.assert_allclose(new.body_subtreemass[1], 2.0 * old.body_subtreemass[1] + old.body("torso").mass)


def test_a_free_joint_is_scaled_whole() -> None:
    env = make_env("Ant-v5", params={"dof_damping": 1.0, "dof_armature.root": 3.0})
    usual: Any = make_env("Ant-v5").unwrapped
    changed: Any = env.unwrapped
    np.testing.assert_allclose(changed.model.dof_armature[:6], 3.0 * usual.model.dof_armature[:6])
    np.testing.assert_allclose(changed.model.dof_armature[6:], usual.model.dof_armature[6:])


def test_cartpole_products_follow() -> None:
    env: Any = make_env("CartPole-v1", params={"masspole": 0.4, "length": 1.0}).unwrapped
    assert env.total_mass == pytest.approx(1.4)
    assert env.polemass_length == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("id", "name", "hint"),
    [
        ("mbrl/CartPoleSwingUp-v0", "gravty", "Did you mean gravity"),
        ("CartPole-v1", "mass_pole", "Did you mean masspole"),
        ("Hopper-v5", "body_mass.torsoo", "Did you mean body_mass.torso"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(id: str, name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        make_env(id, params={name: 1.0})


@pytest.mark.parametrize("value", [float("inf"), "heavy", True, None])
def test_values_must_be_finite_numbers(value: Any) -> None:
    with pytest.raises(UserError, match="finite number"):
        make_env("Pendulum-v1", params={"mass": value})
