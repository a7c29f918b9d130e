"""Probabilistic ensemble of neural networks.

Chua, Calandra, McAllister, Levine, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics
Models", 2018 (PETS). Members are stacked: one batched matrix product serves all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.normalizer import Normalizer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, Estimator, Propagation, State, Step, Trajectory
from mbrl.models.bound_ensemble import BoundEnsemble, check_balance
from mbrl.models.coordinates import Coordinates

Score = Literal["geometric", "mean"]


@dataclass
class Regression(Record):
    """Prepared training rows: network inputs and standardised targets."""

    inputs: Tensor
    """``[..., F + A]`` standardised"""
    targets: Tensor
    """``[..., T]`` standardised: change of coordinates, then the part of the reward that is not known"""
    ends: Tensor
    """``[..., K]`` 0/1, ``K`` = 1 when termination is learned, else 0"""


class ProbabilisticEnsemble(DynamicsModel):
    """``E`` networks, each predicting a Gaussian over the change of the state and over what of the reward is unknown.

    Log-variance ``l`` is softly clamped, ``l <- max - softplus(max - l)``, ``l <- min + softplus(l - min)``, with
    learned bounds, computed in closed form: ``exp(l) <- exp(min) + exp(max) * sigmoid(l - max)``. Inputs and targets
    are standardised. Termination, where the spec does not know it, is a logit.

    Args:
        spec: the environment.
        members: ``E`` >= 1.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        elites: members used for prediction, those with the lowest holdout score (default: all).
        probabilistic: False gives a deterministic net trained on squared error (no sampled noise).
        bound_weight: weight of the pull on the log-variance bounds, 0.01 as published.
        score: how squared errors on held-out rows become a member's score: ``geometric`` mean over the outputs, or
            their ``mean``, as published with MBPO (Janner et al., 2019).
        validity: the model calls a state truncated when a coordinate leaves the data's range by more than this
            multiple of the range; 0 switches the box off.
        inference_dtype: number format of the networks when predicting (training stays float32).
        compile: compile the step of a rollout with torch.compile (first use takes a while).
    """

    def __init__(
        self,
        spec: EnvSpec,
        members: int = 5,
        hidden: int = 128,
        layers: int = 2,
        elites: int | None = None,
        probabilistic: bool = True,
        bound_weight: float = 0.01,
        score: Score = "geometric",
        validity: float = 0.0,
        inference_dtype: Literal["float32", "bfloat16"] = "float32",
        compile: bool = False,
    ) -> None:
        super().__init__(spec)
        if members < 1 or layers < 1 or hidden < 1:
            raise UserError("members, layers, hidden", (members, layers, hidden), "each is at least 1")
        if elites is not None and not 1 <= elites <= members:
            raise UserError("elites", elites, f"choose between 1 and members = {members}")
        if score not in get_args(Score):
            raise UserError("score", score, "name a score", get_args(Score))
        self.members, self.probabilistic, self.bound_weight, self.score = members, probabilistic, bound_weight, score
        self.validity, self.inference_dtype, self.compile_step = validity, inference_dtype, compile
        self.coordinates = Coordinates(spec)
        self.learns_reward = not spec.reward_complete
        self.learns_end = spec.termination is None
        self.target_size = self.coordinates.size + self.learns_reward
        self.input_norm = Normalizer(self.coordinates.feature_size + spec.action.size)
        self.target_norm = Normalizer(self.target_size)
        outputs = self.target_size * (1 + probabilistic) + self.learns_end
        sizes = [self.coordinates.feature_size + spec.action.size, *[hidden] * layers, outputs]
        shapes = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList([_initial_weight(members, i, o) for i, o in shapes])
        self.biases = nn.ParameterList([torch.zeros(members, 1, o) for _, o in shapes])
        self.max_log_var = nn.Parameter(torch.full((members, 1, self.target_size), 0.5))
        self.min_log_var = nn.Parameter(torch.full((members, 1, self.target_size), -10.0))
        self.register_buffer("elites", torch.arange(elites or members))
        self.register_buffer("varies", torch.ones(self.target_size))
        self.register_buffer("box", torch.tensor([[-math.inf], [math.inf]]).repeat(1, self.coordinates.size))

    # -- training --------------------------------------------------------------------------------------------------

    def prepare(self, data: Transitions, fit_statistics: bool = True) -> Regression:
        """Training rows of raw transitions; refits the normalisers on them first when asked."""
        z, next_z = self.coordinates.from_obs(data.obs), self.coordinates.from_obs(data.next_obs)
        inputs = self.coordinates.features(z, data.action)
        parts = [self.coordinates.difference(z, next_z)]
        if self.learns_reward:
            known = self.spec.known_reward(data.obs, data.action, data.next_obs)
            parts.append((data.reward - known)[..., None])
        targets = torch.cat(parts, -1)
        if fit_statistics:
            self._fit_statistics(inputs, targets, z)
        ends = data.terminated[..., None].to(inputs.dtype) if self.learns_end else inputs[..., :0]
        return Regression(self.input_norm.normalize(inputs), self.target_norm.normalize(targets), ends)

    def _fit_statistics(self, inputs: Tensor, targets: Tensor, z: Tensor) -> None:
        self.input_norm.fit(inputs)
        self.get_buffer("varies").copy_(self.target_norm.fit(targets).float())
        if self.validity:
            low, high = z.amin(0), z.amax(0)
            margin = self.validity * (high - low)
            self.get_buffer("box").copy_(torch.stack([low - margin, high + margin]))

    def loss(self, batch: Regression) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over members of the mean negative log-likelihood of ``[E, B, ...]`` prepared rows."""
        mean, log_var, logit = self._outputs(batch.inputs)
        error = (mean - batch.targets).square() * self.get_buffer("varies")
        if log_var is None:
            each = error.mean((1, 2))
            loss = each.sum()
        else:
            nll = error * torch.exp(-log_var) + log_var * self.get_buffer("varies")
            each = nll.mean((1, 2))
            loss = each.sum() + self.bound_weight * (self.max_log_var.sum() - self.min_log_var.sum())
            pull = (self.max_log_var.detach() - self.min_log_var.detach()).sum((1, 2))
            each = each.detach() + self.bound_weight * pull
        if logit is not None:
            miss = F.binary_cross_entropy_with_logits(logit, batch.ends, reduction="none").mean((1, 2))
            loss, each = loss + miss.sum(), each.detach() + miss.detach()
        return loss, {"loss": loss.detach(), "member_losses": each.detach()}

    @torch.no_grad()
    def holdout_score(self, batch: Regression) -> tuple[Tensor, dict[str, Tensor]]:
        """``[E]`` score on held-out rows ``[B, ...]``, lower is better: squared error in standardised units, averaged
        over rows, then over outputs as ``score`` says.

        A plain mean lets one irreducible output stop the fit of all others and choose the elites.
        """
        rows = batch.map(lambda x: x.expand(self.members, *x.shape))
        mean, _, logit = self._outputs(rows.inputs)
        mse = (mean - rows.targets).square().mean(1)[:, self.get_buffer("varies").bool()]
        if logit is not None:
            mse = torch.cat([mse, (logit.sigmoid() - rows.ends).square().mean(1)], -1)
        score: Tensor = mse.mean(-1) if self.score == "mean" else mse.clamp(min=1e-8).log().mean(-1).exp()
        return score, {"holdout_mse": mse.mean()}

    def set_elites(self, score: Tensor) -> None:
        """Predict with the members of lowest score from now on."""
        elites = self.get_buffer("elites")
        elites.copy_(score.argsort()[: len(elites)].sort().values)

    def parameter_groups(self, weight_decay: float | Sequence[float]) -> list[dict[str, Any]]:
        """Decay acts on weight matrices only: one for all, or one a layer, the output's last."""
        rest = {"params": [*self.biases, self.max_log_var, self.min_log_var], "weight_decay": 0.0}
        if not isinstance(weight_decay, Sequence):
            return [{"params": list(self.weights), "weight_decay": weight_decay}, rest]
        if len(weight_decay) != len(self.weights):
            fix = f"give one number, or {len(self.weights)}: one a hidden layer and one for the output"
            raise UserError("weight_decay", weight_decay, fix)
        layers = zip(self.weights, weight_decay, strict=True)
        return [*({"params": [weight], "weight_decay": decay} for weight, decay in layers), rest]

    # -- prediction ------------------------------------------------------------------------------------------------

    def _outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Standardised mean, clamped log-variance and end logit, each ``[E, B, ·]`` of ``inputs [E, B, F + A]``."""
        x = inputs
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.bmm(x, weight).add_(bias)  # baddbmm would first write the bias to every row
            if i < last:
                x = F.silu(x)
        mean = x[..., : self.target_size]
        logit = x[..., -1:] if self.learns_end else None
        if not self.probabilistic:
            return mean, None, logit
        raw = x[..., self.target_size : 2 * self.target_size]
        var = self.min_log_var.exp() + self.max_log_var.exp() * torch.sigmoid(raw - self.max_log_var)
        return mean, var.log(), logit

    def predict(self, state: State, action: Tensor) -> EnsemblePrediction:
        """What every member says of ``(state [B], action [B, A])``; differentiable."""
        z = self.coordinates.from_obs(state.obs)
        inputs = self.input_norm.normalize(self.coordinates.features(z, action))
        mean, log_var, logit = self._outputs(inputs.expand(self.members, *inputs.shape))
        return EnsemblePrediction(self, state.obs, action, mean, log_var, logit)

    @torch.no_grad()
    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        """``[B]`` uncertainty of the elites about the outputs that vary, in standardised units, by the named estimator.

        The outputs are the change of the state and, where it is learned, the reward.
        """
        if kind in ("largest_std", "one_vs_rest_kl") and not self.probabilistic:
            raise UserError("uncertainty", kind, "a deterministic ensemble has no variance; take std_of_means")
        prediction = self.predict(state, action)
        elites, varies = self.get_buffer("elites"), self.get_buffer("varies")
        mean = prediction.target_mean[elites] * varies
        var = prediction.variance()[elites] * varies
        if kind == "std_of_means":
            return mean.var(0, correction=0).sum(-1).sqrt()
        if kind == "std_of_samples":
            return (mean.var(0, correction=0) + var.mean(0)).sum(-1).sqrt()
        if kind == "largest_std":
            return var.sum(-1).sqrt().amax(0)
        if kind == "one_vs_rest_kl":
            return _one_vs_rest_kl(mean, var)
        raise UserError("uncertainty", kind, "name an estimator", get_args(Estimator))

    def check_particles(self, particles: int, propagation: Propagation) -> None:
        check_balance(len(self.get_buffer("elites")), particles, propagation)

    def bind(self, task: int | None = None) -> BoundEnsemble:
        """Elite weights with the normalisers folded in, for many fast steps."""
        return BoundEnsemble(self)

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        """One step; each row is moved by a random elite (rows are shuffled and split evenly over the elites)."""
        return self.bind().step(state, action, generator)

    @property
    def noise_size(self) -> int:
        """Random numbers that one row of :meth:`step_with_noise` uses."""
        return 2 + self.target_size

    @torch.no_grad()
    def step_with_noise(self, state: State, action: Tensor, noise: Tensor) -> Step:
        """As :meth:`step` with the random numbers given, ``noise [B, noise_size]`` standard normal.

        A row's result depends on that row alone. It costs a pass of every member for every row. The first number of a
        row chooses its elite, the second its end where ends are learned, the others are the noise of its target.
        """
        prediction, elites = self.predict(state, action), self.get_buffer("elites")
        uniform = torch.special.ndtr(noise[:, :2].double())
        member = elites[(uniform[:, 0] * len(elites)).long().clamp(max=len(elites) - 1)]
        row = torch.arange(len(action), device=action.device)
        std = prediction.variance()[member, row].sqrt()
        next_obs, reward = prediction._decode(prediction.target_mean[member, row] + std * noise[:, 2:])
        if prediction.end_logit is None:
            terminated = self.spec.known_termination(state.obs, action, next_obs)
        else:
            terminated = uniform[:, 1] < prediction.end_logit[member, row, 0].sigmoid()
        z, box = self.coordinates.fold(self.coordinates.from_obs(next_obs)), self.get_buffer("box")
        return Step(State(next_obs), reward, terminated, ((z < box[0]) | (z > box[1])).any(-1), member)

    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        return self.bind().rollout(state, actions, generator, particles=particles, propagation=propagation)


@dataclass
class EnsemblePrediction:
    """See :class:`mbrl.models.base.Prediction`; ``target_mean`` and ``log_var`` are standardised, ``[E, B, T]``."""

    model: ProbabilisticEnsemble
    obs: Tensor
    action: Tensor
    target_mean: Tensor
    target_log_var: Tensor | None
    end_logit: Tensor | None

    @property
    def log_var(self) -> Tensor:
        if self.target_log_var is None:
            raise UserError("probabilistic", False, "a deterministic ensemble has no variance; set probabilistic: true")
        return self.target_log_var

    @property
    def mean(self) -> Tensor:
        next_obs, reward = self._decode(self.target_mean)
        return torch.cat([next_obs, reward[..., None]], -1)

    def variance(self) -> Tensor:
        """``[E, B, T]`` standardised; zero for a deterministic ensemble."""
        return torch.zeros_like(self.target_mean) if self.target_log_var is None else self.target_log_var.exp()

    def sample(self, k: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        shape = (len(self.target_mean), k, *self.target_mean.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.obs.device)
        return self._decode(self.target_mean[:, None] + self.variance().sqrt()[:, None] * noise)

    def log_prob(self, next_obs: Tensor, reward: Tensor) -> Tensor:
        zeros = torch.zeros_like(reward, dtype=torch.bool)
        ids = torch.zeros_like(reward, dtype=torch.long)
        rows = Transitions(self.obs, self.action, reward, next_obs, zeros, zeros, ids, ids, ids)
        targets = self.model.prepare(rows, fit_statistics=False).targets
        log_std = self.model.target_norm.std.log().to(targets.dtype)
        nll = (self.target_mean - targets).square() * torch.exp(-self.log_var) + self.log_var + math.log(2 * math.pi)
        return (-0.5 * nll - log_std).mul(self.model.get_buffer("varies")).sum(-1)

    def _decode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Next observation and reward from a standardised target."""
        model = self.model
        physical = model.target_norm.denormalize(target * model.get_buffer("varies"))
        z = model.coordinates.from_obs(self.obs)
        next_obs = model.coordinates.to_obs(z + physical[..., : model.coordinates.size])
        obs, action = self.obs.expand(next_obs.shape), self.action.expand(*next_obs.shape[:-1], -1)
        reward = model.spec.known_reward(obs, action, next_obs)
        return next_obs, reward + physical[..., -1] if model.learns_reward else reward


def _initial_weight(members: int, inputs: int, outputs: int) -> Tensor:
    """Truncated normal with standard deviation 1 / (2 sqrt(inputs)), as published."""
    std = 1 / (2 * math.sqrt(inputs))
    return nn.init.trunc_normal_(torch.empty(members, inputs, outputs), std=std, a=-2 * std, b=2 * std)


def _one_vs_rest_kl(mean: Tensor, var: Tensor) -> Tensor:
    """Mean over members of KL(member || moment-matched Gaussian of the others), ``[B]``."""
    members = len(mean)
    if members < 2:
        raise UserError("uncertainty", "one_vs_rest_kl", "needs at least two elites")
    rest_mean = (mean.sum(0) - mean) / (members - 1)
    second = var + mean.square()
    rest_var = ((second.sum(0) - second) / (members - 1) - rest_mean.square()).clamp(min=1e-12)
    var = var.clamp(min=1e-12)
    kl = 0.5 * ((rest_var / var).log() + (var + (mean - rest_mean).square()) / rest_var - 1)
    return kl.sum(-1).mean(0)
