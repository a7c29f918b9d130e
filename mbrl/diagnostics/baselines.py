"""What a model must beat to be worth its price: nothing changes; everything is linear."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import miss


def persistence(obs: Tensor, actions: Tensor) -> Tensor:
    """``[H, B, D]``: the observation ``obs [B, D]`` stays as it is, whatever ``actions [H, B, A]`` are."""
    return obs.expand(len(actions), *obs.shape)


@dataclass(frozen=True)
class LinearBaseline:
    """``next_obs = obs + [obs, action, 1] W`` with ``W [D + A + 1, D]`` float64, by ridge least squares."""

    weight: Tensor

    @classmethod
    def fit(cls, spec: EnvSpec, rows: Transitions, ridge: float = 1e-6) -> LinearBaseline:
        """Least squares on ``rows [N]``; ``ridge`` weighs squared weights of standardised inputs against each row.

        Raises ``UserError`` when there are no rows.
        """
        if not len(rows):
            raise UserError("rows", 0, "a linear baseline needs rows to be fitted on")
        inputs = torch.cat([rows.obs, rows.action], -1).double()
        change = miss(spec, rows.next_obs.double(), rows.obs.double())
        mean, std = inputs.mean(0), inputs.std(0, correction=0)
        std = torch.where(std > 1e-9, std, torch.ones_like(std))
        x, y = (inputs - mean) / std, change - change.mean(0)
        gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        slope = torch.linalg.solve(gram, x.T @ y) / std[:, None]
        return cls(torch.cat([slope, (change.mean(0) - mean @ slope)[None]]))

    def rollout(self, obs: Tensor, actions: Tensor) -> Tensor:
        """``[H, B, D]`` float64, open loop from ``obs [B, D]`` under ``actions [H, B, A]``."""
        path, here = [], obs.double()
        for action in actions.double():
            here = here + torch.cat([here, action, torch.ones_like(here[:, :1])], -1) @ self.weight
            path.append(here)
        return torch.stack(path)

    def state_matrix(self) -> Tensor:
        """``A [D, D]`` of ``next_obs = A obs + ...``."""
        size = self.weight.shape[1]
        return torch.eye(size, dtype=self.weight.dtype, device=self.weight.device) + self.weight[:size].T
