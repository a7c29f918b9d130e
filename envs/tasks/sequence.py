"""Tasks that come one after another: the same spaces, other physics."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.registry import env_spec, make_env
from envs.spec import ActionSpec, EnvSpec


@dataclass(frozen=True)
class Task:
    """One environment of a sequence. Picklable; building it makes the environment once, to learn its spec.

    Raises:
        UserError: the environment cannot be built, or has no such physics parameter.
    """

    id: int
    """Identity of the task, which models and buffers are keyed by: it stays when a sequence is cut or reordered."""
    name: str
    env: str
    """As for :func:`envs.registry.make_env`."""
    params: Mapping[str, float] = field(default_factory=dict)
    """Physics parameters by name, see :mod:`envs.variants`."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of :func:`envs.registry.make_env`."""
    spec: EnvSpec = field(init=False, repr=False, compare=False)
    """What is known of the environment, with all parameters in force."""

    def __post_init__(self) -> None:
        if isinstance(self.id, bool) or not isinstance(self.id, int) or self.id < 0:
            raise UserError(f"task {self.name!r}: id", self.id, "give a whole number from 0 on.")
        object.__setattr__(self, "params", dict(self.params))
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        object.__setattr__(self, "spec", env_spec(self.env, params=self.params, **self.kwargs))

    __hash__ = None  # type: ignore[assignment]  # it holds mappings

    @property
    def factory(self) -> Callable[[], BoundaryEnv]:
        """Builds the environment; takes no argument, may be pickled: what :class:`envs.pool.EnvPool` wants."""
        return functools.partial(make_env, self.env, params=self.params, **self.kwargs)

    def make(self, **more: Any) -> BoundaryEnv:
        """The environment; ``more`` as for :func:`envs.registry.make_env` (``render_mode`` ...)."""
        return make_env(self.env, params=self.params, **{**self.kwargs, **more})


class TaskSequence(Sequence[Task]):
    """Tasks in the order in which they are learned, with one observation and one action space.

    Positions (``sequence[0]``, slices, iteration) follow the order; :meth:`task` asks by id. Cutting and reordering
    keep the ids. After the setting of Huang et al. (2021), "Continual model-based reinforcement learning with
    hypernetworks": known boundaries, known ids.

    Args:
        name: of the sequence, for messages and results.
        tasks: at least one, of different ids.

    Raises:
        UserError: no task, a repeated id or name, or a task whose spaces differ from those of the first.
    """

    def __init__(self, name: str, tasks: Sequence[Task]) -> None:
        self.name, self._tasks = name, tuple(tasks)
        if not self._tasks:
            raise UserError(f"{name}: tasks", [], "give at least one task.")
        self._refuse_repeats()
        for task in self._tasks[1:]:
            _same_spaces(name, self._tasks[0], task)

    @classmethod
    def of_variants(
        cls, name: str, env: str, variants: Mapping[str, Mapping[str, float]], **kwargs: Any
    ) -> TaskSequence:
        """One environment under other physics: readable name -> parameters. Ids count from 0.

        Args:
            name, env: of the sequence; of the environment, as for :func:`envs.registry.make_env`.
            variants: names and parameters, in order.
            kwargs: further arguments of :func:`envs.registry.make_env`, the same for all.
        """
        named = enumerate(variants.items())
        return cls(name, [Task(id, called, env, params, kwargs) for id, (called, params) in named])

    @classmethod
    def of_envs(cls, name: str, envs: Sequence[str | Mapping[str, Any]]) -> TaskSequence:
        """Any environments: ids, or arguments of :func:`envs.registry.make_env` with ``id`` and perhaps ``name``.

        Ids of the tasks count from 0; a task without a name is called by its environment's id and its place.
        """
        return cls(name, [_from_arguments(f"{name}: tasks[{place}]", place, given) for place, given in enumerate(envs)])

    @property
    def spec(self) -> EnvSpec:
        """The first task's: spaces and layout are those of all."""
        return self._tasks[0].spec

    @property
    def ids(self) -> tuple[int, ...]:
        """In order."""
        return tuple(task.id for task in self._tasks)

    @property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(task.name for task in self._tasks)

    def task(self, id: int) -> Task:
        """The task of that id.

        Raises:
            UserError: there is none.
        """
        for task in self._tasks:
            if task.id == id and not isinstance(id, bool):
                return task
        raise UserError(f"{self.name}: task id", id, f"its ids are {', '.join(map(str, self.ids))}.")

    def reordered(self, ids: Sequence[int], name: str | None = None) -> TaskSequence:
        """The tasks of these ids in this order; those not named are left out.

        Raises:
            UserError: an id that is not in the sequence, or is named twice.
        """
        return TaskSequence(name or self.name, [self.task(id) for id in ids])

    def boundaries(self, env_steps: int | Sequence[int]) -> tuple[int, ...]:
        """Env steps at which each task begins, and the one at which the last ends: ``T + 1`` numbers.

        Args:
            env_steps: of every task, or of each in order.

        Raises:
            UserError: fewer than one step, or another number of lengths than of tasks.
        """
        lengths = [env_steps] * len(self) if isinstance(env_steps, int) else list(env_steps)
        if len(lengths) != len(self) or min(lengths, default=0) < 1:
            fix = f"give one whole number of at least 1, or one for each of the {len(self)} tasks."
            raise UserError(f"{self.name}: env_steps", env_steps, fix)
        return tuple(itertools.accumulate(lengths, initial=0))

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> TaskSequence: ...
    def __getitem__(self, place: int | slice) -> Task | TaskSequence:
        if isinstance(place, slice):
            return TaskSequence(self.name, self._tasks[place])
        return self._tasks[place]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __repr__(self) -> str:
        return f"TaskSequence({self.name!r}: {', '.join(self.names)})"

    def _refuse_repeats(self) -> None:
        for what, values in (("id", self.ids), ("name", self.names)):
            for place, value in enumerate(values):
                if value in values[:place]:
                    fix = f"tasks {values.index(value)} and {place} have the same {what}; give each its own."
                    raise UserError(f"{self.name}: task {what}", value, fix)


def _from_arguments(where: str, place: int, given: str | Mapping[str, Any]) -> Task:
    arguments: dict[str, Any] = {"id": given} if isinstance(given, str) else dict(given)
    env = arguments.pop("id", None)
    if not isinstance(env, str):
        raise UserError(f"{where}: id", env, "name an environment: a Gymnasium id, module:Class or dmc:domain-task.")
    name = arguments.pop("name", f"{place}: {env}")
    return Task(place, str(name), env, arguments.pop("params", None) or {}, arguments)


def _same_spaces(sequence: str, first: Task, task: Task) -> None:
    """Layout and angles too: entries of the same number must mean the same to the model."""
    pairs: dict[str, tuple[object, object]] = {
        "observation size": (first.spec.obs_size, task.spec.obs_size),
        "observation layout": (_parts(first.spec), _parts(task.spec)),
        "angles": (first.spec.angles, task.spec.angles),
        "action space": (_action(first.spec.action), _action(task.spec.action)),
    }
    for what, (expected, seen) in pairs.items():
        if expected != seen:
            fix = f"task {first.name!r} has {expected}; this must be the same in all tasks of a sequence."
            raise UserError(f"{sequence}: task {task.name!r}: {what}", seen, fix)


def _parts(spec: EnvSpec) -> dict[str, tuple[int, int]]:
    return {name: (part.start, part.stop) for name, part in spec.layout.items()}


def _action(action: ActionSpec) -> str:
    if action.discrete:
        return f"{action.size} choices"
    return f"{action.size} numbers from {action.low} to {action.high}"
