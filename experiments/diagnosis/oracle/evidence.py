"""What is measured of an offline Dyna agent's rollouts: values by depth beside the truth, the model's steps, the edge.

After Sims, Lu, Foerster, Teh, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor

from agents.offline.model_based import OfflineDynaAgent
from agents.offline.reach import SHOWN
from experiments.diagnosis.oracle.paths import RAW, Truth, imagined, same_actions, same_states, seeds, true_starts
from experiments.diagnosis.oracle.values import physics_at, steps_for, worth
from experiments.loops.offline import attainable
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.rows import Units, miss
from mbrl.imagination.starts import Starts
from mbrl.models.simulator import Simulator, SimulatorState

MOST_STARTS = 2000
SAMPLED = 128
"""States of each depth whose true value is sampled"""
CHECKED = 1000
"""Rows of the data that are compared with the true dynamics"""
NEAR = 500
"""States whose nearest neighbour is looked for"""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` rows, and its standard error; NaN where there are none."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, x: Tensor) -> Estimate:
        """Of ``x [N]``."""
        n, x = len(x), x.double()
        mean = float(x.mean()) if n else math.nan
        return cls(mean, float(x.std()) / math.sqrt(n) if n > 1 else math.nan, n)

    def above(self, least: float, errors: float) -> bool:
        """It is larger than ``least``, and than that many standard errors; False for NaN."""
        return self.mean > least and self.mean > errors * (self.error if math.isfinite(self.error) else 0.0)


@dataclass(frozen=True)
class ValuesAt:
    """States after ``depth`` imagined steps."""

    depth: int
    states: int
    critic: Estimate
    """What the critics say of them, as the actor sees it: pessimistic where that is"""
    outside: float
    """Share outside the range of the data's observations, entry by entry"""
    truth: Estimate
    """Sampled returns of some of them, entropy among it; NaN where their true state is not known"""
    entropy: float
    """The part of it that is entropy"""
    over: Estimate
    """Critic minus truth, state by state"""


@dataclass(frozen=True)
class EdgeOfReach:
    """States that rollouts reach with their last step only: targets ask for their values, nothing is learned there."""

    share: float
    """Of imagined rows, those whose target asks for one"""
    of_batch: float
    """Of the rows of a batch"""
    outside: float
    """Of edge states, those outside the range of the data"""
    new: float
    """Of edge states, those farther from all states that are learned about than 95 % of these are from each other"""


@dataclass(frozen=True)
class World:
    """Rollouts in one dynamics."""

    horizon: int
    values: list[ValuesAt]
    edge: EdgeOfReach
    spread: float
    """Standard deviation of true values over the data's own states"""

    @property
    def at_edge(self) -> ValuesAt | None:
        """The states after the last step; None where no rollout gets there."""
        last = self.values[-1] if self.values else None
        return last if last is not None and last.depth == self.horizon else None


@dataclass(frozen=True)
class StepsAt:
    """The learned model's steps number ``depth + 1``, against the true dynamics.

    Rewards and the error of one step are from the same state and action; ``path`` compares with where the same actions
    truly lead from the start. Errors are root mean squares in standard deviations of the data's observations.
    """

    depth: int
    rows: int
    predicted: float
    learned_from: float
    """Mean reward after penalties"""
    true: float
    bias: Estimate
    """Predicted minus true reward"""
    reward_error: float
    step: float
    path: float
    ends: float
    """Share of rows that end by the model"""
    true_ends: float
    missed: int
    invented: int


@dataclass(frozen=True)
class Evidence:
    """Everything measured at one checkpoint."""

    horizon: int
    gamma: float
    starts: int
    return_steps: int
    value_range: tuple[float, float] | None
    """Discounted returns that the data's rewards allow"""
    reward_std: float
    data_reward_error: float
    """Root mean square of the data's rewards against the true dynamics, in their standard deviations"""
    data_step_error: float
    """Of the data's next observations, in standard deviations of one step's change"""
    model: World | None
    """Under the learned model; None where the agent learns under the true dynamics"""
    true: World
    steps: list[StepsAt]


def measure(agent: OfflineDynaAgent, simulator: Simulator, seed: int = 0) -> Evidence:
    """Roll the agent's policy out from states of its data, in its model and in ``simulator``, and judge both.

    Raises:
        UserError: the data's true states cannot be had.
    """
    luck = seeding.generator(seed, "oracle")
    rows = agent.start_sampler(agent.data, min(agent.starts, MOST_STARTS), luck).to(agent.device)
    start, units = true_starts(simulator, rows), Units.of(agent.spec, agent.data.all())
    under_model, under_truth = seeds(seed)
    model, steps = None, []
    if agent.learned:
        made = imagined(agent, agent.model, Starts.of(rows).encode(agent.model), under_model)
        along = same_actions(simulator, start, made, agent.horizon)
        model = _world(agent, simulator, made, None, seed)
        steps = _steps(agent, made, along, same_states(simulator, made, along), units)
    made = imagined(agent, simulator, start, under_truth)
    true = _world(agent, simulator, made, same_actions(simulator, start, made, agent.horizon), seed)
    reward_error, step_error = _agreement(agent, simulator, units, luck)
    gamma = agent.learner.gamma
    return Evidence(
        horizon=agent.horizon,
        gamma=gamma,
        starts=len(rows),
        return_steps=steps_for(gamma),
        value_range=attainable(agent.data, gamma),
        reward_std=units.reward,
        data_reward_error=reward_error,
        data_step_error=step_error,
        model=model,
        true=true,
        steps=steps,
    )


def _agreement(agent: OfflineDynaAgent, simulator: Simulator, units: Units, luck: Generator) -> tuple[float, float]:
    """Whether the data comes from these dynamics at all."""
    rows = agent.data.sample(CHECKED, luck)
    step = simulator.step(true_starts(simulator, rows), rows.action, None)
    reward = (step.reward - rows.reward).double().square().mean().sqrt() / units.reward
    gap = miss(agent.spec, step.state.obs.double(), rows.next_obs.double()) / units.change
    return float(reward), float(gap[:, units.varies].square().mean().sqrt())


# -- values by depth -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    depth: int
    path: Tensor
    """``[N]`` number of the rollout"""
    obs: Tensor
    state: SimulatorState | None


def _world(agent: OfflineDynaAgent, simulator: Simulator, rows: Transitions, truth: Truth | None, seed: int) -> World:
    """``truth``: of ``rows`` that were made under the true dynamics, whose states are known."""
    layers = _layers(rows, agent.horizon, truth)
    luck = seeding.generator(seed, "oracle", "values", device=agent.device)
    values, spread = _values(agent, simulator, layers, luck)
    return World(agent.horizon, values, _edge(agent, rows, luck), spread)


def at_edge(rows: Transitions, horizon: int) -> Tensor:
    """``[N]`` bool: imagined rows of which the target asks for the value of a state at the edge."""
    return (rows.step == horizon - 1) & ~(rows.terminated | rows.truncated)


def _layers(rows: Transitions, horizon: int, truth: Truth | None) -> list[_Layer]:
    """The states of every depth that is shown; 0 are the data's own."""
    found = []
    for depth in [k for k in SHOWN if k < horizon]:
        here = rows.step == depth
        found.append(_Layer(depth, rows.episode[here], rows.obs[here], None if truth is None else truth.state[here]))
    edge = at_edge(rows, horizon)
    states = None if truth is None else truth.after[edge]
    found.append(_Layer(horizon, rows.episode[edge], rows.next_obs[edge], states))
    return [layer for layer in found if len(layer.obs)]


def _values(
    agent: OfflineDynaAgent, simulator: Simulator, layers: Sequence[_Layer], luck: Generator
) -> tuple[list[ValuesAt], float]:
    paths = 1 + max((int(x.path.max()) for x in layers), default=0)
    order = torch.randperm(paths, generator=luck, device=luck.device)  # the same rollouts at every depth, if they last
    picked = [order[x.path].argsort()[:SAMPLED] for x in layers]
    said = [agent.learner.value(x.obs).double().cpu() for x in layers]
    parts = [_true_states(simulator, x, places) for x, places in zip(layers, picked, strict=True)]
    totals = [torch.full((len(places),), math.nan, dtype=torch.float64) for places in picked]
    entropies = [x.clone() for x in totals]
    states = [state for state in parts if state is not None]
    if len(states) == len(parts) and states:
        found, sizes = worth(simulator, agent.learner, SimulatorState.cat(states), luck), [len(x) for x in picked]
        missing = torch.where(found.exists, 0.0, math.nan)
        totals, entropies = list((found.total + missing).split(sizes)), list((found.entropy + missing).split(sizes))
    made = []
    for layer, value, places, total, entropy in zip(layers, said, picked, totals, entropies, strict=True):
        known, at = total.isfinite(), places.cpu()
        made.append(
            ValuesAt(
                depth=layer.depth,
                states=len(layer.obs),
                critic=Estimate.of(value),
                outside=float(agent.box.outside(layer.obs).double().mean()),
                truth=Estimate.of(total[known]),
                entropy=Estimate.of(entropy[known]).mean,
                over=Estimate.of((value[at] - total)[known]),
            )
        )
    first = totals[0][totals[0].isfinite()] if totals else torch.empty(0)
    return made, float(first.std()) if len(first) > 1 else math.nan


def _true_states(simulator: Simulator, layer: _Layer, places: Tensor) -> SimulatorState | None:
    if layer.state is not None:
        return layer.state[places]
    return cast("SimulatorState | None", physics_at(simulator, layer.obs[places]))


# -- the edge --------------------------------------------------------------------------------------------------------


def _edge(agent: OfflineDynaAgent, rows: Transitions, luck: Generator) -> EdgeOfReach:
    edge = at_edge(rows, agent.horizon)
    share, states = float(edge.double().mean()), rows.next_obs[edge]
    fakes = 1.0 - agent.real_rows / agent.batch_size
    outside = float(agent.box.outside(states).double().mean()) if len(states) else math.nan
    return EdgeOfReach(share, share * fakes, outside, _new(rows.obs, states, luck))


def _new(known: Tensor, edge: Tensor, luck: Generator) -> float:
    """The share of ``edge [N, D]`` that is far from ``known [M, D]``, in standard deviations of these."""
    if len(edge) == 0 or len(known) < 2:
        return math.nan
    std, known = known.std(0).clamp(min=1e-6), known[torch.randperm(len(known), generator=luck, device=luck.device)]
    probe, rest = known[: min(NEAR, len(known) // 2)] / std, known[min(NEAR, len(known) // 2) :] / std
    edge = edge[torch.randperm(len(edge), generator=luck, device=luck.device)[:NEAR]] / std
    usual = torch.cdist(probe, rest).amin(1).quantile(0.95)
    return float((torch.cdist(edge, rest).amin(1) > usual).double().mean())


# -- the model's steps -----------------------------------------------------------------------------------------------


def _steps(agent: OfflineDynaAgent, rows: Transitions, along: Truth, here: Truth, units: Units) -> list[StepsAt]:
    errors = [_errors(agent, rows, truth, units) for truth in (here, along)]
    shown = [k for k in SHOWN if k < agent.horizon - 1] + [agent.horizon - 1]
    found = []
    for depth in shown:
        at = rows.step == depth
        if not bool(at.any()):
            continue
        known = at & here.exists
        said, true = rows.terminated[known], here.terminated[known]
        predicted, truly = rows.extra[RAW][known].double(), here.reward[known].double()
        found.append(
            StepsAt(
                depth=depth,
                rows=int(at.sum()),
                predicted=_mean(rows.extra[RAW][at]),
                learned_from=_mean(rows.reward[at]),
                true=_mean(truly),
                bias=Estimate.of((predicted - truly).cpu()),
                reward_error=_rms(predicted - truly),
                step=_rms(errors[0][known]),
                path=_rms(errors[1][at & along.exists]),
                ends=_mean(rows.terminated[at]),
                true_ends=_mean(true),
                missed=int((true & ~said).sum()),
                invented=int((said & ~true).sum()),
            )
        )
    return found


def _errors(agent: OfflineDynaAgent, rows: Transitions, truth: Truth, units: Units) -> Tensor:
    """``[N]`` root mean square over the entries that vary."""
    gap = miss(agent.spec, rows.next_obs.double(), truth.after.obs.double()).cpu() / units.obs
    return gap[:, units.varies].square().mean(-1).sqrt().to(rows.obs.device)


def _mean(x: Tensor) -> float:
    return float(x.double().mean()) if len(x) else math.nan


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if len(x) else math.nan
