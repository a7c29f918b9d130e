"""Five pendulums one after another: their specs, random transitions of their true physics, and the router's streams."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from envs.registry import env_spec
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.models.simulator import Simulator

PENDULUMS: tuple[tuple[float, float, float], ...] = (
    (10.0, 1.0, 1.0),
    (10.0, 2.0, 1.0),
    (4.0, 1.0, 1.0),
    (10.0, 1.0, 0.7),
    (14.0, 1.5, 1.2),
)
"""Gravity, mass, length of each task."""


def pendulum(gravity: float, mass: float, length: float) -> EnvSpec:
    """Pendulum-v1 with other physics, whose models predict the change of what is observed (cos, sin, speed)."""
    spec = env_spec("Pendulum-v1", params={"gravity": gravity, "mass": mass, "length": length})
    return dataclasses.replace(spec, angles=())


def random_transitions(spec: EnvSpec, rows: int, task: int, seed: int, top_speed: float = 8.0) -> Transitions:
    """``[rows]`` single steps from any angle, any speed up to ``top_speed`` rad/s, under any torque."""
    draw = seeding.generator(seed, "rows", task)
    angle = math.pi * (2 * torch.rand(rows, generator=draw) - 1)
    speed = top_speed * (2 * torch.rand(rows, generator=draw) - 1)
    action = 2 * torch.rand(rows, 1, generator=draw) - 1
    return moved(spec, torch.stack([angle.cos(), angle.sin(), speed], -1), action[None], task)


def moved(spec: EnvSpec, obs: Tensor, actions: Tensor, task: int) -> Transitions:
    """The true transitions ``[H * B]`` from ``obs [B, 3]`` under ``actions [H, B, 1]``, in order of time."""
    simulator = Simulator(spec)
    path = simulator.rollout(simulator.encode(obs), actions, None)
    seen, (steps, rows) = path.states.obs[:, 0], actions.shape[:2]
    count = steps * rows
    no, ids = torch.zeros(count, dtype=torch.bool), torch.arange(count)
    return Transitions(
        seen[:-1].flatten(0, 1),
        actions.flatten(0, 1),
        path.reward.flatten(),
        seen[1:].flatten(0, 1),
        no,
        no,
        ids % rows,
        ids // rows,
        torch.zeros_like(ids),
        task=torch.full_like(ids, task),
    )


def exploring(specs: Sequence[EnvSpec], order: Sequence[int], steps: int, seed: int) -> Transitions:
    """``[len(order) * steps]`` consecutive transitions of random actions; the physics switch every ``steps`` steps,
    unseen by whoever watches, and the pendulum moves on from where it is.
    """
    draw = seeding.generator(seed, "stream")
    angle = math.pi * (2 * float(torch.rand((), generator=draw)) - 1)
    obs, parts = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]]), []
    for task in order:
        actions = 2 * torch.rand(steps, 1, 1, generator=draw) - 1
        parts.append(moved(specs[task], obs, actions, task))
        obs = parts[-1].next_obs[-1:]
    return Transitions.cat(parts)
