"""A run over a sequence of tasks: which tasks, in which order, for how many env steps each."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.errors import UserError
from envs.tasks import TaskSequence, is_sequence, sequence_of

if TYPE_CHECKING:
    from experiments.config import EnvConfig, RunConfig


@dataclass(frozen=True)
class TaskRun:
    """One task of a run."""

    position: int
    """When it comes, from 0."""
    id: int
    """What models and buffers know it by: its place in the sequence it is from."""
    name: str
    env: EnvConfig
    last_step: int
    """The run's env steps at which it ends."""


def task_runs(config: RunConfig) -> tuple[TaskRun, ...]:
    """The tasks of a run; an ordinary environment is a sequence of one."""
    order, sequence = _order(config.env.id, config.tasks.order), _sequence(config.env.id)
    length = config.steps // len(order)
    if sequence is not None:
        _check_params(config.env, sequence)
    return tuple(
        TaskRun(
            position=position,
            id=place if sequence is None else sequence[place].id,
            name=config.env.id if sequence is None else sequence[place].name,
            env=config.env if sequence is None else dataclasses.replace(config.env, id=f"{config.env.id}/{place}"),
            last_step=(position + 1) * length,
        )
        for position, place in enumerate(order)
    )


def _check_params(env: EnvConfig, sequence: TaskSequence) -> None:
    """What the tasks differ in must not be set for all of them: their names would go on saying otherwise."""
    varied = {name for task in sequence for name in task.params}
    for name in sorted(varied & set(env.params)):
        fix = f"the tasks of {env.id} differ in this; make a sequence of your own with other values"
        raise UserError(f"env.params.{name}", env.params[name], fix)


def _sequence(env: str) -> TaskSequence | None:
    return sequence_of(env) if is_sequence(env) else None


def _order(env: str, order: list[int] | None) -> list[int]:
    """Places of the tasks, in the order in which they are learned."""
    sequence = _sequence(env)
    places = range(1 if sequence is None else len(sequence))
    chosen = [*places] if order is None else order
    for place in chosen:
        if isinstance(place, bool) or place not in places:
            known = f"tasks 0 to {places[-1]}" if len(places) > 1 else "one task only, 0"
            raise UserError("tasks.order", place, f"{env} has {known}")
    if not chosen or len({*chosen}) < len(chosen):
        raise UserError("tasks.order", order, "name at least one task, and each once")
    return chosen


def prefer_typed_steps(tree: dict[str, Any], typed: Collection[str]) -> None:
    """Of ``steps`` and ``tasks.steps``, which say the same, the one that was typed goes before a recipe's other one."""
    tasks = tree.get("tasks")
    if "steps" in typed and "tasks.steps" not in typed and isinstance(tasks, dict):
        tasks.pop("steps", None)
    if "tasks.steps" in typed and "steps" not in typed:
        tree.pop("steps", None)


def set_steps(tree: dict[str, Any]) -> None:
    """Fill in ``steps`` from ``tasks.steps``, or see that they agree.

    Raises:
        UserError: they do not, or ``steps`` cannot be divided among the tasks.
    """
    env, tasks = tree["env"]["id"], tree.get("tasks") or {}
    if not isinstance(tasks, Mapping) or not (is_sequence(env) or tasks):
        return  # what is no mapping is refused with the rest of the schema
    each, total, order = tasks.get("steps"), tree.get("steps"), tasks.get("order")
    if order is not None and not isinstance(order, list):
        raise UserError("tasks.order", order, "give a list of places, for example [0, 1, 2]")
    count = len(_order(env, order))
    if each is None:
        if isinstance(total, int) and total % count:
            raise UserError("steps", total, f"the {count} tasks get the same number each: {total - total % count}, say")
        return
    if isinstance(each, bool) or not isinstance(each, int) or each < 1:
        raise UserError("tasks.steps", each, "give a whole number of at least 1")
    if total not in (None, each * count):
        fix = f"{count} tasks of {each} env steps make {each * count}; leave steps out, or set tasks.steps"
        raise UserError("steps", total, fix)
    tree["steps"] = each * count
