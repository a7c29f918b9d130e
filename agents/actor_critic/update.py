"""One update of the actor-critic as one function of flat vectors: losses, gradients, Adam, target average.

It is called as it is, or compiled whole by torch.compile. Nothing in it draws random numbers or waits for the device.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from agents.actor_critic.networks import BatchStatistics, Network
from agents.actor_critic.policies import Categorical, Choice, Head
from agents.actor_critic.terms import ActorContext, ActorTerm, Candidates, CriticContext, CriticTerm

TargetReducer = Literal["min", "mean", "random_subset_min"]
ActorReducer = Literal["min", "mean", "first"]
Weighting = Literal["ignore", "normalized", "raw"]

Vectors = dict[str, Tensor]
"""``policy`` (actor, then log alpha) and ``critic``; of both ``.mean`` and ``.square`` (Adam's moments), ``.powers``
(Adam's decay rates to the power of its steps) and ``.statistics`` (batch normalisation); ``target_policy`` and
``target_critic`` where there are any; ``critic.left`` and ``target_critic.left`` (spectral normalisation)."""

CRITIC_METRICS = ("q", "critic_loss")
POLICY_METRICS = ("actor_loss", "alpha", "entropy")

ADAM_EPSILON = 1e-8
STATISTICS_SHARE = 0.01
"""Share of a batch in batch normalisation's running statistics, as in CrossQ."""


class Batch(NamedTuple):
    """What one update learns from; every random number it needs is in it."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor
    """``[B]``: gamma, 0 where the episode terminated"""
    weight: Tensor | None
    """``[B]`` sample weights"""
    noise: Tensor
    """``[2, B, A]`` standard normal, for the actions in this and in the next state"""
    subset: Tensor | None
    """``[m]`` the target critics that count"""
    keep: tuple[Tensor, Tensor, Tensor] | None
    """dropout factors of the critics in the target, in their own loss, and in the actor's"""
    renorm: Tensor | None
    """0-dim: 1 when batch renormalisation has begun"""
    draws: Tensor | None = None
    """``[3, K, B, A]`` standard normal, standard normal and uniform in [-1, 1]: of the terms' candidate actions"""
    real: Tensor | None = None
    """``[B]`` float: 1 for rows of the real world"""
    extra: dict[str, Tensor] | None = None
    """``[B]`` each: columns that terms read"""


@dataclass(frozen=True)
class Rule:
    """The numbers and switches of the update; see :class:`agents.actor_critic.learner.ActorCritic`."""

    reducers: tuple[TargetReducer, ActorReducer]
    """Of the critics in the target, and for the actor"""
    learn_alpha: bool
    target_entropy: float
    tau: float
    lr: dict[str, float]
    """By network"""
    betas: tuple[float, float]
    weighting: tuple[Weighting, bool]
    """Of the critics' loss; whether the actor's has the same"""
    terms: tuple[tuple[CriticTerm, ...], tuple[ActorTerm, ...]]
    """Of the critics' loss, and of the actor's"""
    backup: tuple[bool, float | None]
    """Whether the entropy of the next action is part of the critics' target; what that is at least"""


class Update:
    """The update of given networks, policy head and rule."""

    def __init__(self, actor: Network, critic: Network, head: Head, rule: Rule) -> None:
        self.actor, self.critic, self.head, self.rule = actor, critic, head, rule
        self.discrete = isinstance(head, Categorical)

    def step(
        self,
        vectors: Vectors,
        log_prob_weights: Tensor | None,
        batch: Batch,
        with_policy: bool,
        with_target: bool,
        leaves: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """Change ``vectors`` in place; returns ``CRITIC_METRICS`` and, ``with_policy``, ``POLICY_METRICS``, 0-dim each.

        All gradients are taken at the parameters before the update, so that one backward pass gives them together.
        Public code often lets the actor see critics that have just moved; the published algorithms do not say.

        ``leaves``: the parameters of policy and critics as leaf views made once outside; None inside a compiled graph.
        """
        policy, critic = leaves or (self.policy_views(vectors["policy"]), self.critic.views(vectors["critic"]))
        with torch.no_grad():
            alpha = policy[-1].exp()
            following = self._next_choice(vectors, policy, batch, log_prob_weights)
            target = self._target(vectors, following, alpha, batch) if "target_critic" in vectors else None
            candidates = self._candidates(vectors, policy, batch, log_prob_weights)

        def loss(*live: Tensor) -> tuple[Tensor, tuple[list[Tensor], Vectors]]:
            mine, theirs = live[: len(critic)], live[len(critic) :]
            params, kept = self._normalized(mine, vectors)
            total, metrics = self._critic_loss(params, vectors, kept, batch, following, target, alpha, candidates)
            if with_policy:
                fixed = [param.detach() for param in params]
                more, values = self._policy_loss(theirs, fixed, vectors, kept, batch, alpha, log_prob_weights)
                total, metrics = total + more, metrics + values
            return total, (metrics, kept)

        live = [*critic, *(policy if with_policy else ())]
        metrics: list[Tensor]
        grads, (metrics, kept) = _gradients(loss, live, compiled=leaves is None)
        with torch.no_grad():
            self._adam(vectors, "critic", grads[: len(critic)])
            if with_policy:
                self._adam(vectors, "policy", grads[len(critic) :])
            self._follow(vectors, kept, with_target)
        return metrics

    def policy_views(self, vector: Tensor) -> list[Tensor]:
        """The actor's parameters, then log alpha (0-dim)."""
        actor, log_alpha = vector.split([self.actor.size, 1])
        return [*self.actor.views(actor), log_alpha.view(())]

    def statistics(
        self, vectors: Vectors, name: str, train: bool, batch: Batch | None = None
    ) -> BatchStatistics | None:
        """Batch normalisation of the network ``name`` for one forward pass; None without."""
        if f"{name}.statistics" not in vectors:
            return None
        network = self.actor if name == "policy" else self.critic
        running = network.statistics_views(vectors[f"{name}.statistics"])
        return BatchStatistics(running, train, batch.renorm if batch else None)

    def values(
        self,
        params: Sequence[Tensor],
        obs: Tensor,
        action: Tensor | None,
        statistics: BatchStatistics | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``[N, B]`` values of (obs, action); ``[N, B, A]`` of every discrete action when ``action`` is None."""
        if self.discrete:
            q = self.critic(params, obs, statistics, keep)
            return q if action is None else (q * action).sum(-1)
        assert action is not None
        if obs.dim() != action.dim():
            obs = obs.expand(*action.shape[:-1], obs.shape[-1])
        return self.critic(params, torch.cat([obs, action], -1), statistics, keep).squeeze(-1)

    def reduced(self, q: Tensor) -> Tensor:
        """``[N, B, ...] -> [B, ...]`` as the actor sees the critics."""
        reducer = self.rule.reducers[1]
        return q[0] if reducer == "first" else q.mean(0) if reducer == "mean" else q.amin(0)

    # -- the critics' target -----------------------------------------------------------------------------------------

    def _next_choice(self, vectors: Vectors, policy: Sequence[Tensor], batch: Batch, weights: Tensor | None) -> Choice:
        if "target_policy" in vectors:
            policy = self.policy_views(vectors["target_policy"])
        out = self.actor(policy[:-1], batch.next_obs, self.statistics(vectors, "policy", train=False))
        return self.head.choose_next(out, batch.noise[1], weights)

    def _target(self, vectors: Vectors, following: Choice, alpha: Tensor, batch: Batch) -> Tensor:
        params: list[Tensor] = self.critic.views(vectors["target_critic"])
        if self.critic.spectral_norm:
            params, left = self.critic.normalized(params, vectors["target_critic.left"])
            vectors["target_critic.left"].copy_(left)
        if batch.subset is not None:
            params = [param.index_select(0, batch.subset) for param in params]
        keep = None if batch.keep is None else batch.keep[0]
        q = self.values(params, batch.next_obs, following.action, keep=keep)
        return self._backup(q, following, alpha, batch)

    def _backup(self, q: Tensor, following: Choice, alpha: Tensor, batch: Batch) -> Tensor:
        """``y = r + discount * E[reduce Q(s', a') - alpha log pi(a'|s')]``, ``[B]``, as the rule has it."""
        value = q.mean(0) if self.rule.reducers[0] == "mean" else q.amin(0)
        with_entropy, floor = self.rule.backup
        if following.log_prob is not None and with_entropy:
            value = value - alpha * following.log_prob
        target = batch.reward + batch.discount * following.mean(value)
        return target if floor is None else target.clamp(min=floor)

    # -- losses ------------------------------------------------------------------------------------------------------

    def _normalized(self, critic: Sequence[Tensor], vectors: Vectors) -> tuple[list[Tensor], Vectors]:
        """The critics' parameters as they are used, and what is to be kept of finding them."""
        if not self.critic.spectral_norm:
            return list(critic), {}
        params, left = self.critic.normalized(critic, vectors["critic.left"])
        return params, {"critic.left": left}

    def _critic_loss(
        self,
        params: list[Tensor],
        vectors: Vectors,
        kept: Vectors,
        batch: Batch,
        following: Choice,
        target: Tensor | None,
        alpha: Tensor,
        candidates: Candidates | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Sum over critics of the mean squared error, and the extra terms."""
        statistics = self.statistics(vectors, "critic", True, batch)
        keep = None if batch.keep is None else batch.keep[1]
        if target is None:
            q, q_next = self._joint(params, batch, following, statistics, keep)
            target = self._backup(q_next.detach(), following, alpha, batch)
        else:
            q = self.values(params, batch.obs, batch.action, statistics, keep)
        if statistics is not None:
            kept["critic.statistics"] = statistics.flat()
        loss = self._mean((q - target).square(), batch).sum()
        metrics = [q.detach().mean(), loss.detach() / q.shape[0]]
        evaluate = self._evaluator(params, vectors)
        context = CriticContext(evaluate, batch.obs, batch.action, q, target, candidates, batch.real, batch.extra or {})
        for term in self.rule.terms[0]:
            loss = loss + term(context)
        return loss, metrics

    def _joint(
        self,
        params: list[Tensor],
        batch: Batch,
        following: Choice,
        statistics: BatchStatistics | None,
        keep: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Values of (s, a) and of (s', a') from one forward pass of both halves, so that they share batch statistics.

        Bhatt et al., "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and
        Simplicity", 2024.
        """
        obs = torch.cat([batch.obs, batch.next_obs])
        action = None if following.action is None else torch.cat([batch.action, following.action])
        q, q_next = self.values(params, obs, action, statistics, keep).chunk(2, 1)
        if batch.subset is not None:
            q_next = q_next.index_select(0, batch.subset)
        return (q * batch.action).sum(-1) if action is None else q, q_next

    def _candidates(
        self, vectors: Vectors, policy: Sequence[Tensor], batch: Batch, weights: Tensor | None
    ) -> Candidates | None:
        """Actions that terms want valued; None where no term does."""
        if batch.draws is None:
            return None
        uniform, statistics = batch.draws[2], self.statistics(vectors, "policy", train=False)
        actions, densities = [], []
        for obs, noise in zip((batch.obs, batch.next_obs), batch.draws, strict=False):
            out = self.actor(policy[:-1], obs, statistics).expand(len(noise), -1, -1)
            choice = self.head.choose(out, noise, weights)
            assert choice.action is not None  # the learner refuses such terms for other policies
            assert choice.log_prob is not None
            actions.append(choice.action)
            densities.append(choice.log_prob)
        flat = uniform.new_full(uniform.shape[:-1], -math.log(2.0) * uniform.shape[-1])
        return Candidates(torch.cat([*actions, uniform]), torch.cat([*densities, flat]))

    def _evaluator(self, params: list[Tensor], vectors: Vectors) -> Callable[[Tensor, Tensor], Tensor]:
        statistics = self.statistics(vectors, "critic", False)
        return lambda obs, action: self.values(params, obs, action, statistics)

    def _policy_loss(
        self,
        policy: Sequence[Tensor],
        critic: list[Tensor],
        vectors: Vectors,
        kept: Vectors,
        batch: Batch,
        alpha: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``E[alpha log pi(a|s) - reduce Q(s, a)]``, and ``-log alpha (target entropy - entropy)`` for alpha."""
        statistics = self.statistics(vectors, "policy", True, batch)
        choice = self.head.choose(self.actor(policy[:-1], batch.obs, statistics), batch.noise[0], weights)
        if statistics is not None:
            kept["policy.statistics"] = statistics.flat()
        keep = None if batch.keep is None else batch.keep[2]
        q = self.values(critic, batch.obs, choice.action, self.statistics(vectors, "critic", False), keep)
        gain = self.reduced(q)
        if choice.log_prob is None:
            loss = self._mean_over_states(-choice.mean(gain), batch)
            metrics = [loss.detach(), torch.zeros_like(alpha), torch.zeros_like(alpha)]
            return self._with_actor_terms(loss, choice, gain, batch), metrics
        loss = self._mean_over_states(choice.mean(alpha * choice.log_prob - gain), batch)
        entropy = -choice.mean(choice.log_prob).detach().mean()
        metrics = [loss.detach(), alpha.clone(), entropy]
        loss = self._with_actor_terms(loss, choice, gain, batch)
        if self.rule.learn_alpha:
            loss = loss - policy[-1] * (self.rule.target_entropy - entropy)
        return loss, metrics

    def _with_actor_terms(self, loss: Tensor, choice: Choice, gain: Tensor, batch: Batch) -> Tensor:
        for term in self.rule.terms[1]:
            assert choice.action is not None  # the learner refuses terms for discrete actions
            mean = functools.partial(self._mean_over_states, batch=batch)
            loss = term(loss, ActorContext(choice.action, batch.action, gain, mean))
        return loss

    def _mean(self, each: Tensor, batch: Batch) -> Tensor:
        """Mean over the batch ``[..., B]``: plain, ``sum(w x) / sum(w)``, or ``sum(w x) / B``."""
        if batch.weight is None:
            return each.mean(-1)
        weighted = each * batch.weight
        return weighted.sum(-1) / batch.weight.sum() if self.rule.weighting[0] == "normalized" else weighted.mean(-1)

    def _mean_over_states(self, each: Tensor, batch: Batch) -> Tensor:
        return self._mean(each, batch) if self.rule.weighting[1] else each.mean()

    # -- the optimiser -----------------------------------------------------------------------------------------------

    def _adam(self, vectors: Vectors, name: str, grads: Sequence[Tensor]) -> None:
        adam(vectors, name, grads, self.rule.lr[name], self.rule.betas)

    def _follow(self, vectors: Vectors, kept: Vectors, with_target: bool) -> None:
        """Running statistics and target networks after the parameters."""
        for name, value in kept.items():
            if name.endswith(".statistics"):
                vectors[name].lerp_(value, STATISTICS_SHARE)
            else:
                vectors[name].copy_(value)
        if with_target:
            for name in ("policy", "critic"):
                if f"target_{name}" in vectors:
                    vectors[f"target_{name}"].lerp_(vectors[name], self.rule.tau)


def adam(vectors: Vectors, name: str, grads: Sequence[Tensor], lr: float, betas: tuple[float, float]) -> None:
    """Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2015, on one flat vector, in place."""
    first, second = betas
    mean, square, powers = (vectors[f"{name}.{part}"] for part in ("mean", "square", "powers"))
    grad = torch.cat([grad.reshape(-1) for grad in grads])
    powers.mul_(vectors["betas"])
    mean.lerp_(grad, 1.0 - first)
    square.mul_(second).addcmul_(grad, grad, value=1.0 - second)
    mean_correction, square_correction = (1.0 - powers).to(grad.dtype).unbind()
    scale = square.div(square_correction).sqrt_().add_(ADAM_EPSILON)
    vectors[name].sub_(mean.div(scale).mul_(lr / mean_correction))


def _gradients(
    loss: Callable[..., tuple[Tensor, Any]], live: list[Tensor], compiled: bool
) -> tuple[Sequence[Tensor], Any]:
    """Gradients of ``loss`` at ``live``, and what else it returns. Each way is the faster one where it is used."""
    if compiled:
        places = tuple(range(len(live)))
        grads, rest = torch.func.grad(loss, argnums=places, has_aux=True)(*live)
        return grads, rest
    with torch.enable_grad():
        total, rest = loss(*live)
        return torch.autograd.grad(total, live, materialize_grads=True), rest


def compiled(step: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """``step`` under torch.compile, as one graph.

    The function gets a code object of its own: compiled variants are counted by code object, and learners of
    other shapes in the same process must not use up each other's.
    """
    method = step.__func__  # type: ignore[attr-defined]
    own = types.FunctionType(
        method.__code__.replace(), method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )
    bound = types.MethodType(own, step.__self__)  # type: ignore[attr-defined]
    return torch.compile(bound, fullgraph=True, dynamic=False)
