"""How often to re-encode, chosen by open-loop error on rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import consecutive
from mbrl.data.transitions import Transitions

if TYPE_CHECKING:
    from mbrl.models.koopman.base import KoopmanModel

PERIODS = (0, 1, 2, 5, 10, 25, 50)
"""Candidates; 0 is never. Error is not monotone in the period: too short adds the encoder's error every step, too long
lets the latent drift."""
WORST = 10.0
"""Squared error in standard deviations at which a window counts as diverged; larger ones are counted, not averaged."""


@torch.no_grad()
def choose_period(
    model: KoopmanModel, held: Transitions, steps: int, generator: Generator, windows: int = 256
) -> tuple[int, dict[str, float]]:
    """The best of :data:`PERIODS` for predictions of up to ``steps`` steps, and the errors of none and of the best.

    Where no episode of ``held [N]`` is so long, windows are as long as they can be.
    """
    lived = held_windows(held, steps, windows, generator)
    errors = period_errors(model, lived, PERIODS)
    best = min(errors, key=lambda period: errors[period][0])
    report = {"error_not_reencoded": errors[0][0], "error_reencoded": errors[best][0], "diverged": errors[best][1]}
    return best, report | {"judged_steps": float(lived.obs.shape[1])}


def held_windows(held: Transitions, steps: int, windows: int, generator: Generator) -> Transitions:
    """At most so many windows ``[W, T, ...]`` of ``steps`` steps, or of as many as there are in a row.

    Raises:
        UserError: there are no rows.
    """
    if not len(held):
        raise UserError("held rows", "none", "give at least one row to judge predictions on")
    length = steps
    while not (found := consecutive(held.episode, held.step, length, held.task)).shape[1]:
        length = (length + 1) // 2
    pick = torch.randperm(found.shape[1], generator=generator, device=generator.device)[:windows]
    return held[found[:, pick].T]


@torch.no_grad()
def period_errors(model: KoopmanModel, lived: Transitions, periods: Sequence[int]) -> dict[int, tuple[float, float]]:
    """For each period: mean squared error over windows ``[W, T]``, steps and entries, in variances of the observation,
    each window's at most :data:`WORST`; and the share of windows that reach that.
    """
    unit = lived.next_obs.flatten(0, 1).double().std(0, correction=0)
    unit = torch.where(unit > 1e-9, unit, torch.ones_like(unit))
    start, actions, truth = model.encode(lived.obs[:, 0]), lived.action.transpose(0, 1), lived.next_obs.transpose(0, 1)

    def judge(period: int) -> tuple[float, float]:
        said = model.rollout(start, actions, None, reencode_every=period).states.obs[1:, 0]
        miss: Tensor = ((said.double() - truth) / unit).square().mean((0, 2)).nan_to_num(torch.inf)
        return float(miss.clamp(max=WORST).mean()), float((miss >= WORST).double().mean())

    return {period: judge(period) for period in periods if period <= len(actions)}


@torch.no_grad()
def drift(model: KoopmanModel, obs: Tensor, actions: Tensor, reencode_every: int | None = None) -> Tensor:
    """``[H, B]``: how far latents have left what observations lift to, ``|lift(read(z)) - z| / |z|``.

    Along the rollout of ``actions [H, B, A]`` from ``obs [B, D]``; a latent that is due to be lifted anew is measured
    before. Nothing is projected here, so it is the drift that re-encoding repairs, not the clipping.
    """
    path = model.rollout(model.encode(obs), actions, None, reencode_every=reencode_every)
    latent: Tensor = path.states.latent[1:, 0]  # type: ignore[attr-defined]
    away: Tensor = (model.lift(model.read(latent)) - latent).norm(dim=-1) / latent.norm(dim=-1)
    return away
