"""Random shooting: the best of many random action sequences."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from envs.spec import EnvSpec
from mbrl.models.base import Propagation
from mbrl.planning.search import Belief, SamplingPlanner, check_counts, one_hot, top


class RandomShooting(SamplingPlanner):
    """Independent uniform actions, one iteration, the best candidate is executed: the baseline of planners.

    As in Nagabandi, Kahn, Fearing, Levine: Neural Network Dynamics for Model-Based Deep Reinforcement Learning with
    Model-Free Fine-Tuning (2018). Remembers its last plan only to have something where no candidate is finite.

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead.
        candidates: action sequences drawn.
        particles: imagined trajectories for each candidate.
        propagation: which ensemble member moves a particle.
        action_limit: bound on |action|, at most 1.
        chunk_rows: rows × particles that are imagined at once (null: what fits the cache of the device).
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 15,
        candidates: int = 1000,
        particles: int = 5,
        propagation: Propagation = "trajectory",
        action_limit: float = 1.0,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            horizon,
            iterations=1,
            particles=particles,
            propagation=propagation,
            execute="best",
            action_limit=action_limit,
            deadline=None,
            chunk_rows=chunk_rows,
        )
        check_counts(candidates=candidates)
        self.candidates = candidates

    def _sample(self, belief: Belief, iteration: int, noise: Generator) -> Tensor:
        batch, device = len(belief.mean), belief.mean.device
        drawn = torch.rand(
            (self.horizon, 1, self.candidates, self.spec.action.size), generator=noise, device=device
        ).expand(-1, batch, -1, -1)
        return one_hot(drawn) if self.spec.action.discrete else self.action_limit * (2 * drawn - 1)

    def _improve(self, belief: Belief, candidates: Tensor, values: Tensor) -> Belief:
        elites, best = top(candidates, values, 1)
        mean = torch.where(best[:, :, None].isfinite(), elites[:, 0], belief.mean)
        return Belief(mean, belief.std, elites, best)
