"""Model-predictive control over a sequence of tasks, with a model that keeps what it learned of the old ones.

Huang, Xie, Bharadhwaj, Shkurti, "Continual Model-Based Reinforcement Learning with Hypernetworks", 2021 (HyperCRL),
with any planner, and with any way to remember: the hypernetwork is one model among several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agents.base import TaskLearner
from agents.mpc import MPCAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.fitting import ModelFitter
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.base import ContinualModel
from mbrl.planning.base import Planner
from mbrl.planning.objective import Objective

KEPT = ("targets", "rows", "fisher", "anchor")
"""Parts of a task's memory that only serve to remember it."""


class ContinualMPCAgent(MPCAgent, TaskLearner):
    """Plans every action with the current task's model; of every task, learns from its own transitions only.

    A task begins with random actions. Its transitions are forgotten when it ends, so that what is kept of old tasks is
    what the model keeps: with a hypernetwork no transition at all.

    Args:
        spec: the first task's environment; of the others' only what is known of rewards and ends may differ.
        model: factory of a :class:`~mbrl.models.continual.base.ContinualModel`.
        planner: factory of the planner.
        fitter: how the model is trained, see :class:`~mbrl.fitting.continual.ContinualFitter`.
        objective: what is planned for (default: the predicted reward).
        warmup_steps: random env steps at the beginning of each task.
        fit_every: env steps between fits, counted from the end of a task's warm-up; a task ends with a fit if anything
            came since the last one.
        action_limit, exploration_std, device: as of :class:`~agents.mpc.MPCAgent`.
        capacity: transitions of a task that are kept while it lasts.
    """

    needs_tasks = True

    def __init__(
        self,
        spec: EnvSpec,
        model: Callable[[EnvSpec], DynamicsModel],
        planner: Callable[[EnvSpec], Planner],
        fitter: ModelFitter,
        objective: Objective | None = None,
        warmup_steps: int = 200,
        fit_every: int = 50,
        action_limit: float = 1.0,
        exploration_std: float = 0.0,
        capacity: int = 1_000_000,
        device: str = "cpu",
    ) -> None:
        limits = action_limit, exploration_std, capacity
        super().__init__(spec, model, planner, objective, fitter, warmup_steps, fit_every, *limits, device=device)
        if not isinstance(self.model, ContinualModel):
            fix = "give a model of task sequences (HyperNetwork, SharedTrunk, SingleModels, Replay, ...)"
            raise UserError("agent.init_args.model", type(self.model).__name__, fix)
        if warmup_steps < 1:
            raise UserError("agent.init_args.warmup_steps", warmup_steps, "a task begins with at least 1 random step")
        self.tasks: ContinualModel = self.model
        self.within = Clock()
        """Env steps of the current task."""
        self.learned_at = 0
        self._acting: int | None = None

    # -- tasks -----------------------------------------------------------------------------------------------------

    def start_task(self, task: int, spec: EnvSpec) -> None:
        self.tasks.start_task(task, self.generator, spec)
        self.within, self.learned_at, self._bound = Clock(), 0, None

    def end_task(self, task: int, clock: Clock) -> dict[str, dict[str, Any]]:
        """Fit what came last, let the model keep of the task what it keeps, and forget its transitions."""
        assert self.fitter is not None
        found = self.learn(self.fitter, clock) if self.within.env_steps > self.learned_at else {}
        self.tasks.end_task(task, self.buffers["real"].all().to(self.device), self.generator)
        self.buffers["real"].forget()
        self._bound = None
        return found

    def attach_task(self, task: int, spec: EnvSpec) -> None:
        self.tasks.attach_spec(task, spec)

    @contextmanager
    def acting_on(self, task: int) -> Iterator[None]:
        before = self._acting, self._bound
        self._acting, self._bound = task, None
        try:
            yield
        finally:
            self._acting, self._bound = before

    def knows(self, task: int) -> bool:
        return bool(self.tasks.slot(task).fitted)

    def model_of(self, task: int) -> DynamicsModel:
        return self.tasks.bind(task)

    def costs(self, task: int) -> dict[str, float]:
        parts = self.tasks.memory_bytes(task)
        return {
            "task_memory_bytes": sum(parts.values()),
            "kept_bytes": sum(size for part, size in parts.items() if part in KEPT),
            "shared_bytes": self.tasks.shared_bytes(),
            "stored_rows": sum(self.tasks.stored_rows().values()),
        }

    def _bound_model(self) -> DynamicsModel:
        if self._bound is None:
            self._bound = self.tasks.bind(self._newest() if self._acting is None else self._acting)
        return self._bound

    def _newest(self) -> int:
        """The open task, or the one that ended last."""
        if not self.tasks.tasks:
            raise UserError("task", None, "no task has been started: call start_task first")
        return self.tasks.tasks[-1]

    def _warming_up(self) -> bool:
        return self.within.env_steps < self.warmup_steps

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, transitions: Transitions) -> None:
        super().observe(transitions)
        self.within.tick(len(transitions))

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        assert self.fitter is not None
        if not self.within.due(self.fit_every, offset=self.warmup_steps):
            return {}
        return self.learn(self.fitter, clock)

    def learn(self, fitter: ModelFitter, clock: Clock) -> dict[str, dict[str, Any]]:
        self.learned_at = self.within.env_steps
        return super().learn(fitter, clock)

    def judge_model(self, fitter: ModelFitter) -> dict[str, float]:
        fitted = bool(self.tasks.slot(self.tasks.current).fitted)
        return super().judge_model(fitter) if fitted else {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"within": self.within.state_dict(), "learned_at": self.learned_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.within.load_state_dict(state["within"])
        self.learned_at = state["learned_at"]
