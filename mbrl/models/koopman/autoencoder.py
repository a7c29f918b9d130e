"""A dense Koopman autoencoder, bilinear in latent and action, with the observation inside the latent.

Fathi, Gehring, Pilault, Kanaa, Bacon, Goroshin, "Course Correcting Koopman Representations", 2024, made discrete in
time; the bilinear term and the observation in the latent as in the closed-form models of Korda and Mezic, "Linear
predictors for nonlinear dynamical systems: Koopman operator meets model predictive control", 2018.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.models.base import LinearParts
from mbrl.models.koopman.deep import DeepKoopman, Losses, mlp
from mbrl.models.koopman.diagonal import Net


class KoopmanAutoencoder(DeepKoopman):
    """``z' = K z + B u + sum_i u_i N_i z`` with the latent ``z = [observation, learned coordinates, 1]``.

    The observation in the latent is standardised, reading it is exact; the constant takes up every affine term. ``K``
    starts as the identity, ``B`` and ``N`` at zero: an untrained model stands still. Weight decay pulls there.

    Args:
        spec: the environment.
        learned: learned coordinates.
        window: steps of a training example, 10 as published for small systems.
        hidden, layers: of the encoder (and decoder).
        bilinear: ``N``. Without it the action pushes alike in every state, which most mechanical systems do not.
        obs_in_latent: False leaves the observation out; it is then decoded.
        decoder: of a latent without the observation: ``mlp`` or ``linear``.
        losses, dynamics_lr: see :class:`DeepKoopman`.
        reencode_every, validation_steps, margin: see :class:`KoopmanModel`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        learned: int = 64,
        window: int = 10,
        hidden: int = 128,
        layers: int = 2,
        bilinear: bool = True,
        obs_in_latent: bool = True,
        decoder: Net = "linear",
        losses: Losses | None = None,
        dynamics_lr: float | None = None,
        reencode_every: int | Literal["auto"] = "auto",
        validation_steps: int = 25,
        margin: float = 0.05,
    ) -> None:
        if decoder not in get_args(Net):
            raise UserError("decoder", decoder, "name one", get_args(Net))
        own = spec.obs_size if obs_in_latent else 0
        size = own + learned + 1
        super().__init__(
            spec, size, window, hidden, layers, losses, dynamics_lr, reencode_every, validation_steps, margin
        )
        self.own, self.decoder_net = own, decoder
        self.encoder = mlp(self.coordinates.feature_size, learned, hidden, layers)
        depth = layers if decoder == "mlp" else 0
        self.decoder = None if own else mlp(size, spec.obs_size, hidden, depth)
        self.drift = nn.Parameter(torch.zeros(size - 1, size))  # K - 1, without the constant's row
        self.push = nn.Parameter(torch.zeros(size - 1, spec.action.size))  # B
        self.steer = nn.Parameter(torch.zeros(spec.action.size, size - 1, size)) if bilinear else None  # N

    def lift_features(self, features: Tensor, obs: Tensor) -> Tensor:
        one = features.new_ones(*features.shape[:-1], 1)
        return torch.cat([obs[..., : self.own], self.encoder(features), one], -1)

    def read_standardised(self, latent: Tensor) -> Tensor:
        if self.decoder is None:
            return latent[..., : self.own]
        obs: Tensor = self.decoder(latent)
        return obs

    @property
    def reads_linearly(self) -> bool:
        return self.decoder is None or self.decoder_net == "linear"

    def dynamics_parameters(self) -> list[nn.Parameter]:
        return [self.drift, self.push, *([] if self.steer is None else [self.steer])]

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.rollout_latent(latent, action[None])[0]

    def rollout_latent(self, latent: Tensor, actions: Tensor) -> Tensor:
        """One matrix product a step serves ``K`` and all ``N``."""
        pushed, path = actions @ self.push.T, []
        fields = self.drift if self.steer is None else torch.cat([self.drift, self.steer.flatten(0, 1)])
        shares = torch.cat([torch.ones_like(actions[..., :1]), actions], -1)
        for push, share in zip(pushed, shares, strict=True):
            moves = (latent @ fields.T).unflatten(-1, (-1, self.latent_size - 1))
            change = push + (moves * share[:, : moves.shape[-2], None]).sum(-2)
            latent = torch.cat([latent[..., :-1] + change, latent[..., -1:]], -1)
            path.append(latent)
        return torch.stack(path)

    @torch.no_grad()
    def linear_parts(self) -> LinearParts:
        """The model; the read-out is exact unless a decoder network stands in its place."""
        still = torch.zeros(1, self.latent_size).to(self.drift)
        k = torch.eye(self.latent_size).to(self.drift) + torch.cat([self.drift, still])
        b = torch.cat([self.push, still[:, : self.push.shape[1]]])
        c, offset = self.linear_readout()
        bilinear = None
        if self.steer is not None:
            bilinear = torch.cat([self.steer, still.expand(len(self.steer), 1, -1)], 1).double()
        return LinearParts(k.double(), b.double(), c, offset, bilinear)

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        """``[N]`` complex128: of ``K``, the constant's 1 among them."""
        values: Tensor = torch.linalg.eigvals(self.linear_parts().a)
        return values
