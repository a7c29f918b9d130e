"""What Koopman models with learned lifts share: data preparation, losses over windows, heads, optimiser groups.

Losses as in Fathi et al., "Course Correcting Koopman Representations", 2024, and Mondal et al., "Efficient Dynamics
Modeling in Interactive Environments with Koopman Theory", 2024: the latent is lifted from a window's first observation
only and moved through all its steps. Neither says what the losses weigh nor whether the target is a constant: both are
guesses here.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.normalizer import Normalizer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.fitting.base import check_counts
from mbrl.models.koopman.base import KoopmanModel

READOUT_ROWS = 4096
"""Observations that a linear read-out is fitted to."""
READOUT_RIDGE = 1e-6
"""of the latents' mean square"""


@dataclass(frozen=True)
class Losses:
    """Weights of the losses; all are mean squares, in standard deviations where of observations.

    Args:
        consistency: moved latents against the lifted observations they should have reached.
        prediction: what moved latents read as against observations.
        reconstruction: what lifted observations read as against themselves.
        sparsity: mean absolute value of the moved latents (published with 1e-3 for the dense model).
        detach_target: no gradient of ``consistency`` through the observations' lift. A guess either way; without it
            the lift also learns to be predictable, and reconstruction keeps it from collapsing.
    """

    consistency: float = 1.0
    prediction: float = 1.0
    reconstruction: float = 1.0
    sparsity: float = 0.0
    detach_target: bool = False

    def __post_init__(self) -> None:
        for name in ("consistency", "prediction", "reconstruction", "sparsity"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"losses.{name}", getattr(self, name), "give a finite number of at least 0")


@dataclass
class Lived(Record):
    """Prepared training rows."""

    features: Tensor
    """``[..., F]``: plain coordinates, cos and sin of angles, standardised"""
    next_features: Tensor
    """``[..., F]``"""
    obs: Tensor
    """``[..., D]`` standardised"""
    next_obs: Tensor
    """``[..., D]``"""
    action: Tensor
    """``[..., A]``"""
    rest: Tensor
    """``[...]``: standardised part of the reward that the spec does not know"""
    ends: Tensor
    """``[...]``: 1 where the step ended the episode"""


def mlp(inputs: int, outputs: int, hidden: int, layers: int) -> nn.Sequential:
    """``layers`` hidden layers of SiLU units; 0 is an affine map."""
    sizes = [inputs, *[hidden] * layers]
    body = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], outputs))


class DeepKoopman(KoopmanModel):
    """A Koopman model trained by gradient over windows; a subclass says what its latent is and how it moves.

    Args:
        spec: the environment.
        latent_size: ``N``, reals of the latent.
        window: steps of a training example.
        hidden, layers: of the networks.
        losses: what is minimised.
        dynamics_lr: step size of what moves the latent (default: the fitter's).
        reencode_every, validation_steps, margin: see :class:`KoopmanModel`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        latent_size: int,
        window: int,
        hidden: int,
        layers: int,
        losses: Losses | None,
        dynamics_lr: float | None,
        reencode_every: int | Literal["auto"],
        validation_steps: int,
        margin: float,
    ) -> None:
        super().__init__(spec, reencode_every, validation_steps, margin)
        check_counts(latent_size=latent_size, window=window, hidden=hidden)
        if window < 2:
            raise UserError("window", window, "a latent is learned over at least 2 steps")
        if layers < 0:
            raise UserError("layers", layers, "give a number of hidden layers, 0 for affine maps")
        if dynamics_lr is not None and not 0.0 < dynamics_lr < math.inf:
            raise UserError("dynamics_lr", dynamics_lr, "give a finite number above 0, or leave it out")
        self.latent_size, self.losses, self.dynamics_lr = latent_size, losses or Losses(), dynamics_lr
        self.window = window
        self.feature_norm = Normalizer(self.coordinates.feature_size)
        self.obs_norm = Normalizer(spec.obs_size)
        self.rest_norm = Normalizer(1)
        sees = 2 * latent_size + spec.action.size
        self.reward_head = mlp(sees, 1, hidden, min(layers, 1)) if self.learns_reward else None
        self.end_head = mlp(latent_size, 1, hidden, min(layers, 1)) if self.learns_end else None
        self.register_buffer("readout", torch.full((latent_size + 1, spec.obs_size), torch.nan, dtype=torch.float64))
        self._seen: Tensor | None = None

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def lift_features(self, features: Tensor, obs: Tensor) -> Tensor:
        """Latents ``[..., N]`` of standardised features ``[..., F]`` and observations ``[..., D]``."""

    @abstractmethod
    def read_standardised(self, latent: Tensor) -> Tensor:
        """Standardised observations ``[..., D]`` of latents ``[..., N]``."""

    @abstractmethod
    def dynamics_parameters(self) -> list[nn.Parameter]:
        """What moves the latent; has an optimiser group of its own."""

    @property
    def reads_linearly(self) -> bool:
        """Whether :meth:`read` is affine, so that :meth:`linear_parts` has it exactly."""
        return False

    # -- the model -----------------------------------------------------------------------------------------------

    def lift(self, obs: Tensor) -> Tensor:
        return self.lift_features(self._features(obs), self.obs_norm.normalize(obs))

    def read(self, latent: Tensor) -> Tensor:
        return self.obs_norm.denormalize(self.read_standardised(latent))

    def _features(self, obs: Tensor) -> Tensor:
        return self.feature_norm.normalize(self._plain_features(obs))

    def _plain_features(self, obs: Tensor) -> Tensor:
        return self.coordinates.features(self.coordinates.from_obs(obs))

    def learned_reward(self, latent: Tensor, action: Tensor, next_latent: Tensor) -> Tensor:
        return self.rest_norm.denormalize(self._rest(latent, action, next_latent)[..., None])[..., 0]

    def _rest(self, latent: Tensor, action: Tensor, next_latent: Tensor) -> Tensor:
        assert self.reward_head is not None
        found: Tensor = self.reward_head(torch.cat([latent, action, next_latent], -1))[..., 0]
        return found

    def end_logit(self, next_latent: Tensor) -> Tensor:
        assert self.end_head is not None
        logit: Tensor = self.end_head(next_latent)[..., 0]
        return logit

    # -- training ------------------------------------------------------------------------------------------------

    def prepare(self, data: Transitions) -> Lived:
        """Training rows of raw transitions; refits normalisers and ranges on them first."""
        plain, next_plain = self._plain_features(data.obs), self._plain_features(data.next_obs)
        rest = data.reward - self.spec.known_reward(data.obs, data.action, data.next_obs)
        self.feature_norm.fit(plain)
        self.obs_norm.fit(data.obs)
        self.rest_norm.fit(rest[:, None])
        self.fit_range(data)
        self._seen = data.obs[:: max(1, len(data) // READOUT_ROWS)]
        return Lived(
            features=self.feature_norm.normalize(plain),
            next_features=self.feature_norm.normalize(next_plain),
            obs=self.obs_norm.normalize(data.obs),
            next_obs=self.obs_norm.normalize(data.next_obs),
            action=data.action,
            rest=self.rest_norm.normalize(rest[:, None])[:, 0],
            ends=data.terminated.to(data.obs.dtype),
        )

    def loss(self, batch: Lived) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of prepared windows ``[1, B, T, ...]``."""
        parts = self._parts(batch[0])
        weights = {"consistency": self.losses.consistency, "prediction": self.losses.prediction}
        weights |= {"reconstruction": self.losses.reconstruction, "sparsity": self.losses.sparsity}
        total = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def holdout_score(self, batch: Lived) -> tuple[Tensor, dict[str, Tensor]]:
        """``[1]``: what is predicted of held-out windows ``[B, T, ...]`` and nothing else, since the latent's own scale
        is the model's choice.
        """
        parts = self._parts(batch)
        score = torch.stack([parts[name] for name in ("prediction", "reward", "end") if name in parts]).sum()
        return score.expand(1), {f"holdout_{name}": part for name, part in parts.items()}

    def _parts(self, windows: Lived) -> dict[str, Tensor]:
        """Losses by name, of ``[B, T, ...]``; time first inside."""
        truth = windows.map(lambda x: x.transpose(0, 1))
        first = self.lift_features(truth.features[0], truth.obs[0])
        moved, target = self.rollout_latent(first, truth.action), self._target(truth)
        parts = {
            "consistency": F.mse_loss(moved, target.detach() if self.losses.detach_target else target),
            "prediction": F.mse_loss(self.read_standardised(moved), truth.next_obs),
        }
        if self.losses.reconstruction:
            lifted, obs = torch.cat([first[None], target]), torch.cat([truth.obs[:1], truth.next_obs])
            parts["reconstruction"] = F.mse_loss(self.read_standardised(lifted), obs)
        if self.losses.sparsity:
            parts["sparsity"] = moved.abs().mean()
        return parts | self._head_losses(torch.cat([first[None], moved]), truth)

    def _target(self, truth: Lived) -> Tensor:
        """Lifted successors ``[T, B, N]``; nothing is kept for a gradient that no loss asks for."""
        wanted = not self.losses.detach_target or self.losses.reconstruction > 0.0
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            return self.lift_features(truth.next_features, truth.next_obs)

    def _head_losses(self, latents: Tensor, truth: Lived) -> dict[str, Tensor]:
        """Of ``[T + 1, B, N]``: as imagined, so that the heads see what they will see."""
        found: dict[str, Tensor] = {}
        if self.learns_reward:
            found["reward"] = F.mse_loss(self._rest(latents[:-1], truth.action, latents[1:]), truth.rest)
        if self.learns_end:
            found["end"] = F.binary_cross_entropy_with_logits(self.end_logit(latents[1:]), truth.ends)
        return found

    def parameter_groups(self, weight_decay: float | Sequence[float]) -> list[dict[str, Any]]:
        """Decay on weight matrices only; what moves the latent in groups of its own, with ``dynamics_lr``."""
        if isinstance(weight_decay, Sequence):
            raise UserError(
                "weight_decay", weight_decay, f"give one number: {type(self).__name__} has several networks"
            )
        own = self.dynamics_parameters()
        numbers = {id(p) for p in own}
        nets = [p for p in self.parameters() if id(p) not in numbers]
        pace = {} if self.dynamics_lr is None else {"lr": self.dynamics_lr}
        groups = [*_by_decay(nets, weight_decay, {}), *_by_decay(own, weight_decay, pace)]
        return [group for group in groups if group["params"]]

    # -- after a fit ---------------------------------------------------------------------------------------------

    def calibrate(self, held: Transitions, generator: Generator) -> dict[str, float]:
        """The linear read-out, where the model's own is not, from rows of the whole fit; then the period."""
        if not self.reads_linearly:
            self._fit_readout(held.obs if self._seen is None else self._seen)
        self._seen = None
        return super().calibrate(held, generator)

    @torch.no_grad()
    def _fit_readout(self, obs: Tensor) -> None:
        """Ridge regression of ``obs [N, D]`` on its latents and 1."""
        z, y = self.lift(obs).double(), obs.double()
        centre = z.mean(0)
        gram = (z - centre).T @ (z - centre)
        gram += READOUT_RIDGE * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram)).to(gram)
        c = torch.linalg.solve(gram, (z - centre).T @ (y - y.mean(0)))
        self.get_buffer("readout").copy_(torch.cat([c, (y.mean(0) - centre @ c)[None]]))

    def linear_readout(self) -> tuple[Tensor, Tensor]:
        """``C [D, N]`` and ``offset [D]``, float64: obs = C z + offset. Raises ``UserError`` before the first fit where
        it is fitted afterwards.
        """
        if self.reads_linearly:
            origin = torch.zeros(1, self.latent_size, device=self.obs_norm.mean.device)
            offset = self.read(origin)[0].double()
            unit = torch.eye(self.latent_size, device=origin.device)
            return ((self.read(unit).double() - offset).T).detach(), offset.detach()
        readout = self.get_buffer("readout")
        if not bool(readout.isfinite().all()):
            raise UserError("linear_parts", "no linear read-out", "fit the model first: it is regressed after a fit")
        return readout[:-1].T.clone(), readout[-1].clone()


def _by_decay(parameters: list[nn.Parameter], decay: float, pace: dict[str, float]) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": decay} | pace, {"params": others, "weight_decay": 0.0} | pace]
