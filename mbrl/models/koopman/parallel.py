"""Diagonal linear systems with complex coordinates, followed over all steps at once or one after the other.

``z_k = factor * z_(k-1) + drive_k``. Parameters and states outside this file are real pairs; complex numbers live here.

Mondal, Panigrahi, Rajeswar, Siddiqi, Ravanbakhsh, "Efficient Dynamics Modeling in Interactive Environments with
Koopman Theory", 2024.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from envs.errors import UserError

Path = Literal["loop", "scan", "fft"]
"""``loop``: one step after the other. ``scan``: doubling, ``log2 H`` passes over all steps. ``fft``: a convolution with
the powers of the factor, padded with zeros to twice the length."""
PATHS: tuple[str, ...] = get_args(Path)

SCAN_BELOW = {"cpu": 64}
"""Complex numbers of one step (rows times modes) up to which the scan beats the loop, by device. CPU, one thread, from
``mbrl bench koopman-speed`` (lengths 10 to 400, forward and backward): a step of 64 numbers costs the loop its calls,
one of 256 or more is arithmetic, of which the loop has least: at 4,096 the scan takes 2 to 5 times as long, the
convolution 3 to 10 times.
"""
SCAN_FROM = 16
"""Steps from which the scan's fewer calls pay."""


def pack(z: Tensor) -> Tensor:
    """Complex ``[..., m]`` as reals ``[..., 2 m]``: real parts, then imaginary parts."""
    return torch.cat([z.real, z.imag], -1)


def unpack(pair: Tensor) -> Tensor:
    """Inverse of :func:`pack`."""
    return torch.complex(*pair.chunk(2, -1))


def expm1(z: Tensor) -> Tensor:
    """``exp(z) - 1`` of complex ``z`` without the loss of digits near 0."""
    a, b = z.real, z.imag
    return torch.complex(torch.expm1(a) * b.cos() - 2.0 * (0.5 * b).sin().square(), a.exp() * b.sin())


def discretise(eigenvalue: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold of ``dz/dt = eigenvalue z + c`` over ``step``: factor ``exp(step eigenvalue)`` of the state and
    gain ``(factor - 1) / eigenvalue`` of ``c``, complex ``[m]``; the gain's limit at 0 is ``step``.
    """
    x = eigenvalue * step
    near = x.abs() < 1e-2  # where four terms of the series are exact in float32 and the quotient is not
    safe = torch.where(near, torch.ones_like(x), x)
    series = 1.0 + x * (0.5 + x * (1.0 / 6.0 + x / 24.0))
    return x.exp(), step * torch.where(near, series, expm1(safe) / safe)


def faster_path(device: torch.device | str, length: int, numbers: int) -> Path:
    """The fastest path on this device for so many steps of so many complex numbers each (rows times modes).

    Elsewhere than on a CPU nothing was measured: launches are taken to be what costs, of which the scan has fewest.
    """
    few = numbers <= SCAN_BELOW.get(torch.device(device).type, 2**62)
    return "scan" if few and length >= SCAN_FROM else "loop"


def follow(start: Tensor, factor: Tensor, drive: Tensor, path: Path | None = None) -> Tensor:
    """``[H, B, m]``: complex states after each of ``drive [H, B, m]`` from ``start [B, m]``.

    ``factor`` is ``[m]``, or ``[H, B, m]`` where it changes from step to step (the convolution cannot do that).
    ``path``: default what :func:`faster_path` says. Raises ``UserError`` on a path that does not exist or cannot.
    """
    constant = factor.dim() == 1
    path = faster_path(drive.device, len(drive), drive[0].numel()) if path is None else path
    if path not in PATHS or (path == "fft" and not constant):
        raise UserError("path", path, "name a path; fft needs the same factor at every step", PATHS)
    if path == "loop":
        return _loop(start, factor, drive)
    return _scan(start, factor, drive) if path == "scan" else _convolution(start, factor, drive)


def last(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """``[B, m]``: the state after all of ``drive [H, B, m]`` alone, with ``factor [m]``: one weighted sum."""
    powers = factor.pow(torch.arange(len(drive), -1, -1, device=factor.device)[:, None])
    return torch.einsum("hm,hbm->bm", powers[1:], drive) + powers[0] * start


def _loop(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    if len(drive) == 1:
        return torch.addcmul(drive, factor, start)
    states: Tensor = _Loop.apply(start, factor, drive)  # type: ignore[no-untyped-call]
    return states


def _recur(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """``[H, B, m]``"""
    states, z = [], start
    each = factor.unbind() if factor.dim() > 1 else [factor] * len(drive)
    for a, c in zip(each, drive.unbind(), strict=True):
        z = torch.addcmul(c, a, z)
        states.append(z)
    return torch.stack(states)


class _Loop(torch.autograd.Function):
    """The loop with its gradient written down: the same recurrence backwards with conjugate factors. It takes less
    than half the time of a gradient through every step.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
        return _recur(start, factor, drive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start, factor, states = ctx.saved_tensors
        onward = factor.conj().resolve_conj()
        later = onward[1:].flip(0) if factor.dim() > 1 else onward
        reached = _recur(grad[-1], later, grad[:-1].flip(0)).flip(0)
        reached = torch.cat([reached, grad[-1:]])
        of_start = reached[0] * (onward[0] if factor.dim() > 1 else onward)
        of_factor = torch.cat([start[None], states[:-1]]).conj() * reached
        return of_start, of_factor if factor.dim() > 1 else of_factor.sum((0, 1)), reached


def _scan(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """After the pass with ``reach`` r, ``z[k]`` sums the last 2 r drives and ``a`` leads over as many steps."""
    first = torch.addcmul(drive[0], factor if factor.dim() == 1 else factor[0], start)
    z, a, reach = torch.cat([first[None], drive[1:]]), factor, 1
    while reach < len(drive):
        reached = a if factor.dim() == 1 else a[reach:]
        z = torch.cat([z[:reach], torch.addcmul(z[reach:], reached, z[:-reach])])
        a = a * a if factor.dim() == 1 else torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return z


def _convolution(start: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """Padding to twice the length keeps the end of the drive from leaking into the beginning."""
    length = len(drive)
    powers = factor.pow(torch.arange(length + 1, device=factor.device)[:, None])
    size = 2 ** (2 * length - 1).bit_length()
    spectrum = torch.fft.fft(drive, n=size, dim=0) * torch.fft.fft(powers[:-1], n=size, dim=0)[:, None]
    states: Tensor = torch.fft.ifft(spectrum, dim=0)[:length] + powers[1:, None] * start
    return states
