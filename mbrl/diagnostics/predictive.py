"""What a model says of one step as a distribution: a mixture of Gaussians over its members, entry by entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import Units, device_of, miss, obs_names, start_of
from mbrl.models.base import DynamicsModel, Estimator, HasDistribution
from mbrl.models.ensemble import EnsemblePrediction


@dataclass(frozen=True)
class Predictive:
    """``B`` predictions of ``T`` outputs, each an equal mixture of ``E`` Gaussians, and what came.

    Everything is standardised, float64 and on the CPU.
    """

    mean: Tensor
    """``[E, B, T]``"""
    std: Tensor
    """``[E, B, T]``"""
    target: Tensor
    """``[B, T]``"""
    names: list[str]
    scale: Tensor
    """``[T]`` units that one standardised unit stands for"""

    def pit(self) -> Tensor:
        """``[B, T]`` probability integral transform: the mixture's CDF at what came; uniform when calibrated."""
        below: Tensor = torch.special.ndtr((self.target - self.mean) / self.std)
        return below.mean(0)

    def log_prob(self) -> Tensor:
        """``[B]`` log density of all outputs together, in the outputs' own units: members are mixed as a whole."""
        z = (self.target - self.mean) / self.std
        each = -0.5 * (z.square() + math.log(2 * math.pi)) - self.std.log() - self.scale.log()
        return each.sum(-1).logsumexp(0) - math.log(len(self.mean))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the mixture, ``[B, T]`` each."""
        variance = self.std.square().mean(0) + self.mean.var(0, correction=0)
        return self.mean.mean(0), variance.sqrt()


@torch.no_grad()
def predictive(model: DynamicsModel, rows: Transitions, units: Units | None = None) -> Predictive | None:
    """The mixture over the members that predict, for ``rows [B]``; None for a model that states no distribution.

    Of a :class:`~mbrl.models.ensemble.ProbabilisticEnsemble` the Gaussians of its own targets (changes of coordinates,
    then what is learned of the reward), exactly. Of another model a Gaussian for each member and observation entry
    with the moments of 256 draws, in ``units`` of a step's change (default: those of ``rows``).
    """
    if not isinstance(model, HasDistribution):
        return None
    prediction = model.predict(start_of(model, rows), rows.action.to(device_of(model)))
    if isinstance(prediction, EnsemblePrediction):
        return _of_ensemble(prediction, rows)
    draws, _ = prediction.sample(256, torch.Generator(device_of(model)).manual_seed(0))
    units = units or Units.of(model.spec, rows)
    change = miss(model.spec, draws.double().cpu(), rows.obs.double()) / units.change
    target = miss(model.spec, rows.next_obs.double(), rows.obs.double()) / units.change
    names = [name for name, moves in zip(obs_names(model.spec), units.varies.tolist(), strict=True) if moves]
    pick = units.varies
    std = change.std(1)[..., pick].clamp(min=1e-9)
    return Predictive(change.mean(1)[..., pick], std, target[:, pick], names, units.change[pick])


def _of_ensemble(prediction: EnsemblePrediction, rows: Transitions) -> Predictive | None:
    model = prediction.model
    if prediction.target_log_var is None:
        return None  # members of a deterministic ensemble state no spread of their own
    elites, varies = model.get_buffer("elites"), model.get_buffer("varies").bool()
    target = model.prepare(rows.to(varies.device), fit_statistics=False).targets
    mean, var = prediction.target_mean[elites], prediction.variance()[elites]
    named = zip(_target_names(model.spec, model.learns_reward), varies.tolist(), strict=True)
    names = [name for name, moves in named if moves]
    mean, std, target = (x[..., varies].double().cpu() for x in (mean, var.sqrt(), target))
    return Predictive(mean, std, target, names, model.target_norm.std[varies].cpu())


def _target_names(spec: EnvSpec, learns_reward: bool) -> list[str]:
    """Names in the order of :class:`mbrl.models.coordinates.Coordinates`."""
    names = obs_names(spec)
    pairs = [(a.cos, a.sin) for a in spec.angles if a.cos is not None and a.sin is not None]
    raws = [a.raw for a in spec.angles if a.raw is not None]
    apart = {i for pair in pairs for i in pair} | set(raws)
    plain = [name for i, name in enumerate(names) if i not in apart]
    turned = [f"angle({names[c]}, {names[s]})" for c, s in pairs]
    return [*plain, *turned, *(names[i] for i in raws), *(["reward"] if learns_reward else [])]


@torch.no_grad()
def uncertainties(model: DynamicsModel, rows: Transitions) -> dict[str, Tensor]:
    """``{estimator: [B]}`` for every estimator that the model offers, higher is less sure; empty when it has none."""
    if not isinstance(model, HasDistribution):
        return {}
    state, action, found = start_of(model, rows), rows.action.to(device_of(model)), {}
    for kind in get_args(Estimator):
        try:
            found[kind] = model.uncertainty(state, action, kind).double().cpu()
        except UserError:  # this model does not offer this one
            continue
    return {kind: value for kind, value in found.items() if float(value.max() - value.min()) > 0}
