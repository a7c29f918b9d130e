"""Dyna from a fixed dataset: fit a model once, imagine short rollouts from the data's states, learn on both.

Yu, Thomas, Yu, Ermon, Zou, Levine, Finn, Ma, "MOPO: Model-based Offline Policy Optimization", 2020. The methods differ
in where they doubt the model, see :mod:`agents.offline.pessimism`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from agents.actor_critic.learner import ActorCritic
from agents.common import RunningMean
from agents.offline.base import Learner, OfflineAgent
from agents.offline.pessimism import BellmanInconsistency, without_uncertainty
from agents.offline.reach import Box, reach, unstored
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.fitting import ModelFitter
from mbrl.imagination.filters import Filter, Move, check_filters
from mbrl.imagination.model_buffer import ROUNDING, ModelBuffer, mixed_batches
from mbrl.imagination.rollout import CHUNK_ROWS, ChunkMaker, PolicyChooser, imagine, make_chunks
from mbrl.imagination.starts import Starts, StartSampler
from mbrl.models.base import DynamicsModel

LEAST_ROWS = 20
IS_REAL = "is_real"
"""The column that tells the rows of the dataset from imagined ones"""


class OfflineModelAgent(OfflineAgent):
    """An offline agent with a dynamics model, which is fitted to the data at the first update and then stays.

    Args:
        spec: the environment that the data is from.
        model: factory of the dynamics model; ``Simulator`` gives the true dynamics, of which nothing is fitted or
            uncertain.
        learner: factory of what learns the policy.
        fitter: how the model is trained; null for a model that is not learned.
        options: the arguments of :class:`OfflineAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: Callable[[EnvSpec], DynamicsModel],
        learner: Callable[[EnvSpec], Learner],
        fitter: ModelFitter | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, learner, **options)
        self.model, self.fitter = model(spec).to(self.device), fitter
        if fitter is not None:
            fitter.check(self.model)
        elif any(True for _ in self.model.parameters()):
            fix = f"{type(self.model).__name__} has to be learned: name how, or take model: Simulator"
            raise UserError("fitter", None, fix)

    @property
    def learned(self) -> bool:
        """Whether the model is learned; else it is the truth."""
        return self.fitter is not None

    def check(self, data: ReplayBuffer) -> None:
        """As in the base class; and there are rows enough to fit a model to and to judge it on."""
        super().check(data)
        if self.learned and len(data) < LEAST_ROWS:
            raise UserError("data", f"{len(data)} rows", f"a model needs at least {LEAST_ROWS}: collect more")

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """One round, after what is due before it."""
        return self.prepare(clock) | super().update(clock)

    def prepare(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """What is due before a round, and what to log of it by event: before the first one the model is fitted."""
        if self.fitter is None or self.fitter.fits:
            return {}
        return {"fit": self.fit_model(self.fitter)}

    def fit_model(self, fitter: ModelFitter) -> dict[str, Any]:
        """Train the model on all data; what to log: errors on held-out rows among it."""
        return dict(fitter.fit(self.model, self.data.all().to(self.device), self.generator))

    def state_dict(self) -> dict[str, Any]:
        own = {"model": self.model.state_dict()}
        return super().state_dict() | own | ({"fitter": self.fitter.state_dict()} if self.fitter else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.model.load_state_dict(state["model"])
        if self.fitter is not None:
            self.fitter.load_state_dict(state["fitter"])


class OfflineDynaAgent(OfflineModelAgent):
    """Rolls the policy out in the model from the data's states every so many updates, learns from real and imagined
    rows.

    Under the true dynamics (``model: Simulator``) filters and penalties that ask for the model's uncertainty are left
    out: it is 0. What is left is the error of the critics alone.

    Args:
        spec: the environment that the data is from.
        learner: factory of the actor-critic.
        horizon: ``h``, steps of an imagined rollout.
        starts: rollouts made each time.
        refresh_every: gradient steps between those times.
        retain: imagined rows of so many of those times are kept.
        real_ratio: share of the data's rows in a batch.
        filters: what is done to every imagined step, in order (MOPO's penalty, say).
        start_sampler: how start states are drawn from the data (default: uniformly).
        penalty: what is taken off the critics' target on imagined rows (MOBILE); null: nothing.
        guard: imagined rows with a larger magnitude in any observation entry are dropped, and end there; null: none.
        chunk_rows: rollouts that are made in one piece, see :class:`agents.dyna.DynaAgent`.
        options: the arguments of :class:`OfflineModelAgent`.
    """

    learner: ActorCritic

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], ActorCritic],
        horizon: int = 5,
        starts: int = 2000,
        refresh_every: int = 1000,
        retain: int = 5,
        real_ratio: float = 0.05,
        filters: list[Filter] | None = None,
        start_sampler: StartSampler | None = None,
        penalty: BellmanInconsistency | None = None,
        guard: float | None = 100.0,
        chunk_rows: int = CHUNK_ROWS,
        **options: Any,
    ) -> None:
        super().__init__(spec, learner=learner, **options)
        counts = {"horizon": horizon, "starts": starts, "refresh_every": refresh_every, "retain": retain}
        counts |= {"chunk_rows": chunk_rows}
        for name, count in counts.items():
            if count < 1:
                raise UserError(name, count, "give a whole number of at least 1")
        if refresh_every < self.round_updates:
            fix = f"it cannot be more often than once a round: round_updates is {self.round_updates}"
            raise UserError("refresh_every", refresh_every, fix)
        if not 0.0 <= real_ratio <= 1.0:
            raise UserError("real_ratio", real_ratio, "give a share in [0, 1]")
        self.horizon, self.starts, self.refresh_every, self.retain = horizon, starts, refresh_every, retain
        self.real_ratio, self.guard, self.start_sampler = real_ratio, guard, start_sampler or StartSampler()
        self.penalty = penalty if self.learned else None
        self.filters = self._all_filters(list(filters or []))
        self._check_pessimism()
        self.imagined = ModelBuffer(device=self.device)
        self.chunk_rows, self.refreshes = chunk_rows, 0
        self.maker: ChunkMaker = make_chunks
        self.sizes: list[int] = []
        self._box: Box | None = None

    def _all_filters(self, filters: Sequence[Filter]) -> list[Filter]:
        used = list(filters) if self.learned else without_uncertainty(filters)
        used += [] if self.guard is None else [Guard(self.guard)]
        check_filters(used)
        return used

    def _check_pessimism(self) -> None:
        if self.penalty is not None:
            self.penalty.check(self.model)
        if self.real_rows == 0 and any(term.candidates for term in self.learner.terms):
            fix = "a conservative term compares with real rows: give a share that makes at least one a batch"
            raise UserError("real_ratio", self.real_ratio, fix)

    @property
    def real_rows(self) -> int:
        """Rows of the dataset in a batch, where anything is imagined."""
        return math.floor(self.real_ratio * self.batch_size + ROUNDING)

    def check(self, data: ReplayBuffer) -> None:
        """The guard must not cut the data's own states."""
        super().check(data)
        if self.guard is not None and (largest := _box_of(data).largest) > self.guard:
            fix = f"the data has observations up to {largest:.4g}: give a larger one, or null for none"
            raise UserError("guard", self.guard, fix)

    def load(self, data: ReplayBuffer) -> None:
        super().load(data)
        self._box = None

    @property
    def box(self) -> Box:
        """The range of the data's observations."""
        if self._box is None:
            self._box = _box_of(self.data)
        return self._box

    # -- learning ----------------------------------------------------------------------------------------------------

    def prepare(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """Before a round the model may have to be fitted, and rollouts made anew."""
        found = super().prepare(clock)
        if self.real_ratio < 1.0 and clock.updates >= self.refreshes * self.refresh_every:
            found["imagine"] = self.refresh()
        return found

    def refresh(self) -> dict[str, float]:
        """Imagine anew and let go of what is older than ``retain`` times; what to log of the new rows."""
        rows = self.imagine()
        self.refreshes += 1
        self.sizes = [*self.sizes, len(rows)][-self.retain :]
        self.imagined.resize(max(1, sum(self.sizes)))
        self.imagined.extend(rows)
        report = {"horizon": self.horizon, "imagined_rows": len(rows)}
        report |= {"dropped_rows": unstored(rows, self.starts, self.horizon)}
        return report | (self.describe(rows) if len(rows) else {})

    def imagine(self) -> Transitions:
        """Rollouts of the policy as it is, from states of the data."""
        start = self.start_sampler(self.data, self.starts, self.generator).to(self.device)
        model, act = self.model.bind(), PolicyChooser(self.learner.behaviour())
        how = {"seed": seeding.derive_seed(self.run_seed, "imagine", self.refreshes), "chunk_rows": self.chunk_rows}
        return imagine(model, act, Starts.of(start).encode(model), self.horizon, self.filters, maker=self.maker, **how)

    def describe(self, rows: Transitions) -> dict[str, float]:
        """Of imagined rows: ends, mean reward, how many left the range of the data, values by depth."""
        found = {
            "imagined_ends": float(rows.terminated.float().mean()),
            "imagined_reward": float(rows.reward.mean()),
            "outside_share": float(self.box.outside(rows.next_obs).float().mean()),
        }
        if "uncertainty" in rows.extra:
            found["uncertainty"] = float(rows.extra["uncertainty"].mean())
        return found | reach(rows, self.horizon, self.learner.value)

    def draw(self, count: int) -> Transitions:
        """Batches that are part real, part imagined; the column ``is_real`` tells which."""
        sources = self.data, self.imagined.ring
        batches = mixed_batches(*sources, self.real_ratio, count, self.batch_size, self.generator)
        reals = self.real_rows if len(self.imagined) else self.batch_size
        is_real = torch.arange(self.batch_size, device=batches.obs.device) < reals
        return replace(batches, extra=batches.extra | {IS_REAL: is_real.expand(count, -1)})

    def learn(self, batches: Transitions) -> dict[str, float]:
        """The updates of a round; with a penalty one by one, since it asks the target critics of each."""
        if self.penalty is None or self.penalty.weight == 0.0:
            return super().learn(batches)
        found = RunningMean()
        for i in range(len(batches)):
            batch, size = self._penalized(batches[i].to(self.device), self.penalty)
            found.add({"penalty": size} | super().learn(batch.map(lambda x: x.unsqueeze(0))))
        return found.pop()

    def _penalized(self, batch: Transitions, penalty: BellmanInconsistency) -> tuple[Transitions, float]:
        """The batch with the penalty taken off its imagined rows' rewards, as it is off the target, and its mean."""
        first = int(batch.extra[IS_REAL].sum())  # real rows come first
        if first == len(batch):
            return batch, 0.0
        doubt = penalty(self.model, self.learner, batch[first:], self.generator)
        reward = torch.cat([batch.reward[:first], batch.reward[first:] - doubt])
        return replace(batch, reward=reward), float(doubt.mean())

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        own = {"imagined": self.imagined.state_dict(), "refreshes": self.refreshes, "sizes": list(self.sizes)}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.imagined.load_state_dict(state["imagined"])
        self.refreshes, self.sizes = state["refreshes"], list(state["sizes"])


def _box_of(data: ReplayBuffer) -> Box:
    return Box(data.columns["obs"][: len(data)])


class Guard(Filter):
    """Drops rows whose next observation has an entry of larger magnitude than ``limit``: the model has run away.

    Args:
        limit: the magnitude; 100 is what public code uses for HalfCheetah.
    """

    def __init__(self, limit: float = 100.0) -> None:
        if not limit > 0.0:
            raise UserError("guard", limit, "give a magnitude above 0, or null for none")
        self.limit = limit

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        beyond: Tensor = (model.decode(move.step.state).abs() > self.limit).any(-1)
        return move.stop(beyond, "drop")
