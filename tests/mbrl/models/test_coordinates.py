"""Coordinates: there and back, the short way round, and the real layouts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator

from envs import env_spec, make_env
from envs.spec import ActionSpec, Angle, EnvSpec
from mbrl.models.coordinates import Coordinates


def test_there_and_back(system: Any, layout: str) -> None:
    data = system(layout).data(500)
    coordinates = Coordinates(system(layout).spec)
    z = coordinates.from_obs(data.obs)
    assert z.shape == (500, coordinates.size)
    torch.testing.assert_close(coordinates.to_obs(z), data.obs, atol=2e-6, rtol=0)
    assert torch.equal(
        z[:, : coordinates.plain], data.obs[:, [i for i, n in enumerate(system(layout).names) if n in "pv"]]
    )


def test_the_difference_leads_to_the_next_observation(system: Any, layout: str) -> None:
    """Also across the seam, where the plain difference of angles is a jump of two pi (the control)."""
    data, coordinates = system(layout).data(500), Coordinates(system(layout).spec)
    z, next_z = coordinates.from_obs(data.obs), coordinates.from_obs(data.next_obs)
    delta = coordinates.difference(z, next_z)
    torch.testing.assert_close(coordinates.to_obs(z + delta), data.next_obs, atol=3e-6, rtol=0)
    assert delta.abs().max() < 1.0
    if layout in ("pair", "wrapped", "mixed"):
        assert (next_z - z).abs().max() > 5.0


def test_features_are_smooth_where_coordinates_jump(system: Any, layout: str) -> None:
    coordinates, spec = Coordinates(system(layout).spec), system(layout).spec
    z = coordinates.from_obs(system(layout).data(50).obs)
    features = coordinates.features(z)
    assert features.shape == (50, coordinates.feature_size)
    turned = z.clone()
    turned[:, coordinates.plain :] += 2 * math.pi
    torch.testing.assert_close(coordinates.features(turned), features, atol=3e-6, rtol=0)
    assert coordinates.feature_size == spec.obs_size + sum(angle.raw is not None for angle in spec.angles)


def test_raw_angles_are_folded_only_where_the_environment_folds_them() -> None:
    action = ActionSpec("continuous", 1, (-1.0,), (1.0,))
    angles = (Angle(raw=0), Angle(raw=1, wrapped=True))
    coordinates = Coordinates(EnvSpec("T", "0", "0", 2, action, angles=angles))
    assert torch.allclose(coordinates.to_obs(torch.tensor([3.0, 3.0]) + 1.0), torch.tensor([4.0, 4.0 - 2 * math.pi]))
    delta = coordinates.difference(torch.tensor([3.0, 3.0]), torch.tensor([-3.0, -3.0]))
    assert torch.allclose(delta, torch.tensor([-6.0, 2 * math.pi - 6.0]))
    assert torch.allclose(coordinates.fold(torch.tensor([9.0, 9.0])), torch.tensor([9.0, 9.0 - 2 * math.pi]), atol=1e-5)


@pytest.mark.parametrize(("id", "angles", "size"), [("Pendulum-v1", 1, 2), ("Reacher-v5", 2, 8), ("Acrobot-v1", 2, 4)])
def test_real_layouts(id: str, angles: int, size: int, generator: Generator) -> None:
    spec = env_spec(id)
    coordinates = Coordinates(spec)
    assert (coordinates.angles, coordinates.size) == (angles, size)
    env = make_env(id)
    try:
        obs = [torch.as_tensor(env.reset(seed=0)[0])]
        for _ in range(60):
            action = torch.randn(spec.action.size, generator=generator).clamp(-1, 1)
            given = int(action.argmax()) if spec.action.discrete else action.numpy()
            obs.append(torch.as_tensor(env.step(given)[0]))
    finally:
        env.close()
    path = torch.stack(obs).float()
    z = coordinates.from_obs(path)
    torch.testing.assert_close(coordinates.to_obs(z), path, atol=1e-5, rtol=1e-5)
    back = coordinates.to_obs(z[:-1] + coordinates.difference(z[:-1], z[1:]))
    torch.testing.assert_close(back, path[1:], atol=1e-5, rtol=1e-5)
