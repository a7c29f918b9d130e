"""Sequences and their tasks as names of environments: ``tasks:pendulum-five``, and its third task ``.../2``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from envs.errors import UserError
from envs.registry import register_alias
from envs.tasks.published import make_tasks
from envs.tasks.sequence import Task, TaskSequence

SCHEME = "tasks"


def is_sequence(id: str) -> bool:
    """Whether this environment's name is that of a whole sequence."""
    scheme, colon, name = id.partition(":")
    return bool(colon) and scheme == SCHEME and _parted(name)[1] is None


def sequence_of(id: str) -> TaskSequence:
    """The sequence that ``tasks:NAME`` or ``tasks:module:function`` (which returns one) names.

    Raises:
        UserError: there is none of that name, or the function does not give one.
    """
    return _sequence(_parted(id.partition(":")[2])[0])


@functools.lru_cache(maxsize=8)
def _sequence(name: str) -> TaskSequence:
    """Building one makes every environment of it once, so it is kept."""
    module, colon, function = name.partition(":")
    return _from_function(name, module, function) if colon else make_tasks(name)


def _from_function(name: str, module: str, function: str) -> TaskSequence:
    where = f"{SCHEME}:{name}"
    try:
        build = getattr(importlib.import_module(module), function, None)
        made = build() if callable(build) else build
    except UserError:
        raise
    except Exception as error:  # a user's module may fail in any way; all of them are the user's to fix
        raise UserError("env", where, f"it cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(made, TaskSequence):
        gave = f"is not in {module}" if made is None else f"gave {type(made).__name__}"
        fix = f"{function} {gave}; let it be a function that returns an envs.tasks.TaskSequence"
        raise UserError("env", where, fix)
    return made


def _parted(name: str) -> tuple[str, str | None]:
    """Sequence and place of one task, which is what follows the last ``/``."""
    sequence, slash, place = name.rpartition("/")
    return (sequence, place) if slash else (name, None)


def _task(name: str) -> Task:
    sequence, place = _parted(name)
    tasks = _sequence(sequence)
    if place is None:
        return tasks[0]
    if not place.isdecimal() or int(place) >= len(tasks):
        listed = ", ".join(f"{i} ({task.name})" for i, task in enumerate(tasks))
        raise UserError("env", f"{SCHEME}:{name}", f"tasks are named by their place: {listed}")
    return tasks[int(place)]


def _arguments(name: str) -> tuple[str, Mapping[str, float], Mapping[str, Any]]:
    task = _task(name)
    return task.env, task.params, task.kwargs


register_alias(SCHEME, _arguments)
