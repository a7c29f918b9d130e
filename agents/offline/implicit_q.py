"""Implicit Q-learning: values of the best actions in the data, without ever asking for another action."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from agents.actor_critic.networks import Network
from agents.offline.cloned_policy import ClonedPolicy, PolicyKind
from agents.offline.cloning import Cloning, Cosine, check_sizes
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions

LARGEST_WEIGHT = 100.0


def expectile_loss(error: Tensor, tau: float) -> Tensor:
    """``|tau - 1[u < 0]| u^2`` of each ``u = target - prediction``: its minimiser is the tau-expectile of the targets,
    at 0.5 their mean. Any shape.
    """
    return torch.where(error < 0.0, 1.0 - tau, tau) * error.square()


def advantage_weight(advantage: Tensor, beta: float) -> Tensor:
    """``min(exp(beta A), 100)``, without gradient. Any shape."""
    return (beta * advantage.detach()).clamp(max=math.log(LARGEST_WEIGHT)).exp()


class ImplicitQ(Cloning):
    """Learns values from the data's own actions and clones those with an advantage.

    Kostrikov, Nair, Levine, "Offline Reinforcement Learning with Implicit Q-Learning", 2021 (IQL)::

        L_V  = E[|tau - 1[u < 0]| u^2],  u = min_j Q'_j(s, a) - V(s)
        L_Q  = E[(r + gamma V(s') - Q_j(s, a))^2]
        L_pi = E[min(exp(beta (min_j Q'_j(s, a) - V(s))), 100) * -log pi(a|s)]

    ``V`` is an upper expectile over the data's actions, so the backup is that of a policy that takes the better of
    them. Only ``terminated`` cuts it. All three losses see the parameters before the update.

    Args:
        spec: the environment.
        tau: the expectile, in [0.5, 1): 0.5 evaluates the policy of the data, 1 would take its best action.
        beta: inverse temperature of the advantage's weights. ``beta A`` is what counts: rewards of another scale want
            another ``beta`` (the paper scales them so that returns span 1,000).
        critics: number of critics, of which the smallest counts.
        critic_hidden: width of the hidden layers of ``Q`` and ``V`` (default: ``hidden``).
        gamma: discount per decision.
        target_share: share of the critics in their targets' moving average.
        policy: ``gaussian``, or ``deterministic``, whose weighted loss is the squared distance.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        lr: Adam's step size.
        cosine_updates: the actor's step size falls to 0 along half a cosine over so many updates; ``run``, as
            published: over those of the run; null keeps it.
        normalize_obs: standardise observations.
        device: where parameters lie.
    """

    def __init__(
        self,
        spec: EnvSpec,
        tau: float = 0.7,
        beta: float = 3.0,
        critics: int = 2,
        critic_hidden: int | None = None,
        gamma: float = 0.99,
        target_share: float = 0.005,
        policy: PolicyKind = "gaussian",
        hidden: int = 256,
        layers: int = 2,
        lr: float = 3e-4,
        cosine_updates: Cosine = None,
        normalize_obs: bool = True,
        device: str = "cpu",
    ) -> None:
        width = hidden if critic_hidden is None else critic_hidden
        check_sizes(hidden, layers, lr, cosine_updates)
        _check(tau, beta, (critics, width), gamma, target_share)
        self.tau, self.beta, self.gamma, self.target_share = tau, beta, gamma, target_share
        self.q = Network(spec.obs_size + spec.action.size, 1, width, layers, critics)
        self.v = Network(spec.obs_size, 1, width, layers)
        super().__init__(spec, policy, hidden, layers, lr, cosine_updates, normalize_obs, device)

    def parts(self) -> dict[str, ClonedPolicy | Network]:
        return super().parts() | {"q": self.q, "v": self.v}

    def seed(self, seed: int) -> None:
        super().seed(seed)
        self.vectors["target_q"] = self.vectors["q"].clone()
        self.target = self.q.views(self.vectors["target_q"])

    def loss(self, batch: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        v = self.v(self.leaves["v"], batch.obs).squeeze(-1)
        q = self._q(self.leaves["q"], batch)
        with torch.no_grad():
            best = self._q(self.target, batch).amin(0)
            v_next = self.v(self.leaves["v"], batch.next_obs).squeeze(-1)
            backup = batch.reward + self.gamma * (~batch.terminated) * v_next
        v_loss = expectile_loss(best - v, self.tau).mean()
        q_loss = (q - backup).square().mean(-1).sum()
        weight = advantage_weight(best - v, self.beta)
        actor_loss = (weight * self.policy.surprise(self.leaves["policy"], batch.obs, batch.action)).mean()
        logged = {"q": q.mean(), "v": v.mean(), "critic_loss": q_loss / len(q), "v_loss": v_loss}
        logged |= {"actor_loss": actor_loss, "weight": weight.mean()}
        return v_loss + q_loss + actor_loss, {name: value.detach() for name, value in logged.items()}

    def _q(self, params: list[Tensor], batch: Transitions) -> Tensor:
        """``[N, B]`` of the data's own actions."""
        return self.q(params, torch.cat([batch.obs, batch.action], -1)).squeeze(-1)

    def follow(self) -> None:
        self.vectors["target_q"].lerp_(self.vectors["q"], self.target_share)

    @torch.no_grad()
    def value(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """``[B]`` state values ``V`` of raw ``obs [B, D]``; nothing is drawn."""
        return self.v(self.leaves["v"], self._seen(obs)).squeeze(-1)


def _check(tau: float, beta: float, counts: tuple[int, int], gamma: float, target_share: float) -> None:
    if not 0.5 <= tau < 1.0:
        raise UserError("tau", tau, "the expectile lies in [0.5, 1)")
    if not 0.0 <= beta < math.inf:
        raise UserError("beta", beta, "give a finite number of at least 0; 0 is behaviour cloning")
    if min(counts) < 1:
        raise UserError("critics, critic_hidden", counts, "each is at least 1")
    if not (0.0 <= gamma <= 1.0 and 0.0 < target_share <= 1.0):
        raise UserError("gamma, target_share", (gamma, target_share), "gamma lies in [0, 1], target_share in (0, 1]")
