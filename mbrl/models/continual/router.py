"""Which task is this? Answered from how well each task's model predicts, for tasks that come without ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel

Event = Literal["same", "doubt", "switch", "new"]
"""What an update found: nothing, that the task may have changed (the answer follows a window later), that it is now
another known task, or that it is none of the known ones."""


@dataclass(frozen=True)
class Thresholds:
    """Mean squared one-step errors of a window, each dimension in units of its scale.

    The defaults are those of a boundary-free adaptation of HyperCRL; they mean something only in its units, so
    :func:`calibrate` them.
    """

    shift: float = 0.05
    """the current task's error above which it is doubted"""
    reuse: float = 0.03
    """a known task's error below which it is taken for the present one"""


@dataclass(frozen=True)
class Route:
    """The router's answer after one transition."""

    task: int | None
    """the task it takes the present one for; None: unknown"""
    event: Event


class Router:
    """Watches one stream of transitions and says which known task it is of.

    The current task's mean error over the last ``window`` transitions is watched; above ``shift`` at ``triggers``
    steps in a row, the task is in doubt. Then a window of new transitions is gathered, so that none from before the
    change speaks, and every known model is asked: the best is the task if its error is below ``reuse``, else the task
    is new. An unknown task is judged again after every window. After an answer, ``cooldown`` steps pass in peace.

    The window, the two triggers and the cooldown are those of the adaptation named at :class:`Thresholds`; the clean
    window is ours.

    Args:
        scale: ``[D]`` unit of each observation dimension's error, common to all tasks.
        thresholds: see there.
        window: transitions that an error is averaged over.
        triggers: steps in a row above ``shift``.
        cooldown: steps after an answer.
    """

    def __init__(
        self,
        scale: Tensor,
        thresholds: Thresholds | None = None,
        window: int = 32,
        triggers: int = 2,
        cooldown: int = 32,
    ) -> None:
        if window < 1 or triggers < 1 or cooldown < 0:
            raise UserError("window, triggers, cooldown", (window, triggers, cooldown), "at least 1, 1 and 0")
        self.scale, self.thresholds = scale, thresholds or Thresholds()
        self.window, self.triggers, self.cooldown = window, triggers, cooldown
        self.models: dict[int, DynamicsModel] = {}
        self.current: int | None = None
        self._errors: list[float] = []
        self._rows: list[Tensor] = []
        self._doubting, self._above, self._quiet = True, 0, 0

    def add(self, task: int, model: DynamicsModel) -> None:
        """Know a task, by its bound model; an id that is known gets the new model."""
        self.models[task] = model

    def start(self, task: int) -> None:
        """Be told what the task is."""
        self._check(task)
        self._settle(task)

    def update(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Route:
        """Hear one transition, ``obs [D]``, ``action [A]``, ``next_obs [D]``."""
        row = torch.cat([obs, action, next_obs])
        if self._doubting:
            return self._gather(row)
        assert self.current is not None
        error = one_step_errors(self.models[self.current], *self._parts(row[None]), self.scale)
        self._errors = [*self._errors, float(error)][-self.window :]
        self._quiet = max(0, self._quiet - 1)
        above = sum(self._errors) / self.window > self.thresholds.shift and not self._quiet
        self._above = self._above + 1 if above else 0
        if self._above < self.triggers:
            return Route(self.current, "same")
        self._doubting, self._rows = True, []
        return Route(self.current, "doubt")

    def _gather(self, row: Tensor) -> Route:
        """Wait for a window of rows, then judge it."""
        self._rows.append(row)
        if len(self._rows) < self.window:
            return Route(self.current, "same")
        before = self.current
        found = self.judge(*self._parts(torch.stack(self._rows)))
        self._settle(found)
        if found is None:
            return Route(None, "new")
        return Route(found, "same" if found == before else "switch")

    def judge(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> int | None:
        """The task that rows ``[N, ...]`` are of, or None: none of the known ones."""
        errors = {
            task: float(one_step_errors(model, obs, action, next_obs, self.scale).mean())
            for task, model in self.models.items()
        }
        best = min(errors, key=errors.__getitem__, default=None)
        return best if best is not None and errors[best] < self.thresholds.reuse else None

    def _settle(self, task: int | None) -> None:
        self.current, self._errors, self._rows = task, [], []
        self._doubting, self._above, self._quiet = task is None, 0, self.cooldown

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = len(self.scale)
        return rows[:, :size], rows[:, size:-size], rows[:, -size:]

    def _check(self, task: int) -> None:
        if task not in self.models:
            known = ", ".join(map(str, self.models)) or "none yet"
            raise UserError("task", task, f"the router has no model of it; known: {known}")

    def state_dict(self) -> dict[str, Any]:
        """Everything but the models, which are bound anew."""
        rows = torch.stack(self._rows) if self._rows else torch.zeros(0)
        counters = {"doubting": self._doubting, "above": self._above, "quiet": self._quiet, "current": self.current}
        return {"thresholds": asdict(self.thresholds), "errors": list(self._errors), "rows": rows} | counters

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds = Thresholds(**state["thresholds"])
        self._errors, self._rows = list(state["errors"]), list(state["rows"])
        self._doubting, self._above, self._quiet = state["doubting"], state["above"], state["quiet"]
        self.current = state["current"]


@torch.no_grad()
def one_step_errors(model: DynamicsModel, obs: Tensor, action: Tensor, next_obs: Tensor, scale: Tensor) -> Tensor:
    """``[N]`` squared error of the predicted next observation, mean over dimensions in units of ``scale [D]``."""
    said = model.step(model.encode(obs), action, None).state
    return ((model.decode(said) - next_obs) / scale).square().mean(-1)


def calibrate(
    models: Mapping[int, DynamicsModel], streams: Mapping[int, Transitions], scale: Tensor, window: int = 32
) -> Thresholds:
    """Thresholds from a stream ``[N]`` of consecutive rows of every known task; freeze them, judge on other seeds.

    ``shift`` is the 0.99 quantile of windows' errors under their own task's model. ``reuse`` lies between that and the
    0.01 quantile of the best error under a model of another task, which stands for a task that is not known: their
    geometric mean. Where tasks overlap so much that the latter is smaller, it is ``shift``.

    Raises:
        UserError: fewer than two tasks, a task without its stream, or a stream shorter than a window.
    """
    if len(models) < 2 or set(models) != set(streams):
        raise UserError("models, streams", (sorted(models), sorted(streams)), "give two tasks or more, each with both")
    if min(len(stream) for stream in streams.values()) < window:
        raise UserError("streams", "shorter than a window", f"give at least {window} consecutive rows of each task")
    own, other = [], []
    for task, stream in streams.items():
        rows = stream.obs, stream.action, stream.next_obs
        errors = {known: _windows(one_step_errors(m, *rows, scale), window) for known, m in models.items()}
        own.append(errors.pop(task))
        other.append(torch.stack(list(errors.values())).amin(0))
    matched, foreign = float(torch.cat(own).quantile(0.99)), float(torch.cat(other).quantile(0.01))
    return Thresholds(shift=matched, reuse=max(matched, math.sqrt(matched * foreign)))


def _windows(errors: Tensor, window: int) -> Tensor:
    """Mean of every ``window`` consecutive entries."""
    return errors.unfold(0, window, 1).mean(-1)


def error_scale(rows: Transitions) -> Tensor:
    """``[D]`` standard deviation of the change of each observation dimension; 1 where it does not change."""
    std = (rows.next_obs - rows.obs).std(0)
    return torch.where(std > 1e-6, std, torch.ones_like(std))
