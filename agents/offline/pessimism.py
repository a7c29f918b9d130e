"""Where offline agents doubt what they imagine: in the reward, in the critics' loss, or in the critics' target.

- In the reward: the filter :class:`~mbrl.imagination.filters.UncertaintyPenalty` (MOPO).
- In the critics' loss: the term :class:`~agents.actor_critic.terms.Conservative` (COMBO, CQL).
- In the target: :class:`BellmanInconsistency` (MOBILE), here.

The true dynamics leave nothing to doubt: what is measured of a model is then 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from agents.actor_critic.learner import ActorCritic
from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.imagination.filters import Filter
from mbrl.models.base import DynamicsModel, HasDistribution, require


class BellmanInconsistency:
    """How much the members of a model disagree about the value of what comes next; taken off the critics' target.

    ``y = r - weight * u(s, a) + ...`` on imagined rows, where ``u`` is the standard deviation over the elites of the
    mean over ``samples`` draws of ``min_j Q'_j(s', pi(s'))``. ``Q'`` are the target critics as they are at each update.

    Sun, Zhang, Jia, Lin, Ye, Yu, "Model-Bellman Inconsistency for Model-based Offline Reinforcement Learning", 2023
    (MOBILE).

    Args:
        weight: ``beta``; published values lie between 0.1 and 2.5 for most MuJoCo tasks.
        samples: next states drawn from each member, 10 as published. An update's cost grows with it.
    """

    def __init__(self, weight: float = 1.0, samples: int = 10) -> None:
        if not 0.0 <= weight < math.inf:
            raise UserError("penalty.weight", weight, "give a finite number of at least 0")
        if samples < 1:
            raise UserError("penalty.samples", samples, "draw at least 1 next state from each member")
        self.weight, self.samples = weight, samples

    def check(self, model: DynamicsModel) -> None:
        """Raise ``UserError`` for a model whose members cannot disagree."""
        require(model, HasDistribution)
        if len(elites(model)) < 2:
            raise UserError("penalty", "BellmanInconsistency", "one elite cannot disagree: give the model two or more")

    @torch.no_grad()
    def __call__(self, model: DynamicsModel, learner: ActorCritic, rows: Transitions, generator: Generator) -> Tensor:
        """``[B]`` what is taken off the target of imagined ``rows [B]``."""
        prediction = require(model, HasDistribution).predict(model.encode(rows.obs), rows.action)
        next_obs, _ = prediction.sample(self.samples, generator)

        def value(obs: Tensor) -> Tensor:
            return learner.target_q_values(obs, learner.act(obs, generator)).amin(0)

        return self.weight * disagreement(next_obs[elites(model)], value)


def disagreement(next_obs: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """``[B]``: unbiased standard deviation over members of the mean value of their draws ``next_obs [E, K, B, D]``.

    ``value`` takes ``[N, D]``, gives ``[N]``.
    """
    each = value(next_obs.flatten(0, 2)).view(next_obs.shape[:3])
    return each.mean(1).std(0)


def elites(model: DynamicsModel) -> Tensor:
    """``[n]`` numbers of the members that a model predicts with."""
    chosen = dict(model.named_buffers()).get("elites")
    return torch.arange(model.members) if chosen is None else chosen


def without_uncertainty(filters: Sequence[Filter]) -> list[Filter]:
    """The filters that ask for no uncertainty: those that are left under the true dynamics, which have none."""
    return [each for each in filters if not each.doubts]
