"""Dictionaries say what their formulas say, take centres from data, and load to the bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.models.koopman.dictionaries import (
    Combined,
    Dictionary,
    FourierFeatures,
    GaussianRBF,
    Monomials,
    RangeScale,
    ThinPlate,
)

SPEC = EnvSpec("Three-v0", "0", "0", 3, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)
KINDS: dict[str, Callable[[EnvSpec], Dictionary]] = {
    "monomials": lambda spec: Monomials(spec, 3),
    "points": lambda spec: GaussianRBF(spec, 7),
    "kmeans": lambda spec: GaussianRBF(spec, 7, centres_from="kmeans"),
    "thin plate": lambda spec: ThinPlate(spec, 7),
    "fourier": lambda spec: FourierFeatures(spec, 7),
    "combined": lambda spec: Combined([Monomials(spec), ThinPlate(spec, 4), FourierFeatures(spec, 5)]),
}


def rows(count: int = 200, seed: int = 1) -> torch.Tensor:
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def test_monomials_are_all_products_of_two_and_three() -> None:
    x = rows(5)
    wanted = [x[:, list(c)].prod(1) for d in (2, 3) for c in itertools.combinations_with_replacement(range(3), d)]
    dictionary = Monomials(SPEC, 3)
    torch.testing.assert_close(dictionary(x), torch.stack(wanted, 1))
    assert dictionary.size == len(wanted) == 16


@pytest.mark.parametrize("kind", ["gaussian", "thin plate"])
def test_radial_functions_are_those_of_the_distance(kind: str, generator: Generator) -> None:
    x = rows(20)
    dictionary = GaussianRBF(SPEC, 6, width=0.4) if kind == "gaussian" else ThinPlate(SPEC, 6)
    dictionary.fit(x, generator)
    r = torch.cdist(x, dictionary.get_buffer("centres"))
    wanted = (-(r**2) / (2 * 0.4**2)).exp() if kind == "gaussian" else r**2 * r.clamp(min=1e-300).log()
    torch.testing.assert_close(dictionary(x), wanted, atol=1e-8, rtol=1e-8)
    assert dictionary(dictionary.get_buffer("centres")).isfinite().all()  # also where r is 0


def test_fourier_features_have_the_gaussian_kernel(generator: Generator) -> None:
    dictionary = FourierFeatures(SPEC, 40_000, scale=1.5)
    dictionary.fit(rows(), generator)
    x, y = rows(2, seed=5)
    kernel = 2 * float((dictionary(x) * dictionary(y)).mean())
    assert kernel == pytest.approx(math.exp(-(1.5**2) * float((x - y).square().sum()) / 2), abs=0.03)
    assert kernel != pytest.approx(math.exp(-(0.75**2) * float((x - y).square().sum()) / 2), abs=0.03)


def test_points_are_rows_and_means_lie_closer(generator: Generator) -> None:
    x, points, means = rows(), GaussianRBF(SPEC, 12), GaussianRBF(SPEC, 12, centres_from="kmeans")
    for dictionary in (points, means):
        dictionary.fit(x, generator)
    away = {
        name: torch.cdist(x, one.get_buffer("centres")).min(1).values for name, one in (("p", points), ("m", means))
    }
    assert int((away["p"] < 1e-6).sum()) == 12
    assert int((away["m"] < 1e-6).sum()) == 0
    assert away["m"].square().mean() < 0.85 * away["p"].square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_same_rows_and_generator_give_the_same_functions(kind: str) -> None:
    x, made = rows(), []
    for seed in (0, 0, 1):
        dictionary = KINDS[kind](SPEC)
        dictionary.fit(x, torch.Generator().manual_seed(seed))
        made.append(dictionary)
    assert made[0](x).shape == (200, made[0].size)
    assert torch.equal(made[0](x), made[1](x))
    assert torch.equal(made[0](x), made[2](x)) == (kind == "monomials")
    fresh = KINDS[kind](SPEC)
    fresh.load_state_dict(made[2].state_dict())
    assert torch.equal(fresh(x), made[2](x))


@pytest.mark.parametrize("kind", KINDS)
def test_leading_dimensions_and_float32(kind: str, generator: Generator) -> None:
    dictionary = KINDS[kind](SPEC)
    dictionary.fit(rows(), generator)
    x = rows(24).view(2, 3, 4, 3)
    many = dictionary(x.float())
    assert many.dtype == torch.float32
    assert many.shape == (2, 3, 4, dictionary.size)
    torch.testing.assert_close(many.double(), dictionary(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("centres_from", ["points", "kmeans"])
def test_few_rows_serve_more_than_once(centres_from: str, generator: Generator) -> None:
    dictionary = GaussianRBF(SPEC, 5, centres_from=centres_from)  # type: ignore[arg-type]
    dictionary.fit(rows(2), generator)
    assert len(dictionary.get_buffer("centres").unique(dim=0)) == 2


def test_the_range_is_scaled_and_constants_are_left(generator: Generator) -> None:
    data = rows() * torch.tensor([3.0, 0.0, 50.0]) + torch.tensor([1.0, 4.0, -7.0])
    scale = RangeScale(3)
    scale.fit(data)
    scaled = scale(data)
    for entry in (0, 2):
        assert (float(scaled[:, entry].min()), float(scaled[:, entry].max())) == pytest.approx((-1.0, 1.0))
    assert scaled[:, 1].abs().max() == 0.0
    torch.testing.assert_close(scale.inverse(scaled), data)


def test_bad_options_are_named() -> None:
    for make, field in (
        (lambda: Monomials(SPEC, 1), "degree"),
        (lambda: GaussianRBF(SPEC, 0), "centres"),
        (lambda: GaussianRBF(SPEC, 3, width=0.0), "width"),
        (lambda: GaussianRBF(SPEC, 3, centres_from="grid"), "centres_from"),  # type: ignore[arg-type]
        (lambda: FourierFeatures(SPEC, 3, scale=math.inf), "scale"),
        (lambda: FourierFeatures(SPEC, 0), "count"),
    ):
        with pytest.raises(UserError, match=field):
            make()
