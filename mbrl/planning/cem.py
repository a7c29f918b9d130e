"""The cross-entropy method: CEM as PETS uses it, and iCEM, which needs a tenth of the samples."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from envs.spec import EnvSpec
from mbrl.models.base import Propagation
from mbrl.planning.search import (
    Belief,
    Execute,
    SamplingPlanner,
    check_counts,
    check_number,
    check_share,
    gumbel,
    moments,
    one_hot,
    top,
)


class CEM(SamplingPlanner):
    """The cross-entropy method as published with PETS.

    Chua, Calandra, McAllister, Levine, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic
    Dynamics Models", 2018.

    Truncated normal candidates, whose variance is bounded so that two standard deviations stay inside the range; the
    mean of the final elites is executed. Discrete actions: a categorical distribution for each step; every call starts
    from equal parts of the remembered and of equal probabilities.

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead.
        candidates: action sequences drawn in an iteration.
        iterations: rounds of draw and refit.
        elite_ratio: share of the candidates to refit on.
        alpha: share of the old mean and variance that stays in the new ones.
        epsilon: an environment's search stops when its largest variance falls below; 0 never stops.
        particles: imagined trajectories for each candidate.
        propagation: which ensemble member moves a particle.
        execute: which actions to return.
        action_limit: bound on |action|, at most 1.
        deadline: seconds after which no further iteration starts (null: none).
        chunk_rows: rows × particles that are imagined at once (null: what fits the cache of the device).
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 25,
        candidates: int = 350,
        iterations: int = 5,
        elite_ratio: float = 0.1,
        alpha: float = 0.1,
        epsilon: float = 0.001,
        particles: int = 20,
        propagation: Propagation = "trajectory",
        execute: Execute = "mean",
        action_limit: float = 1.0,
        deadline: float | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            horizon,
            iterations=iterations,
            particles=particles,
            propagation=propagation,
            execute=execute,
            action_limit=action_limit,
            deadline=deadline,
            chunk_rows=chunk_rows,
        )
        check_counts(candidates=candidates)
        check_share("elite_ratio", elite_ratio, low_open=True)
        check_share("alpha", alpha)
        check_number("epsilon", epsilon, 0.0)
        self.candidates, self.elites = candidates, math.ceil(candidates * elite_ratio)
        self.alpha, self.epsilon = alpha, epsilon
        self.initial_std = 2 * action_limit / 4  # var = (ub - lb)² / 16

    def _begin(self, belief: Belief) -> Belief:
        return mix_uniform(belief, 0.5) if self.spec.action.discrete else belief

    def _searching(self, belief: Belief) -> Tensor:
        return belief.std.square().amax((1, 2)) >= self.epsilon

    def _last_action(self, mean: Tensor) -> Tensor:
        return torch.full_like(mean[:, :1], self._middle)

    def _sample(self, belief: Belief, iteration: int, noise: Generator) -> Tensor:
        shape = self.horizon, 1, self.candidates, self.spec.action.size
        device, limit = belief.mean.device, self.action_limit
        if self.spec.action.discrete:
            return draw_choices(belief, torch.randn(shape, generator=noise, device=device))
        # sampling std = min(σ, (m - lb) / 2, (ub - m) / 2)
        room = 0.5 * (limit - belief.mean.abs()).clamp(min=0.0)
        uniform = torch.rand(shape, generator=noise, device=device) * 2 - 1
        z = math.sqrt(2) * torch.erfinv(uniform * math.erf(math.sqrt(2)))  # N(0, 1) truncated at ±2
        return (_time_first(belief.mean) + _time_first(belief.std.minimum(room)) * z).clamp(-limit, limit)

    def _improve(self, belief: Belief, candidates: Tensor, values: Tensor) -> Belief:
        elites, best = top(candidates, values, self.elites)
        mean, variance, found = moments(elites, best)
        mean = self.alpha * belief.mean + (1 - self.alpha) * mean
        std = (self.alpha * belief.std.square() + (1 - self.alpha) * variance).sqrt()
        return Belief(torch.where(found, mean, belief.mean), torch.where(found, std, belief.std), elites, best)


class ICEM(SamplingPlanner):
    """The cross-entropy method with a tenth of the samples: noise that wanders, and elites that stay.

    Pinneri, Sawant, Blaes, Achterhold, Stueckler, Rolinek, Martius, "Sample-efficient Cross-Entropy Method for
    Real-time Planning", 2020.

    Candidates are noise whose power falls with frequency as 1 / f^beta, clipped to the range; fewer of them in each
    iteration; the best elites stay, from iteration to iteration and, shifted, from decision to decision; the last
    iteration tries the mean; the best candidate is executed. Discrete actions: a categorical distribution for each
    step, drawn with the same noise, so that choices persist; ``init_std`` is then the share of equal probabilities
    that each decision mixes into what it remembers.

    Args:
        spec: the environment.
        horizon: H, decisions to look ahead.
        candidates: P, action sequences drawn in the first iteration.
        iterations: rounds of draw and refit.
        decay: gamma; iteration j draws max(2 * elites, candidates / decay^j).
        elites: how many candidates to refit on.
        keep: share of the elites, the best ones, that stay among the next candidates.
        alpha: share of the old mean and standard deviation that stays in the new ones.
        beta: exponent of the noise spectrum: 0 is white, 2 wanders slowly.
        init_std: standard deviation at the start of each decision, as a share of the range's half.
        particles: imagined trajectories for each candidate.
        propagation: which ensemble member moves a particle.
        execute: which actions to return.
        action_limit: bound on |action|, at most 1.
        deadline: seconds after which no further iteration starts (null: none).
        chunk_rows: rows × particles that are imagined at once (null: what fits the cache of the device).
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int = 25,
        candidates: int = 64,
        iterations: int = 3,
        decay: float = 1.25,
        elites: int = 10,
        keep: float = 0.3,
        alpha: float = 0.1,
        beta: float = 2.0,
        init_std: float = 0.5,
        particles: int = 5,
        propagation: Propagation = "trajectory",
        execute: Execute = "best",
        action_limit: float = 1.0,
        deadline: float | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(
            spec,
            horizon,
            iterations=iterations,
            particles=particles,
            propagation=propagation,
            execute=execute,
            action_limit=action_limit,
            deadline=deadline,
            chunk_rows=chunk_rows,
        )
        check_counts(candidates=candidates, elites=elites)
        check_share("keep", keep)
        check_share("alpha", alpha)
        check_share("init_std", init_std, low_open=True)
        check_number("decay", decay, 1.0)
        check_number("beta", beta, 0.0)
        self.candidates, self.decay, self.elites = candidates, decay, elites
        self.kept, self.alpha, self.beta = round(keep * elites), alpha, beta
        self.init_std, self.initial_std = init_std, init_std * action_limit

    def _begin(self, belief: Belief) -> Belief:
        return mix_uniform(belief, self.init_std) if self.spec.action.discrete else belief

    def _sample(self, belief: Belief, iteration: int, noise: Generator) -> Tensor:
        # P_j = max(2 e, P γ^-j), and the elites that stay
        count = max(2 * self.elites, int(self.candidates * self.decay**-iteration))
        shape = self.horizon, 1, count + self.kept, self.spec.action.size
        drawn = self._draw(belief, coloured_noise(shape, self.beta, noise, belief.mean.device))
        if self.kept:
            drawn[:, :, count:] = self._keep(belief, drawn[:, :, count:], shifted=iteration == 0)
        if iteration == self.iterations - 1:
            drawn[:, :, 0] = _time_first(self._as_actions(belief.mean))[:, :, 0]
        return drawn

    def _draw(self, belief: Belief, z: Tensor) -> Tensor:
        if self.spec.action.discrete:
            return draw_choices(belief, z)
        limit = self.action_limit
        return (_time_first(belief.mean) + _time_first(belief.std) * z).clamp(-limit, limit)

    def _keep(self, belief: Belief, drawn: Tensor, shifted: bool) -> Tensor:
        """The best elites in place of ``drawn [H, B, K, A]``; where there is none, ``drawn`` stays."""
        elites = belief.elites[:, : self.kept].permute(2, 0, 1, 3)
        if shifted:  # a step that they never had: its action is drawn
            elites = torch.cat([elites[:-1], drawn[-1:]])
        there = belief.values[:, : self.kept].isfinite()
        return torch.where(there[None, :, :, None], elites, drawn)

    def _improve(self, belief: Belief, candidates: Tensor, values: Tensor) -> Belief:
        elites, best = top(candidates, values, self.elites)
        mean, variance, found = moments(elites, best)
        mean = self.alpha * belief.mean + (1 - self.alpha) * mean
        std = self.alpha * belief.std + (1 - self.alpha) * variance.sqrt()
        return Belief(torch.where(found, mean, belief.mean), torch.where(found, std, belief.std), elites, best)


def coloured_noise(shape: tuple[int, ...], beta: float, generator: Generator, device: torch.device | str) -> Tensor:
    """Normal noise of unit variance whose power spectrum over the first dimension (time) is 1 / f^beta.

    As in Timmer, Koenig: On Generating Power Law Noise (1995): white noise, filtered in the frequency domain. The
    zero frequency, where the power would be infinite, gets that of the lowest other one.
    """
    white = torch.randn(shape, generator=generator, device=device)
    length = shape[0]
    if beta == 0 or length == 1:
        return white
    frequency = torch.fft.fftfreq(length, device=device).abs().clamp(min=1 / length)
    amplitude = frequency ** (-beta / 2)
    amplitude = amplitude / amplitude.square().mean().sqrt()
    gain = amplitude[: length // 2 + 1].view(-1, *[1] * (len(shape) - 1))
    noise: Tensor = torch.fft.irfft(torch.fft.rfft(white, dim=0) * gain, n=length, dim=0)
    return noise


def draw_choices(belief: Belief, z: Tensor) -> Tensor:
    """One-hot choices ``[H, B, N, A]`` with the probabilities ``belief.mean``, from normal noise ``[H, 1, N, A]``."""
    return one_hot(_time_first(belief.mean).log() + gumbel(z))


def mix_uniform(belief: Belief, share: float) -> Belief:
    """The belief with ``share`` of equal probabilities mixed in, so that a new decision may change its mind."""
    mean = (1 - share) * belief.mean + share / belief.mean.shape[-1]
    return Belief(mean, (mean * (1 - mean)).sqrt(), belief.elites, belief.values)


def _time_first(x: Tensor) -> Tensor:
    """``[B, H, A]`` as ``[H, B, 1, A]``."""
    return x.transpose(0, 1).unsqueeze(2)
