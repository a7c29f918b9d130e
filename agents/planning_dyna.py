"""Dyna that plans when it decides: the learned policy proposes, the learned value looks beyond the horizon.

The combination is that of Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", 2023
(policy proposals among the candidates, a terminal value), here around a model of observations and a learner trained
on imagined rollouts as in MBPO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Mode
from agents.common import check_exploration, check_particles, explored, random_action
from agents.dyna import DynaAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.record import Record
from mbrl.models.base import DynamicsModel, State
from mbrl.planning.base import Planner
from mbrl.planning.objective import Objective, RewardTerm, TerminalValue


@dataclass
class PlanningState(ActorState):
    """Planner memory of each environment slot."""

    warm_start: Record


class PlanningDynaAgent(DynaAgent):
    """A :class:`DynaAgent` whose every action is planned with its model, from the observation alone (``encode``).

    Args:
        spec: the environment.
        planner: factory of the planner.
        objective: what is planned for (default: predicted reward and the critics' value of the last state, both
            discounted by 0.99).
        proposals: action sequences of the policy among the planner's candidates.
        exploration_std: Gaussian noise added to planned actions while exploring.
        options: the arguments of :class:`DynaAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        planner: Callable[[EnvSpec], Planner],
        objective: Objective | None = None,
        proposals: int = 4,
        exploration_std: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if proposals < 0:
            raise UserError("proposals", proposals, "give 0 or more")
        check_exploration(spec, exploration_std)
        self.planner = planner(spec)
        check_particles(self.planner, self.model)
        terms = [RewardTerm(discount=0.99), TerminalValue(discount=0.99)]
        self.objective = (objective or Objective(terms)).with_value(self._value)
        self.proposals, self.exploration_std = proposals, exploration_std
        self._bound: DynamicsModel | None = None

    def _value(self, state: State) -> Tensor:
        value: Tensor = self.learner.value(self.model.decode(state), None)
        return value

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
        assert isinstance(actor_state, PlanningState)
        fresh = self.planner.initial(len(obs), self.device)
        if mode == "explore" and self.warming_up:
            return random_action(self.spec.action, len(obs), generator), PlanningState(fresh), {}
        state, model = self.model.encode(obs), self._bound_model()
        proposals = self.propose(model, state, generator) if self.proposals else None
        warm_start = fresh.where(is_first, actor_state.warm_start)
        plan = self.planner.plan(model, self.objective, state, warm_start, proposals, generator=generator)
        action = plan.actions[0]
        if mode == "explore" and self.exploration_std:
            action = explored(action, self.exploration_std, generator)
        return action, PlanningState(plan.warm_start), {}

    def propose(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        """Actions ``[H, K, B, A]`` of the sampled policy, followed in the model without its noise."""
        return proposed(self.learner.act, model, state, (self.planner.horizon, self.proposals), generator)

    def _bound_model(self) -> DynamicsModel:
        if self._bound is None:
            self._bound = self.model.bind()
        return self._bound

    def fit_model(self, clock: Clock) -> dict[str, Any]:
        self._bound = None
        return super().fit_model(clock)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._bound = None


def proposed(
    policy: Callable[[Tensor, Generator], Tensor],
    model: DynamicsModel,
    state: State,
    size: tuple[int, int],
    generator: Generator,
) -> Tensor:
    """``H, K = size``: actions ``[H, K, B, A]`` of ``K`` copies of every row that follow the sampled ``policy`` in
    ``model`` without the model's noise.
    """
    horizon, copies = size
    moving, actions = state.map(lambda x: x.repeat(copies, *[1] * (x.dim() - 1))), []
    for _ in range(horizon):
        actions.append(policy(model.decode(moving), generator))
        moving = model.step(moving, actions[-1], None).state
    found: Tensor = torch.stack(actions).unflatten(1, (copies, -1))
    return found
