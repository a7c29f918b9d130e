"""Sequences of tasks for continual learning."""

from __future__ import annotations

from envs.tasks.naming import is_sequence, sequence_of
from envs.tasks.published import list_tasks, make_tasks, register_tasks
from envs.tasks.sequence import Task, TaskSequence

__all__ = ["Task", "TaskSequence", "is_sequence", "list_tasks", "make_tasks", "register_tasks", "sequence_of"]
