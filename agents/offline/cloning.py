"""Behaviour cloning: the policy does what the data did."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Generator, Tensor

from agents.actor_critic.networks import Network
from agents.actor_critic.running import RunningNormalizer
from agents.actor_critic.update import Vectors, adam
from agents.base import usable_device
from agents.offline.cloned_policy import ClonedPolicy, PolicyKind
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.transitions import Transitions

BETAS = (0.9, 0.999)
Cosine = int | Literal["run"] | None
"""Updates over which a step size falls to 0: a number, as many as the run has, or never"""


class Cloning:
    """Behaviour cloning: maximum likelihood of the data's actions (Pomerleau, "ALVINN: An Autonomous Land Vehicle in a
    Neural Network", 1988). The floor of every offline comparison: it sees no reward.

    Observations are raw; their statistics over all rows seen are part of the policy.

    Args:
        spec: the environment.
        policy: ``gaussian`` learns a spread as well, ``deterministic`` the mean by least squares.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        lr: Adam's step size.
        cosine_updates: the step size falls to 0 along half a cosine over so many updates; ``run``: over those of the
            run (:meth:`expect`); null keeps it.
        normalize_obs: standardise observations.
        device: where parameters lie.

    Raises:
        UserError: a size or rate that cannot work; a deterministic policy of discrete actions.
    """

    def __init__(
        self,
        spec: EnvSpec,
        policy: PolicyKind = "gaussian",
        hidden: int = 256,
        layers: int = 2,
        lr: float = 3e-4,
        cosine_updates: Cosine = None,
        normalize_obs: bool = True,
        device: str = "cpu",
    ) -> None:
        check_sizes(hidden, layers, lr, cosine_updates)
        self.spec, self.device, self.lr, self.cosine_updates = spec, usable_device(device), lr, cosine_updates
        self.expected: int | None = None
        self.policy = ClonedPolicy(spec, policy, hidden, layers)
        self.normalizer = RunningNormalizer(spec.obs_size, self.device) if normalize_obs else None
        self.seed(0)

    # -- parameters --------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, ClonedPolicy | Network]:
        """What has trained parameters, by name."""
        return {"policy": self.policy}

    def seed(self, seed: int) -> None:
        """Draw every network from ``seed`` and forget everything learned."""
        self.base_seed, self.updates = seed, 0
        generator = seeding.generator(seed, "offline")  # on the CPU: the same networks on every device
        vectors: Vectors = {name: part.draw(generator) for name, part in self.parts().items()}
        for name in self.parts():
            vectors |= {f"{name}.{moment}": torch.zeros_like(vectors[name]) for moment in ("mean", "square")}
            vectors[f"{name}.powers"] = torch.ones(2, dtype=torch.float64)
        vectors["betas"] = torch.tensor(BETAS, dtype=torch.float64)
        self.vectors = {name: vector.to(self.device) for name, vector in vectors.items()}
        if self.normalizer is not None:
            self.normalizer = RunningNormalizer(self.spec.obs_size, self.device)
        self.leaves = {
            name: [view.detach().requires_grad_() for view in part.views(self.vectors[name])]
            for name, part in self.parts().items()
        }

    def to(self, device: torch.device | str) -> Self:
        """Move everything; returns itself."""
        state, self.device = self.state_dict(), torch.device(device)
        self.seed(self.base_seed)
        self.load_state_dict(state)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; copies, so that learning on does not change them."""
        return {
            "vectors": {name: vector.clone() for name, vector in self.vectors.items()},
            "updates": self.updates,
            "seed": self.base_seed,
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, bit for bit."""
        for name, vector in self.vectors.items():
            vector.copy_(state["vectors"][name])
        self.updates, self.base_seed = state["updates"], state["seed"]
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])

    # -- acting ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor, generator: Generator | None) -> Tensor:
        """Actions ``[B, A]`` for raw ``obs [B, D]``; without a generator the policy's mode."""
        params, seen = self.leaves["policy"], self._seen(obs)
        return self.policy.mode(params, seen) if generator is None else self.policy.sample(params, seen, generator)

    def _seen(self, obs: Tensor) -> Tensor:
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    # -- learning ----------------------------------------------------------------------------------------------------

    def update(self, batches: Transitions, generator: Generator) -> dict[str, float]:
        """One update for each of ``U`` batches ``[U, B, ...]``, in order; means over them of what is logged."""
        if self.normalizer is not None:
            self.normalizer.see(batches.obs)
        batches = replace(batches, obs=self._seen(batches.obs), next_obs=self._seen(batches.next_obs))
        found = [self._step(batches[i]) for i in range(len(batches))]
        return {name: float(torch.stack([each[name] for each in found]).mean()) for name in found[0]}

    def _step(self, batch: Transitions) -> dict[str, Tensor]:
        loss, metrics = self.loss(batch)
        live = [leaf for leaves in self.leaves.values() for leaf in leaves]
        grads = iter(torch.autograd.grad(loss, live, materialize_grads=True))
        with torch.no_grad():
            for name, leaves in self.leaves.items():
                adam(self.vectors, name, [next(grads) for _ in leaves], self.rate(name), BETAS)
            self.follow()
        self.updates += 1
        return metrics

    def loss(self, batch: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """``E[-log pi(a|s)]`` of rows whose observations are standardised, and what is to be logged."""
        loss = self.policy.surprise(self.leaves["policy"], batch.obs, batch.action).mean()
        return loss, {"actor_loss": loss.detach()}

    def expect(self, updates: int) -> None:
        """Say how many updates there will be, which is what ``cosine_updates: run`` follows. No part of the state."""
        self.expected = max(1, updates)

    def rate(self, name: str) -> float:
        """Adam's step size now for one of the parts: the policy's may follow a cosine."""
        if name != "policy" or self.cosine_updates is None:
            return self.lr
        span = self.expected if self.cosine_updates == "run" else self.cosine_updates
        if span is None:
            raise UserError(
                "cosine_updates", "run", "say how many updates come: call expect(updates), or give a number"
            )
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.updates / span)))

    def follow(self) -> None:
        """What changes after the parameters; nothing here."""


def check_sizes(hidden: int, layers: int, lr: float, cosine_updates: Cosine) -> None:
    """Raises ``UserError`` where one of them cannot work."""
    if min(hidden, layers) < 1:
        raise UserError("hidden, layers", (hidden, layers), "each is at least 1")
    if not 0.0 < lr < math.inf:
        raise UserError("lr", lr, "give a finite number above 0")
    if cosine_updates not in (None, "run") and not (isinstance(cosine_updates, int) and cosine_updates >= 1):
        fix = "give a number of updates of at least 1, `run` for those of the run, or leave it out"
        raise UserError("cosine_updates", cosine_updates, fix)
