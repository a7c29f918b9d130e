"""Whether a model notices that it is asked about what it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Generator, Tensor

from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.predictive import uncertainties
from mbrl.models.base import DynamicsModel

PUSHES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class ShiftTest:
    """Uncertainty on held-out rows against the same rows shifted."""

    shift: str
    estimator: str
    auroc: float
    """Probability that a shifted row is called less sure than one as it came; 0.5 is chance"""
    plain: Tensor
    """``[B]`` uncertainty of the rows as they came"""
    shifted: Tensor
    """``[B]``"""


def shifted_rows(spec: EnvSpec, rows: Transitions, std: Tensor, generator: Generator) -> Mapping[str, Transitions]:
    """``rows [B]`` in ways that the data is not: only ``obs`` and ``action`` are of use afterwards.

    ``random actions``: uniform over the action space (no shift where the data's are that too). ``shuffled actions``:
    every action goes to another row's observation. ``states k std further out``: every entry of the observation moves
    away from its mean by ``k`` of its ``std [D]``; entries that show an angle stay, a circle has no outside.
    """
    order = torch.randperm(len(rows), generator=generator)
    turned = order.roll(1)
    swapped = torch.empty_like(rows.action)
    swapped[order] = rows.action[turned]  # one step round a random cycle: no row keeps its own action
    found = {
        "random actions": replace(rows, action=_random_actions(spec, rows.action, generator)),
        "shuffled actions": replace(rows, action=swapped),
    }
    away = (rows.obs - rows.obs.mean(0)).sign() * std.to(rows.obs.dtype)
    for angle in spec.angles:
        for place in (angle.cos, angle.sin, angle.raw):
            if place is not None:
                away[:, place] = 0.0
    if bool((away != 0).any()):
        found |= {f"states {k:g} std further out": replace(rows, obs=rows.obs + k * away) for k in PUSHES}
    return found


def _random_actions(spec: EnvSpec, like: Tensor, generator: Generator) -> Tensor:
    if spec.action.discrete:
        drawn = torch.randint(spec.action.size, (len(like),), generator=generator)
        return torch.nn.functional.one_hot(drawn, spec.action.size).to(like.dtype)
    return torch.rand(like.shape, generator=generator, dtype=like.dtype) * 2 - 1


def auroc(low: Tensor, high: Tensor) -> float:
    """Probability that a value of ``high`` exceeds one of ``low``; ties count half (Mann-Whitney's U over pairs)."""
    u = stats.mannwhitneyu(high.numpy(), low.numpy(), method="asymptotic").statistic
    return float(u) / (len(low) * len(high))


def shift_tests(model: DynamicsModel, rows: Transitions, std: Tensor, generator: Generator) -> list[ShiftTest]:
    """Every estimator against every shift of ``rows [B]`` (which carry no physics state: what is shifted has none)."""
    bare = replace(rows, sim_state=None)
    plain, found = uncertainties(model, bare), []
    for shift, moved in shifted_rows(model.spec, bare, std, generator).items():
        for estimator, value in uncertainties(model, moved).items():
            if estimator in plain:
                found.append(ShiftTest(shift, estimator, auroc(plain[estimator], value), plain[estimator], value))
    return found
