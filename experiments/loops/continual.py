"""The continual loop: one task after another, and after each of them all that have been so far are evaluated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from agents.base import Agent
from envs.pool import EnvPool, Vectorize
from experiments.checkpoint import CheckpointStore
from experiments.config import RunConfig, make_one_env
from experiments.evaluation import Evaluator
from experiments.loops.online import OnlineLoop
from experiments.reporter import Reporter
from experiments.task_evaluation import TaskEvaluator, attach_tasks, need_learner, over_tasks
from experiments.task_runs import TaskRun
from mbrl import seeding


class ContinualLoop(OnlineLoop):
    """Trains ``agent`` on ``tasks`` in turn; what it does between two checkpoints depends on the first of them only.

    After the task at position ``j`` the records are: a ``task_evaluation`` for each task so far (returns, and errors of
    the model ``1``, ``5`` and ``25`` steps ahead on rows that no agent learns from), a ``task`` with what it cost, and
    an ``evaluation`` over the tasks so far. Evaluations within a task (``evaluation.every``) are of that task.

    The first pool is given; those that follow are made, and closed, here.
    """

    def __init__(
        self,
        config: RunConfig,
        agent: Agent,
        pool: EnvPool,
        evaluator: Evaluator,
        checkpoints: CheckpointStore,
        reporter: Reporter,
        tasks: Sequence[TaskRun],
    ) -> None:
        super().__init__(config, agent, pool, evaluator, checkpoints, reporter)
        self.learner, self.tasks, self.position = need_learner(agent), tasks, 0
        self.judge = TaskEvaluator(config, agent, self.learner)
        self.task_seconds, self.episodes_before = 0.0, 0

    @property
    def task(self) -> TaskRun:
        """The one that is learned."""
        return self.tasks[self.position]

    # -- training ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.task_id = self.task.id
        self.learner.start_task(self.task.id, self.pool.spec)
        super().begin()

    def advance(self) -> None:
        began = time.process_time()
        super().advance()
        self.task_seconds += time.process_time() - began

    def between(self) -> None:
        if self.clock.env_steps < self.task.last_step:
            return super().between()
        self.end_task()
        self.begin_task(self.position + 1)
        self.save()

    def conclude(self) -> dict[str, Any]:
        return self.end_task()

    def begin_task(self, position: int) -> None:
        """Go to the environments of another task; what agent and loop carried from step to step begins anew."""
        self.position, self.task_seconds, self.episodes_before = position, 0.0, self.clock.episodes
        self._enter(self.pool.next_episode)
        self.actor_state, self.returns = self.agent.initial_actor_state(self.config.num_envs), 0.0 * self.returns
        self.begin()

    def _enter(self, first_episode: int) -> None:
        self.pool.close()
        self.pool = make_pool(self.config, self.task, first_episode, self.pool.vectorize)
        self.evaluator.close()
        self.evaluator = Evaluator(dataclasses.replace(self.config, env=self.task.env))

    def end_task(self) -> dict[str, Any]:
        """Close the task, then evaluate all tasks so far; the values of the evaluation over all of them."""
        began = time.process_time()
        for event, values in self.learner.end_task(self.task.id, self.clock).items():
            self.reporter.record(event, self.clock, values)
        self.task_seconds += time.process_time() - began
        found = []
        for task in self.tasks[: self.position + 1]:
            found.append(self.judge.of(task, self.clock.env_steps))
            self.reporter.record("task_evaluation", self.clock, self._named(task) | found[-1])
        costs = {"task_seconds": self.task_seconds, **self.learner.costs(self.task.id)}
        episodes = self.clock.episodes - self.episodes_before
        self.reporter.record("task", self.clock, self._named(self.task) | costs | {"episodes": episodes})
        overall = over_tasks(found)
        self.reporter.record("evaluation", self.clock, overall)
        if self.position == len(self.tasks) - 1:
            self.checkpoints.save_best(self.weights())
        return overall

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Of the present task, within it."""
        values = self.measure() | {"task": self.task.id}
        self.reporter.record("evaluation", self.clock, values)
        return values

    def _named(self, task: TaskRun) -> dict[str, Any]:
        return {"learned": self.position, "position": task.position, "task": task.id, "name": task.name}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return super().weights() | {"sequence": self._place()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sequence": self._place()}

    def _place(self) -> dict[str, Any]:
        before, seconds = self.episodes_before, self.task_seconds
        return {"position": self.position, "episodes_before": before, "task_seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = state["sequence"]
        self.position, self.episodes_before = own["position"], own["episodes_before"]
        self.task_seconds, self.task_id = own["task_seconds"], self.task.id
        if self.position:
            self._enter(0)  # the number of the episode comes with the pool's state
        super().load_state_dict(state)
        attach_tasks(self.learner, self.tasks[: self.position + 1])

    def close(self) -> None:
        self.pool.close()
        self.evaluator.close()


def make_pool(config: RunConfig, task: TaskRun, first_episode: int = 0, vectorize: Vectorize | None = None) -> EnvPool:
    """The training environments of a task; every episode's reset seed comes from (run seed, slot, episode).

    ``vectorize`` says where they are held, if not in this process; see :class:`envs.EnvPool`.
    """
    return EnvPool(
        make_one_env(task.env),
        config.num_envs,
        lambda slot, episode: seeding.derive_seed(config.seed, "env", slot, episode),
        asynchronous=task.env.asynchronous and vectorize is None,
        first_episode=first_episode,
        vectorize=vectorize,
    )
