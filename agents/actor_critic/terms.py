"""Extra terms of the critics' and of the actor's loss: what many papers add to the same learner."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.errors import UserError

SMALLEST_VALUE = 1e-6
"""Values that are all 0 must not make their weight infinite."""


@dataclass(frozen=True)
class CriticContext:
    """What a term sees: one batch, and the critics whose parameters are being differentiated."""

    evaluate: Callable[[Tensor, Tensor], Tensor]
    """``(obs [B, D] or [N, B, D], action [B, A] or [N, B, A]) -> [N, B]``"""
    obs: Tensor
    action: Tensor
    predicted: Tensor
    """``[N, B]`` values of the batch's own actions"""
    target: Tensor
    """``[B]``, no gradient"""
    candidates: Candidates | None = None
    """What :attr:`CriticTerm.candidates` asks for"""
    real: Tensor | None = None
    """``[B]`` float: 1 for rows of the real world, 0 for imagined ones; None where all are real"""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """``[B]`` each: the columns of the batch that :attr:`CriticTerm.columns` names"""


class Candidates(NamedTuple):
    """Actions to be valued in each of the batch's states, ``K`` of each of three kinds; no gradient."""

    action: Tensor
    """``[3 K, B, A]``: the policy's in the state, the policy's in the next state, and uniform ones"""
    log_density: Tensor
    """``[3 K, B]`` of each where it was drawn"""


class CriticTerm(ABC):
    """Added to the sum over critics of the mean squared error."""

    candidates: int = 0
    """How many actions of each kind are to be drawn for every row, see :class:`Candidates`"""
    tells_real: bool = False
    """Whether batches must say which rows are real, in the column ``is_real``"""
    columns: tuple[str, ...] = ()
    """Further columns ``[B]`` that batches must have"""

    @abstractmethod
    def __call__(self, context: CriticContext) -> Tensor:
        """A 0-dim loss. It is traced by torch.compile, so it is made of tensor operations only."""


class GradientDiversity(CriticTerm):
    """``eta / (N - 1)`` times the batch's mean of the sum over pairs ``i != j`` of the cosine between the critics'
    gradients with respect to the action.

    An, Moon, Kim, Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", 2021 (EDAC).
    For one critic it is 0. Continuous actions only.

    Args:
        eta: the weight; published values lie between 0 and 10 (1 for most offline MuJoCo tasks).
    """

    def __init__(self, eta: float = 1.0) -> None:
        if not 0.0 <= eta < math.inf:
            raise UserError("eta", eta, "give a finite number of at least 0")
        self.eta = eta

    def __call__(self, context: CriticContext) -> Tensor:
        critics = context.predicted.shape[0]
        if critics == 1:
            return context.predicted.new_zeros(())
        # a copy of the actions for each critic: one gradient of the sum serves all of them
        actions = context.action.expand(critics, *context.action.shape)
        gradient = torch.func.grad(lambda action: context.evaluate(context.obs, action).sum())(actions)
        unit = F.normalize(gradient, dim=-1, eps=1e-10)
        # the sum over all pairs is |sum of unit vectors|^2, of which every |unit vector|^2 is no pair
        pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
        return self.eta * pairs.mean() / (critics - 1)


class Conservative(CriticTerm):
    """``weight`` times the sum over critics of ``mean[T log sum exp((Q(s, a) - log p(a)) / T)] - mean_real Q(s, a)``.

    The sum is over all ``3 * samples`` actions together: of the policy in ``s``, of the policy in ``s'``, and uniform
    ones, each with the log-density of where it was drawn. Critics learn to value what the data does above what it
    does not.

    Kumar, Zhou, Tucker, Levine, "Conservative Q-Learning for Offline Reinforcement Learning", 2020 (CQL), where all
    rows are real; Yu, Kumar, Rafailov, Rajeswaran, Levine, Finn, "COMBO: Conservative Offline Model-Based Policy
    Optimization", 2021, where some are imagined. Both with a fixed weight. Continuous actions and a stochastic policy.

    Args:
        weight: ``beta``; published values lie between 0.5 and 10.
        samples: actions of each kind, 10 as published.
        temperature: ``T``.
        states: the states whose values are pushed down: of ``all`` rows, or of the ``imagined`` ones.
    """

    def __init__(
        self,
        weight: float = 5.0,
        samples: int = 10,
        temperature: float = 1.0,
        states: Literal["all", "imagined"] = "all",
    ) -> None:
        if not (0.0 <= weight < math.inf and 0.0 < temperature < math.inf):
            raise UserError("weight, temperature", (weight, temperature), "give weight >= 0 and temperature > 0")
        if samples < 1:
            raise UserError("samples", samples, "draw at least 1 action of each kind")
        if states not in ("all", "imagined"):
            raise UserError("states", states, "whose values are pushed down: all or imagined", ("all", "imagined"))
        self.weight, self.candidates, self.temperature = weight, samples, temperature
        self.tells_real = states == "imagined"

    def __call__(self, context: CriticContext) -> Tensor:
        assert context.candidates is not None
        action, log_density = context.candidates
        count, rows = log_density.shape
        # one evaluation of all actions, each in its row's state
        q = context.evaluate(context.obs.repeat(count, 1), action.flatten(0, 1)).unflatten(-1, (count, rows))
        pushed = self.temperature * ((q - log_density) / self.temperature).logsumexp(1)
        if context.real is None:
            gap: Tensor = pushed.mean(-1) - context.predicted.mean(-1)
        else:
            down = _share(1.0 - context.real) if self.tells_real else torch.full_like(context.real, 1.0 / rows)
            gap = pushed @ down - context.predicted @ _share(context.real)
        return self.weight * gap.sum()


def _share(mask: Tensor) -> Tensor:
    """``[B]`` weights whose sum with a column is its mean over the rows where ``mask`` is 1; 0 where there are none."""
    return mask / mask.sum().clamp(min=1.0)


# -- the actor's loss --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActorContext:
    """What a term of the actor sees: one batch, and what the policy would do in its states."""

    chosen: Tensor
    """``[B, A]`` the policy's actions, differentiable"""
    action: Tensor
    """``[B, A]`` the data's"""
    value: Tensor
    """``[B]`` of the policy's actions, reduced over the critics as for the actor"""
    mean: Callable[[Tensor], Tensor]
    """``[B] -> []`` over the batch, with the sample weights where the actor has them"""


class ActorTerm(ABC):
    """Changes the loss of the actor. Continuous actions only."""

    @abstractmethod
    def __call__(self, loss: Tensor, context: ActorContext) -> Tensor:
        """The 0-dim ``loss`` with the term in it. It is traced by torch.compile, as critics' terms are."""


class BehaviourCloning(ActorTerm):
    """``lambda * loss + E[(pi(s) - a)^2]`` with ``lambda = alpha / E|Q|``, which has no gradient.

    Fujimoto, Gu, "A Minimalist Approach to Offline Reinforcement Learning", 2021 (TD3+BC). The square is the mean over
    the action's dimensions and ``Q`` that of the policy's own actions, as in the authors' code; the paper writes the
    data's.

    Args:
        alpha: weight of the values against the data's actions; 2.5 as published. Where the data are mostly poor a
            small one leaves the policy near their mean.
    """

    def __init__(self, alpha: float = 2.5) -> None:
        if not 0.0 <= alpha < math.inf:
            raise UserError("alpha", alpha, "give a finite number of at least 0")
        self.alpha = alpha

    def __call__(self, loss: Tensor, context: ActorContext) -> Tensor:
        weight = self.alpha / context.value.detach().abs().mean().clamp(min=SMALLEST_VALUE)
        return weight * loss + context.mean((context.chosen - context.action).square().mean(-1))
