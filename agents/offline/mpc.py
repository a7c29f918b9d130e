"""Planning from a fixed dataset: a model fitted to the data, an objective that doubts it, proposals of a policy that
was learned from the same data.

After Argenson, Dulac-Arnold, "Model-Based Offline Planning", 2021 (a cloned policy proposes, an ensemble judges), with
the penalty on the ensemble's uncertainty of Yu et al., "MOPO: Model-based Offline Policy Optimization", 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Mode
from agents.common import check_particles
from agents.offline.base import Learner
from agents.offline.model_based import OfflineModelAgent
from agents.planning_dyna import PlanningState, proposed
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.fitting import ModelFitter
from mbrl.models.base import DynamicsModel
from mbrl.planning.base import Planner
from mbrl.planning.objective import Objective, RewardTerm, UncertaintyTerm


class OfflineMPCAgent(OfflineModelAgent):
    """Plans every action with a model of the data. A run's steps are gradient steps of the policy that proposes.

    Under the true dynamics (``model: Simulator``) terms of the model's uncertainty are left out of the objective.

    Args:
        spec: the environment that the data is from.
        planner: factory of the planner.
        learner: factory of what learns the policy that proposes: behaviour cloning, say.
        objective: what is planned for (default: predicted reward minus the std of the members' means).
        proposals: action sequences of the sampled policy among the planner's candidates.
        options: the arguments of :class:`~agents.offline.model_based.OfflineModelAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        planner: Callable[[EnvSpec], Planner],
        learner: Callable[[EnvSpec], Learner],
        objective: Objective | None = None,
        proposals: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(spec, learner=learner, **options)
        if proposals < 0:
            raise UserError("proposals", proposals, "give 0 or more")
        self.planner, self.proposals = planner(spec), proposals
        check_particles(self.planner, self.model)
        objective = objective or Objective([RewardTerm(), UncertaintyTerm()])
        self.objective = objective if self.learned else certain(objective)
        self.wants_sim_state = getattr(self.model, "wants_sim_state", False)
        self._bound: DynamicsModel | None = None

    def initial_actor_state(self, slots: int) -> PlanningState:
        return PlanningState(self.planner.initial(slots, self.device))

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """The first action of a plan, from the observation alone (``encode``)."""
        assert isinstance(actor_state, PlanningState)
        state, model = self.model.encode(obs, sim_state=sim_state), self._bound_model()
        size = self.planner.horizon, self.proposals
        proposals = proposed(self.learner.act, model, state, size, generator) if self.proposals else None
        warm_start = self.planner.initial(len(obs), self.device).where(is_first, actor_state.warm_start)
        plan = self.planner.plan(model, self.objective, state, warm_start, proposals, generator=generator)
        return plan.actions[0], PlanningState(plan.warm_start), {"plan_value": plan.value}

    def _bound_model(self) -> DynamicsModel:
        if self._bound is None:
            self._bound = self.model.bind()
        return self._bound

    def fit_model(self, fitter: ModelFitter) -> dict[str, Any]:
        self._bound = None
        return super().fit_model(fitter)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._bound = None


def certain(objective: Objective) -> Objective:
    """The objective without the terms that ask for the model's uncertainty."""
    kept = copy.copy(objective)
    kept.terms = [term for term in objective.terms if not isinstance(term, UncertaintyTerm)]
    if not kept.terms:
        raise UserError("objective.terms", "UncertaintyTerm", "nothing is left of it under the true dynamics")
    return kept
