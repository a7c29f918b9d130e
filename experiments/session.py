"""Putting a run together: from a resolved configuration, or from a run directory, to a loop that is ready to go."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from agents.base import Agent, TaskLearner
from agents.external import ExternalLearner, SelfRunningLearner
from agents.offline.base import OfflineAgent
from envs.boundary import try_out
from envs.errors import UserError
from envs.spec import EnvSpec
from envs.tasks import is_sequence
from experiments.checkpoint import CheckpointStore
from experiments.config import Resolved, RunConfig, env_arguments, make_one_env, resolve
from experiments.evaluation import Evaluator
from experiments.given_data import GivenData, need_same, open_given
from experiments.hand_over import hand_over
from experiments.loops.base import Loop
from experiments.loops.continual import ContinualLoop, make_pool
from experiments.loops.offline import OfflineLoop
from experiments.loops.online import OnlineLoop
from experiments.reporter import Reporter
from experiments.run import RunDirectory, free_path
from experiments.task_evaluation import TaskEvaluator, attach_tasks, need_learner, over_tasks
from experiments.task_runs import TaskRun, task_runs
from experiments.workers import Workers
from mbrl import seeding
from mbrl.seeding import derive_seed


def seed_everything(seed: int) -> None:
    """Start the global random states, which library code draws from, at the run's seed."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy"))
    torch.manual_seed(derive_seed(seed, "torch"))


def build_agent(config: RunConfig, spec: EnvSpec) -> Agent:
    """The configured agent with freshly initialised networks. Raises ``UserError`` when it refuses its arguments."""
    torch.manual_seed(derive_seed(config.seed, "init"))
    try:
        agent = config.agent(spec)
        if isinstance(agent, SelfRunningLearner):
            agent.take_environment(env_arguments(config.env))
        if isinstance(agent, ExternalLearner):
            agent.setup(config.num_envs, config.steps)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, ImportError, AttributeError) as error:
        fix = "the agent cannot be built for this environment; --debug shows where"
        raise UserError("agent", f"{type(error).__name__}: {error}", fix) from error
    agent.seed(config.seed)
    return agent


def need_source(config: RunConfig, agent: Agent) -> None:
    """Raise ``UserError`` where an agent is to learn from data and cannot, or cannot do without and is given none."""
    name = type(agent).__name__
    if config.data is None and isinstance(agent, OfflineAgent):
        raise UserError("--data", None, f"{name} learns from a dataset: name it with --data PATH_OR_ID")
    if config.data is not None and not isinstance(agent, OfflineAgent):
        fix = f"{name} learns by acting, not from a dataset: leave --data out, or take a recipe that learns from one"
        raise UserError("--data", config.data, fix)
    if (config.data or config.start_from) and is_sequence(config.env.id):
        fix = "a sequence of tasks is learned by acting: leave --data and --from out"
        raise UserError("env.id", config.env.id, fix)


def try_agent(config: RunConfig) -> Agent:
    """Try the environment out and build the agent for it. Raises ``UserError`` where a run could not begin."""
    first = task_runs(config)[0]
    make = make_one_env(first.env)
    try_out(make)
    env = make()
    try:
        agent = build_agent(config, env.env_spec)
        need_source(config, agent)
        if config.data is not None:
            need_same(open_given(config.data, config.env), env.env_spec)
    finally:
        env.close()
    if is_sequence(config.env.id):
        need_learner(agent)
    return agent


class Session:
    """One process's part of a run: environments, agent and evaluator are built; nothing is on disk yet.

    ``workers`` of a Ray cluster do what they can of it; they outlive the session.
    """

    def __init__(self, resolved: Resolved, workers: Workers | None = None) -> None:
        self.resolved = resolved
        self.config = resolved.config
        torch.set_num_threads(self.config.threads)
        torch.set_flush_denormal(True)  # activations that underflow slow matrix products several times
        self.tasks = task_runs(self.config)
        self.shown = self.tasks[-1]
        """Of a sequence, the task that films are of: the newest that has been learned."""
        first = self.tasks[0]
        try_out(make_one_env(first.env))  # a broken environment is refused before anything is on disk
        self.pool = make_pool(self.config, first, vectorize=workers.vectorize if workers else None)
        self.evaluator = Evaluator(dataclasses.replace(self.config, env=first.env))
        self.agent = build_agent(self.config, self.pool.spec)
        need_source(self.config, self.agent)
        if self.in_turn:
            need_learner(self.agent)
        self.workers = workers
        if workers is not None:
            workers.serve(self.agent)
        if self.asynchronous:
            self._check_asynchronous()
        self.notes: list[str] = []
        """What the user should know of how the run began, in sentences"""
        self._handed_over = False
        seed_everything(self.config.seed)

    @functools.cached_property
    def data(self) -> GivenData:
        """What an agent learns from that does not act to learn; read when it is first asked for."""
        assert self.config.data is not None
        assert isinstance(self.agent, OfflineAgent)  # need_source
        found = GivenData(self.config.data, self.config.env, self.pool.spec)
        self.agent.check(found.buffer)
        self.notes += [f"{self.config.data}: {note}" for note in found.notes]
        return found

    def take_over(self) -> None:
        """Have the agent of a run that begins start where ``start_from`` ended; once."""
        if self.config.start_from is None or self._handed_over:
            return
        self._handed_over = True
        with foreign_state(Path(self.config.start_from)):
            self.notes += hand_over(self.config, yaml.safe_load(self.resolved.text), self.agent)

    @property
    def in_turn(self) -> bool:
        """Whether tasks are learned in turn."""
        return is_sequence(self.config.env.id) or (isinstance(self.agent, TaskLearner) and self.agent.needs_tasks)

    @property
    def asynchronous(self) -> bool:
        """Whether environments are played while the agent learns."""
        return self.workers is not None and self.config.workers.asynchronous

    def _check_asynchronous(self) -> None:
        from experiments.loops.asynchronous import policy_of

        if self.in_turn or isinstance(self.agent, OfflineAgent):
            fix = "it is for agents that learn one task by acting: leave it out"
            raise UserError("--async", type(self.agent).__name__, fix)
        policy_of(self.agent)

    @contextmanager
    def showing(self) -> Iterator[RunConfig]:
        """Inside, the agent acts on the task that films are of; its configuration."""
        if not self.in_turn:
            yield self.config
            return
        with need_learner(self.agent).acting_on(self.shown.id):
            yield dataclasses.replace(self.config, env=self.shown.env)

    def create(self, out: str | None, command: Sequence[str]) -> RunDirectory:
        """The run directory: made only now that everything could be built and what it begins with could be read."""
        self.take_over()
        told = {} if self.config.data is None else {"data": self.data.told}
        name = f"{self.resolved.name}-{self.config.env.id}-s{self.config.seed}".replace("/", "-").replace(":", "-")
        origin = {"command": list(command), "sources": [_told(path) for path in self.resolved.sources], **told}
        return RunDirectory.create(free_path(out, name), self.resolved.text, origin)

    @contextmanager
    def loop(self, run: RunDirectory, quiet: bool = False) -> Iterator[Loop]:
        """The loop, at the run's newest checkpoint when it has one."""
        reporter = Reporter(run, self.config.steps, quiet, self.config.unit)
        try:
            checkpoints = CheckpointStore(run.checkpoints, self.config.checkpoint.keep)
            loop = self._make_loop(checkpoints, reporter)
            checkpoints.remove_leftovers()
            state = checkpoints.load_latest()
            with foreign_state(run.path):
                reporter.verify(state)
                if state is not None:
                    loop.load_state_dict(state)
                else:
                    self.take_over()
            if not loop.finished:
                reporter.begin(state)
            with contextlib.closing(loop):
                yield loop
        finally:
            reporter.close()

    def _make_loop(self, checkpoints: CheckpointStore, reporter: Reporter) -> Loop:
        if isinstance(self.agent, OfflineAgent):
            return OfflineLoop(self.config, self.agent, self.data, self.evaluator, checkpoints, reporter)
        parts = self.config, self.agent, self.pool, self.evaluator, checkpoints, reporter
        if self.asynchronous and self.workers is not None:
            from experiments.loops.asynchronous import AsyncLoop

            make = make_one_env(self.config.env)
            return AsyncLoop(*parts, self.workers.rollouts(make, self.config.num_envs, self.config.seed))
        return ContinualLoop(*parts, self.tasks) if self.in_turn else OnlineLoop(*parts)

    def close(self) -> None:
        if isinstance(self.agent, ExternalLearner):
            self.agent.close()
        self.pool.close()
        self.evaluator.close()
        torch.set_flush_denormal(False)


def _told(source: Path) -> str:
    """A file of this project by its place in it, wherever that lies; others as they were named."""
    root = Path(__file__).resolve().parents[1]
    return str(source.relative_to(root)) if source.is_relative_to(root) else str(source)


@contextmanager
def foreign_state(where: Path) -> Iterator[None]:
    """Loading a checkpoint's state: what goes wrong means that it belongs to another agent or version."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        fix = "the checkpoint does not fit this configuration or this version of the code"
        raise UserError(str(where), f"{type(error).__name__}: {error}", fix) from error


def reopen(run: RunDirectory, trust: Sequence[str], overrides: Sequence[tuple[str, Any]] = ()) -> Session:
    """An existing run, built again from its own configuration."""
    return Session(saved(run, trust, overrides))


def saved(run: RunDirectory, trust: Sequence[str], overrides: Sequence[tuple[str, Any]] = ()) -> Resolved:
    """The configuration of an existing run."""
    return resolve(str(run.config), overrides, trust=trust)


def restore_agent(session: Session, run: RunDirectory, best: bool = False) -> int:
    """Give ``session.agent`` the newest (or best) weights of a run; the steps that they had seen."""
    return _restore(session, run, best)[0]


def _restore(session: Session, run: RunDirectory, best: bool) -> tuple[int, tuple[TaskRun, ...]]:
    """Steps (env steps, or updates on data) that the weights had seen, and the tasks that they know."""
    checkpoints = CheckpointStore(run.checkpoints)
    state = checkpoints.load_best() if best else checkpoints.load_latest()
    if state is None:
        raise UserError("RUN", str(run.path), "this run has no checkpoint yet")
    with foreign_state(run.path):
        session.agent.load_state_dict(state["agent"])
        begun = session.tasks
        if session.in_turn:
            begun = _learned(need_learner(session.agent), session.tasks[: state["sequence"]["position"] + 1])
            session.shown = begun[-1]
        return int(state["clock"][session.config.unit]), begun


def _learned(learner: TaskLearner, begun: Sequence[TaskRun]) -> tuple[TaskRun, ...]:
    """The tasks that something has been learned of; of a run that has just begun, its first."""
    attach_tasks(learner, begun)
    return tuple(task for task in begun if learner.knows(task.id)) or tuple(begun[:1])


def evaluate_run(session: Session, run: RunDirectory, best: bool = False) -> tuple[int, dict[str, Any]]:
    """Steps that the newest (or best) weights had seen, and their evaluation. Leaves them in ``session.agent``.

    Of a sequence of tasks, all of which something has been learned are evaluated; ``names`` are theirs.
    """
    steps, begun = _restore(session, run, best)
    if session.in_turn:
        judge = TaskEvaluator(session.config, session.agent, need_learner(session.agent))
        found = over_tasks([judge.of(task, steps) for task in begun])
        return steps, found | {"names": [task.name for task in begun]}
    generator = seeding.generator(session.config.seed, "evaluate", steps)
    return steps, session.evaluator.evaluate(session.agent, generator)
