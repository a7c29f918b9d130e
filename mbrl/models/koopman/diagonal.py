"""A diagonal Koopman model with actions, whose long predictions are one convolution.

Mondal, Panigrahi, Rajeswar, Siddiqi, Ravanbakhsh, "Efficient Dynamics Modeling in Interactive Environments with
Koopman Theory", 2024.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.models.base import LinearParts
from mbrl.models.koopman.deep import DeepKoopman, Losses, mlp
from mbrl.models.koopman.parallel import Path, discretise, follow, last, pack, unpack

Decay = Literal["free", "interval", "negative"]
"""How the eigenvalues' real parts are kept: not at all, inside an interval, or below 0."""
Net = Literal["mlp", "linear"]

ALIVE = 0.1
"""What is left of a mode at a window's end, at least, when the step is chosen here; shorter memory learns nothing."""


class DiagonalKoopman(DeepKoopman):
    """``m`` complex coordinates, each moved by an eigenvalue of its own and pushed by the encoded action.

    Continuous eigenvalues ``mu + i omega``, held over a learned step ``Delta`` for each mode: ``z' = lambda_bar z +
    (lambda_bar - 1) / lambda f(u)``, ``lambda_bar = exp(Delta lambda)``. Gradients over ``k`` steps scale with
    ``exp(k Delta mu)`` exactly. The latent ``[2 m]`` is the real parts, then the imaginary parts.

    Sizes, rates and ``Delta`` are not published. Guesses: ``Delta`` starts small enough that the fastest mode turns
    by less than 0.9 pi a step and a mode keeps at least a tenth over a window.

    Args:
        spec: the environment.
        modes: ``m``.
        window: steps of a training example.
        hidden, layers: of encoder, decoder and action encoder.
        decay: ``free`` real parts (as published), kept in an ``interval``, or ``negative`` (minus a softplus).
        mu: real part at the start, -0.2 as published; imaginary parts start at ``j pi``.
        interval: bounds of the real parts for ``interval``; published as an alternative with (-0.3, -0.1).
        step: ``Delta`` at the start (default: as described).
        action_net: how the action enters; ``linear`` makes the whole model :class:`LatentLinear`.
        decoder: ``mlp``, or ``linear`` of real and imaginary parts.
        bilinear: the action also changes the eigenvalues, ``lambda_bar + sum_i u_i nu_i`` with diagonal ``nu_i``. Ours:
            the published model has none, and general ones would not stay parallel in time.
        path: how steps are followed (default: what is fastest for the device and the number of steps).
        losses, dynamics_lr: see :class:`DeepKoopman`.
        reencode_every, validation_steps, margin: see :class:`KoopmanModel`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        modes: int = 64,
        window: int = 50,
        hidden: int = 128,
        layers: int = 2,
        decay: Decay = "free",
        mu: float = -0.2,
        interval: tuple[float, float] = (-0.3, -0.1),
        step: float | None = None,
        action_net: Net = "mlp",
        decoder: Net = "mlp",
        bilinear: bool = False,
        path: Path | None = None,
        losses: Losses | None = None,
        dynamics_lr: float | None = None,
        reencode_every: int | Literal["auto"] = "auto",
        validation_steps: int = 25,
        margin: float = 0.05,
    ) -> None:
        super().__init__(
            spec, 2 * modes, window, hidden, layers, losses, dynamics_lr, reencode_every, validation_steps, margin
        )
        _check(decay, mu, interval, action_net, decoder)
        self.modes, self.decay, self.interval, self.path = modes, decay, interval, path
        self.action_net, self.decoder_net = action_net, decoder
        self.encoder = mlp(self.coordinates.feature_size, 2 * modes, hidden, layers)
        self.decoder = mlp(2 * modes, spec.obs_size, hidden, layers if decoder == "mlp" else 0)
        if action_net == "linear":
            self.action_encoder: nn.Module = nn.Linear(spec.action.size, 2 * modes, bias=False)
        else:
            self.action_encoder = mlp(spec.action.size, 2 * modes, hidden, max(layers - 1, 1))
        self.mu_raw = nn.Parameter(torch.full((modes,), _raw_mu(decay, mu, interval)))
        self.omega = nn.Parameter(math.pi * torch.arange(modes, dtype=torch.float32))
        self.log_step = nn.Parameter(torch.full((modes,), math.log(_first_step(step, modes, mu, window))))
        self.nu = nn.Parameter(torch.zeros(spec.action.size, 2 * modes)) if bilinear else None

    def lift_features(self, features: Tensor, obs: Tensor) -> Tensor:
        latent: Tensor = self.encoder(features)
        return latent

    def read_standardised(self, latent: Tensor) -> Tensor:
        obs: Tensor = self.decoder(latent)
        return obs

    @property
    def reads_linearly(self) -> bool:
        return self.decoder_net == "linear"

    def dynamics_parameters(self) -> list[nn.Parameter]:
        return [self.mu_raw, self.omega, self.log_step, *([] if self.nu is None else [self.nu])]

    # -- moving --------------------------------------------------------------------------------------------------

    def mu(self) -> Tensor:
        """``[m]``: real parts of the continuous eigenvalues."""
        if self.decay == "negative":
            return -F.softplus(self.mu_raw)
        if self.decay == "interval":
            low, high = self.interval
            return low + (high - low) * self.mu_raw.sigmoid()
        return self.mu_raw

    def discretised(self) -> tuple[Tensor, Tensor]:
        """Factor and gain of one step, complex ``[m]``."""
        return discretise(torch.complex(self.mu(), self.omega), self.log_step.exp())

    @torch.no_grad()
    def eigenvalues(self, discrete: bool = True) -> Tensor:
        """``[m]`` complex128: what a step multiplies the modes by, or the continuous ``mu + i omega``."""
        continuous = torch.complex(self.mu().double(), self.omega.double())
        return (continuous * self.log_step.double().exp()).exp() if discrete else continuous

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.rollout_latent(latent, action[None])[0]

    def rollout_latent(self, latent: Tensor, actions: Tensor) -> Tensor:
        factor, gain = self.discretised()
        drive = gain * unpack(self.action_encoder(actions))
        if self.nu is not None:
            factor = factor + unpack(actions @ self.nu)
        path = "scan" if self.path == "fft" and self.nu is not None else self.path
        return pack(follow(unpack(latent), factor, drive, path))

    def latent_after(self, latent: Tensor, actions: Tensor) -> Tensor:
        """``[B, N]``: the latent after all of ``actions [H, B, A]``, without those on the way.

        Where the action enters linearly, actions are summed first, weighted with the powers of the factors, and
        encoded once.
        """
        if self.nu is not None:
            return self.rollout_latent(latent, actions)[-1]
        factor, gain = self.discretised()
        if not isinstance(self.action_encoder, nn.Linear):
            return pack(last(unpack(latent), factor, gain * unpack(self.action_encoder(actions))))
        steps = torch.arange(len(actions), -1, -1, device=latent.device)
        powers = factor.pow(steps[:, None])
        summed = unpack(actions.permute(1, 2, 0) @ pack(powers[1:]))  # [B, A, m]
        pushed = (summed * unpack(self.action_encoder.weight.T)).sum(1)
        return pack(powers[0] * unpack(latent) + gain * pushed)

    @torch.no_grad()
    def linear_parts(self) -> LinearParts:
        """The model in real coordinates; the read-out is exact for a linear decoder, else regressed after a fit.

        Raises ``UserError`` where the action encoder is not linear.
        """
        if not isinstance(self.action_encoder, nn.Linear):
            raise UserError("action_net", self.action_net, "its action does not enter linearly; set action_net: linear")
        factor, gain = self.discretised()
        pushed = pack(gain * unpack(self.action_encoder.weight.T)).T.double()
        c, offset = self.linear_readout()
        bilinear = None if self.nu is None else torch.stack([_real(unpack(nu)) for nu in self.nu])
        return LinearParts(_real(factor), pushed, c, offset, bilinear)


def _real(diagonal: Tensor) -> Tensor:
    """``[2 m, 2 m]`` float64: multiplication by complex ``diagonal [m]`` on packed latents."""
    re, im = diagonal.real.double().diag(), diagonal.imag.double().diag()
    return torch.cat([torch.cat([re, -im], 1), torch.cat([im, re], 1)])


def _check(decay: str, mu: float, interval: tuple[float, float], action_net: str, decoder: str) -> None:
    if decay not in get_args(Decay):
        raise UserError("decay", decay, "name one", get_args(Decay))
    for name, net in (("action_net", action_net), ("decoder", decoder)):
        if net not in get_args(Net):
            raise UserError(name, net, "name one", get_args(Net))
    if not math.isfinite(mu) or (decay == "negative" and mu >= 0.0):
        raise UserError("mu", mu, "give a finite number, below 0 where decay is negative")
    if decay == "interval" and not interval[0] < mu < interval[1]:
        raise UserError("mu", mu, f"start inside the interval {interval}")


def _raw_mu(decay: str, mu: float, interval: tuple[float, float]) -> float:
    """What the real part is a function of, at its start."""
    if decay == "negative":
        return math.log(math.expm1(-mu))
    if decay == "interval":
        share = (mu - interval[0]) / (interval[1] - interval[0])
        return math.log(share / (1.0 - share))
    return mu


def _first_step(step: float | None, modes: int, mu: float, window: int) -> float:
    """``Delta`` at the start; one that would fold the fastest mode onto a slower one is refused."""
    fastest = math.pi * (modes - 1)
    if step is None:
        unfolded, remembered = 0.9 / modes, -math.log(ALIVE) / (max(abs(mu), 1e-3) * window)
        return min(0.05, unfolded, remembered)
    if not step > 0.0 or step * fastest >= math.pi:
        fix = f"with {modes} modes give a number above 0 and below {1.0 / max(modes - 1, 1):.3g}, or leave it out"
        raise UserError("step", step, fix)
    return step
