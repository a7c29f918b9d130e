"""The frame that all sampling planners share: draw candidates, imagine them, rank them, improve, repeat."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.models.base import PROPAGATIONS, DynamicsModel, Propagation, State
from mbrl.planning.base import Plan, Planner
from mbrl.planning.objective import Objective

Execute = Literal["best", "mean", "elite"]
"""Which actions a search returns: the best candidate of its last iteration, the mean it ended with, or one of the
last elites, drawn with probability proportional to exp(value / std of the elites' values)."""

CHUNK_ROWS = {"cpu": 2048}
"""Rows times particles imagined at once, by device. Measured on a CPU with an ensemble of 5 networks of width 128:
2,048 and more cost the same per row, 256 twice as much. Other devices want few large calls."""
OTHER_CHUNK_ROWS = 2**18


@dataclass
class Belief(Record):
    """What a search knows of ``B`` environments, and what it remembers from one decision to the next.

    Between calls it is already shifted by one step. ``E`` is the number of elites inside a call, of kept elites
    between calls.
    """

    mean: Tensor
    """``[B, H, A]``; probabilities of the choices when actions are discrete"""
    std: Tensor
    """``[B, H, A]``"""
    elites: Tensor
    """``[B, E, H, A]``, best first"""
    values: Tensor
    """``[B, E]``; -inf marks an empty slot"""


class SamplingPlanner(Planner):
    """Iterates: draw candidates from a belief, imagine them, improve the belief on what scored well.

    Subclasses say how to draw (:meth:`_sample`) and how to improve (:meth:`_improve`).

    Random numbers: one seed is taken from the caller's generator for each call. Candidates' noise is common to the
    environments of a call, and the model meets the same luck for every candidate of an iteration (new luck in the
    next one), whatever the chunking. So a plan is the same whether its environment is planned alone or beside others.
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int,
        *,
        iterations: int,
        particles: int,
        propagation: Propagation,
        execute: Execute,
        action_limit: float,
        deadline: float | None,
        chunk_rows: int | None,
    ) -> None:
        super().__init__(spec, horizon)
        check_counts(horizon=horizon, iterations=iterations, particles=particles)
        if chunk_rows is not None:
            check_counts(chunk_rows=chunk_rows)
        check_choice("propagation", propagation, PROPAGATIONS)
        check_choice("execute", execute, get_args(Execute))
        check_share("action_limit", action_limit, low_open=True)
        if spec.action.discrete and action_limit != 1.0:
            raise UserError("action_limit", action_limit, f"{spec.id} has discrete actions; leave it at 1.0")
        if deadline is not None and not 0 < deadline < math.inf:
            raise UserError("deadline", deadline, "give seconds above zero, or null for no deadline")
        self.iterations, self.particles, self.chunk_rows = iterations, particles, chunk_rows
        self.propagation, self.execute = propagation, execute
        self.action_limit, self.deadline = action_limit, deadline
        self.kept = 0
        """How many elites are remembered between calls."""
        self.initial_std = 0.5 * action_limit

    @abstractmethod
    def _sample(self, belief: Belief, iteration: int, noise: Generator) -> Tensor:
        """Candidates ``[H, B, N, A]`` of one iteration."""

    @abstractmethod
    def _improve(self, belief: Belief, candidates: Tensor, values: Tensor) -> Belief:
        """The belief after seeing ``values [B, N]`` of ``candidates [H, B, N, A]``."""

    def _begin(self, belief: Belief) -> Belief:
        """The belief with which this call's first iteration draws, from the remembered one."""
        return belief

    def _searching(self, belief: Belief) -> Tensor | None:
        """Which environments still search, ``[B]`` bool; None: all. Asked before every iteration but the first."""
        return None

    def _last_action(self, mean: Tensor) -> Tensor:
        """What a shifted mean ends with, ``[B, 1, A]``."""
        return mean[:, -1:]

    def initial(self, batch: int, device: Any = "cpu") -> Belief:
        size = self.spec.action.size
        shape = (batch, self.horizon, size)
        return Belief(
            mean=torch.full(shape, self._middle, device=device),
            std=torch.full(shape, self.initial_std, device=device),
            elites=torch.zeros(batch, self.kept, self.horizon, size, device=device),
            values=torch.full((batch, self.kept), -torch.inf, device=device),
        )

    @property
    def _middle(self) -> float:
        """The mean that knows nothing: the middle of the range, or equal probabilities."""
        return 1.0 / self.spec.action.size if self.spec.action.discrete else 0.0

    @torch.no_grad()
    def plan(
        self,
        model: DynamicsModel,
        objective: Objective,
        state: State,
        warm_start: Record | None,
        proposals: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Plan:
        started, device = time.monotonic(), state.obs.device
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        noise = torch.Generator(device).manual_seed(seed)
        extra = self._admit(proposals)
        belief = self._begin(self._recall(warm_start, len(state.obs), device))
        share, done = torch.zeros(()), 0
        for iteration in range(self.iterations):
            searching = self._searching(belief) if iteration else None
            if iteration and (self._late(started, device) or _all_stopped(searching)):
                break
            candidates = self._sample(belief, iteration, noise)
            if extra is not None:
                candidates = torch.cat([candidates, extra.expand(-1, candidates.shape[1], -1, -1)], 2)
            values = self.evaluate(model, objective, state, candidates, seed + 1 + iteration)
            improved = self._improve(belief, candidates, values)
            belief = improved if searching is None else improved.where(searching, belief)
            share, done = values.isfinite().float().mean(1), iteration + 1
        actions, value = self._choose(belief, noise)
        if self.execute == "mean":
            value = self.evaluate(model, objective, state, actions.unsqueeze(2), seed + self.iterations)[:, 0]
        return Plan(actions, value, self._shift(belief), self._stats(belief, share, done))

    def evaluate(
        self, model: DynamicsModel, objective: Objective, state: State, candidates: Tensor, seed: int
    ) -> Tensor:
        """Scores ``[B, N]`` of ``candidates [H, B, N, A]``; -inf where one is not finite.

        Rows (environments × candidates) are worked in equal chunks of about ``chunk_rows`` rows × particles, each
        under a generator seeded alike: random numbers are common to all rows, so chunking changes nothing.
        """
        horizon, batch, count, size = candidates.shape
        actions = candidates.reshape(horizon, batch * count, size)
        owner = torch.arange(batch, device=actions.device).repeat_interleave(count)
        chunk_rows = self.chunk_rows or CHUNK_ROWS.get(actions.device.type, OTHER_CHUNK_ROWS)
        chunks = math.ceil(len(owner) * self.particles / chunk_rows)
        luck, scores = torch.Generator(actions.device), []
        for rows, part in zip(owner.tensor_split(chunks), actions.tensor_split(chunks, dim=1), strict=True):
            luck.manual_seed(seed)
            options: dict[str, Any] = {"particles": self.particles, "propagation": self.propagation}
            scores.append(objective.score(model, model.rollout(state[rows], part, luck, **options), part))
        return torch.cat(scores).view(batch, count)

    def _admit(self, proposals: Tensor | None) -> Tensor | None:
        """Proposals ``[H, K, B, A]`` as candidates ``[H, B, K, A]`` inside the planner's bounds."""
        if proposals is None:
            return None
        wanted = (self.horizon, self.spec.action.size)
        if proposals.dim() != 4 or (proposals.shape[0], proposals.shape[3]) != wanted:
            raise UserError("proposals", tuple(proposals.shape), f"shape must be [{wanted[0]}, K, B, {wanted[1]}]")
        extra = proposals.transpose(1, 2)
        return extra if self.spec.action.discrete else extra.clamp(-self.action_limit, self.action_limit)

    def _recall(self, warm_start: Record | None, batch: int, device: torch.device) -> Belief:
        if warm_start is None:
            return self.initial(batch, device)
        if not isinstance(warm_start, Belief):
            raise UserError("warm_start", type(warm_start).__name__, "pass the warm start of this planner's last plan")
        return warm_start

    def _late(self, started: float, device: torch.device) -> bool:
        if self.deadline is None:
            return False
        if device.type == "cuda":  # the clock means nothing while work is only queued
            torch.cuda.synchronize(device)
        return time.monotonic() - started >= self.deadline

    def _choose(self, belief: Belief, noise: Generator) -> tuple[Tensor, Tensor]:
        """Actions ``[H, B, A]`` and their value ``[B]``; the mean where no candidate was finite."""
        pick = torch.zeros(len(belief.values), dtype=torch.long, device=belief.values.device)
        if self.execute == "elite":
            pick = draw_by_value(belief.values, noise)
        value = belief.values.gather(1, pick[:, None])[:, 0]
        chosen = belief.elites.take_along_dim(pick.view(-1, 1, 1, 1), 1)[:, 0]
        mean = self._as_actions(belief.mean)
        use_mean = ~value.isfinite() if self.execute != "mean" else torch.ones_like(value, dtype=torch.bool)
        return torch.where(use_mean.view(-1, 1, 1), mean, chosen).transpose(0, 1), value

    def _as_actions(self, mean: Tensor) -> Tensor:
        """The mean as something that can be executed."""
        return one_hot(mean) if self.spec.action.discrete else mean

    def _shift(self, belief: Belief) -> Belief:
        """What is remembered: everything moved one step ahead in time."""
        elites, values = belief.elites[:, : self.kept], belief.values[:, : self.kept]
        return Belief(
            mean=torch.cat([belief.mean[:, 1:], self._last_action(belief.mean)], 1),
            std=torch.full_like(belief.std, self.initial_std),
            elites=torch.cat([elites[:, :, 1:], elites[:, :, -1:]], 2),
            values=values.clone(),
        )

    def _stats(self, belief: Belief, share: Tensor, done: int) -> dict[str, Tensor]:
        """``iterations`` done; ``[B]``: share of finite candidates, whether there was none, mean spread left."""
        stats = {"iterations": torch.tensor(done), "finite_share": share, "fallback": share == 0}
        return stats | {"std": belief.std.mean((1, 2))}


def top(candidates: Tensor, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best ``count`` of ``candidates [H, B, N, A]``: ``[B, count, H, A]``, best first, and their values."""
    best, index = values.topk(min(count, values.shape[1]), dim=1)
    return candidates.take_along_dim(index[None, :, :, None], 2).permute(1, 2, 0, 3), best


def moments(elites: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``[B, H, A]`` of the finite elites, and whether there is one (``[B, 1, 1]``)."""
    weight = values.isfinite().to(elites.dtype)[:, :, None, None]
    count = weight.sum(1)
    mean = (weight * elites).sum(1) / count.clamp(min=1)
    variance = (weight * (elites - mean.unsqueeze(1)).square()).sum(1) / count.clamp(min=1)
    return mean, variance, count > 0


def draw_by_value(values: Tensor, noise: Generator) -> Tensor:
    """One index ``[B]`` of each row of ``values [B, E]``, probability proportional to exp(value / std)."""
    finite = values.isfinite()
    _, variance, _ = moments(values.masked_fill(~finite, 0.0)[:, :, None, None], values)
    scaled = values / variance.flatten(1).sqrt().clamp(min=1e-6)
    return (scaled + gumbel(torch.randn(1, values.shape[1], generator=noise, device=values.device))).argmax(1)


def gumbel(normal: Tensor) -> Tensor:
    """Gumbel noise from standard normal noise, value by value; what is correlated in time stays so."""
    uniform: Tensor = torch.special.ndtr(normal).clamp(1e-7, 1 - 1e-7)
    return -(-uniform.log()).log()


def one_hot(score: Tensor) -> Tensor:
    """One-hot of the largest entry of the last dimension."""
    return torch.nn.functional.one_hot(score.argmax(-1), score.shape[-1]).to(score.dtype)


def _all_stopped(searching: Tensor | None) -> bool:
    """Whether no environment searches on; only asked where asking does not wait for a device."""
    return searching is not None and searching.device.type == "cpu" and not bool(searching.any())


def check_counts(**counts: int) -> None:
    """Each must be a whole number above zero."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(name, count, "must be 1 or more")


def check_share(name: str, value: float, low_open: bool = False) -> None:
    """Must lie in [0, 1], or in (0, 1] when ``low_open``."""
    if not 0.0 <= value <= 1.0 or (low_open and value == 0.0):
        raise UserError(name, value, f"must lie in {'(' if low_open else '['}0, 1]")


def check_number(name: str, value: float, low: float, low_open: bool = False) -> None:
    """Must be finite and at least ``low``, or above it when ``low_open``."""
    if not (math.isfinite(value) and value >= low) or (low_open and value == low):
        raise UserError(name, value, f"must be a finite number, {'above' if low_open else 'at least'} {low:g}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(name, value, f"must be one of {', '.join(choices)}", choices)
