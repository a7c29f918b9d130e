"""Closed loop in the true environments of a sequence: planning with a model, a scripted expert, and random actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from envs.pool import EnvPool
from envs.tasks import Task
from experiments.benchmarks._body_courses import Course, Expert, advice, start
from mbrl import seeding
from mbrl.models.base import DynamicsModel
from mbrl.planning.cem import ICEM
from mbrl.planning.objective import Objective

Act = Callable[[EnvPool], Tensor]
"""Platform actions ``[N, A]`` for a pool as it stands."""
DRIVE_SEEDS = 2_000_000
"""Episodes that are driven start here: neither learned from nor judged on."""


@dataclass(frozen=True)
class Search:
    """iCEM's sizes."""

    horizon: int
    candidates: int
    iterations: int
    elites: int


@dataclass(frozen=True)
class Drive:
    """What episodes of one task came to."""

    returns: list[float]
    reached: float | None
    """Share of episodes that succeed at some step; None where the task knows no success"""
    held: float | None
    """Share that succeed at their last step"""


def drive(task: Task, course: Course, act: Act, episodes: int, seed: int) -> Drive:
    """``episodes`` episodes side by side; all who drive a task under one seed start alike."""
    pool, steps = start(task, episodes, seed + DRIVE_SEEDS), course.driven_steps
    total, done = torch.zeros(episodes), torch.zeros(steps, episodes, dtype=torch.bool)
    for step in range(steps):
        seen = pool.step(act(pool).numpy())
        total += torch.from_numpy(seen.reward)
        if course.success is not None:
            done[step] = course.success(torch.from_numpy(seen.next_obs))
    pool.close()
    if course.success is None:
        return Drive(total.tolist(), None, None)
    return Drive(total.tolist(), float(done.any(0).float().mean()), float(done[-1].float().mean()))


def planning(model: DynamicsModel, task: Task, search: Search, seed: int) -> Act:
    """Plan anew at every step, from where the last plan left off. A simulator is told the physics' state."""
    planner = ICEM(
        task.spec,
        horizon=search.horizon,
        candidates=search.candidates,
        iterations=search.iterations,
        elites=search.elites,
        particles=1,
    )
    draw, memory = seeding.generator(seed, "plan", task.id), dict[str, Any]()

    def act(pool: EnvPool) -> Tensor:
        simulated = pool.sim_states() if getattr(model, "wants_sim_state", False) else None
        sim_state = None if simulated is None else torch.from_numpy(simulated)
        state = model.encode(torch.from_numpy(pool.obs), sim_state=sim_state)
        plan = planner.plan(model, Objective(), state, memory.get("warm"), generator=draw)
        memory["warm"] = plan.warm_start
        return plan.actions[0]

    return act


def following(expert: Expert) -> Act:
    """The expert's own actions."""
    return lambda pool: advice(expert, torch.from_numpy(pool.obs))


def at_random(draw: Generator) -> Act:
    """Uniform actions."""
    return lambda pool: 2 * torch.rand(pool.num_envs, pool.spec.action.size, generator=draw) - 1
