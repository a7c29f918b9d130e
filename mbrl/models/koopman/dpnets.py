"""Deep projection networks: features whose span approximates the leading singular subspace of the transfer operator.

Kostic, Novelli, Grazzi, Lounici, Pontil, "Learning Invariant Representations of Time-Homogeneous Stochastic Dynamical
Systems", 2024. Two networks are trained on pairs (now, next) from covariances alone, without a decoder; the first one's
features then serve a closed-form fit.

Deterministic dynamics give every feature a singular value near one, so the score does not tell good features from bad
ones there: slow and constant functions win, and nothing ties features to what matters for control. Keep the observation
beside them, as the closed-form models here do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.fitting.base import check_counts
from mbrl.models.koopman.deep import mlp
from mbrl.models.koopman.dictionaries import Dictionary
from mbrl.seeding import seeded

Score = Literal["projection", "relaxed"]
ROWS_PER_FEATURE = 50
"""Covariances of smaller batches bias the score, and their eigenvalues touch zero."""


def covariance(a: Tensor, b: Tensor, centred: bool = False) -> Tensor:
    """``[r, s]`` float64: ``E[a b']`` of rows ``[N, r]`` and ``[N, s]``, minus the means' product where ``centred``."""
    a, b = a.double(), b.double()
    if centred:
        a, b = a - a.mean(0), b - b.mean(0)
    return a.T @ b / len(a)


def projection_score(c_x: Tensor, c_y: Tensor, c_xy: Tensor) -> Tensor:
    """``P = |C_X^(-1/2) C_XY C_Y^(-1/2)|_F^2``, solved for without square roots; higher is better, at most ``r``."""
    left = torch.linalg.solve(_lifted(c_x), c_xy)
    right = torch.linalg.solve(_lifted(c_y), c_xy.mT)
    score: Tensor = (left * right.mT).sum()
    return score


def relaxed_score(c_x: Tensor, c_y: Tensor, c_xy: Tensor) -> Tensor:
    """``S = |C_XY|_F^2 / (|C_X|_2 |C_Y|_2) <= P``: nothing is inverted."""
    return c_xy.square().sum() / (_largest(c_x) * _largest(c_y))


def metric_distortion(c: Tensor) -> Tensor:
    """``R = tr(C^2 - C - ln C)``: zero at the identity and nowhere else; eigenvalues have a floor."""
    values = torch.linalg.eigvalsh(c)
    values = values.clamp(min=_floor(c))
    distortion: Tensor = (values.square() - values - values.log()).sum()
    return distortion


def dpnet_loss(now: Tensor, later: Tensor, score: Score, gamma: float, centred: bool = False) -> Tensor:
    """Minus the score plus ``gamma (R(C_X) + R(C_Y))`` of features ``[N, r]`` of a batch of pairs."""
    c_x, c_y = covariance(now, now, centred), covariance(later, later, centred)
    value = projection_score if score == "projection" else relaxed_score
    gain = value(c_x, c_y, covariance(now, later, centred))
    return gamma * (metric_distortion(c_x) + metric_distortion(c_y)) - gain


def _largest(c: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.eigvalsh(c)[-1]
    return largest


def _floor(c: Tensor) -> float:
    return torch.finfo(c.dtype).eps * len(c)


def _lifted(c: Tensor) -> Tensor:
    """``C`` with its spectrum raised by the floor, relative to its size, so that it can be inverted."""
    size = c.diagonal().mean().clamp(min=_floor(c))
    return c + _floor(c) * size * torch.eye(len(c), dtype=c.dtype, device=c.device)


def check_batch(rows: int, features: int) -> None:
    """Raise ``UserError`` where a batch is too small for so many features."""
    if rows < ROWS_PER_FEATURE * features:
        fix = f"{features} features need batches of {ROWS_PER_FEATURE * features} pairs or more; or learn fewer"
        raise UserError("batch", rows, fix)


def train(
    nets: tuple[nn.Module, nn.Module],
    draw: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    score: Score = "relaxed",
    gamma: float = 1.0,
    centred: bool = False,
) -> float:
    """``steps`` of Adam on pairs ``([N, D], [N, D])`` that ``draw`` gives; the last loss."""
    optimizer = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=lr)
    loss = torch.zeros(())
    for _ in range(steps):
        x, y = draw()
        now, later = nets[0](x), nets[1](y)
        check_batch(len(now), now.shape[-1])
        loss = dpnet_loss(now, later, score, gamma, centred)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


class DPNetFeatures(Dictionary):
    """Features for a closed-form model, learned from pairs of scaled observations; actions are averaged over.

    Args:
        spec: the environment.
        size: features ``r``.
        hidden, layers: of both networks.
        score: ``projection``, or ``relaxed``, which inverts nothing and did no worse where both were measured.
        gamma: weight of the metric distortion, 1 as in the authors' smallest example.
        centred: covariances without the means.
        steps, batch, lr: of Adam; ``batch`` at least 50 ``size``.
    """

    def __init__(
        self,
        spec: EnvSpec,
        size: int = 16,
        hidden: int = 64,
        layers: int = 2,
        score: Score = "relaxed",
        gamma: float = 1.0,
        centred: bool = False,
        steps: int = 300,
        batch: int = 2048,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_counts(size=size, hidden=hidden, steps=steps)
        check_batch(batch, size)
        if score not in get_args(Score):
            raise UserError("score", score, "name a score", get_args(Score))
        if not (0.0 <= gamma < math.inf and 0.0 < lr < math.inf):
            raise UserError("gamma, lr", (gamma, lr), "gamma is at least 0, lr above 0")
        self.size, self.shape = size, (spec.obs_size, size, hidden, layers)
        self.score, self.gamma, self.centred = score, gamma, centred
        self.steps, self.batch, self.lr = steps, batch, lr
        self.net = mlp(*self.shape).requires_grad_(False)
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))

    def fit(self, scaled_obs: Tensor, generator: Generator) -> None:
        """Nothing, once trained on pairs. Raises ``UserError`` before: single observations say nothing of dynamics."""
        if not bool(self.get_buffer("trained")):
            raise UserError("DPNetFeatures", "not trained", "call fit_pairs on observations and their successors first")

    def fit_pairs(self, scaled_obs: Tensor, scaled_next: Tensor, generator: Generator) -> dict[str, float]:
        """Train anew on pairs ``[N, D]``; what to log: the loss and the features' condition number.

        Raises ``UserError`` where there are fewer than 50 pairs a feature.
        """
        check_batch(len(scaled_obs), self.size)
        x, y = scaled_obs.float(), scaled_next.float()
        with seeded(generator):
            left, right = mlp(*self.shape).to(x.device), mlp(*self.shape).to(x.device)

        def draw() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(x), (min(self.batch, len(x)),), generator=generator, device=generator.device)
            return x[rows.to(x.device)], y[rows.to(x.device)]

        with torch.enable_grad():
            loss = train((left, right), draw, self.steps, self.lr, self.score, self.gamma, self.centred)
        self.net.load_state_dict(left.state_dict())
        self.get_buffer("trained").fill_(True)
        features = self(x)
        return {"dpnet_loss": loss, "condition": float(torch.linalg.cond(covariance(features, features)))}

    def forward(self, scaled_obs: Tensor) -> Tensor:
        features: Tensor = self.net(scaled_obs.float())
        return features.to(scaled_obs.dtype)
