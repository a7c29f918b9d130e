"""How good an agent is on every task that it has met, and how good its model of each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from agents.base import Agent, TaskLearner
from agents.common import random_action
from envs.errors import UserError
from envs.pool import EnvPool
from experiments.config import EnvConfig, RunConfig, make_one_env
from experiments.evaluation import Evaluator
from experiments.task_runs import TaskRun
from mbrl import seeding
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.window_errors import window_errors

DEPTHS = (1, 5, 25)
"""Steps ahead at which models of tasks are judged."""
ROLLOUTS = 256
ROWS, SLOTS = 2000, 8
"""Env steps of random actions that the judged windows are drawn from, and environments side by side."""


class TaskEvaluator:
    """Plays and judges any task of a sequence; environments live only as long as they are played."""

    def __init__(self, config: RunConfig, agent: Agent, learner: TaskLearner) -> None:
        self.config, self.agent, self.learner = config, agent, learner
        self._windows: dict[int, Transitions] = {}

    def of(self, task: TaskRun, env_steps: int) -> dict[str, Any]:
        """As of :class:`~experiments.evaluation.Evaluator`, and of an agent with a model ``error_at_1``, ``..._5``,
        ``..._25`` (see :func:`~mbrl.diagnostics.window_errors.window_errors`), ``rollouts`` and how many ``diverged``.
        """
        evaluator = Evaluator(dataclasses.replace(self.config, env=task.env))
        generator = seeding.generator(self.config.seed, "evaluate", env_steps, task.id)
        try:
            with self.learner.acting_on(task.id):
                values = evaluator.evaluate(self.agent, generator)
                began = time.perf_counter()
                values |= self._model_errors(task)
                values["evaluation_seconds"] += time.perf_counter() - began
                return values
        finally:
            evaluator.close()

    def _model_errors(self, task: TaskRun) -> dict[str, float]:
        model = self.learner.model_of(task.id)
        if model is None:
            return {}
        if task.id not in self._windows:
            self._windows[task.id] = judged_windows(task.env, self.config.evaluation.seed)
        windows = self._windows[task.id]
        found = window_errors(model, windows, [depth for depth in DEPTHS if depth <= windows.action.shape[1]])
        errors = {f"error_at_{depth}": error for depth, error in found.errors.items()}
        return errors | {"rollouts": found.rollouts, "diverged": found.diverged}


def judged_windows(env: EnvConfig, seed: int) -> Transitions:
    """``[256, 25, ...]`` steps of random actions, the same for every run and agent; fewer where episodes are short."""
    pool = EnvPool(make_one_env(env), SLOTS, lambda slot, episode: seeding.derive_seed(seed, "judge", slot, episode))
    draw, buffer = seeding.generator(seed, "judge"), ReplayBuffer(ROWS)
    try:
        pool.reset()
        while buffer.total_added < ROWS:
            action = random_action(pool.spec.action, SLOTS, draw)
            rows = to_transitions(pool.step(action.numpy()), action, {}, version=0)
            buffer.extend(dataclasses.replace(rows, sim_state=None))
            pool.reset_ended()
    finally:
        pool.close()
    return _longest(buffer, draw)


def _longest(buffer: ReplayBuffer, draw: torch.Generator) -> Transitions:
    """Windows of the largest depth that some episode reaches."""
    for depth in sorted(DEPTHS, reverse=True):
        try:
            return buffer.windows(ROLLOUTS, depth, draw)
        except UserError:  # no episode is that long
            continue
    raise AssertionError("a row is a window of one step")


def over_tasks(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One evaluation out of those of the tasks: ``returns`` and ``lengths`` are the tasks' means."""
    returns = [float(values["return_mean"]) for values in found]
    return {
        "return_mean": fmean(returns),
        "return_std": pstdev(returns),
        "returns": returns,
        "lengths": [fmean(values["lengths"]) for values in found],
        "act_ms": fmean(values["act_ms"] for values in found),
        "evaluation_seconds": sum(values["evaluation_seconds"] for values in found),
        "peak_memory_bytes": max(values["peak_memory_bytes"] for values in found),
        "tasks": len(found),
    }


def attach_tasks(learner: TaskLearner, tasks: Sequence[TaskRun]) -> None:
    """Tell an agent that was loaded what its tasks are: rewards and ends of one may be other functions than the
    first task's.
    """
    for task in tasks:
        env = make_one_env(task.env)()
        learner.attach_task(task.id, env.env_spec)
        env.close()


def need_learner(agent: Agent) -> TaskLearner:
    """The agent as one that learns tasks in turn, else ``UserError``."""
    if isinstance(agent, TaskLearner):
        return agent
    fix = "it does not learn tasks in turn; recipes that do are hypercrl and hypercrl-..., see `mbrl list recipes`"
    raise UserError("agent", type(agent).__name__, fix)
