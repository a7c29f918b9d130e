"""Dyna with short branched rollouts: learn a model, imagine from real states, learn a policy on what was imagined.

Janner, Fu, Zhang, Levine, "When to Trust Your Model: Model-Based Policy Optimization", 2019 (MBPO), with any model,
filters and actor-critic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.actor_critic.learner import ActorCritic
from agents.off_policy import OffPolicyAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.judge import judge
from mbrl.fitting import ModelFitter
from mbrl.imagination.filters import Filter
from mbrl.imagination.model_buffer import ModelBuffer, mixed_batches, published_capacity
from mbrl.imagination.rollout import CHUNK_ROWS, ChunkMaker, PolicyChooser, imagine, make_chunks
from mbrl.imagination.schedule import HorizonSchedule
from mbrl.imagination.starts import Starts, StartSampler
from mbrl.models.base import DynamicsModel


class DynaAgent(OffPolicyAgent):
    """Every ``fit_every`` env steps the model is fitted and rolled out with the policy; every env step the
    actor-critic learns from batches of which ``real_ratio`` is real.

    What public code does otherwise, and this does not: warm-up steps count as env steps; the policy explores with
    sampled actions; members keep their own best weights; only ``terminated`` cuts a bootstrap; an imagined row after
    a predicted end does not exist; the real share of every batch is exact.

    Args:
        spec: the environment.
        model: factory of the dynamics model.
        learner: factory of the actor-critic.
        fitter: how the model is trained.
        horizon: length k of imagined rollouts over env steps (default: 1 throughout).
        filters: what is done to every imagined step, in order.
        starts: how start states are drawn from the real data (default: uniformly).
        warmup_steps: env steps of uniformly random actions first.
        fit_every: F, env steps between fits, counted from the end of the warm-up.
        rollouts_per_step: rollouts started for each env step; a fit is followed by this times ``fit_every``.
        retain_steps: imagined rows of this many env steps are kept, 1,000 (an epoch) as published.
        updates_per_step: gradient steps of the actor-critic for each env step.
        batch_size: rows for each gradient step.
        real_ratio: share of real rows in a batch, 0.05 as published.
        model_from: env step from which imagined rows are used; before it batches are real.
        capacity: real transitions kept.
        chunk_rows: imagined rollouts that are made in one piece; more workers than pieces have nothing to do. The rows
            depend on it, for each piece has a seed of its own.
        log_every: env steps between records of the learner.
        device: where networks and imagination are computed.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: Callable[[EnvSpec], DynamicsModel],
        learner: Callable[[EnvSpec], ActorCritic],
        fitter: ModelFitter,
        horizon: HorizonSchedule | None = None,
        filters: list[Filter] | None = None,
        starts: StartSampler | None = None,
        warmup_steps: int = 5000,
        fit_every: int = 250,
        rollouts_per_step: int = 400,
        retain_steps: int = 1000,
        updates_per_step: int = 20,
        batch_size: int = 256,
        real_ratio: float = 0.05,
        model_from: int = 0,
        capacity: int = 1_000_000,
        chunk_rows: int = CHUNK_ROWS,
        log_every: int = 250,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, learner, warmup_steps, updates_per_step, batch_size, capacity, log_every, device)
        counts = {"warmup_steps": warmup_steps, "fit_every": fit_every}
        counts |= {"rollouts_per_step": rollouts_per_step, "retain_steps": retain_steps, "chunk_rows": chunk_rows}
        for name, count in counts.items():
            if count < 1:
                raise UserError(name, count, "give a whole number of at least 1")
        if not 0.0 <= real_ratio <= 1.0:
            raise UserError("real_ratio", real_ratio, "give a share in [0, 1]")
        if model_from < 0:
            raise UserError("model_from", model_from, "give a whole number of at least 0")
        self.model, self.fitter = model(spec).to(self.device), fitter
        fitter.check(self.model)
        self.horizon, self.filters = horizon or HorizonSchedule(), list(filters or [])
        self.starts = starts or StartSampler()
        self.fit_every, self.model_from, self.real_ratio = fit_every, model_from, real_ratio
        self.rollouts_per_step, self.retain_steps = rollouts_per_step, retain_steps
        self.imagined = ModelBuffer(device=self.device)
        self.chunk_rows, self.run_seed = chunk_rows, 0
        self.maker: ChunkMaker = make_chunks

    def seed(self, run_seed: int) -> None:
        super().seed(run_seed)
        self.run_seed = run_seed

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        if not clock.due(self.fit_every, offset=self.warmup_steps):
            return super().update(clock)
        return {"fit": self.fit_model(clock)} | super().update(clock)

    def fit_model(self, clock: Clock) -> dict[str, Any]:
        """Train the model on all real data, then replace what was imagined with the oldest models."""
        real = self.buffers["real"]
        report: dict[str, Any] = dict(self.judge_model())
        report |= self.fitter.fit(self.model, real.all(), self.generator)
        if self.real_ratio == 1.0 or clock.env_steps < self.model_from:
            return report
        k = self.horizon(clock.env_steps)
        starts = self.rollouts_per_step * self.fit_every
        self.imagined.resize(published_capacity(k, 1, starts, self.fit_every, epoch_steps=self.retain_steps))
        rows = self.imagine(k, counter=self.fitter.fits)
        self.imagined.extend(rows)
        ends = float(rows.terminated.float().mean())
        return report | {"horizon": k, "imagined_rows": len(rows), "imagined_ends": ends}

    def judge_model(self) -> dict[str, float]:
        """Its errors by depth and its calibration on what came since the last fit."""
        if not self.fitter.fits:
            return {}
        return judge(self.model, self.buffers["real"], newest=self.fit_every, generator=self.generator)

    def imagine(self, horizon: int, counter: int) -> Transitions:
        """Roll the policy out in the model for ``horizon`` steps from real states."""
        start = self.starts(self.buffers["real"], self.rollouts_per_step * self.fit_every, self.generator)
        model, act = self.model.bind(), PolicyChooser(self.learner.behaviour())
        how = {"seed": seeding.derive_seed(self.run_seed, "imagine", counter), "chunk_rows": self.chunk_rows}
        return imagine(model, act, Starts.of(start).encode(model), horizon, self.filters, maker=self.maker, **how)

    def draw(self, count: int) -> Transitions:
        """Batches that are part real, part imagined."""
        sources = self.buffers["real"], self.imagined.ring
        return mixed_batches(*sources, self.real_ratio, count, self.batch_size, self.generator)

    def state_dict(self) -> dict[str, Any]:
        own = {
            "model": self.model.state_dict(),
            "fitter": self.fitter.state_dict(),
            "imagined": self.imagined.state_dict(),
        }
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.model.load_state_dict(state["model"])
        self.fitter.load_state_dict(state["fitter"])
        self.imagined.load_state_dict(state["imagined"])
