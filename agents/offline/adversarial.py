"""Robust offline learning: the model is trained against the policy, as far as the data allows.

Rigter, Lacerda, Hawes, "RAMBO-RL: Robust Adversarial Model-Based Offline Reinforcement Learning", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from agents.actor_critic.learner import ActorCritic
from agents.actor_critic.update import adam
from agents.common import RunningMean
from agents.offline.model_based import OfflineDynaAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble

SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class Critic:
    """Who says how good an imagined outcome is."""

    value: Callable[[Tensor], Tensor]
    """``[B, D] -> [B]`` of next observations"""
    baseline: Callable[[Tensor, Tensor], Tensor]
    """``([B, D], [B, A]) -> [B]``, what the outcome is compared with"""
    gamma: float


class AdversarialStep:
    """Gradient steps that make outcomes of low value more likely, held to the data by the likelihood of real rows.

    Minimises ``weight * mean(log p(s', r | s, a) * A) + NLL(data)``, where ``(s', r)`` are drawn from the mixture ``p``
    of the elites and ``A = r + gamma (1 - d) V(s') - Q(s, a)`` is standardised over the batch and not differentiated.
    The log-density is summed over its dimensions; the likelihood is the model's own loss.

    Args:
        model: the model, which must have distributions.
        weight: ``lambda``.
        lr: Adam's step size.
    """

    def __init__(self, model: ProbabilisticEnsemble, weight: float, lr: float) -> None:
        self.model, self.weight = model, weight
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def __call__(
        self, obs: Tensor, action: Tensor, real: Transitions, critic: Critic, generator: Generator
    ) -> tuple[Step, dict[str, float]]:
        """One step, on imagined ``obs [B, D]`` and ``action [B, A]`` and on ``real [E * B']`` rows.

        Returns the outcomes it was made on, and what to log.
        """
        noise = torch.randn(len(obs), self.model.noise_size, generator=generator, device=obs.device)
        step = self.model.step_with_noise(State(obs), action, noise)
        with torch.no_grad():
            advantage = self._advantage(step, obs, action, critic)
            unit = (advantage - advantage.mean()) / advantage.std().clamp(min=SMALLEST_SPREAD)
        attack = (self._log_prob(obs, action, step) * unit).mean()
        rows = self.model.prepare(real, fit_statistics=False)
        likelihood, _ = self.model.loss(rows.map(lambda x: x.unflatten(0, (self.model.members, -1))))
        self.optimizer.zero_grad(set_to_none=True)
        (self.weight * attack + likelihood).backward()
        self.optimizer.step()
        found = {"attack": attack, "nll": likelihood / self.model.members, "advantage": advantage.mean()}
        return step, {name: float(value.detach()) for name, value in found.items()}

    def _advantage(self, step: Step, obs: Tensor, action: Tensor, critic: Critic) -> Tensor:
        beyond = critic.value(step.state.obs).masked_fill(step.terminated, 0.0)
        return step.reward + critic.gamma * beyond - critic.baseline(obs, action)

    def _log_prob(self, obs: Tensor, action: Tensor, step: Step) -> Tensor:
        """``[B]`` log-density of the outcomes under the mixture of the elites."""
        elites = self.model.get_buffer("elites")
        each = self.model.predict(State(obs), action).log_prob(step.state.obs, step.reward)[elites]
        return each.logsumexp(0) - math.log(len(elites))


def imitate(learner: ActorCritic, rows: Transitions, lr: float, generator: Generator) -> float:
    """One step of Adam of the actor alone towards the actions of ``rows [B]``; the mean squared error before it.

    The policy's action is sampled, so that its spread shrinks to that of the data.
    """
    networks, vectors = learner.networks, learner.vectors
    views = [view.detach().requires_grad_() for view in networks.policy_views(vectors["policy"])]
    noise = torch.randn(rows.action.shape, generator=generator, device=rows.action.device)
    out = networks.actor(views[:-1], learner.seen(rows.obs), networks.statistics(vectors, "policy", train=False))
    action = networks.head.choose(out, noise, None).action
    assert action is not None  # the agent refuses discrete actions
    loss = (action - rows.action).square().mean()
    with torch.no_grad():
        adam(vectors, "policy", torch.autograd.grad(loss, views, materialize_grads=True), lr, networks.rule.betas)
    return float(loss.detach())


class AdversarialDynaAgent(OfflineDynaAgent):
    """RAMBO: the policy begins as a copy of the data's; every so many updates the model is trained against it.

    Under the true dynamics there is no adversary.

    Args:
        spec: the environment that the data is from.
        model: factory of a probabilistic ensemble.
        adversarial_weight: ``lambda``; published as 3e-4 with 1,000 steps every 1,000 updates, and not portable to
            another reduction of the loss.
        adversarial_lr: Adam's step size for the model.
        adversarial_every: updates between two turns of the adversary.
        adversarial_steps: its gradient steps each time.
        pretrain_updates: gradient steps of behaviour cloning before the first update.
        pretrain_lr: their step size.
        options: the arguments of :class:`OfflineDynaAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: Callable[[EnvSpec], DynamicsModel],
        adversarial_weight: float = 3e-4,
        adversarial_lr: float = 3e-4,
        adversarial_every: int = 1000,
        adversarial_steps: int = 1000,
        pretrain_updates: int = 2000,
        pretrain_lr: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(spec, model=model, **options)
        _check(self, (adversarial_weight, adversarial_lr, pretrain_lr), (adversarial_every, adversarial_steps))
        if pretrain_updates < 0:
            raise UserError("pretrain_updates", pretrain_updates, "give a whole number of at least 0")
        self.adversarial_every, self.adversarial_steps = adversarial_every, adversarial_steps
        self.pretrain_updates, self.pretrain_lr = pretrain_updates, pretrain_lr
        self.adversary: AdversarialStep | None = None
        if self.learned and isinstance(self.model, ProbabilisticEnsemble):
            self.adversary = AdversarialStep(self.model, adversarial_weight, adversarial_lr)
        self.pretrained, self.turns = False, 0

    def prepare(self, clock: Clock) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if not self.pretrained:
            found |= {"pretrain": self.pretrain()}
        if self.adversary is not None and clock.updates >= (self.turns + 1) * self.adversarial_every:
            found |= {"adversary": self.attack(self.adversary)}
        return found | super().prepare(clock)

    def pretrain(self) -> dict[str, float]:
        """Behaviour cloning; its last error."""
        error, device = math.nan, self.device
        for _ in range(self.pretrain_updates):
            rows = self.data.sample(self.batch_size, self.generator).to(device)
            if self.learner.normalizer is not None:
                self.learner.normalizer.see(rows.obs)
            error = imitate(self.learner, rows, self.pretrain_lr, self.generator)
        self.pretrained = True
        return {"gradient_steps": self.pretrain_updates} | ({"loss": error} if self.pretrain_updates else {})

    def attack(self, adversary: AdversarialStep) -> dict[str, float]:
        """The adversary's turn: along rollouts of the policy in the model, which changes with every step."""
        found, size, draw = RunningMean(), self.batch_size, self.generator
        critic = Critic(self._value, lambda obs, action: self.learner.q_values(obs, action).amin(0), self.learner.gamma)
        obs = self.data.sample(size, draw).obs.to(self.device)
        for i in range(self.adversarial_steps):
            fresh = self.data.sample(size, draw).obs.to(self.device)
            obs = fresh if i % self.horizon == 0 else obs
            real = self.data.sample(size * self.model.members, draw).to(self.device)
            step, report = adversary(obs, self.learner.act(obs, draw), real, critic, draw)
            found.add(report)
            obs = torch.where(self._lost(step)[:, None], fresh, step.state.obs)
        self.turns += 1
        return found.pop()

    def _value(self, obs: Tensor) -> Tensor:
        return self.learner.q_values(obs, self.learner.act(obs, self.generator)).amin(0)

    def _lost(self, step: Step) -> Tensor:
        """``[B]`` bool: rows that do not go on."""
        beyond = step.state.obs.abs().amax(-1) > (math.inf if self.guard is None else self.guard)
        return step.terminated | step.truncated | beyond

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {"pretrained": self.pretrained, "turns": self.turns}
        return (
            super().state_dict()
            | own
            | ({"adversary": self.adversary.optimizer.state_dict()} if self.adversary else {})
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.pretrained, self.turns = state["pretrained"], state["turns"]
        if self.adversary is not None:
            self.adversary.optimizer.load_state_dict(state["adversary"])


def _check(agent: AdversarialDynaAgent, numbers: tuple[float, float, float], counts: tuple[int, int]) -> None:
    weight, *rates = numbers
    if not (0.0 <= weight < math.inf and all(0.0 < rate < math.inf for rate in rates)):
        fix = "give a finite weight of at least 0 and step sizes above 0"
        raise UserError("adversarial_weight, adversarial_lr, pretrain_lr", numbers, fix)
    if min(counts) < 1:
        raise UserError("adversarial_every, adversarial_steps", counts, "each is at least 1")
    if agent.spec.action.discrete:
        fix = (
            f"the policy is cloned from continuous actions, those of {agent.spec.id} are discrete: take mopo or mobile"
        )
        raise UserError("agent", type(agent).__name__, fix)
    if agent.learned and not (isinstance(agent.model, ProbabilisticEnsemble) and agent.model.probabilistic):
        fix = "the adversary moves probabilities: take a ProbabilisticEnsemble with probabilistic: true"
        raise UserError("model", type(agent.model).__name__, fix)
