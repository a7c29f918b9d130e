"""Sequences of bodies, blocks and doors: how each is set up, and the fixed rows that its tasks are learned from.

Random actions alone hardly ever move the block or the door, so half of the episodes of those sequences are a scripted
expert's under Gaussian noise, and half are noise that wanders (power 1 / f). HalfCheetah's are uniform random actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from envs.door import ArmDoor, door_expert
from envs.pool import EnvPool
from envs.pushing import ArmPush, push_expert
from envs.tasks import Task, TaskSequence, make_tasks
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.planning.cem import coloured_noise

Expert = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Platform actions ``[A]`` from an observation ``[D]``."""

NOISE = 0.3
"""Standard deviation of what is added to the expert's actions."""
TEST_SEEDS = 1_000_000
"""What is judged on starts here; what is learned from does not reach it."""


@dataclass(frozen=True)
class Course:
    """How one sequence is learned and judged. Betas are those of Huang et al. (2021), "Continual model-based
    reinforcement learning with hypernetworks": 0.05, and 0.5 for doors and for blocks that slide.
    """

    expert: Expert | None
    success: Callable[[Tensor], Tensor] | None
    """``[N]`` bool at observations ``[N, D]``; None: the task knows none."""
    beta: float
    updates: int
    """Gradient steps of each task."""
    train_episodes: int
    test_episodes: int
    steps: int
    """Of an episode, to learn from and to judge on."""
    driven_steps: int
    """Of an episode in the true environment."""

    def told(self) -> dict[str, Any]:
        """Its figures, for the record."""
        expert = None if self.expert is None else self.expert.__name__
        figures = {name: value for name, value in vars(self).items() if name != "success"}
        return {**figures, "expert": expert, "noise": None if expert is None else NOISE}


COURSES: dict[str, Course] = {
    "halfcheetah-bodies": Course(None, None, 0.05, 2000, 10, 10, 300, 100),
    "push-density": Course(push_expert, ArmPush.success, 0.05, 4000, 200, 40, 50, 50),
    "push-friction": Course(push_expert, ArmPush.success, 0.5, 4000, 200, 40, 50, 50),
    "door-handles": Course(door_expert, ArmDoor.success, 0.5, 4000, 200, 40, 50, 50),
}
"""By the sequence's name. With blocks, a planner that knows the true dynamics stays at the goal; with a model of 100 or
200 episodes it gets there and often shoots past, with one of 300 episodes and 10,000 updates it stays (90 to 100 % of
ten episodes on the first task): the model is at fault, not the planner; the sizes are kept to minutes.
"""


@dataclass
class Data:
    """Episodes ``[T, N]`` of every task, in order: to learn from and to judge on."""

    tasks: TaskSequence
    train: list[Transitions]
    test: list[Transitions]

    @classmethod
    def of(cls, name: str, course: Course, seed: int) -> Data:
        tasks = make_tasks(name)
        train = [collect(task, course, course.train_episodes, seed) for task in tasks]
        test = [collect(task, course, course.test_episodes, seed + TEST_SEEDS) for task in tasks]
        return cls(tasks, train, test)


def collect(task: Task, course: Course, episodes: int, seed: int) -> Transitions:
    """``[T, N]`` transitions of ``episodes`` episodes; with an expert, of every second one from the first on."""
    pool = start(task, episodes, seed)
    noise, seen = _noise(task, course, episodes, seeding.generator(seed, "actions", task.id)), list[Transitions]()
    for disturbance in noise:
        action = disturbance
        if course.expert is not None:
            action = action.clone()
            action[::2] += advice(course.expert, torch.from_numpy(pool.obs)[::2])
        action = action.clamp(-1.0, 1.0)
        seen.append(to_transitions(pool.step(action.numpy()), action, {}, version=0))
    pool.close()
    return dataclasses.replace(Transitions.stack(seen), task=torch.full((course.steps, episodes), task.id))


def start(task: Task, episodes: int, seed: int) -> EnvPool:
    """Environments of a task at the begin of as many episodes."""
    pool = EnvPool(task.factory, episodes, lambda slot, _: seeding.derive_seed(seed, "reset", task.id, slot))
    pool.reset()
    return pool


def _noise(task: Task, course: Course, episodes: int, draw: Generator) -> Tensor:
    """``[T, N, A]``: actions, or what is added to the expert's."""
    shape = course.steps, episodes, task.spec.action.size
    if course.expert is None:
        return 2 * torch.rand(shape, generator=draw) - 1
    noise = coloured_noise(shape, 1.0, draw, "cpu")
    noise[:, ::2] = NOISE * torch.randn(noise[:, ::2].shape, generator=draw)
    return noise


def advice(expert: Expert, obs: Tensor) -> Tensor:
    """The expert's actions ``[N, A]`` at ``obs [N, D]``, inside the range."""
    actions = np.stack([expert(row) for row in obs.double().numpy()])
    return torch.from_numpy(actions).float().clamp(-1.0, 1.0)
