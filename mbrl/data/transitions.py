"""The record of what happened: one row a decision."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mbrl.data.record import Record


@dataclass
class Transitions(Record):
    """``B`` transitions. Observations are raw; actions lie in [-1, 1] or are one-hot.

    Only ``terminated`` cuts a bootstrap. ``episode``, ``step`` and ``policy_version`` survive shuffling and the
    buffer's wrap-around. ``extra`` holds named columns such as ``log_prob``, ``member``, ``uncertainty``.
    """

    obs: Tensor
    """``[B, D]`` float32"""
    action: Tensor
    """``[B, A]`` float32"""
    reward: Tensor
    """``[B]`` float32"""
    next_obs: Tensor
    """``[B, D]``: the true successor, also at an episode's end"""
    terminated: Tensor
    """``[B]`` bool"""
    truncated: Tensor
    """``[B]`` bool"""
    episode: Tensor
    """``[B]`` int64, unique in a run"""
    step: Tensor
    """``[B]`` int64, position inside the episode"""
    policy_version: Tensor
    """``[B]`` int64: how often the acting policy or model had been refitted"""
    task: Tensor | None = None
    """``[B]`` int64"""
    sim_state: Tensor | None = None
    """``[B, S]`` float64: full physics state before the step"""
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.obs.shape[0]
