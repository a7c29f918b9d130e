"""Fixed-step integrators of ``state' = f(state)``, batched."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def rk4(field: Callable[[Tensor], Tensor], state: Tensor, seconds: float, substeps: int = 1) -> Tensor:
    """``state [..., S]`` after ``seconds`` by the classical Runge-Kutta method of order four."""
    h = seconds / substeps
    for _ in range(substeps):
        k1 = field(state)
        k2 = field(state + 0.5 * h * k1)
        k3 = field(state + 0.5 * h * k2)
        k4 = field(state + h * k3)
        state = state + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return state
