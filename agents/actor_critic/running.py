"""Standardisation with statistics that grow with the data."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 10.0
"""Standardised values are cut here, so that a dimension that has hardly moved yet cannot explode."""


class RunningNormalizer:
    """Mean and variance of all rows so far, float64; batches are merged by the formula of Chan, Golub and LeVeque,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.spread = torch.zeros(size, dtype=torch.float64, device=device)
        """Sum of squared deviations from the mean."""

    @torch.no_grad()
    def see(self, rows: Tensor) -> None:
        """Take in ``rows [..., size]``."""
        rows = rows.reshape(-1, rows.shape[-1]).double()
        mean, total = rows.mean(0), self.count + len(rows)
        change = mean - self.mean
        self.spread.add_((rows - mean).square().sum(0) + change.square() * (self.count * len(rows) / total))
        self.mean.add_(change * (len(rows) / total))
        self.count.copy_(total)

    def normalize(self, x: Tensor) -> Tensor:
        """``x [..., size]`` standardised; before any row was seen only cut."""
        std = (self.spread / self.count.clamp(min=1.0)).sqrt()
        std = torch.where(std > 1e-6, std, torch.ones_like(std))
        return ((x - self.mean.to(x.dtype)) / std.to(x.dtype)).clamp(-LARGEST, LARGEST)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in vars(self).items():
            value.copy_(state[name])
