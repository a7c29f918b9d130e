"""Self-prediction beside the actor-critic: a diagonal Koopman model whose latents its networks read.

Schwarzer, Anand, Goel, Hjelm, Courville, Bachman, "Data-Efficient Reinforcement Learning with Self-Predictive
Representations", 2021 (SPR), with the transition of Mondal, Panigrahi, Rajeswar, Siddiqi, Ravanbakhsh, "Efficient
Dynamics Modeling in Interactive Environments with Koopman Theory", 2024, who predict five steps ahead.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from agents.actor_critic.running import RunningNormalizer
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.diagonal import DiagonalKoopman

Reads = Literal["both", "latent"]
"""What the actor and the critics read: the observation and the latent, or the latent alone."""

SMALLEST = 1e-6
BATCH_SHARE = 0.1
"""Share of a batch in the running statistics of the latents."""
SPARE = 2
"""Windows are tried at random places, so many for each that is wanted: some would cross an episode's end."""


class UnitSpread(nn.Module):
    """Batch normalisation with one scale for all entries: their mean variance is 1, entries of no use may shrink.

    With a scale for each, every mode must carry something, also those that turn faster than anything in the task
    (measured on Pendulum-v1: after 300 updates half of the variance five steps ahead was unpredicted, here 0.1).
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, size]``: by the batch's own statistics while training, else by the running ones."""
        if not self.training:
            return (x - self.mean) / self.spread
        mean = x.mean(0)
        spread = (x - mean).square().mean().sqrt().clamp(min=SMALLEST)
        self.mean.lerp_(mean.detach(), BATCH_SHARE)
        self.spread.lerp_(spread.detach(), BATCH_SHARE)
        return (x - mean) / spread


class SelfPrediction:
    """An encoder that learns to predict its own future; actor and critics read what it says and do not train it.

    The latent of an observation is moved through the actions that followed, ``z' = lambda_bar z + gain f(u)``, and
    compared with what a slow average of the encoder says of the observations that came.

    As published: the horizon, the diagonal transition, the action's encoder, the average as target. The published
    method trains the encoder together with the actor-critic, from images. Our choice, since we have no images: an
    encoder with an optimiser of its own; squared errors without projection heads; latents brought to unit spread over
    a batch, since a constant one would be a perfect prediction; a decoder that predicts the standardised observations
    as well, so that they tell the state; the networks read the average encoder, so that their inputs move slowly; all
    sizes, rates and weights.

    Args:
        spec: the environment.
        modes: complex coordinates of the latent, which has twice as many reals.
        horizon: steps ahead.
        hidden, layers: of encoder, decoder and the action's encoder.
        reads: what actor and critics read, ``both`` observation and latent, or the ``latent`` alone.
        every: critic updates for one update of the representation.
        batch_size: windows of an update.
        lr: Adam's step size.
        tau: share of the encoder in its moving average.
        prediction: weight of the predicted observations' error beside that of the latents.
    """

    def __init__(
        self,
        spec: EnvSpec,
        modes: int = 16,
        horizon: int = 5,
        hidden: int = 64,
        layers: int = 2,
        reads: Reads = "both",
        every: int = 10,
        batch_size: int = 128,
        lr: float = 1e-3,
        tau: float = 0.01,
        prediction: float = 1.0,
    ) -> None:
        _check((modes, hidden, every, batch_size), horizon, (lr, tau, prediction), reads)
        self.spec, self.horizon, self.reads, self.every, self.batch_size = spec, horizon, reads, every, batch_size
        self.lr, self.tau, self.prediction = lr, tau, prediction
        self.sizes = (modes, horizon, hidden, layers)
        self.seed(0, torch.device("cpu"))

    def seed(self, seed: int, device: torch.device) -> None:
        """Draw every network from ``seed`` and forget everything learned."""
        self.device = device
        with seeding.seeded(seeding.generator(seed, "representation")):
            self.model = DiagonalKoopman(self.spec, *self.sizes).to(device)
        unit = UnitSpread(self.model.latent_size).to(device)
        self.encoder = nn.Sequential(self.model.encoder, unit)
        self.average = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        trained = [*self.model.encoder.parameters(), *self.model.decoder.parameters()]
        trained += [*self.model.action_encoder.parameters(), *self.model.dynamics_parameters()]
        self.optimizer = torch.optim.Adam(trained, lr=self.lr)
        self.features = RunningNormalizer(self.model.coordinates.feature_size, device)
        self.observations = RunningNormalizer(self.spec.obs_size, device)

    @property
    def input_size(self) -> int:
        """Numbers that actor and critics read."""
        return self.model.latent_size + (self.spec.obs_size if self.reads == "both" else 0)

    @torch.no_grad()
    def extend(self, obs: Tensor, shown: Tensor) -> Tensor:
        """``[..., input_size]``: what is read at raw ``obs [..., D]``, of which ``shown`` is the learner's own form."""
        latent = self._averaged(obs)
        return torch.cat([shown, latent], -1) if self.reads == "both" else latent

    def _averaged(self, obs: Tensor) -> Tensor:
        """``[..., 2 m]``: what the average encoder says, normalised by the statistics it has gathered."""
        rows = self._standardised(obs)
        latents: Tensor = self.average(rows.flatten(0, -2))
        return latents.view(*rows.shape[:-1], -1)

    def _features(self, obs: Tensor) -> Tensor:
        return self.model.coordinates.features(self.model.coordinates.from_obs(obs))

    def _standardised(self, obs: Tensor) -> Tensor:
        return self.features.normalize(self._features(obs))

    # -- learning ----------------------------------------------------------------------------------------------------

    def owed(self, before: int, updates: int) -> int:
        """Updates of the representation for so many critic updates after ``before`` of them."""
        return (before + updates) // self.every - before // self.every

    def update(self, windows: Transitions) -> dict[str, float]:
        """One update for each of ``R`` batches of windows ``[R, B, horizon, ...]``, in order; mean losses."""
        self.features.see(self._features(windows.obs))
        self.observations.see(windows.obs)
        found = [self._step(windows[i]) for i in range(len(windows.obs))]
        self_prediction, prediction = torch.stack(found).mean(0).tolist()
        return {"self_prediction": self_prediction, "latent_prediction": prediction}

    def _step(self, windows: Transitions) -> Tensor:
        consistency, prediction = self.losses(windows)
        self.optimizer.zero_grad(set_to_none=True)
        (consistency + self.prediction * prediction).backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, self.tau)
        return torch.stack([consistency.detach(), prediction.detach()])

    def losses(self, windows: Transitions) -> tuple[Tensor, Tensor]:
        """Mean squares over windows ``[B, horizon, ...]``: of moved latents against the average encoder's, of mean
        variance 1; of predicted against true observations, in standard deviations.
        """
        moved = self.predict(windows.obs[:, 0], windows.action)
        with torch.no_grad():
            self.average.train()  # its own statistics: those of the faster encoder would not bring it to unit spread
            target = self._averaged(windows.next_obs)
            self.average.eval()
        truth = self.observations.normalize(windows.next_obs)
        return F.mse_loss(moved, target), F.mse_loss(self.model.read_standardised(moved), truth)

    def predict(self, obs: Tensor, actions: Tensor) -> Tensor:
        """``[B, H, 2 m]``: latents after each of ``actions [B, H, A]`` from raw ``obs [B, D]``."""
        latent: Tensor = self.encoder(self._standardised(obs))
        return self.model.rollout_latent(latent, actions.transpose(0, 1)).transpose(0, 1)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; copies, so that learning on does not change them."""
        modules = {"model": self.model.state_dict(), "unit": self.encoder[1].state_dict()}
        modules["average"] = self.average.state_dict()
        normalizers = {"features": self.features.state_dict(), "observations": self.observations.state_dict()}
        return copy.deepcopy(modules | normalizers | {"optimizer": self.optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, bit for bit."""
        self.model.load_state_dict(state["model"])
        self.encoder[1].load_state_dict(state["unit"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.features.load_state_dict(state["features"])
        self.observations.load_state_dict(state["observations"])


def draw_windows(
    buffer: ReplayBuffer, slots: int, lead: tuple[int, int], length: int, generator: Generator
) -> Transitions | None:
    """Windows ``[*lead, length, ...]`` of consecutive steps at random; None while none is found.

    ``slots`` environments took turns in the buffer, so an episode's next row lies that many rows further; places where
    it does not are passed over. Unlike :meth:`ReplayBuffer.windows` its cost does not grow with the buffer, which
    changes at every env step here.
    """
    reach = (length - 1) * slots
    if len(buffer) <= reach:
        return None
    wanted, oldest = lead[0] * lead[1], buffer.total_added - len(buffer)
    first = torch.randint(len(buffer) - reach, (SPARE * wanted,), generator=generator, device=buffer.device) + oldest
    ids = first[:, None] + slots * torch.arange(length, device=buffer.device)
    rows = buffer[ids]
    along = (rows.episode.diff(dim=1) == 0) & (rows.step.diff(dim=1) == 1)
    if rows.task is not None:
        along &= rows.task.diff(dim=1) == 0
    whole = along.all(1).nonzero()[:, 0]
    if not len(whole):
        return None
    chosen = whole[torch.arange(wanted, device=whole.device) % len(whole)]  # too few: some come again
    return rows[chosen].map(lambda x: x.unflatten(0, lead))


def _check(counts: tuple[int, ...], horizon: int, numbers: tuple[float, float, float], reads: str) -> None:
    if min(counts) < 1 or counts[-1] < 2:
        raise UserError("modes, hidden, every, batch_size", counts, "each is at least 1, batch_size at least 2")
    if horizon < 2:
        raise UserError("horizon", horizon, "give a number of steps of at least 2")
    lr, tau, prediction = numbers
    if not (0.0 < lr < math.inf and 0.0 < tau <= 1.0 and 0.0 <= prediction < math.inf):
        raise UserError("lr, tau, prediction", numbers, "lr > 0, tau in (0, 1], prediction at least 0; all finite")
    if reads not in get_args(Reads):
        raise UserError("reads", reads, "name what is read", get_args(Reads))
