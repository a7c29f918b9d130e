"""The frame that controllers of lifted linear models share: which quadratic to solve for, and who plans without one."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.models.base import DynamicsModel, LacksCapability, LatentLinear, LinearParts, State, require
from mbrl.models.quadratic import QuadraticForm, QuadraticReward
from mbrl.planning.base import NoMemory, Plan, Planner
from mbrl.planning.objective import NotQuadratic, Objective
from mbrl.planning.search import check_counts, check_share

_log = logging.getLogger(__name__)

PlannerFactory = Callable[[EnvSpec], Planner]


@dataclass
class LiftedMemory(Record):
    """What a controller remembers of ``B`` environments, already shifted by one step."""

    plan: Tensor
    """``[B, H, A]`` float64"""
    dual: Tensor
    """``[B, M]`` float64: multipliers of the constraints, where the controller has any"""
    fallback: Record
    """Memory of the planner that plans where there is no quadratic"""


@dataclass(frozen=True)
class Lifted:
    """A lifted model and a convex cost of its observations: what a controller solves."""

    parts: LinearParts
    stage: QuadraticForm
    """of every step"""
    terminal: QuadraticForm | None
    """of the last state, beside the stage cost"""
    lift: Callable[[Tensor], Tensor]
    fitted: bool
    """whether the reward's form was fitted to data, not declared"""


class LiftedPlanner(Planner):
    """Solves for actions in closed form where the model is lifted and linear and the objective quadratic.

    Which quadratic: that of the objective, if all its terms have one. Where only the reward has none and the model
    carries a fitted form of it (``reward_form``), that form, if it explains ``min_r2`` of the variance. Else the
    fallback plans, and a message says once why; without a fallback that is an error. ``stats`` says who planned:
    ``quadratic`` is 1 for a declared form, 2 for a fitted one, 0 for the fallback.

    What depends on the model only is computed once and again when the model has changed.

    Args:
        spec: the environment; actions must be continuous.
        horizon: H, decisions to look ahead.
        action_limit: bound on |action|, at most 1.
        min_r2: least explained variance of a fitted reward.
        fallback: factory of the planner that plans where this one cannot.
    """

    def __init__(
        self, spec: EnvSpec, horizon: int, action_limit: float, min_r2: float, fallback: PlannerFactory | None
    ) -> None:
        super().__init__(spec, horizon)
        check_counts(horizon=horizon)
        check_share("action_limit", action_limit, low_open=True)
        if spec.action.discrete:
            raise UserError("planner", type(self).__name__, f"{spec.id} has discrete actions; use CEM or ICEM")
        if not min_r2 <= 1.0:
            raise UserError("min_r2", min_r2, "give a share of explained variance, at most 1")
        self.action_limit, self.min_r2 = action_limit, min_r2
        self.fallback = None if fallback is None else fallback(spec)
        self._told = False
        self._cache: tuple[Objective, float, Lifted, Any] | None = None

    @abstractmethod
    def _prepare(self, task: Lifted) -> Any:
        """What depends on the model and the objective only."""

    @abstractmethod
    def _control(self, task: Lifted, prepared: Any, latent: Tensor, memory: LiftedMemory) -> Plan:
        """The plan from ``latent [B, N]`` float64; its warm start is a :class:`LiftedMemory`."""

    @property
    def _duals(self) -> int:
        """Constraints whose multipliers are remembered."""
        return 0

    def initial(self, batch: int, device: Any = "cpu") -> LiftedMemory:
        plan = torch.zeros(batch, self.horizon, self.spec.action.size, dtype=torch.float64, device=device)
        dual = torch.zeros(batch, self._duals, dtype=torch.float64, device=device)
        return LiftedMemory(plan, dual, self.fallback.initial(batch, device) if self.fallback else NoMemory())

    @torch.no_grad()
    def plan(
        self,
        model: DynamicsModel,
        objective: Objective,
        state: State,
        warm_start: Record | None,
        proposals: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Plan:
        """As in the base class; ``proposals`` and ``generator`` are for the fallback, nothing else is random."""
        obs = model.decode(state)
        memory = self.initial(len(obs), obs.device) if warm_start is None else _own(warm_start)
        try:
            task, prepared = self._task(model, objective)
        except (NotQuadratic, LacksCapability) as obstacle:  # another error is the user's to mend
            fallback = self._fall_back(obstacle)
            plan = fallback.plan(model, objective, state, memory.fallback, proposals, generator=generator)
            plan.warm_start = LiftedMemory(memory.plan, memory.dual, plan.warm_start)
            plan.stats["quadratic"] = torch.tensor(0)
            return plan
        plan = self._control(task, prepared, task.lift(obs).double(), memory)
        plan.actions, plan.value = plan.actions.to(obs.dtype), plan.value.to(obs.dtype)
        plan.stats["quadratic"] = torch.tensor(2 if task.fitted else 1)
        return plan

    def _fall_back(self, obstacle: UserError) -> Planner:
        if self.fallback is None:
            fix = f"{obstacle.fix}; or give {type(self).__name__} a `fallback` planner"
            raise UserError(obstacle.field, obstacle.seen, fix) from obstacle
        if not self._told:
            self._told = True
            name, other = type(self).__name__, type(self.fallback).__name__
            _log.warning("%s does not plan, its fallback %s does: %s", name, other, obstacle)
        return self.fallback

    # -- which quadratic -------------------------------------------------------------------------------------------

    def _task(self, model: DynamicsModel, objective: Objective) -> tuple[Lifted, Any]:
        """The task and what was prepared for it: kept while neither model nor objective change."""
        lifted, reward = require(model, LatentLinear), _reward_form(model)
        parts, r2 = lifted.linear_parts().to("cpu"), float(reward.r2) if reward else torch.nan
        if self._cache:
            before, its_r2, task, prepared = self._cache
            # a refit changes the parts in place or not: only their values tell
            if before is objective and (its_r2 == r2 or reward is None) and _same(task.parts, parts):
                return task, prepared
        stage, terminal, fitted = self._forms(objective, reward)
        task = Lifted(parts.clone(), stage, terminal, lifted.lift, fitted)
        self._cache = objective, r2, task, self._prepare(task)
        return task, self._cache[-1]

    def _forms(
        self, objective: Objective, reward: QuadraticReward | None
    ) -> tuple[QuadraticForm, QuadraticForm | None, bool]:
        try:
            return *objective.quadratic(self.spec), False
        except NotQuadratic:
            if reward is None:
                raise
        # raises where the reward is not the only obstacle
        forms = objective.quadratic(self.spec, reward.form().to("cpu"))
        r2 = float(reward.r2)
        if -torch.inf < r2 < self.min_r2:  # a form that was never fitted costs nothing: the plan is to do nothing
            fix = (
                f"the convex quadratic form fitted to the rewards of {self.spec.id} explains {r2:.3f} of their "
                f"variance, less than min_r2 {self.min_r2:g}: describe the goal with QuadraticState and ActionCost, "
                "or declare `quadratic` in the environment"
            )
            raise NotQuadratic("objective.terms", "RewardTerm", fix)
        return *forms, True


def _reward_form(model: DynamicsModel) -> QuadraticReward | None:
    found = getattr(model, "reward_form", None)
    return found if isinstance(found, QuadraticReward) else None


def _same(one: LinearParts, other: LinearParts) -> bool:
    pairs = zip(one._values(), other._values(), strict=True)
    return all((a is None and b is None) or (a is not None and b is not None and a.equal(b)) for a, b in pairs)


def _own(warm_start: Record) -> LiftedMemory:
    if not isinstance(warm_start, LiftedMemory):
        raise UserError("warm_start", type(warm_start).__name__, "pass the warm start of this planner's last plan")
    return warm_start


def shifted(plan: Tensor) -> Tensor:
    """``[B, H, ...]`` one step ahead in time; the last step is repeated."""
    return torch.cat([plan[:, 1:], plan[:, -1:]], 1)
