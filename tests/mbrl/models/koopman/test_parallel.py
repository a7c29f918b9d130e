"""Three ways to follow a diagonal system are one: exact where padded, with the gradients that theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.models.koopman.parallel import PATHS, discretise, expm1, faster_path, follow, last, pack, unpack

MODES, LENGTH, ROWS = 8, 100, 3


@pytest.fixture
def system(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Start, factor and drive of slowly damped random modes."""
    angle = 2 * math.pi * torch.rand(MODES, generator=generator)
    size = 1.0 - 0.02 * torch.rand(MODES, generator=generator)
    start, drive = (
        torch.randn(ROWS, 2 * MODES, generator=generator),
        torch.randn(LENGTH, ROWS, 2 * MODES, generator=generator),
    )
    return unpack(start), torch.polar(size, angle), unpack(drive)


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


def unpadded(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """The mistake: a circular convolution, in which the last drives reach the first steps."""
    powers = factor.pow(torch.arange(LENGTH + 1)[:, None])
    spectrum = torch.fft.fft(drive, dim=0) * torch.fft.fft(powers[:-1], dim=0)[:, None]
    return torch.fft.ifft(spectrum, dim=0) + powers[1:, None] * start


def test_paths_agree_and_an_unpadded_convolution_does_not(system: tuple[Tensor, Tensor, Tensor]) -> None:
    loop = follow(*system, path="loop")
    exact = follow(*(x.to(torch.complex128) for x in system), path="loop")
    assert loop.shape == (LENGTH, ROWS, MODES)
    for path in ("scan", "fft"):
        assert relative(follow(*system, path=path), loop) < 1e-5  # type: ignore[arg-type]
    assert relative(loop, exact) < 1e-5
    assert relative(unpadded(*system), loop) > 0.1


def test_scan_with_a_factor_that_changes(system: tuple[Tensor, Tensor, Tensor], generator: Generator) -> None:
    start, factor, drive = system
    changing = factor * (1.0 - 0.3 * torch.rand(LENGTH, ROWS, MODES, generator=generator))
    loop = follow(start, changing, drive, "loop")
    assert relative(follow(start, changing, drive, "scan"), loop) < 1e-5
    assert relative(follow(start, factor, drive, "scan"), loop) > 0.1
    with pytest.raises(UserError, match="fft"):
        follow(start, changing, drive, "fft")


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_gradient_written_down_is_the_gradient(changes: bool, length: int, generator: Generator) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=generator, dtype=torch.float64).view(*shape[:-1], -1)

    start, drive = unpack(draw(3, 2)), unpack(draw(length, 3, 2))
    factor = unpack(draw(length, 3, 2)) if changes else unpack(draw(2)[None])[0]
    inputs = [x.detach().requires_grad_() for x in (start, 0.5 * factor, drive)]
    assert torch.autograd.gradcheck(lambda *given: follow(*given, path="loop"), inputs)
    jacobian = torch.func.vmap(lambda c: follow(inputs[0].detach(), inputs[1].detach(), c, "loop"))
    together = jacobian(torch.stack([drive, 2 * drive]))
    torch.testing.assert_close(together[1], follow(start, inputs[1].detach(), 2 * drive, "loop"))


def test_the_last_alone(system: tuple[Tensor, Tensor, Tensor]) -> None:
    assert relative(last(*system), follow(*system, path="loop")[-1]) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_short_lengths(system: tuple[Tensor, Tensor, Tensor], length: int) -> None:
    start, factor, drive = system
    for path in PATHS:
        torch.testing.assert_close(follow(start, factor, drive[:length], path), follow(*system, "loop")[:length])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS)
def test_gradients_decay_with_mu(path: str) -> None:
    """Mondal et al.: over k steps a gradient scales with exp(k Delta mu); omega only turns it."""
    mu, omega, step = torch.tensor([-0.2, 0.3, 0.0]), torch.tensor([3.0, 1.0, 7.0]), torch.tensor(0.05)
    factor, gain = discretise(torch.complex(mu, omega), step)
    start = torch.zeros(1, 6, requires_grad=True)
    pushed = torch.zeros(LENGTH, 1, 6, requires_grad=True)
    path_taken = follow(unpack(start), factor, gain * unpack(pushed), path)  # type: ignore[arg-type]
    path_taken[-1].real.sum().backward()
    assert start.grad is not None
    assert pushed.grad is not None
    size = unpack(start.grad)[0].abs()
    torch.testing.assert_close(size, (LENGTH * step * mu).exp(), rtol=1e-3, atol=0.0)
    steps_back = torch.arange(LENGTH - 1, -1, -1)[:, None]
    size = unpack(pushed.grad)[:, 0].abs() / gain.abs()
    torch.testing.assert_close(size, (steps_back * step * mu).exp(), rtol=1e-3, atol=0.0)


def test_gain_is_exact_down_to_zero() -> None:
    eigenvalue = torch.tensor([0, 1e-12, 1e-7, 1e-4j, -0.2 + 3j, 1e-3 - 1e-3j, -5.0 + 0j], dtype=torch.complex64)
    step = torch.full((7,), 0.05)
    factor, gain = discretise(eigenvalue, step)
    wide = eigenvalue.to(torch.complex128) * 0.05
    exact = 0.05 * (1 + wide / 2 + wide**2 / 6 + wide**3 / 24 + wide**4 / 120 + wide**5 / 720)
    torch.testing.assert_close(gain.to(torch.complex128), exact, rtol=2e-6, atol=0.0)
    naive = (factor - 1) / eigenvalue
    assert not bool((naive[:4].isfinite() & ((naive[:4] - 0.05).abs() < 1e-6)).all())


def test_gain_has_a_gradient_at_zero() -> None:
    mu = torch.zeros(1, requires_grad=True)
    _factor, gain = discretise(torch.complex(mu, torch.zeros(1)), torch.tensor([0.5]))
    (slope,) = torch.autograd.grad(gain.real.sum(), mu)
    assert float(slope) == pytest.approx(0.125)  # Delta^2 / 2


def test_expm1_keeps_small_digits() -> None:
    z = torch.tensor([1e-8 + 1e-8j, 0.3 - 2j], dtype=torch.complex64)
    torch.testing.assert_close(expm1(z)[1], z[1].exp() - 1)
    assert complex(expm1(z)[0]) == pytest.approx(1e-8 + 1e-8j, rel=1e-6)
    assert complex(z[0].exp() - 1).real == 0.0


def test_pairs_go_there_and_back(generator: Generator) -> None:
    pair = torch.randn(5, 8, generator=generator)
    assert torch.equal(pack(unpack(pair)), pair)
    assert torch.equal(unpack(pair).imag, pair[:, 4:])


def test_path_follows_device_length_and_size() -> None:
    assert faster_path("cpu", 100, 64 * 64) == "loop"
    assert faster_path("cpu", 100, 64) == "scan"
    assert faster_path("cpu", 5, 64) == "loop"
    assert faster_path("cpu", 100, 4 * 64) == "loop"
    assert faster_path("cuda", 100, 10**6) == "scan"
    with pytest.raises(UserError, match="fast"):
        follow(torch.zeros(1, 2), torch.zeros(2), torch.zeros(3, 1, 2), "fast")  # type: ignore[arg-type]
