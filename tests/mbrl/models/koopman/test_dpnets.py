"""Projection networks: their scores against numpy, what they refuse, and a noisy map whose spectrum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.registry import env_spec
from mbrl.models.koopman.deep import mlp
from mbrl.models.koopman.dpnets import (
    DPNetFeatures,
    covariance,
    dpnet_loss,
    metric_distortion,
    projection_score,
    relaxed_score,
    train,
)


@pytest.fixture
def pairs(generator: Generator) -> tuple[Tensor, Tensor]:
    now = torch.randn(500, 4, generator=generator, dtype=torch.float64) @ torch.tensor(np.diag([1.0, 2.0, 0.5, 1.0]))
    return now, 0.7 * now + 0.5 * torch.randn(500, 4, generator=generator, dtype=torch.float64)


def inverse_root(c: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(c)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def test_scores_against_numpy(pairs: tuple[Tensor, Tensor]) -> None:
    x, y = (part.numpy() for part in pairs)
    c_x, c_y, c_xy = x.T @ x / 500, y.T @ y / 500, x.T @ y / 500
    ours = covariance(pairs[0], pairs[0]), covariance(pairs[1], pairs[1]), covariance(*pairs)
    p = np.linalg.norm(inverse_root(c_x) @ c_xy @ inverse_root(c_y), "fro") ** 2
    s = np.linalg.norm(c_xy, "fro") ** 2 / (np.linalg.norm(c_x, 2) * np.linalg.norm(c_y, 2))
    assert float(projection_score(*ours)) == pytest.approx(p, rel=1e-10)
    assert float(relaxed_score(*ours)) == pytest.approx(s, rel=1e-10)
    without_roots = np.linalg.norm(np.linalg.inv(c_x) @ c_xy @ np.linalg.inv(c_y), "fro") ** 2
    assert abs(without_roots / p - 1) > 0.1  # the quantity that an early version of a library computed
    assert s < p <= 4


def test_the_projection_score_ignores_the_basis(pairs: tuple[Tensor, Tensor], generator: Generator) -> None:
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    for score, invariant in ((projection_score, True), (relaxed_score, False)):
        values = []
        for x in (pairs[0], pairs[0] @ mix):
            values.append(float(score(covariance(x, x), covariance(pairs[1], pairs[1]), covariance(x, pairs[1]))))
        assert (values[0] == pytest.approx(values[1], rel=1e-6)) is invariant


def test_distortion_is_zero_at_the_identity_only() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    assert float(metric_distortion(eye)) == pytest.approx(0.0, abs=1e-12)
    assert float(metric_distortion(2.0 * eye)) == pytest.approx(3 * (4 - 2 - math.log(2.0)))
    assert float(metric_distortion(0.5 * eye)) > 0.1
    assert math.isfinite(float(metric_distortion(0.0 * eye)))


def test_centring_takes_the_means_away(pairs: tuple[Tensor, Tensor]) -> None:
    moved = pairs[0] + 3.0
    torch.testing.assert_close(covariance(moved, moved, centred=True), covariance(pairs[0], pairs[0], centred=True))
    assert float((covariance(moved, moved) - covariance(pairs[0], pairs[0])).abs().min()) > 1.0


def test_gradients_are_finite_where_features_agree() -> None:
    same = torch.ones(300, 3, requires_grad=True)
    for score in ("projection", "relaxed"):
        (grad,) = torch.autograd.grad(dpnet_loss(same, same, score, gamma=1.0), same)
        assert bool(grad.isfinite().all())


def test_batches_too_small_for_their_features_are_refused(generator: Generator) -> None:
    spec = env_spec("Pendulum-v1")
    with pytest.raises(UserError, match="batch"):
        DPNetFeatures(spec, size=16, batch=799)
    features = DPNetFeatures(spec, size=4, batch=200)
    with pytest.raises(UserError, match="batches of 200"):
        features.fit_pairs(torch.zeros(199, 3), torch.zeros(199, 3), generator)
    with pytest.raises(UserError, match="fit_pairs"):
        features.fit(torch.zeros(400, 3), generator)


def test_features_learn_are_frozen_and_repeat(generator: Generator) -> None:
    x = torch.rand(1000, 3, generator=generator, dtype=torch.float64) * 2 - 1
    y = 0.8 * x + 0.2 * torch.rand(1000, 3, generator=generator, dtype=torch.float64)
    made = []
    for _ in range(2):
        torch.manual_seed(0)  # the initial networks
        features = DPNetFeatures(env_spec("Pendulum-v1"), size=4, hidden=16, steps=60, batch=500)
        before = features(x)
        report = features.fit_pairs(x, y, torch.Generator().manual_seed(3))
        made.append(features(x))
    assert made[0].shape == (1000, 4)
    assert made[0].dtype == torch.float64
    assert torch.equal(made[0], made[1])
    assert report["condition"] < 0.1 * float(torch.linalg.cond(covariance(before, before)))
    assert not any(p.requires_grad for p in features.parameters())
    features.fit(x, generator)
    assert torch.equal(features(x), made[1])


def logistic(rows: int, luck: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of ``y = 4 x (1 - x) + xi mod 1``, the density of ``xi`` like ``cos^20(pi xi)``."""

    def noise(count: int) -> np.ndarray:
        found = luck.uniform(-0.5, 0.5, 12 * count)
        return found[luck.uniform(size=len(found)) < np.cos(np.pi * found) ** 20][:count]

    def move(x: np.ndarray) -> np.ndarray:
        return np.asarray((4 * x * (1 - x) + noise(len(x))) % 1.0)

    x = luck.uniform(size=rows)
    for _ in range(20):
        x = move(x)
    return torch.tensor(x).float()[:, None], torch.tensor(move(x)).float()[:, None]


class OnCircle(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = mlp(2, features, 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(torch.cat([(2 * math.pi * x).cos(), (2 * math.pi * x).sin()], -1))
        return found


def spectrum(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, np.ndarray]:
    """Condition number of the features, and eigenvalues of the regressed operator."""
    with torch.no_grad():
        now, later = net(x), net(y)
    c, across = covariance(now, now), covariance(now, later)
    k = torch.linalg.solve(c + 1e-8 * torch.eye(len(c), dtype=c.dtype), across)
    return float(torch.linalg.cond(c)), torch.linalg.eigvals(k).numpy()


@pytest.mark.parametrize("score", ["relaxed", pytest.param("projection", marks=pytest.mark.slow)])
def test_noisy_logistic_map(score: str) -> None:
    """Published example: well-conditioned features, leading eigenvalue 1. The others' error is no claim."""
    torch.manual_seed(0)
    luck = np.random.default_rng(0)
    x, y = logistic(40_000, luck)
    nets, pick = (OnCircle(8), OnCircle(8)), torch.Generator().manual_seed(0)
    untrained, _ = spectrum(nets[0], x, y)

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (2048,), generator=pick)
        return x[rows], y[rows]

    train(nets, draw, steps=250, lr=3e-3, score=score)  # type: ignore[arg-type]
    condition, values = spectrum(nets[0], x, y)
    assert untrained > 100
    assert condition <= 5
    assert np.abs(values - 1.0).min() < 0.01
    assert np.abs(values).max() < 1.01
