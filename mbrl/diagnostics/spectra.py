"""How a model's mean step stretches small deviations: eigenvalues of its Jacobian with respect to the observation.

Of a linear model the spectrum is of the model itself. Of any other it is local: of the linearisation at each state,
which says nothing of many steps together. An entry shown as cos and sin of an angle adds an eigenvalue 0, since
predictions stay on the circle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import device_of
from mbrl.models.base import DynamicsModel, HasDistribution, State


@dataclass(frozen=True)
class Spectra:
    """Of ``B`` Jacobians ``d mean next_obs / d obs [B, D, D]``, float64."""

    source: str
    """what was differentiated"""
    eigenvalues: Tensor
    """``[B, D]`` complex"""
    stretch: Tensor
    """``[B]`` largest singular value of the Jacobian in standardised observations: growth of the worst deviation"""

    @property
    def radius(self) -> Tensor:
        """``[B]`` largest modulus of an eigenvalue."""
        return self.eigenvalues.abs().amax(-1)


def spectra(model: DynamicsModel, rows: Transitions, std: Tensor) -> Spectra | None:
    """At ``rows [B]`` with observations' ``std [D]``; None for a model whose mean step cannot be differentiated.

    A model that offers ``linear_parts()`` is asked for its A, one that offers ``linearize(state, action) -> (A, B)``
    for that; of another that predicts a distribution, the Jacobian of the mean over the members that predict is taken
    by :mod:`torch.func`.
    """
    at = rows.to(device_of(model))
    if callable(linear_parts := getattr(model, "linear_parts", None)):
        jacobian, source = linear_parts().a.unsqueeze(0), "the model's own state matrix, the same everywhere"
    elif callable(linearize := getattr(model, "linearize", None)):
        jacobian, source = linearize(model.encode(at.obs), at.action)[0], "the model's own linearisation"
    elif isinstance(model, HasDistribution):
        jacobian, source = mean_jacobian(model, at.obs, at.action), "the Jacobian of the mean prediction"
    else:
        return None
    if jacobian.shape[-2:] != (len(std), len(std)):  # a latent model's: its own units
        std = std.new_ones(jacobian.shape[-1])
    jacobian = jacobian.detach().double().cpu()
    scaled = jacobian * std / std[:, None]
    values = torch.linalg.eigvals(jacobian)
    return Spectra(source, values.expand(len(rows), -1), torch.linalg.matrix_norm(scaled, 2).expand(len(rows)))


def mean_jacobian(model: HasDistribution, obs: Tensor, action: Tensor) -> Tensor:
    """``[B, D, D]`` derivative of the mean next observation with respect to ``obs [B, D]``."""
    size = obs.shape[-1]

    def summed(x: Tensor) -> Tensor:  # rows do not mix, so the derivative of their sum holds that of each
        mean = model.predict(State(x), action).mean
        elites = dict(model.named_buffers()).get("elites") if isinstance(model, torch.nn.Module) else None
        return (mean if elites is None else mean[elites])[..., :size].mean(0).sum(0)

    jacobian: Tensor = torch.func.jacrev(summed)(obs)
    return jacobian.transpose(0, 1)
