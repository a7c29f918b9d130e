"""Offline Dyna whose imagined steps are chosen, and ended, by a learned reward of the dynamics.

Luo, Xu, Cao, Yu, "Reward-Consistent Dynamics Models are Strongly Generalizable for Offline Reinforcement Learning",
2024 (MOREC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agents.actor_critic.learner import ActorCritic
from agents.offline.model_based import OfflineDynaAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.fitting import ModelFitter
from mbrl.imagination.filters import ChooseBest, Filter, ScoreStop, Stop
from mbrl.models.dynamics_reward import DynamicsReward

SCORE = "dynamics_reward"


class RewardConsistentAgent(OfflineDynaAgent):
    """:class:`OfflineDynaAgent` with two filters before its others: of several candidates one is kept by its dynamics
    reward, and rollouts end where even that is low. So they may be long.

    The dynamics reward is learned from the data right after the model. With a penalty among the filters it is
    MOREC-MOPO, with one on the target MOREC-MOBILE.

    Args:
        spec: the environment that the data is from.
        learner: factory of the actor-critic.
        reward: factory of the dynamics reward.
        candidates: next states drawn for every step, 10 as published (5 elites, 2 draws each).
        temperature: of the draw among them; 0 takes the best, which loses where candidates are good already.
        threshold: a step of lower dynamics reward ends its row; log 2 = 0.693 is the reward of a perfect imitation.
        stop: how such rows end. ``terminal``, as published, is a value of 0 from there on: pessimistic where rewards
            are positive, optimistic where they are negative; ``drop`` and ``truncated`` say nothing of the value.
        filters: further filters, in order.
        options: the arguments of :class:`OfflineDynaAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], ActorCritic],
        reward: Callable[[EnvSpec], DynamicsReward] = DynamicsReward,
        candidates: int = 10,
        temperature: float = 0.1,
        threshold: float = 0.6,
        stop: Stop = "terminal",
        filters: list[Filter] | None = None,
        **options: Any,
    ) -> None:
        self.reward = reward(spec)
        chosen: Sequence[Filter] = [
            ChooseBest(candidates, self.reward, temperature, SCORE),
            ScoreStop(threshold, stop, column=SCORE),
        ]
        super().__init__(spec, learner=learner, filters=[*chosen, *(filters or [])], **options)
        if not self.learned:
            raise UserError(
                "model", type(self.model).__name__, "the true dynamics leave nothing to choose: learn a model"
            )
        self.reward.to(self.device)

    def fit_model(self, fitter: ModelFitter) -> dict[str, Any]:
        """Train the model, then the dynamics reward, on all data."""
        report = super().fit_model(fitter)
        generator = seeding.generator(self.run_seed, "dynamics reward", device=self.device)
        return report | self.reward.fit(self.data.all().to(self.device), generator)

    def describe(self, rows: Any) -> dict[str, float]:
        """Their mean dynamics reward, too."""
        return super().describe(rows) | {SCORE: float(rows.extra[SCORE].mean())}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {SCORE: self.reward.learned_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.reward.load_learned_state(state[SCORE])
