"""Standardisation."""

from __future__ import annotations

import io

import torch
from torch import Generator

from mbrl.data.normalizer import Normalizer


def fitted(data: torch.Tensor, weight: torch.Tensor | None = None) -> Normalizer:
    normalizer = Normalizer(data.shape[1])
    normalizer.fit(data, weight)
    return normalizer


def test_standardised_data_and_back(generator: Generator) -> None:
    data = torch.randn(500, 3, generator=generator) * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, 0.0, -2e4])
    normalizer = fitted(data)
    out = normalizer.normalize(data)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalizer.denormalize(out), data, rtol=1e-5, atol=1e-6)


def test_statistics_are_float64() -> None:
    """A small spread on a large offset: float32 sums lose it (the control), ours do not."""
    data = (10_000.0 + torch.arange(1000, dtype=torch.float32).remainder(2) / 8).repeat(50)[:, None]
    assert abs(fitted(data).std.item() - 0.0625) < 1e-9
    assert abs((data.square().mean() - data.mean().square()).clamp(min=0).sqrt().item() - 0.0625) > 0.01
    assert fitted(data).mean.dtype == torch.float64


def test_constant_dimensions_keep_their_scale() -> None:
    data = torch.tensor([[0.1, 1e5, 0.0, 1.0], [0.1, 1e5, 1e-9, 2.0], [0.1, 1e5, 0.0, 3.0]])
    normalizer = fitted(data)
    assert normalizer.std[:3].tolist() == [1.0, 1.0, 1.0]
    assert normalizer.std[3] != 1.0
    assert normalizer.normalize(data)[:, :3].abs().max() < 1e-6


def test_weights_count_like_repeated_rows(generator: Generator) -> None:
    data = torch.randn(4, 2, generator=generator)
    weighted, repeated = (
        fitted(data, torch.tensor([1.0, 0.0, 2.0, 3.0])),
        fitted(data[torch.tensor([0, 2, 2, 3, 3, 3])]),
    )
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.std, repeated.std)
    assert not torch.allclose(weighted.mean, fitted(data).mean)


def test_statistics_are_saved_with_the_module(generator: Generator) -> None:
    source, file = fitted(torch.randn(9, 2, generator=generator)), io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target = Normalizer(2)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(target.mean, source.mean)
    assert torch.equal(target.std, source.std)
