"""Pendulum episodes under smooth random torques, from the true dynamics: rows that several tests learn from."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from envs.registry import env_spec, make_physics
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions


def pendulum() -> EnvSpec:
    return env_spec("Pendulum-v1")


def swings(episodes: int, generator: Generator, steps: int = 200) -> Transitions:
    """``episodes * steps`` rows in order, beginning near the bottom."""
    physics, spec = make_physics("Pendulum-v1"), pendulum()
    angle = math.pi + 0.5 * torch.randn(episodes, generator=generator)
    actions = _smooth(steps, episodes, generator)
    control = spec.action.to_env(actions.double())
    path = physics.rollout(torch.stack([angle, torch.zeros(episodes)], -1).double(), control)
    obs, reward = physics.observe(path).float(), physics.reward(path[:-1], control, path[1:]).float()
    step = torch.arange(steps)[:, None].expand(steps, episodes)
    episode, never = torch.arange(episodes).expand(steps, episodes), torch.zeros(steps, episodes, dtype=torch.bool)
    rows = Transitions(obs[:-1], actions, reward, obs[1:], never, never, episode, step, step * 0)
    return rows.map(lambda x: x.transpose(0, 1).flatten(0, 1))


def _smooth(steps: int, episodes: int, generator: Generator) -> Tensor:
    """``[steps, episodes, 1]`` torques that remember the last one."""
    actions = [torch.zeros(episodes, 1)]
    for _ in range(steps):
        actions.append((0.8 * actions[-1] + 0.25 * torch.randn(episodes, 1, generator=generator)).clamp(-0.99, 0.99))
    return torch.stack(actions[1:])
