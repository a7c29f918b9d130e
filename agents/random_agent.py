"""The control that every learned agent is compared with."""

from __future__ import annotations

from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode, TaskLearner
from agents.common import random_action


class RandomAgent(Agent, TaskLearner):
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
        return random_action(self.spec.action, len(obs), generator).to(obs.device), actor_state, {}
