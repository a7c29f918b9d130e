"""The control that every learned agent is compared with."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode


class RandomAgent(Agent):
    """Acts uniformly at random in the action space and learns nothing."""

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """Uniform actions ``[N, A]`` in [-1, 1], or one-hot rows, one for each row of ``obs [N, D]``."""
        slots, size = len(obs), self.spec.action.size
        if self.spec.action.discrete:
            choice = torch.randint(size, (slots,), generator=generator, device=generator.device)
            return torch.nn.functional.one_hot(choice, size).float().to(obs.device), actor_state, {}
        uniform = torch.rand(slots, size, generator=generator, device=generator.device)
        return (2.0 * uniform - 1.0).to(obs.device), actor_state, {}
