"""What a planner maximises: signed terms over imagined trajectories, and constraints that come before them."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.models.base import DynamicsModel, Estimator, HasDistribution, State, Trajectory, require
from mbrl.models.quadratic import QuadraticForm

ValueFunction = Callable[[State], Tensor]
"""Value ``[B]`` of model states ``[B, ...]``."""

INFEASIBLE = -1e30
"""Infeasible candidates score INFEASIBLE * (1 + violation): below every feasible one, the least violating first."""


class NotQuadratic(UserError):
    """An objective, or a term of it, that no convex quadratic form can say."""


class ObjectiveTerm(ABC):
    """One signed summand of an objective."""

    terminal = False
    """Whether it speaks of the last state only."""

    @abstractmethod
    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        """Value ``[P, B]`` of each particle's trajectory under ``actions [H, B, A]``, to be *maximised*."""

    def quadratic(self, spec: EnvSpec) -> QuadraticForm:
        """Minus the term as a cost, a step's (or, of a :attr:`terminal` term, the last state's).

        Raises:
            NotQuadratic: it is no convex quadratic form, or weighs steps differently.
        """
        raise NotQuadratic(
            "objective.terms", type(self).__name__, "it is not quadratic: leave it out, or give another planner"
        )


class RewardTerm(ObjectiveTerm):
    """Discounted sum of predicted rewards; after a predicted termination it adds nothing.

    Args:
        discount: factor per decision.
    """

    def __init__(self, discount: float = 1.0) -> None:
        self.discount = _discount(discount)

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        return _sum_alive(trajectory.reward, trajectory, self.discount)

    def quadratic(self, spec: EnvSpec) -> QuadraticForm:
        declared = QuadraticForm.declared(spec)
        if declared is None:
            fix = f"{spec.id} declares no quadratic cost: declare one, or name QuadraticState and ActionCost instead"
            raise NotQuadratic("objective.terms", "RewardTerm", fix)
        return _undiscounted(self, self.discount, declared)


class TerminalValue(ObjectiveTerm):
    """Value of the last predicted state, where no step has ended the episode.

    Either a value function, which the agent passes at run time (:meth:`Objective.with_value`), or minus a weighted
    squared distance to a target.

    Args:
        coef: factor; positive adds the value.
        discount: factor per decision; the value counts ``discount ** H``.
        weight: weights of squared distances, by observation name or index; leave out to use a value function.
        target: where those entries should be (0 when not named).
    """

    terminal = True

    def __init__(
        self,
        coef: float = 1.0,
        discount: float = 1.0,
        weight: dict[str | int, float] | None = None,
        target: dict[str | int, float] | None = None,
    ) -> None:
        self.coef, self.discount = _finite("coef", coef), _discount(discount)
        self.distance = None if weight is None else _Distance(weight, target)
        self.value: ValueFunction | None = None

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        last = trajectory.states[-1]
        value = self._value(model, last, trajectory.reward.shape[1:])
        value = torch.where(trajectory.terminated.any(0), torch.zeros_like(value), value)
        return value * (self.coef * self.discount ** len(actions))

    def quadratic(self, spec: EnvSpec) -> QuadraticForm:
        if self.distance is None:
            fix = "a value function is not quadratic: give `weight` instead, or another planner"
            raise NotQuadratic("objective.terms", "TerminalValue", fix)
        return _undiscounted(self, self.discount, self.distance.quadratic(spec, self.coef))

    def _value(self, model: DynamicsModel, last: State, shape: torch.Size) -> Tensor:
        if self.distance is not None:
            return -self.distance(model, last)
        if self.value is None:
            raise UserError("objective.terms", "TerminalValue", "no value function was passed; give `weight` instead")
        return self.value(last.map(lambda x: x.flatten(0, 1))).view(shape)


class QuadraticState(ObjectiveTerm):
    """Minus the weighted squared distance to a target, summed over the predicted states while the episode lasts.

    It keeps what a short horizon does not see in view: a cart near the end of its rail, say. Data only, so a recipe
    can write it: ``{weight: {angle: 25.0, 0: 1.0}, coef: 0.05}``.

    Args:
        weight: weights by observation name (all entries of it) or index.
        target: where those entries should be (0 when not named).
        coef: factor; positive is a cost.
        discount: factor per decision.
    """

    def __init__(
        self,
        weight: dict[str | int, float],
        target: dict[str | int, float] | None = None,
        coef: float = 1.0,
        discount: float = 1.0,
    ) -> None:
        self.distance = _Distance(weight, target)
        self.coef, self.discount = _finite("coef", coef), _discount(discount)

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        distance = self.distance(model, trajectory.states[1:])
        return -self.coef * _sum_alive(distance, trajectory, self.discount)

    def quadratic(self, spec: EnvSpec) -> QuadraticForm:
        return _undiscounted(self, self.discount, self.distance.quadratic(spec, self.coef))


class UncertaintyTerm(ObjectiveTerm):
    """The model's uncertainty summed over the predicted steps: a penalty (``coef < 0``) or a bonus (``coef > 0``).

    Args:
        kind: the estimator.
        coef: signed factor.
        discount: factor per decision.
    """

    def __init__(self, kind: Estimator = "std_of_means", coef: float = -1.0, discount: float = 1.0) -> None:
        _choice("kind", kind, get_args(Estimator))
        self.kind = kind
        self.coef, self.discount = _finite("coef", coef), _discount(discount)

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        shape = trajectory.reward.shape
        states = trajectory.states[:-1].map(lambda x: x.flatten(0, 2))
        knowing = require(model, HasDistribution)
        spread = knowing.uncertainty(states, _each_step(actions, shape), self.kind)
        return self.coef * _sum_alive(spread.view(shape), trajectory, self.discount)


class ActionCost(ObjectiveTerm):
    """Minus the squared length of the actions (platform units), summed while the episode lasts.

    Args:
        coef: factor; positive is a cost.
        discount: factor per decision.
    """

    def __init__(self, coef: float = 0.01, discount: float = 1.0) -> None:
        self.coef, self.discount = _finite("coef", coef), _discount(discount)

    def __call__(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        effort = actions.square().sum(-1).unsqueeze(1).expand_as(trajectory.reward)
        return -self.coef * _sum_alive(effort, trajectory, self.discount)

    def quadratic(self, spec: EnvSpec) -> QuadraticForm:
        form = QuadraticForm.zero(spec)
        form.r_matrix = self.coef * torch.eye(spec.action.size, dtype=torch.float64)
        return _undiscounted(self, self.discount, form)


class ConstraintTerm:
    """A bound on a known cost, summed over the horizon; it comes before every term.

    Candidates that break it rank below all that keep it, among themselves by how much they break it (the ranking of
    Wen, Topcu: Constrained Cross-Entropy Method for Safe Reinforcement Learning, 2018).

    Args:
        cost: name of a cost of the environment's spec.
        limit: largest allowed sum over the horizon.
        particles: judge the mean particle or the worst one.
        discount: factor per decision.
    """

    def __init__(
        self, cost: str, limit: float, particles: Literal["mean", "worst"] = "mean", discount: float = 1.0
    ) -> None:
        self.cost, self.limit = cost, _finite("limit", limit)
        _choice("particles", particles, ("mean", "worst"))
        self.particles = particles
        self.discount = _discount(discount)

    def violation(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        """``[B]``: by how much the limit is exceeded, 0 where it is kept."""
        obs, shape = model.decode(trajectory.states), trajectory.reward.shape
        before, after = obs[:-1].flatten(0, 2), obs[1:].flatten(0, 2)
        cost = model.spec.known_cost(self.cost, before, _each_step(actions, shape), after)
        total = _sum_alive(cost.view(shape), trajectory, self.discount)
        judged = _sum_first(total) / len(total) if self.particles == "mean" else total.amax(0)
        return (judged - self.limit).clamp(min=0.0)


class Objective:
    """Sum of terms, averaged over particles, after constraints. A candidate whose score is not finite scores -inf.

    A score is not finite either when a state or reward predicted before the episode's end is not finite, even if no
    term reads it: a model that diverges is never rewarded for it.

    Args:
        terms: the summands (default: the reward alone).
        constraints: bounds that come first.
    """

    def __init__(
        self, terms: Sequence[ObjectiveTerm] | None = None, constraints: Sequence[ConstraintTerm] | None = None
    ) -> None:
        self.terms = list(terms) if terms is not None else [RewardTerm()]
        self.constraints = list(constraints or [])
        if not self.terms:
            raise UserError("objective.terms", [], "give at least one term, or leave it out for the reward alone")

    def with_value(self, value: ValueFunction) -> Objective:
        """A copy whose terminal values use this value function."""
        bound = copy.copy(self)
        bound.terms = [copy.copy(term) for term in self.terms]
        for term in bound.terms:
            if isinstance(term, TerminalValue) and term.distance is None:
                term.value = value
        return bound

    def score(self, model: DynamicsModel, trajectory: Trajectory, actions: Tensor) -> Tensor:
        """``[B]`` score of candidates ``actions [H, B, A]`` from the trajectory they led to."""
        parts = [term(model, trajectory, actions) for term in self.terms]
        value = _sum_first(functools.reduce(torch.add, parts)) / len(parts[0])
        broken = _diverged(trajectory) | ~value.isfinite()
        for constraint in self.constraints:
            violation = constraint.violation(model, trajectory, actions)
            broken = broken | ~violation.isfinite()
            value = torch.where(violation > 0, _infeasible(value, violation), value)
        return value.masked_fill(broken, -torch.inf)

    def quadratic(
        self, spec: EnvSpec, reward: QuadraticForm | None = None
    ) -> tuple[QuadraticForm, QuadraticForm | None]:
        """Minus the objective as what a step costs, and what the last state costs beside that.

        Ends are not seen: a cost goes on after a predicted termination.

        Args:
            spec: the environment, which may declare a quadratic cost.
            reward: stands for the reward where the environment declares none.

        Raises:
            NotQuadratic: a constraint, or a term that is no convex quadratic form or is discounted; it is named.
        """
        if self.constraints:
            seen = [constraint.cost for constraint in self.constraints]
            raise NotQuadratic("objective.constraints", seen, "a quadratic planner takes bounds of its own instead")
        stage = QuadraticForm.zero(spec)
        terminal: QuadraticForm | None = None
        for term in self.terms:
            cost = self._form_of(term, spec, reward)
            if term.terminal:
                terminal = cost if terminal is None else terminal + cost
            else:
                stage = stage + cost
        for form in (stage, terminal):
            if form is not None and not form.is_convex():
                seen = [type(term).__name__ for term in self.terms]
                fix = "their sum has no lowest cost: weights and coef must be positive"
                raise NotQuadratic("objective.terms", seen, fix)
        return stage, terminal

    @staticmethod
    def _form_of(term: ObjectiveTerm, spec: EnvSpec, reward: QuadraticForm | None) -> QuadraticForm:
        if isinstance(term, RewardTerm) and spec.quadratic is None and reward is not None:
            return _undiscounted(term, term.discount, reward)
        return term.quadratic(spec)


def _undiscounted(term: ObjectiveTerm, discount: float, form: QuadraticForm) -> QuadraticForm:
    if discount != 1.0:
        fix = f"of {type(term).__name__}: a quadratic planner weighs all steps alike; leave it at 1.0"
        raise NotQuadratic("discount", discount, fix)
    return form


class _Distance:
    """Sum of ``weight * (obs - target)^2`` over named or numbered entries of an observation."""

    def __init__(self, weight: Mapping[str | int, float], target: Mapping[str | int, float] | None) -> None:
        if not weight:
            raise UserError("weight", weight, "name at least one observation entry")
        for name, value in (*weight.items(), *(target or {}).items()):
            _finite(f"weight or target of {name}", value)
        self.weight, self.target = dict(weight), dict(target or {})
        for name in self.target:
            if name not in self.weight:
                raise UserError("target", name, "has no weight", map(str, self.weight))
        self._resolved: dict[tuple[str, str, str], tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, model: DynamicsModel, states: State) -> Tensor:
        obs = model.decode(states)
        key = model.spec.id, model.spec.fingerprint, str(obs.device)
        if key not in self._resolved:
            self._resolved[key] = self._resolve(model.spec, obs.device)
        index, weight, target = self._resolved[key]
        return (obs.index_select(-1, index) - target).square() @ weight.to(obs.dtype)

    def quadratic(self, spec: EnvSpec, coef: float) -> QuadraticForm:
        """``coef`` times the distance, as a cost of the observation."""
        form = QuadraticForm.zero(spec)
        for index, weight, target in self._rows(spec):
            form.p_matrix[index, index] += coef * weight
            form.p_vector[index] -= 2.0 * coef * weight * target
            form.constant += coef * weight * target**2
        return form

    def _rows(self, spec: EnvSpec) -> list[tuple[int, float, float]]:
        return [(i, w, self.target.get(name, 0.0)) for name, w in self.weight.items() for i in entries(spec, name)]

    def _resolve(self, spec: EnvSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        index, weight, target = zip(*self._rows(spec), strict=True)
        return (
            torch.tensor(index, device=device),
            torch.tensor(weight, device=device),
            torch.tensor(target, device=device),
        )


def entries(spec: EnvSpec, name: str | int, field: str = "weight") -> Sequence[int]:
    """Observation entries behind a name of the layout, or an index (as an int or its digits)."""
    if isinstance(name, str) and name in spec.layout:
        return range(spec.obs_size)[spec.layout[name]]
    if isinstance(name, int) or name.isdecimal():
        if 0 <= int(name) < spec.obs_size:
            return [int(name)]
        raise UserError(field, name, f"{spec.id} has {spec.obs_size} observation entries, counted from 0")
    names = ", ".join(spec.layout) or "none"
    raise UserError(field, name, f"{spec.id} names these observation parts: {names}; or give an index", spec.layout)


def _sum_alive(step_values: Tensor, trajectory: Trajectory, discount: float) -> Tensor:
    """``[P, B]`` discounted sum of ``[H, P, B]``; nothing after an end counts, not even what is not finite."""
    step_values = torch.where(trajectory.alive() > 0.5, step_values, torch.zeros_like(step_values))
    if discount != 1.0:
        powers = discount ** torch.arange(len(step_values), device=step_values.device, dtype=step_values.dtype)
        step_values = step_values * powers.view(-1, 1, 1)
    return _sum_first(step_values)


def _sum_first(x: Tensor) -> Tensor:
    """Sum over the first dimension, column by column: a plain ``sum(0)`` takes columns in blocks, and its rounding
    would depend on how many candidates stand side by side.
    """
    return x.movedim(0, -1).contiguous().sum(-1)


def _diverged(trajectory: Trajectory) -> Tensor:
    """``[B]``: some particle met a state or reward that is not finite before its episode's end."""
    # a sum over entries is finite only if all of them are
    probe = trajectory.states.obs[1:].flatten(3).sum(-1) + trajectory.reward
    return (~probe.isfinite() & (trajectory.alive() > 0.5)).any(0).any(0)


def _infeasible(value: Tensor, violation: Tensor) -> Tensor:
    """Scores of infeasible candidates; violations of several constraints add up."""
    before = torch.where(value <= INFEASIBLE, value, torch.full_like(value, INFEASIBLE))
    return before + INFEASIBLE * violation.clamp(max=1e6)


def _each_step(actions: Tensor, shape: torch.Size) -> Tensor:
    """``actions [H, B, A]`` for every step of every particle: ``[H * P * B, A]``."""
    return actions.unsqueeze(1).expand(*shape, -1).flatten(0, 2)


def _discount(value: float) -> float:
    if not 0.0 < value <= 1.0:
        raise UserError("discount", value, "must lie in (0, 1]")
    return value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise UserError(name, value, "must be a finite number")
    return value


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(name, value, f"must be one of {', '.join(choices)}", choices)
