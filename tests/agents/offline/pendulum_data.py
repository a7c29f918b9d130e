"""Small Pendulum datasets and returns from batched true physics: what offline agents are compared on in seconds.

Episodes have 200 decisions and start hanging; rewards are in units of a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from envs.registry import env_spec
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.models.simulator import Simulator

SPEC = env_spec("Pendulum-v1")
STEPS = 200
REWARD_SCALE = 0.1

Act = Callable[[Tensor], Tensor]
"""``obs [B, 3] -> action [B, 1]``"""


def swing_up(obs: Tensor) -> Tensor:
    """Pumps energy until the pendulum is nearly upright, then holds it there; return about -400 from hanging."""
    angle, speed = torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2]
    lacking = 15.0 * (1.0 - obs[:, 0]) - 0.5 * speed.square()
    pump = torch.where(speed >= 0.0, 1.0, -1.0) * lacking
    hold = -5.0 * angle - speed
    return torch.where(obs[:, 0] > 0.9, hold, pump).clamp(-1.0, 1.0).unsqueeze(-1)


def noisy_swing_up(generator: Generator, std: float = 0.3) -> Act:
    return lambda obs: (swing_up(obs) + std * torch.randn(len(obs), 1, generator=generator)).clamp(-1.0, 1.0)


def wandering(generator: Generator, memory: float = 0.9) -> Act:
    """Random actions that resemble the one before, whatever is seen."""
    past = torch.zeros(1, 1)

    def act(obs: Tensor) -> Tensor:
        nonlocal past
        past = memory * past + math.sqrt(1.0 - memory**2) * torch.randn(len(obs), 1, generator=generator)
        return past.clamp(-1.0, 1.0)

    return act


@torch.no_grad()
def play(act: Act, episodes: int, generator: Generator) -> Transitions:
    """``[episodes * 200]`` rows, episode after episode."""
    simulator, rows = Simulator(SPEC), []
    around = 0.1 * (2.0 * torch.rand(episodes, 2, generator=generator, dtype=torch.float64) - 1.0)
    physics = around + torch.tensor([math.pi, 0.0])
    state = simulator.encode(simulator.physics.observe(physics).float(), sim_state=physics)
    episode, never = torch.arange(episodes), torch.zeros(episodes, dtype=torch.bool)
    for t in range(STEPS):
        action = act(state.obs)
        after = simulator.step(state, action, None)
        ids = episode, torch.full_like(episode, t), torch.zeros_like(episode)
        ends = torch.full_like(never, t == STEPS - 1)
        rows.append(Transitions(state.obs, action, REWARD_SCALE * after.reward, after.state.obs, never, ends, *ids))
        state = after.state
    return Transitions.stack(rows, 1).map(lambda x: x.flatten(0, 1))


def mean_return(act: Act, episodes: int = 50, seed: int = 1000) -> float:
    """In the environment's own units; about -1,600 for doing nothing."""
    rows = play(act, episodes, Generator().manual_seed(seed))
    return float(rows.reward.sum()) / (REWARD_SCALE * episodes)


def mixed(seed: int) -> ReplayBuffer:
    """10 episodes of the noisy controller and 40 of correlated random actions."""
    generator = Generator().manual_seed(seed)
    good, poor = play(noisy_swing_up(generator), 10, generator), play(wandering(generator), 40, generator)
    poor.episode += 10
    return filled(Transitions.cat([good, poor]))


def narrow(seed: int) -> ReplayBuffer:
    """3 episodes of the noisy controller."""
    generator = Generator().manual_seed(seed)
    return filled(play(noisy_swing_up(generator), 3, generator))


def filled(rows: Transitions) -> ReplayBuffer:
    buffer = ReplayBuffer(len(rows))
    buffer.extend(rows)
    return buffer
