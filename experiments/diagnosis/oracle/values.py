"""What states are truly worth under a policy: discounted returns in the true dynamics, sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from agents.actor_critic.learner import ActorCritic
from envs.errors import UserError
from mbrl.models.base import State
from mbrl.models.simulator import Simulator

LEFT = 0.01
"""A return is followed until what comes later counts by less than this"""
LONGEST = 1000
"""Steps after which it is cut all the same"""


@dataclass(frozen=True)
class Worth:
    """One sampled return from each of ``B`` states; float64, on the CPU."""

    reward: Tensor
    """``[B]``: ``sum_t gamma^t r_t``"""
    entropy: Tensor
    """``[B]``: what the critics' target adds to that for the policy's entropy, from the second action on"""
    exists: Tensor
    """``[B]`` bool: False where the simulation left the finite numbers"""

    @property
    def total(self) -> Tensor:
        """``[B]``: what a critic should say."""
        return self.reward + self.entropy


def steps_for(gamma: float) -> int:
    """Steps after which ``gamma^t`` is below :data:`LEFT`, at most :data:`LONGEST`."""
    if not 0.0 < gamma < 1.0:
        return 1 if gamma <= 0.0 else LONGEST
    return min(LONGEST, math.ceil(math.log(LEFT) / math.log(gamma)))


@torch.no_grad()
def worth(simulator: Simulator, learner: ActorCritic, start: State, generator: Generator) -> Worth:
    """Follow the learner's policy from every row of ``start [B]`` in the true dynamics.

    The first action is the policy's mode, since :meth:`ActorCritic.value` asks for the critics' value of that; the
    later ones are sampled, with the entropy that the critics' target adds. Discrete actions are all sampled. Only true
    terminations end a return: critics look past time limits, so this does too.
    """
    gamma, device = learner.gamma, start.obs.device
    reward = torch.zeros(len(start.obs), dtype=torch.float64, device=device)
    entropy, exists = torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool)
    rows, state = torch.arange(len(reward), device=device), start
    for t in range(steps_for(gamma)):
        action, bonus = _choose(learner, state.obs, generator, first=t == 0)
        step = simulator.step(state, action, None)
        reward[rows] += gamma**t * step.reward.double()
        entropy[rows] += gamma**t * bonus.double()
        finite = step.state.obs.isfinite().all(-1) & step.reward.isfinite()
        exists[rows] &= finite
        goes_on = (finite & ~step.terminated).nonzero()[:, 0]
        rows, state = rows[goes_on], step.state[goes_on]
        if not len(rows):
            break
    return Worth(reward.cpu(), entropy.cpu(), exists.cpu())


def _choose(learner: ActorCritic, obs: Tensor, generator: Generator, first: bool) -> tuple[Tensor, Tensor]:
    if first and not learner.spec.action.discrete:
        return learner.act(obs, None), torch.zeros(len(obs), device=obs.device)
    return learner.act_softly(obs, generator)


def physics_at(simulator: Simulator, obs: Tensor) -> State | None:
    """The true state at ``obs [B, D]``, for observations that a model made up; None where they do not determine it."""
    if not simulator.physics.can_start_from_obs:
        return None
    try:
        return simulator.encode(obs)
    except UserError:
        return None
