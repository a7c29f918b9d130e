"""The acting part of an actor-critic: all that a process needs which only acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from agents.actor_critic.networks import BatchStatistics, Network
from agents.actor_critic.policies import Head
from agents.actor_critic.representation import SelfPrediction
from agents.actor_critic.running import RunningNormalizer


@dataclass(frozen=True)
class Behaviour:
    """A policy as it is now; its tensors are the learner's own, so it is to be used, or sent away, before it learns on.

    It can be pickled, which a learner whose update is compiled cannot.
    """

    actor: Network
    head: Head
    parameters: Sequence[Tensor]
    statistics: BatchStatistics | None
    normalizer: RunningNormalizer | None
    representation: SelfPrediction | None

    @torch.no_grad()
    def __call__(self, obs: Tensor, generator: Generator | None) -> Tensor:
        """Actions ``[B, A]`` for raw ``obs [B, D]``; sampled with ``generator``, without one the policy's mode."""
        out = self.outputs(obs)
        return self.head.mode(out) if generator is None else self.head.explore(out, generator)

    def outputs(self, obs: Tensor) -> Tensor:
        """What the network says of raw ``obs [B, D]``."""
        shown = seen(obs, self.normalizer, self.representation)
        return self.actor(self.parameters, shown, self.statistics)


def seen(obs: Tensor, normalizer: RunningNormalizer | None, representation: SelfPrediction | None) -> Tensor:
    """What networks read at raw ``obs [..., D]``."""
    shown = obs if normalizer is None else normalizer.normalize(obs)
    return shown if representation is None else representation.extend(obs, shown)
