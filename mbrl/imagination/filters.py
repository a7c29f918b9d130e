"""What happens to an imagined step before it is stored: penalised, stopped, chosen among several, or dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.record import Record
from mbrl.models.base import DynamicsModel, Estimator, HasDistribution, State, Step, require

Stop = Literal["drop", "terminal", "truncated"]
"""How a row ends: not stored at all, stored as terminated (its value beyond is 0), or stored as truncated."""


@dataclass
class Move(Record):
    """One imagined step of ``B`` rows on its way through the filters.

    Rows that ended at an earlier step still have their place here; what a filter does to them is thrown away.
    """

    state: State
    """``[B]``: where the step started"""
    action: Tensor
    """``[B, A]``"""
    step: Step
    """``[B]``: where it led"""
    keep: Tensor
    """``[B]`` bool: False rows are not stored, and end"""
    columns: dict[str, Tensor]
    """extra columns ``[B]`` or ``[B, ·]`` that are stored with the row"""

    def stop(self, rows: Tensor, how: Stop) -> Move:
        """The move with ``rows [B]`` ended in that way."""
        if how == "drop":
            return replace(self, keep=self.keep & ~rows)
        name = "terminated" if how == "terminal" else "truncated"
        return replace(self, step=replace(self.step, **{name: getattr(self.step, name) | rows}))


class Filter(ABC):
    """One thing done to every imagined step. Filters act in order, each on what the one before it left.

    A new one implements :meth:`__call__`; it works on all rows at once, keeps their number, draws from ``generator``
    only, and does not wait for the device.
    """

    proposes: ClassVar[bool] = False
    """Whether it replaces the next state. Such filters come first: others judge the state that is kept."""
    doubts: ClassVar[bool] = False
    """Whether it asks the model how uncertain it is. Under the true dynamics, which are certain, it is left out."""

    @abstractmethod
    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        """The move after this filter; ``model`` is bound."""


class Score(Protocol):
    """How good a step is: ``[B]``, higher is better."""

    def __call__(self, state: State, action: Tensor, step: Step) -> Tensor: ...


class Failing(Protocol):
    """Which steps fail: ``[B]`` bool."""

    def __call__(self, state: State, action: Tensor, step: Step) -> Tensor: ...


class _UncertaintyFilter(Filter):
    """What the filters that ask the model for its uncertainty share: it is computed once a step and stored."""

    doubts = True

    def __init__(self, kind: Estimator, column: str) -> None:
        if kind not in get_args(Estimator):
            raise UserError("kind", kind, "name an estimator of uncertainty", get_args(Estimator))
        self.kind, self.column = kind, column

    def _measured(self, model: DynamicsModel, move: Move) -> Move:
        if self.column in move.columns:
            return move
        uncertainty = require(model, HasDistribution).uncertainty(move.state, move.action, self.kind)
        return replace(move, columns=move.columns | {self.column: uncertainty})


class UncertaintyPenalty(_UncertaintyFilter):
    """Reward minus ``weight`` times the model's uncertainty.

    Yu, Thomas, Yu, Ermon, Zou, Levine, Finn, Ma, "MOPO: Model-based Offline Policy Optimization", 2020, with
    ``kind="largest_std"``.

    Args:
        kind: the estimator, see :data:`mbrl.models.base.Estimator`.
        weight: factor; negative rewards uncertainty instead.
        column: name of the stored column.
    """

    def __init__(self, kind: Estimator, weight: float, column: str = "uncertainty") -> None:
        super().__init__(kind, column)
        self.weight = weight

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        move = self._measured(model, move)
        reward = move.step.reward - self.weight * move.columns[self.column]
        return replace(move, step=replace(move.step, reward=reward))


class UncertaintyStop(_UncertaintyFilter):
    """Ends rows whose uncertainty is above a threshold.

    Args:
        kind: the estimator, see :data:`mbrl.models.base.Estimator`.
        threshold: rows above it end here.
        stop: how they end.
        column: name of the stored column.
    """

    def __init__(self, kind: Estimator, threshold: float, stop: Stop, column: str = "uncertainty") -> None:
        super().__init__(kind, column)
        self.threshold, self.stop = threshold, _checked_stop(stop)

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        move = self._measured(model, move)
        return move.stop(move.columns[self.column] > self.threshold, self.stop)


class ChooseBest(Filter):
    """Of ``k`` candidate next states of each row, one is kept by its score; the others leave no trace.

    Candidates are independent draws of the model from the same state and action (for an ensemble, each by a random
    elite). With a temperature the choice is a draw from ``softmax(score / temperature)``. Both choices are those of
    Luo, Xu, Cao, Yu, "Reward-Consistent Dynamics Models are Strongly Generalizable for Offline Reinforcement
    Learning", 2024 (MOREC), which scores ten candidates by a learned dynamics reward.

    Args:
        k: candidates, at least 1.
        score: what they are judged by; a candidate whose score is not finite is taken last.
        temperature: 0 takes the best.
        column: the chosen candidate's score is stored under this name.
    """

    proposes = True

    def __init__(self, k: int, score: Score, temperature: float = 0.0, column: str = "score") -> None:
        if k < 1 or not 0.0 <= temperature < float("inf"):
            raise UserError("k, temperature", (k, temperature), "k >= 1, and a finite temperature >= 0")
        self.k, self.score, self.temperature, self.column = k, score, temperature, column

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        state, action, candidates = move.state.map(self._repeated), self._repeated(move.action), move.step
        if self.k > 1:  # the step that was made is one of them
            others = slice(len(move.action), None)
            candidates = type(candidates).cat([candidates, model.step(state[others], action[others], generator)])
        score = self.score(state, action, candidates).view(self.k, -1)
        score = torch.where(score.isfinite(), score, torch.full_like(score, -torch.inf))
        best = self._pick(score, generator)
        rows = torch.arange(len(best), device=best.device)
        step = candidates.map(lambda x: x.view(self.k, -1, *x.shape[1:])[best, rows])
        return replace(move, step=step, columns=move.columns | {self.column: score[best, rows]})

    def _repeated(self, x: Tensor) -> Tensor:
        return x.repeat(self.k, *[1] * (x.dim() - 1))

    def _pick(self, score: Tensor, generator: Generator) -> Tensor:
        """``[B]`` indices into ``score [k, B]``; the largest score plus Gumbel noise is a draw from the softmax."""
        if self.temperature:
            uniform = torch.rand(score.shape, generator=generator, device=score.device, dtype=score.dtype)
            score = score / self.temperature - (-uniform.clamp(min=1e-20).log()).log()
        return score.argmax(0)


class ScoreStop(Filter):
    """Ends rows whose score is below a threshold (or is no number).

    Args:
        threshold: rows below it end here.
        stop: how they end.
        score: what they are judged by; leave out to use the column that a filter before this one has stored.
        column: name of that column.
    """

    def __init__(self, threshold: float, stop: Stop, score: Score | None = None, column: str = "score") -> None:
        self.threshold, self.stop, self.score, self.column = threshold, _checked_stop(stop), score, column

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        if self.score is not None:
            score = self.score(move.state, move.action, move.step)
            move = replace(move, columns=move.columns | {self.column: score})
        elif self.column not in move.columns:
            fix = "no filter before this one stores this column; give a score"
            raise UserError("ScoreStop.column", self.column, fix, move.columns)
        return move.stop(~(move.columns[self.column] >= self.threshold), self.stop)


class Drop(Filter):
    """Rows that fail a test are not stored and end there.

    Args:
        test: which rows fail.
    """

    def __init__(self, test: Failing) -> None:
        self.test = test

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        return move.stop(self.test(move.state, move.action, move.step), "drop")


def check_filters(filters: Sequence[Filter]) -> None:
    """Raise ``UserError`` for filters that contradict each other or stand in an order that makes no sense."""
    judged = False
    kinds: dict[str, str] = {}
    for filter in filters:
        if filter.proposes and judged:
            fix = "it replaces the next state, so it must stand before the filters that judge that state"
            raise UserError("filters", type(filter).__name__, fix)
        judged |= not filter.proposes
        if isinstance(filter, _UncertaintyFilter) and kinds.setdefault(filter.column, filter.kind) != filter.kind:
            fix = f"column {filter.column!r} already holds {kinds[filter.column]}; give this filter another column"
            raise UserError("filters", filter.kind, fix)


def _checked_stop(stop: Stop) -> Stop:
    if stop not in get_args(Stop):
        raise UserError("stop", stop, "say how such rows end: drop, terminal or truncated", get_args(Stop))
    return stop
