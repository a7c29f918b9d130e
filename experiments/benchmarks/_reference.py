"""The plain way to write a probabilistic ensemble: what ours is measured against.

One ``nn.Sequential`` a member, a Python loop over them, unfused Adam, float32; each member predicts its share of the
rows in one piece. The mathematics is that of :class:`mbrl.models.ensemble.ProbabilisticEnsemble`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mbrl.data.transitions import Transitions
from mbrl.models.base import State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble, Regression


class PlainEnsemble:
    """Begins as a copy of ``source``; shares its normalisers and coordinates, which are not what is compared."""

    def __init__(self, source: ProbabilisticEnsemble, lr: float = 1e-3, weight_decay: float = 3e-5) -> None:
        self.source, self.size = source, source.target_size
        self.nets = [self._copy(member) for member in range(source.members)]
        self.high = [source.max_log_var[e].detach().clone().requires_grad_() for e in range(source.members)]
        self.low = [source.min_log_var[e].detach().clone().requires_grad_() for e in range(source.members)]
        weights = [p for net in self.nets for p in net.parameters() if p.dim() == 2]
        rest = [p for net in self.nets for p in net.parameters() if p.dim() == 1] + self.high + self.low
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": weight_decay}, {"params": rest}]
        self.optimizer = torch.optim.Adam(groups, lr=lr, foreach=False, fused=False)

    def _copy(self, member: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for weight, bias in zip(self.source.weights, self.source.biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.load_state_dict({"weight": weight[member].detach().T, "bias": bias[member, 0].detach()})
            parts += [linear, nn.SiLU()]
        return nn.Sequential(*parts[:-1])

    def predict(self, member: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised mean and log-variance ``[B, T]`` of ``inputs [B, F + A]``."""
        mean, log_var = self.nets[member](inputs).split(self.size, -1)
        log_var = self.high[member] - F.softplus(self.high[member] - log_var)
        return mean, self.low[member] + F.softplus(log_var - self.low[member])

    def loss(self, batch: Regression) -> Tensor:
        """As :meth:`ProbabilisticEnsemble.loss`, of ``[E, B, ...]`` rows."""
        total = torch.zeros(())
        for member in range(len(self.nets)):
            mean, log_var = self.predict(member, batch.inputs[member])
            error = (mean - batch.targets[member]).square()
            bounds = self.high[member].sum() - self.low[member].sum()
            total = total + (error * torch.exp(-log_var) + log_var).mean() + self.source.bound_weight * bounds
        return total

    def fit(self, data: Transitions, batch_size: int, generator: Generator) -> None:
        """One epoch, every member on its own bootstrap of the rows."""
        rows, members = self.source.prepare(data), len(self.nets)
        order = torch.randint(len(data), (members, len(data)), generator=generator)
        for i in range(0, len(data) - batch_size + 1, batch_size):
            loss = self.loss(rows[order[:, i : i + batch_size]])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def step(self, state: State, action: Tensor, generator: Generator) -> Step:
        """One imagined step, each row by a random member."""
        source, obs = self.source, state.obs
        z = source.coordinates.from_obs(obs)
        inputs = source.input_norm.normalize(source.coordinates.features(z, action))
        target = torch.empty(len(obs), self.size)
        for member, rows in enumerate(torch.randperm(len(obs), generator=generator).tensor_split(len(self.nets))):
            mean, log_var = self.predict(member, inputs[rows])
            target[rows] = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, generator=generator)
        change = source.target_norm.denormalize(target)
        next_obs = source.coordinates.to_obs(z + change[:, : source.coordinates.size])
        reward = source.spec.known_reward(obs, action, next_obs)
        reward = reward + change[:, -1] if source.learns_reward else reward
        terminated = source.spec.known_termination(obs, action, next_obs)
        return Step(State(next_obs), reward, terminated, torch.zeros_like(terminated))
