"""The off-policy actor-critic: parts put together, updates in a row, acting, values, exact state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from agents.actor_critic.behaviour import Behaviour, seen
from agents.actor_critic.callbacks import Callback, Parts
from agents.actor_critic.checks import USUAL_NOISE, USUAL_SUBSET, check
from agents.actor_critic.networks import PLAIN, Network, Regularization
from agents.actor_critic.policies import ActionNoise, Categorical, Deterministic, Head, SquashedGaussian
from agents.actor_critic.representation import SelfPrediction
from agents.actor_critic.running import RunningNormalizer
from agents.actor_critic.terms import ActorTerm, CriticTerm
from agents.actor_critic.update import (
    CRITIC_METRICS,
    POLICY_METRICS,
    ActorReducer,
    Batch,
    Rule,
    TargetReducer,
    Update,
    Vectors,
    Weighting,
    compiled,
)
from agents.base import usable_device
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.transitions import Transitions

Policy = Literal["gaussian", "deterministic"]


class ActorCritic:
    """Learns a policy from transitions of any policy: soft actor-critic by default.

    Settings make it other published methods, see ``experiments/recipes``: SAC (Haarnoja et al., 2018), its discrete
    form (Christodoulou, 2019), TD3 (Fujimoto et al., 2018), REDQ (Chen et al., "Randomized Ensembled Double
    Q-Learning", 2021), DroQ (Hiraoka et al., 2022), CrossQ (Bhatt et al., 2024), EDAC (An et al., 2021), TD3+BC
    (Fujimoto, Gu, 2021). Observations are raw, actions lie in [-1, 1] or are one-hot. Only ``terminated`` cuts the
    bootstrap.

    Args:
        spec: the environment; with discrete actions the policy is categorical.
        policy: ``gaussian`` (SAC) or ``deterministic`` (TD3, DDPG), for continuous actions.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        critic_hidden: width of the critics' hidden layers (default: ``hidden``).
        critics: number of critics ``N``, computed side by side.
        target: how the target's critics are reduced: ``min``, ``mean``, or the min of a random subset drawn anew for
            every update (REDQ).
        subset: size of that subset.
        actor_reducer: how the actor's critics are reduced: ``min`` (SAC), ``mean`` (REDQ, DroQ), ``first`` (TD3).
        target_networks: False uses the critics themselves, (s, a) and (s', a') in one joint forward pass (CrossQ).
        regularization: normalisation layers and dropout.
        lr: Adam's step size.
        actor_lr: that of actor and temperature (default: ``lr``).
        beta1: Adam's decay rate of the first moment.
        gamma: discount per decision.
        tau: share of the critics in their targets' moving average.
        policy_delay: critic updates for one update of actor and temperature.
        target_delay: critic updates for one step of the target networks.
        alpha: temperature, or its first value when learned.
        learn_alpha: learn the temperature towards the target entropy.
        target_entropy: null: minus the number of action dimensions; for ``A`` discrete actions ``0.98 log A``, which
            is nearly uniform: a published choice, but a smaller one often serves better.
        log_prob_weights: weights of the action dimensions in the log-probability (default: all 1).
        noise: exploration and target noise of a deterministic policy.
        sample_weights: what the column ``sample_weight`` does to the critics' loss over a batch: nothing,
            ``normalized`` = sum(w x) / sum(w), ``raw`` = sum(w x) / B.
        weigh_actor: the same weights for the actor's loss.
        terms: extra terms of the critics' loss.
        actor_terms: extra terms of the actor's loss, for continuous actions.
        backup_entropy: the entropy of the next action is part of the critics' target, as in SAC; without it the target
            is of the reward alone (COMBO, MOBILE).
        target_floor: the critics' targets are at least this; null: no floor. Published with MOBILE as 0, which is
            wrong where values are negative.
        callbacks: resets, perturbations and averages between updates.
        normalize_obs: standardise observations with running statistics of all rows learned from so far.
        representation: a representation that actor and critics read; the agent has it learn from windows of real data.
        compile: compile the update with torch.compile (first use takes a while).
        device: where parameters lie.
    """

    def __init__(
        self,
        spec: EnvSpec,
        policy: Policy = "gaussian",
        hidden: int = 256,
        layers: int = 2,
        critic_hidden: int | None = None,
        critics: int = 2,
        target: TargetReducer = "min",
        subset: int = USUAL_SUBSET,
        actor_reducer: ActorReducer = "min",
        target_networks: bool = True,
        regularization: Regularization = PLAIN,
        lr: float = 3e-4,
        actor_lr: float | None = None,
        beta1: float = 0.9,
        gamma: float = 0.99,
        tau: float = 0.005,
        policy_delay: int = 1,
        target_delay: int = 1,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | None = None,
        log_prob_weights: Sequence[float] | None = None,
        noise: ActionNoise = USUAL_NOISE,
        sample_weights: Weighting = "ignore",
        weigh_actor: bool = False,
        terms: list[CriticTerm] | None = None,
        actor_terms: list[ActorTerm] | None = None,
        backup_entropy: bool = True,
        target_floor: float | None = None,
        callbacks: list[Callback] | None = None,
        normalize_obs: bool = False,
        representation: Callable[[EnvSpec], SelfPrediction] | None = None,
        compile: bool = False,
        device: str = "cpu",
    ) -> None:
        self.spec, self.device, self.regularization = spec, usable_device(device), regularization
        self.gamma, self.alpha, self.policy_delay, self.target_delay = gamma, alpha, policy_delay, target_delay
        self.critics, self.subset = critics, subset if target == "random_subset_min" else None
        self.target_networks, self.sample_weights, self.terms = target_networks, sample_weights, tuple(terms or ())
        self.callbacks, self.compile, self.updates, self.base_seed = list(callbacks or []), compile, 0, 0
        head = _head(spec, policy, noise)
        rule = Rule(
            reducers=(target, actor_reducer),
            learn_alpha=learn_alpha and head.entropic,
            target_entropy=default_entropy(spec) if target_entropy is None else target_entropy,
            tau=tau,
            lr={"critic": lr, "policy": lr if actor_lr is None else actor_lr},
            betas=(beta1, 0.999),
            weighting=(sample_weights, weigh_actor),
            terms=(self.terms, tuple(actor_terms or ())),
            backup=(backup_entropy, target_floor),
        )
        self.log_prob_weights = None if log_prob_weights is None else torch.tensor(log_prob_weights).to(self.device)
        check(self, rule, head, (hidden, layers, critic_hidden or hidden), subset, noise)
        self.representation = representation(spec) if representation else None
        self.networks = Update(*_networks(spec, head, (hidden, critic_hidden or hidden), layers, self), head, rule)
        self.normalizer = RunningNormalizer(spec.obs_size, self.device) if normalize_obs else None
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Draw every network from ``seed`` and forget everything learned."""
        self.base_seed, self.updates = seed, 0
        if self.representation is not None:
            self.representation.seed(seed, self.device)
        generator = seeding.generator(seed, "actor-critic")  # on the CPU: the same networks on every device
        networks, betas = self.networks, self.networks.rule.betas
        vectors = self._draw(generator)
        if self.target_networks:
            vectors["target_critic"] = vectors["critic"].clone()
            if not networks.head.entropic:
                vectors["target_policy"] = vectors["policy"].clone()
        vectors["betas"] = torch.tensor(betas, dtype=torch.float64)
        for name in ("policy", "critic"):
            vectors |= {f"{name}.{part}": torch.zeros_like(vectors[name]) for part in ("mean", "square")}
            vectors[f"{name}.powers"] = torch.ones(2, dtype=torch.float64)
        if networks.critic.spectral_norm:
            left = networks.critic.draw_left(generator)
            vectors |= {f"{name}.left": left.clone() for name in ("critic", "target_critic") if name in vectors}
        self.vectors: Vectors = {name: vector.to(self.device) for name, vector in vectors.items()}
        self._leaves = self._make_leaves()
        self._step: Callable[..., list[Tensor]] = compiled(networks.step) if self.compile else networks.step

    def _draw(self, generator: Generator) -> Vectors:
        """Fresh parameters and batch statistics."""
        actor, critic = self.networks.actor, self.networks.critic
        log_alpha = torch.tensor([math.log(self.alpha)])
        vectors = {"policy": torch.cat([actor.draw(generator), log_alpha]), "critic": critic.draw(generator)}
        if actor.batch_norm:
            vectors |= {"policy.statistics": actor.initial_statistics()}
            vectors |= {"critic.statistics": critic.initial_statistics()}
        return vectors

    def _make_leaves(self) -> tuple[list[Tensor], list[Tensor]]:
        policy = self.networks.policy_views(self.vectors["policy"])
        critic = self.networks.critic.views(self.vectors["critic"])
        return [view.detach().requires_grad_() for view in policy], [view.detach().requires_grad_() for view in critic]

    def to(self, device: torch.device | str) -> ActorCritic:
        """Move everything; returns itself."""
        state, self.device = self.state_dict(), torch.device(device)
        if self.normalizer is not None:
            self.normalizer = RunningNormalizer(self.spec.obs_size, self.device)
        self.seed(self.base_seed)
        self.load_state_dict(state)
        return self

    # -- acting and valuing ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor, generator: Generator | None) -> Tensor:
        """Actions ``[B, A]`` for raw ``obs [B, D]``; sampled with ``generator``, without one the policy's mode."""
        return self.behaviour(averaged=generator is None)(obs, generator)

    def behaviour(self, averaged: bool = False) -> Behaviour:
        """The policy alone; ``averaged``, as callbacks have it where there is no exploration."""
        policy, averages = self._leaves[0], [callback.policy_vector() for callback in self.callbacks if averaged]
        for average in averages:
            policy = policy if average is None else self.networks.policy_views(average)
        statistics = self.networks.statistics(self.vectors, "policy", train=False)
        parts = self.networks.actor, self.networks.head, policy[:-1], statistics
        return Behaviour(*parts, self.normalizer, self.representation)

    @torch.no_grad()
    def act_softly(self, obs: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Actions ``[B, A]`` at raw ``obs [B, D]`` as the critics' targets draw them, and what the targets add to them.

        That is ``-alpha log pi(a|s) [B]``, of discrete actions in expectation; 0 for a deterministic policy, whose
        actions are its mode, and where the target has no entropy.
        """
        networks, out = self.networks, self.behaviour().outputs(obs)
        choice = networks.head.choose(out, self._noise((len(obs),), generator), self.log_prob_weights)
        action = networks.head.explore(out, generator) if choice.action is None else choice.action
        if choice.log_prob is None or not networks.rule.backup[0]:
            return action, torch.zeros(len(obs), device=obs.device)
        return action, choice.mean(-self._leaves[0][-1].exp() * choice.log_prob)

    def seen(self, obs: Tensor) -> Tensor:
        """What the networks read at raw ``obs [..., D]``."""
        return seen(obs, self.normalizer, self.representation)

    @torch.no_grad()
    def value(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """``[B]`` soft state values of raw ``obs [B, D]``: ``E[reduce Q(s, a) - alpha log pi(a|s)]``, reduced over the
        critics as for the actor.

        Of continuous actions one is drawn with ``generator``; without one it is ``Q`` of the policy's mode, with no
        entropy term.
        """
        networks, out = self.networks, self.behaviour().outputs(obs)
        if generator is None and not networks.discrete:
            return networks.reduced(self._critic_values(obs, networks.head.mode(out)))
        noise = self._noise((len(obs),), generator) if generator is not None else out
        choice = networks.head.choose(out, noise, self.log_prob_weights)
        value = networks.reduced(self._critic_values(obs, choice.action))
        if choice.log_prob is not None:
            value = value - self._leaves[0][-1].exp() * choice.log_prob
        return choice.mean(value)

    @torch.no_grad()
    def q_values(self, obs: Tensor, action: Tensor) -> Tensor:
        """``[N, B]`` every critic's value of raw ``obs [B, D]`` and ``action [B, A]``."""
        return self._critic_values(obs, action)

    @torch.no_grad()
    def target_q_values(self, obs: Tensor, action: Tensor) -> Tensor:
        """``[N, B]`` as :meth:`q_values`, of the target critics; of the critics themselves where there are none."""
        return self._critic_values(obs, action, "target_critic" if self.target_networks else "critic")

    def _critic_values(self, obs: Tensor, action: Tensor | None, name: str = "critic") -> Tensor:
        params: Sequence[Tensor] = self._leaves[1]
        if name != "critic":
            params = self.networks.critic.views(self.vectors[name])
        if self.networks.critic.spectral_norm:
            params, _ = self.networks.critic.normalized(params, self.vectors[f"{name}.left"])
        statistics = self.networks.statistics(self.vectors, "critic", train=False)
        return self.networks.values(params, self.seen(obs), action, statistics)

    # -- learning ----------------------------------------------------------------------------------------------------

    def update(self, batches: Transitions, generator: Generator) -> dict[str, float]:
        """One update of the critics for each of ``U`` batches ``[U, B, ...]``, in order.

        Returns means over the updates: ``q`` and ``critic_loss`` (mean squared error of a critic) and, where the policy
        was updated, ``actor_loss``, ``alpha`` and ``entropy``.

        Raises:
            UserError: sample weights are asked for and the batches have no column ``sample_weight``.
        """
        critic, policy = [], []
        for batch in self._batches(batches, generator):
            self.updates += 1
            due = self.updates % self.policy_delay == 0, self.updates % self.target_delay == 0
            leaves = None if self.compile else self._leaves
            found = self._step(self.vectors, self.log_prob_weights, batch, *due, leaves)
            critic.append(torch.stack(found[:2]))
            if due[0]:
                policy.append(torch.stack(found[2:]))
            for callback in self.callbacks:
                callback.after(self)
        means = [torch.stack(values).mean(0) for values in (critic, policy) if values]
        return dict(zip((*CRITIC_METRICS, *POLICY_METRICS), torch.cat(means).tolist(), strict=False))

    def _batches(self, rows: Transitions, generator: Generator) -> Iterator[Batch]:
        """What each update needs; all random numbers but dropout's are drawn at once."""
        updates, size = rows.reward.shape
        if self.normalizer is not None:
            self.normalizer.see(rows.obs)
        subset = self._subsets(updates, generator)
        columns = zip(
            self.seen(rows.obs).unbind(),
            rows.action.unbind(),
            rows.reward.unbind(),
            self.seen(rows.next_obs).unbind(),
            (self.gamma * (~rows.terminated).to(rows.reward.dtype)).unbind(),
            self._weights(rows),
            self._noise((updates, 2, size), generator).unbind(),
            subset,
            (self._dropout(size, generator) for _ in range(updates)),
            self._renorm(updates),
            (self._draws(size, generator) for _ in range(updates)),
            self._real(rows),
            self._extra(rows),
            strict=True,
        )
        return (Batch(*each) for each in columns)

    def _draws(self, size: int, generator: Generator) -> Tensor | None:
        """For candidate actions: two thirds standard normal, one third uniform in [-1, 1]."""
        count = max((term.candidates for term in self.terms), default=0)
        if not count:
            return None
        shape = count, size, self.spec.action.size
        normal = torch.randn(2, *shape, generator=generator, device=self.device)
        uniform = torch.rand(1, *shape, generator=generator, device=self.device)
        return torch.cat([normal, 2.0 * uniform - 1.0])

    def _extra(self, rows: Transitions) -> Sequence[dict[str, Tensor] | None]:
        names = {name for term in self.terms for name in term.columns}
        if missing := names - set(rows.extra):
            fix = "a term of the critics' loss reads this column: learn with an agent that gives it"
            raise UserError("extra columns", sorted(missing), fix)
        if not names:
            return [None] * len(rows)
        return [{name: rows.extra[name][i] for name in names} for i in range(len(rows))]

    def _real(self, rows: Transitions) -> Sequence[Tensor | None]:
        if "is_real" in rows.extra:
            return rows.extra["is_real"].to(rows.reward.dtype).unbind() if self.terms else [None] * len(rows)
        if any(term.tells_real for term in self.terms):
            fix = "a term of the critics' loss asks for the column is_real: learn from real and imagined rows"
            raise UserError("extra columns", sorted(rows.extra), fix)
        return [None] * len(rows)

    def _weights(self, rows: Transitions) -> Sequence[Tensor | None]:
        if self.sample_weights == "ignore":
            return [None] * len(rows)
        if "sample_weight" not in rows.extra:
            fix = "sample_weights asks for the column sample_weight; declare it, or set sample_weights: ignore"
            raise UserError("extra columns", sorted(rows.extra), fix)
        return rows.extra["sample_weight"].unbind()

    def _noise(self, lead: tuple[int, ...], generator: Generator) -> Tensor:
        return torch.randn(*lead, self.networks.head.noise_size, generator=generator, device=self.device)

    def _subsets(self, updates: int, generator: Generator) -> Sequence[Tensor | None]:
        """Which target critics count, ``[subset]`` distinct ones for each update."""
        if self.subset is None:
            return [None] * updates
        order = torch.rand(updates, self.critics, generator=generator, device=self.device).argsort(-1)
        return order[:, : self.subset].contiguous().unbind()

    def _renorm(self, updates: int) -> Sequence[Tensor | None]:
        if self.regularization.batch_norm != "renorm":
            return [None] * updates
        number = torch.arange(self.updates, self.updates + updates, device=self.device)
        return (number >= self.regularization.renorm_warmup).float().unbind()

    def _dropout(self, size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor] | None:
        rate, critic = self.regularization.dropout, self.networks.critic
        if not rate:
            return None
        counted = self.critics if self.subset is None else self.subset
        shapes = [(critic.layers, n, size, critic.hidden) for n in (counted, self.critics, self.critics)]
        kept = [torch.empty(shape, device=self.device).bernoulli_(1.0 - rate, generator=generator) for shape in shapes]
        return kept[0].div_(1.0 - rate), kept[1].div_(1.0 - rate), kept[2].div_(1.0 - rate)

    def set_log_prob_weights(self, weights: Tensor) -> None:
        """Weights ``[A]`` of the action dimensions in the log-probability, for updates to come."""
        weights = weights.to(self.device, torch.float32)
        self.log_prob_weights = weights.clone()

    @torch.no_grad()
    def redraw(self, parts: Parts = "all", last_layers: int | None = None, keep: float = 0.0) -> None:
        """Move networks towards fresh ones, ``theta <- keep * theta + (1 - keep) * fresh``; restart their optimiser.

        Target networks move towards the same fresh ones. With ``keep`` 0 and all layers, batch statistics and the
        temperature begin anew as well.
        """
        fresh = self._draw(seeding.generator(self.base_seed, "redraw", self.updates))
        whole = last_layers is None and keep == 0.0
        for name, network in (("policy", self.networks.actor), ("critic", self.networks.critic)):
            if parts not in ("all", name):
                continue
            chosen = network.last_layers(last_layers)
            if name == "policy":
                chosen = torch.cat([chosen, torch.tensor([whole])])
            share = ((1.0 - keep) * chosen).to(self.device)
            for target in (name, f"target_{name}"):
                if target in self.vectors:
                    self.vectors[target].lerp_(fresh[name].to(self.device), share)
            if whole and f"{name}.statistics" in fresh:
                self.vectors[f"{name}.statistics"].copy_(fresh[f"{name}.statistics"])
            self.vectors[f"{name}.mean"].zero_()
            self.vectors[f"{name}.square"].zero_()
            self.vectors[f"{name}.powers"].fill_(1.0)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; copies, so that learning on does not change them."""
        return {
            "vectors": {name: vector.clone() for name, vector in self.vectors.items()},
            "updates": self.updates,
            "seed": self.base_seed,
            "log_prob_weights": None if self.log_prob_weights is None else self.log_prob_weights.clone(),
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
        } | ({} if self.representation is None else {"representation": self.representation.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, bit for bit."""
        for name, vector in self.vectors.items():
            vector.copy_(state["vectors"][name])
        self.updates, self.base_seed = state["updates"], state["seed"]
        weights = state["log_prob_weights"]
        self.log_prob_weights = None if weights is None else weights.to(self.device)
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        if self.representation is not None:
            self.representation.load_state_dict(state["representation"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            moved = {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in saved.items()}
            callback.load_state_dict(moved)


def default_entropy(spec: EnvSpec) -> float:
    """Minus the number of action dimensions; of ``A`` discrete actions 0.98 of the largest entropy, ``log A``."""
    return 0.98 * math.log(spec.action.size) if spec.action.discrete else -float(spec.action.size)


def _head(spec: EnvSpec, policy: Policy, noise: ActionNoise) -> Head:
    if not spec.action.discrete:
        return SquashedGaussian(spec) if policy == "gaussian" else Deterministic(spec, noise)
    if policy == "deterministic":
        raise UserError("policy", policy, f"{spec.id} has discrete actions; leave the policy at gaussian")
    return Categorical(spec)


def _networks(
    spec: EnvSpec, head: Head, hidden: tuple[int, int], layers: int, learner: ActorCritic
) -> tuple[Network, Network]:
    """Actor and stacked critics. Of the regularisation the actor shares batch normalisation alone."""
    critic_part = learner.regularization
    actor_part = Regularization(batch_norm=critic_part.batch_norm)
    reads = learner.representation.input_size if learner.representation else spec.obs_size
    actor = Network(reads, head.outputs, hidden[0], layers, None, actor_part)
    if spec.action.discrete:
        return actor, Network(reads, spec.action.size, hidden[1], layers, learner.critics, critic_part)
    inputs = reads + spec.action.size
    return actor, Network(inputs, 1, hidden[1], layers, learner.critics, critic_part)
