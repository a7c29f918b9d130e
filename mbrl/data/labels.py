"""Data of which some actions are unknown: hiding them for an experiment, and putting predicted ones in their place.

A row without an action has NaN there, and 0 in the column ``has_action``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions

HAS_ACTION, VARIANCE = "has_action", "action_variance"


class Labeller(Protocol):
    """Predicts actions: :class:`mbrl.models.inverse.WindowedInverse`."""

    def predict(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """Actions ``[N, A]`` and their variance ``[N]``."""


def need_actions(data: ReplayBuffer, who: str) -> None:
    """Raise ``UserError`` where a row of ``data`` has no action: ``who`` learns from actions."""
    known = data.columns.get(f"extra.{HAS_ACTION}")
    if known is None or bool(known.all()):
        return
    lacking = (known.reshape(-1) == 0).nonzero()[:, 0]
    seen = f"{len(lacking):,} of {len(data):,} rows have none, the first is row {int(lacking[0])}"
    fix = f"{who} learns from every row's action; the recipe ss-orl predicts those that are missing, or leave them out"
    raise UserError(f"--data: {HAS_ACTION}", seen, fix)


def labelled_by_quality(data: Transitions, share: float, lowest: float, generator: Generator) -> Tensor:
    """``[N]`` bool: rows of the episodes that keep their actions, ``share`` of all episodes, drawn at random from the
    ``lowest`` part of them by return.

    Zheng, Henaff, Amos, Grover, "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories", 2023,
    with ``share`` 0.1 and ``lowest`` 0.5.

    Raises:
        UserError: shares outside (0, 1], or more episodes to be kept than there are to draw from.
    """
    if not (0.0 < share <= 1.0 and 0.0 < lowest <= 1.0):
        raise UserError("share, lowest", (share, lowest), "give shares in (0, 1]")
    returns, episodes = episode_returns(data)
    kept, pool = max(1, round(share * len(episodes))), max(1, round(lowest * len(episodes)))
    if kept > pool:
        raise UserError("share", share, f"the lowest {lowest:.0%} of {len(episodes)} episodes are fewer than that")
    order = torch.randperm(pool, generator=generator, device=generator.device)[:kept].to(returns.device)
    return torch.isin(data.episode, episodes[returns.argsort(stable=True)[order]])


def episode_returns(data: Transitions) -> tuple[Tensor, Tensor]:
    """Returns ``[M]`` (sums of the rows there are, float64) and ids ``[M]`` of the episodes."""
    episodes, place = data.episode.unique(return_inverse=True)
    return data.reward.new_zeros(len(episodes)).double().index_add_(0, place, data.reward.double()), episodes


def without_actions(data: Transitions, known: Tensor) -> Transitions:
    """The rows with the actions of all but ``known [N]`` taken away."""
    action = torch.where(known[:, None], data.action, torch.nan)
    return replace(data, action=action, extra=data.extra | {HAS_ACTION: known.float()})


def label_actions(data: Transitions, inverse: Labeller) -> Transitions:
    """The rows with predicted actions where they have none.

    ``has_action`` still tells which were there; the column ``action_variance`` is the variance of the predicted ones
    and 0 of the others.

    Raises:
        UserError: the rows have no column ``has_action``.
    """
    if HAS_ACTION not in data.extra:
        fix = f"no column {HAS_ACTION} says which rows lack an action; every row has one, or see without_actions"
        raise UserError("extra columns", sorted(data.extra), fix)
    known = data.extra[HAS_ACTION].bool()
    predicted, variance = inverse.predict(data)
    action = torch.where(known[:, None], data.action, predicted.to(data.action.dtype))
    columns = {VARIANCE: torch.where(known, 0.0, variance.to(data.reward.dtype))}
    return replace(data, action=action, extra=data.extra | columns)
