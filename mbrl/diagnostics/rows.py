"""What every diagnosis asks of stored rows and of a model: names, units, misses, one-step predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State, Trajectory


def obs_names(spec: EnvSpec) -> list[str]:
    """A name for each entry of an observation ``[D]``, from the layout: ``qpos[0]``, ``x``, ..."""
    names = [f"obs[{i}]" for i in range(spec.obs_size)]
    for name, piece in spec.layout.items():
        places = range(spec.obs_size)[piece]
        for i, place in enumerate(places):
            names[place] = name if len(places) == 1 else f"{name}[{i}]"
    return names


def miss(spec: EnvSpec, predicted: Tensor, true: Tensor) -> Tensor:
    """``predicted - true [..., D]``, the short way round where an entry is an angle that the environment folds."""
    gap = predicted - true
    for angle in spec.angles:
        if angle.raw is not None and angle.wrapped:
            turned = (gap[..., angle.raw] + math.pi).remainder(2 * math.pi) - math.pi
            gap = gap.index_copy(-1, torch.tensor([angle.raw], device=gap.device), turned.unsqueeze(-1))
    return gap


@dataclass(frozen=True)
class Units:
    """What errors are measured in: standard deviations over reference rows (usually those that were trained on)."""

    obs: Tensor
    """``[D]`` of observations"""
    change: Tensor
    """``[D]`` of their changes in one step"""
    reward: float
    varies: Tensor
    """``[D]`` bool: entries that change at all; the others are left out of means over entries"""

    @classmethod
    def of(cls, spec: EnvSpec, rows: Transitions) -> Units:
        """Units of ``rows [N]``; an entry that never changes has unit 1."""
        obs, change = rows.obs.double(), miss(spec, rows.next_obs.double(), rows.obs.double())
        std = obs.std(0, correction=0)
        varies = (std > 1e-6 * obs.mean(0).abs().clamp(min=1.0)) & (change.std(0, correction=0) > 1e-9)
        one = torch.ones_like(std)
        reward = float(rows.reward.double().std(correction=0))
        by_obs, by_change = torch.where(varies, std, one), torch.where(varies, change.std(0, correction=0), one)
        return cls(by_obs, by_change, reward if reward > 1e-6 else 1.0, varies)


def device_of(model: DynamicsModel) -> torch.device:
    """Where the model computes."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def start_of(model: DynamicsModel, rows: Transitions) -> State:
    """The model's state at ``rows [B]``, where the model computes; a physics state goes along if the rows hold one."""
    at = rows.to(device_of(model))
    return model.encode(at.obs, at.task, at.sim_state)


@torch.no_grad()
def predict_next(model: DynamicsModel, rows: Transitions) -> tuple[Tensor, Tensor, Tensor]:
    """``(next_obs [B, D], reward [B], terminated [B])`` without sampled noise; of an ensemble the elites' mean.

    Like everything that is measured, they lie on the CPU.
    """
    path = mean_path(model, rows, rows.action.unsqueeze(0))
    return model.decode(path.states[1])[0].cpu(), path.reward[0, 0].cpu(), path.terminated[0, 0].cpu()


@torch.no_grad()
def mean_path(model: DynamicsModel, first: Transitions, actions: Tensor) -> Trajectory:
    """One particle that follows ``actions [H, B, A]`` from ``first [B]`` without noise, an ensemble's by its mean."""
    bound = model.bind()
    start = start_of(model, first)
    return bound.rollout(start, actions.to(start.obs.device), None, propagation="mean")


def row_errors(model: DynamicsModel, rows: Transitions, units: Units) -> Tensor:
    """``[B]`` one-step error of each row: root mean square over entries, in standard deviations of one step's change.

    In these units 1 is about what predicting the mean change gets.
    """
    gap = miss(model.spec, predict_next(model, rows)[0].double(), rows.next_obs.double()) / units.change
    return gap[:, units.varies].square().mean(-1).sqrt()


def steps_ahead(rows: Transitions) -> Tensor:
    """``[N]`` for each row how many consecutive steps of its episode are stored from it on (itself counts)."""
    episode, step = rows.episode.cpu().numpy(), rows.step.cpu().numpy()
    task = np.zeros_like(step) if rows.task is None else rows.task.cpu().numpy()
    order = np.lexsort((step, episode))
    parted = (np.diff(episode[order]) != 0) | (np.diff(step[order]) != 1) | (np.diff(task[order]) != 0)
    last = np.append(parted.nonzero()[0], len(order) - 1)  # where each chain ends
    place = np.arange(len(order))
    ahead = np.empty_like(place)
    ahead[order] = last[np.searchsorted(last, place)] - place + 1
    return torch.from_numpy(ahead)
