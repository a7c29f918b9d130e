"""Residuals of modes, on dynamics whose spectrum is known, and against what the modes then really do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.diagnostics.resdmd import (
    Pairs,
    Snapshots,
    compress,
    edmd_pairs,
    filtered,
    forecast_bound,
    grid,
    pseudospectrum,
    residuals,
)

MAP = torch.tensor([[0.9, -0.4], [0.3, 0.8]], dtype=torch.float64)


def uniform(rows: int, generator: Generator) -> Tensor:
    """``[rows, 2]`` in the square from -1 to 1."""
    return 2 * torch.rand(rows, 2, generator=generator, dtype=torch.float64) - 1


def monomials(x: Tensor) -> Tensor:
    """Up to degree 2: closed under a linear map."""
    a, b = x.T
    return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], -1)


def with_sines(x: Tensor) -> Tensor:
    return torch.cat([monomials(x), (3 * x).sin()], -1)


def linear_pairs(lift: Callable[[Tensor], Tensor], generator: Generator, rows: int = 300) -> Snapshots:
    x = uniform(rows, generator)
    return Snapshots.of(lift(x), lift(x @ MAP.T))


# -- a linear map ----------------------------------------------------------------------------------------------------


def test_of_a_closed_dictionary_all_residuals_are_round_off(generator: Generator) -> None:
    pairs = edmd_pairs(linear_pairs(monomials, generator), linear_pairs(monomials, generator))
    one, two = torch.linalg.eigvals(MAP)
    expected = torch.stack([torch.ones_like(one), one, two, one * one, one * two, two * two])
    assert float(pairs.residual.max()) < 1e-10
    assert float((pairs.values[:, None] - expected).abs().amin(1).max()) < 1e-10


def test_what_does_not_belong_is_found_and_nothing_else(generator: Generator) -> None:
    pairs = edmd_pairs(linear_pairs(with_sines, generator), linear_pairs(with_sines, generator))
    assert float(pairs.residual[:6].max()) < 1e-10
    assert float(pairs.residual[6:].min()) > 0.1
    assert len(pairs.kept(1e-6).values) == 6
    assert len(pairs.kept(1.0).values) == 8


def test_squared_matrices_would_lose_half_of_the_digits(generator: Generator) -> None:
    """The control of the triangular form: the same residuals by G, A and L."""
    data = linear_pairs(monomials, generator)
    pairs = edmd_pairs(data, data)
    gram, cross, image = (part.to(torch.complex128) for part in (data.gram, data.cross, data.image))
    value = pairs.values
    squared = [
        v.conj() @ (image - z * cross.mH - z.conj() * cross + z.abs() ** 2 * gram) @ v / (v.conj() @ gram @ v)
        for z, v in zip(value, pairs.vectors.T, strict=True)
    ]
    assert float(torch.stack(squared).abs().sqrt().max()) > 100 * float(pairs.residual.max())
    wrong = residuals(data, value + 0.1, pairs.vectors)
    assert wrong.tolist() == pytest.approx([0.1] * 6)


# -- the statistic ---------------------------------------------------------------------------------------------------


def test_parts_add_up_to_the_whole(generator: Generator) -> None:
    x, y = uniform(90, generator), uniform(90, generator)
    whole = Snapshots.of(with_sines(x), with_sines(y))
    pieces = zip(with_sines(x).split([5, 40, 45]), with_sines(y).split([5, 40, 45]), strict=True)
    summed = Snapshots.gather(pieces)
    assert (int(summed.rows), float(summed.weight)) == (90, 90.0)
    for name in ("gram", "cross", "image"):
        torch.testing.assert_close(getattr(summed, name), getattr(whole, name))
    torch.testing.assert_close(whole.gram, with_sines(x).T @ with_sines(x) / 90)
    torch.testing.assert_close(whole.cross, with_sines(x).T @ with_sines(y) / 90)
    torch.testing.assert_close(whole.image, with_sines(y).T @ with_sines(y) / 90)
    assert whole.gram.dtype == torch.float64


def test_a_weight_is_a_number_of_times(generator: Generator) -> None:
    x, y = uniform(6, generator), uniform(6, generator)
    times = torch.tensor([1, 0, 2, 1, 3, 1])
    weighed = Snapshots.of(monomials(x), monomials(y), times)
    repeated = Snapshots.of(monomials(x.repeat_interleave(times, 0)), monomials(y.repeat_interleave(times, 0)))
    torch.testing.assert_close(weighed.cross, repeated.cross)
    assert float((weighed.cross - Snapshots.of(monomials(x), monomials(y)).cross).abs().max()) > 1e-3


def test_complex_features_are_features(generator: Generator) -> None:
    angle = 3 * uniform(50, generator)[:, :1]
    waves = [torch.exp(1j * k * angle) for k in (1, 2)]
    shifted = [torch.exp(1j * k * (angle + 0.4)) for k in (1, 2)]
    data = Snapshots.of(torch.cat(waves, -1), torch.cat(shifted, -1))
    pairs = edmd_pairs(data, data)
    assert sorted(pairs.values.angle().tolist()) == pytest.approx([0.4, 0.8])
    assert float(pairs.residual.max()) < 1e-12


PLAIN = torch.ones(5, 2)
FAULTS: dict[str, Callable[[], object]] = {
    "shapes": lambda: Snapshots.of(PLAIN, torch.ones(5, 3)),
    "not finite": lambda: Snapshots.of(PLAIN, PLAIN / 0.0),
    "a negative weight": lambda: Snapshots.of(PLAIN, PLAIN, torch.tensor([1, 1, 1, 1, -1])),
    "two dictionaries": lambda: Snapshots.of(PLAIN, PLAIN) + Snapshots.of(PLAIN[:, :1], PLAIN[:, :1]),
    "no batch": lambda: Snapshots.gather([]),
    "no features": lambda: compress(Snapshots.of(0 * PLAIN, PLAIN)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_cannot_be_is_refused(fault: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        fault()


def test_features_that_depend_on_each_other_are_cut_and_said_so(generator: Generator) -> None:
    def doubled(x: Tensor) -> Tensor:
        return torch.cat([monomials(x), monomials(x)[:, 1:3]], -1)

    data = linear_pairs(doubled, generator)
    small = compress(data)
    assert (small.rank, small.cutoff) == (6, 1e-12)
    assert small.condition > 1e20
    assert compress(linear_pairs(monomials, generator)).condition < 1e4
    assert float(edmd_pairs(data, linear_pairs(doubled, generator)).residual.max()) < 1e-10
    assert compress(data, most=3).rank == 3


# -- the pseudospectrum ----------------------------------------------------------------------------------------------


def test_tau_is_the_smallest_residual_there_is(generator: Generator) -> None:
    data = linear_pairs(with_sines, generator)
    small, points = compress(data), torch.tensor([0.3 + 0.4j, 1.2 + 0.0j, -0.5 + 0.1j], dtype=torch.complex128)
    tau = pseudospectrum(small, points, chunk=2)
    for point, least in zip(points, tau.tolist(), strict=True):
        tried = torch.randn(8, 4000, generator=generator, dtype=torch.complex128)
        assert float(residuals(data, point, tried).min()) > least
        pencil = torch.cat([small.operator - point * torch.eye(8), small.rest.to(torch.complex128)])
        best = small.basis.to(torch.complex128) @ torch.linalg.svd(pencil).Vh.mH[:, -1:]
        assert float(residuals(data, point, best)[0]) == pytest.approx(least, rel=1e-6)


def test_tau_is_zero_on_the_spectrum_and_its_distance_around_a_normal_one(generator: Generator) -> None:
    turn = torch.tensor([[0.6, -0.6], [0.6, 0.6]], dtype=torch.float64)
    x = uniform(100, generator)
    own = torch.cat([x, x @ turn.T])  # more of the same where a turn maps to
    small = compress(Snapshots.of(own / own.norm(dim=1, keepdim=True), own / own.norm(dim=1, keepdim=True) @ turn.T))
    points = grid((-1.0, 1.0), (0.0, 1.0), 21)
    assert points.shape == (11, 21)
    tau = pseudospectrum(small, points)
    away = torch.minimum((points - (0.6 + 0.6j)).abs(), (points - (0.6 - 0.6j)).abs())
    assert float(((tau - away).abs() / (0.1 + away)).max()) < 0.2
    exact = pseudospectrum(small, torch.linalg.eigvals(small.operator))
    assert float(exact.max()) < 1e-12
    assert filtered(points, tau, 0.05).tolist() == [pytest.approx(0.6 + 0.6j)]


def test_the_bound_is_that_of_a_geometric_sum() -> None:
    values = torch.tensor([1.0, 0.5, 1j, 2.0], dtype=torch.complex128)
    bound = forecast_bound(torch.tensor([0.1, 0.1, 0.2, 0.1], dtype=torch.float64), values, 3)
    assert bound.tolist() == pytest.approx([0.3, 0.175, 0.6, 0.7])


# -- the pendulum ----------------------------------------------------------------------------------------------------


def swing(x: Tensor, steps: int, dt: float = 0.05, parts: int = 5) -> Tensor:
    """An undamped pendulum ``[.., (angle, velocity)]``, Runge-Kutta of order 4."""

    def field(x: Tensor) -> Tensor:
        return torch.stack([x[..., 1], -x[..., 0].sin()], -1)

    h = dt / parts
    for _ in range(steps * parts):
        a = field(x)
        b = field(x + h / 2 * a)
        c = field(x + h / 2 * b)
        d = field(x + h * c)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


@dataclasses.dataclass
class Swung:
    """Modes of 400 pairs of a pendulum, and what they really do on 2000 others."""

    pairs: Pairs
    train_residual: Tensor
    error: Tensor
    """after 10 steps, relative to the mode's size"""

    def spearman(self, residual: Tensor) -> float:
        return float(spearmanr(residual, self.error).statistic)

    def ratio(self, residual: Tensor) -> float:
        """Median error of modes with a residual of 0.1 or more over that of the others."""
        good = residual < 0.1
        return float(self.error[~good].median() / self.error[good].median())


@pytest.fixture(scope="module", params=[50, 200])
def swung(request: pytest.FixtureRequest) -> Swung:
    """Thin plates around so many points."""
    generator = torch.Generator().manual_seed(0)
    x, held, centres = (uniform(rows, generator) for rows in (400, 2000, request.param))

    def lift(x: Tensor) -> Tensor:
        r = torch.cdist(x, centres)
        return r.square() * (r + 1e-12).log()

    train = Snapshots.of(lift(x), lift(swing(x, 1)))
    pairs = edmd_pairs(train, Snapshots.of(lift(held), lift(swing(held, 1))))
    start, end = (lift(state).to(torch.complex128) @ pairs.vectors for state in (held, swing(held, 10)))
    error = (end - pairs.values**10 * start).norm(dim=0) / start.norm(dim=0)
    return Swung(pairs, residuals(train, pairs.values, pairs.vectors), error)


def test_the_residual_tells_which_modes_of_a_pendulum_hold(swung: Swung, generator: Generator) -> None:
    assert swung.spearman(swung.pairs.residual) >= 0.5
    assert swung.ratio(swung.pairs.residual) >= 3.0
    shuffled = swung.pairs.residual[torch.randperm(len(swung.error), generator=generator)]
    assert abs(swung.spearman(shuffled)) < 0.3
    assert swung.ratio(shuffled) < 2.0


def test_on_training_rows_residuals_are_misleadingly_low(swung: Swung) -> None:
    seen, unseen = float(swung.train_residual.median()), float(swung.pairs.residual.median())
    assert unseen > (1.3 if len(swung.error) == 50 else 4.0) * seen
    assert int((swung.train_residual < 0.1).sum()) > int((swung.pairs.residual < 0.1).sum())


def test_the_bound_holds_for_modes_that_are_kept(swung: Swung) -> None:
    """With a little room: the pendulum leaves the square that the rows fill."""
    kept = swung.pairs.residual < 0.1
    bound = forecast_bound(swung.pairs.residual, swung.pairs.values, 10)
    assert float((swung.error[kept] <= 1.5 * bound[kept]).double().mean()) > 0.8
    assert float((swung.error[kept] <= 0.1 * bound[kept]).double().mean()) < 0.2
