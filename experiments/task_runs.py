"""A run over a sequence of tasks: which tasks, in which order, for how many env steps each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    first_step: int
    """The run's env steps at which it begins ..."""
    last_step: int
    """... and ends."""


def task_runs(config: RunConfig) -> tuple[TaskRun, ...]:
    """The tasks of a run; an ordinary environment is a sequence of one."""
    order, sequence = _order(config.env.id, config.tasks.order), _sequence(config.env.id)
    length = config.steps // len(order)
    return tuple(
        TaskRun(
            position=position,
            id=place if sequence is None else sequence[place].id,
            name=config.env.id if sequence is None else sequence[place].name,
            env=config.env if sequence is None else dataclasses.replace(config.env, id=f"{config.env.id}/{place}"),
            first_step=position * length,
            last_step=(position + 1) * length,
        )
        for position, place in enumerate(order)
    )


def _sequence(env: str) -> TaskSequence | None:
    return sequence_of(env) if is_sequence(env) else None


def _order(env: str, order: list[int] | None) -> list[int]:
    """Places of the tasks, in the order in which they are learned."""
    sequence = _sequence(env)
    places = range(1 if sequence is None else len(sequence))
    chosen = [*places] if order is None else order
    for place in chosen:
        if isinstance(place, bool) or place not in places:
            raise UserError("tasks.order", place, f"{env} has tasks {places[0]} to {places[-1]}")
    if not chosen or len({*chosen}) < len(chosen):
        raise UserError("tasks.order", order, "name at least one task, and each once")
    return chosen


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
