"""Model predictive path integral control: candidates count by the exponential of their value."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.models.base import Propagation
from mbrl.planning.search import Belief, Execute, SamplingPlanner, check_counts, check_number, check_share, top


class MPPI(SamplingPlanner):
    """Filtered noise around the last plan and a reward-weighted mean, as in Nagabandi, Konolige, Levine, Kumar: Deep
    Dynamics Models for Learning Dexterous Manipulation (2019), after Williams, Aldrich, Theodorou: Model Predictive
    Path Integral Control (2015).

    Continuous actions only.

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead.
        candidates: action sequences drawn in an iteration.
        iterations: rounds of draw and reweighting.
        gamma: inverse temperature of the weights exp(gamma * (R - max R)), in units of the objective.
        sigma: standard deviation of the noise before the filter, as a share of the range's half.
        beta: share of the new noise in the filtered one: 1 is white, smaller is smoother (and weaker).
        particles: imagined trajectories for each candidate.
        propagation: which ensemble member moves a particle.
        execute: which actions to return.
        action_limit: bound on |action|, at most 1.
        deadline: seconds after which no further iteration starts (null: none).
        chunk_rows: rows × particles that are imagined at once (null: what fits the cache of the device).

    Raises:
        UserError: the environment's actions are discrete.
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 25,
        candidates: int = 350,
        iterations: int = 3,
        gamma: float = 0.9,
        sigma: float = 1.0,
        beta: float = 0.9,
        particles: int = 5,
        propagation: Propagation = "trajectory",
        execute: Execute = "mean",
        action_limit: float = 1.0,
        deadline: float | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            horizon,
            iterations=iterations,
            particles=particles,
            propagation=propagation,
            execute=execute,
            action_limit=action_limit,
            deadline=deadline,
            chunk_rows=chunk_rows,
        )
        if spec.action.discrete:
            raise UserError(
                "planner", "MPPI", f"{spec.id} has discrete actions; use ICEM, CEM or RandomShooting", ("ICEM", "CEM")
            )
        check_counts(candidates=candidates)
        check_share("beta", beta, low_open=True)
        for name, value in (("gamma", gamma), ("sigma", sigma)):
            check_number(name, value, 0.0, low_open=True)
        self.candidates, self.gamma, self.sigma, self.beta = candidates, gamma, sigma, beta
        self.initial_std = sigma * action_limit

    def _sample(self, belief: Belief, iteration: int, noise: Generator) -> Tensor:
        shape = self.horizon, self.candidates * self.spec.action.size
        u = self.initial_std * torch.randn(shape, generator=noise, device=belief.mean.device)
        n = (low_pass(self.horizon, self.beta, u.device) @ u).view(self.horizon, 1, self.candidates, -1)
        mean = belief.mean.transpose(0, 1).unsqueeze(2)
        return (mean + n).clamp(-self.action_limit, self.action_limit)

    def _improve(self, belief: Belief, candidates: Tensor, values: Tensor) -> Belief:
        elites, best = top(candidates, values, 1)
        found = best[:, :, None].isfinite()
        # w ∝ exp(γ (R - max R)); a candidate that is not finite weighs nothing
        difference = torch.where(values.isfinite(), values - best, torch.full_like(values, -torch.inf))
        weight = torch.where(found[:, 0], (self.gamma * difference).exp(), torch.zeros_like(values))
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-30)
        mean = _average(candidates, weight)
        std = (_average(candidates.square(), weight) - mean.square()).clamp(min=0.0).sqrt()
        return Belief(torch.where(found, mean, belief.mean), torch.where(found, std, belief.std), elites, best)


def _average(candidates: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean ``[B, H, A]`` of ``candidates [H, B, N, A]``, ``weight [B, N]``.

    A plain sum, not a matrix product, whose rounding would depend on how many environments are planned at once.
    """
    return (candidates * weight[None, :, :, None]).sum(2).transpose(0, 1)


def low_pass(length: int, beta: float, device: torch.device | str = "cpu") -> Tensor:
    """``[H, H]`` matrix of the filter n_t = beta u_t + (1 - beta) n_(t-1), with n_(-1) = 0."""
    time = torch.arange(length, device=device)
    lag = (time[:, None] - time[None, :]).clamp(min=0)
    return (beta * (1.0 - beta) ** lag).tril()
