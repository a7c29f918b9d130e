"""Imagined rollouts of an offline agent, under its own model and under the true dynamics, and the truth beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Generator, Tensor

from agents.offline.model_based import Guard, OfflineDynaAgent
from envs.errors import UserError
from experiments.diagnosis.oracle.values import physics_at
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.imagination.filters import Drop, Filter, Move
from mbrl.imagination.rollout import PolicyChooser, imagine
from mbrl.imagination.starts import Starts
from mbrl.models.base import DynamicsModel, State
from mbrl.models.simulator import Simulator, SimulatorState

RAW = "predicted_reward"
"""Column: the reward as the model says it, before any penalty"""


class AsPredicted(Filter):
    """Stores the reward as it is at its place among the filters."""

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        return replace(move, columns=move.columns | {RAW: move.step.reward})


@dataclass(frozen=True)
class Truth:
    """What the true dynamics do with the actions of ``N`` imagined rows."""

    state: SimulatorState
    """``[N]``: where the step truly started"""
    after: SimulatorState
    """``[N]``: and where it led"""
    reward: Tensor
    """``[N]``"""
    terminated: Tensor
    """``[N]`` bool"""
    exists: Tensor
    """``[N]`` bool: False where there is no truth to compare with"""


def true_starts(simulator: Simulator, rows: Transitions) -> SimulatorState:
    """The true states in which ``rows [N]`` of the data began.

    Raises:
        UserError: the data has no physics states, and its observations do not determine them.
    """
    known = rows.sim_state is not None and bool(rows.sim_state.isfinite().all())
    start = Starts.of(rows if known else replace(rows, sim_state=None))
    try:
        return cast(SimulatorState, start.encode(simulator))
    except UserError as error:
        fix = (
            f"the observation of {simulator.spec.id} does not determine the true state, and the data has no physics"
            " states: take data whose rows carry sim_state, such as a run's"
        )
        raise UserError("--oracle", simulator.spec.id, fix) from error


def imagined(agent: OfflineDynaAgent, model: DynamicsModel, start: State, seed: int) -> Transitions:
    """Rollouts as the agent makes them for itself; the column :data:`RAW` holds rewards without penalties.

    Under the true dynamics only the guard and filters that drop rows are left: nothing is uncertain, or to choose.
    """
    filters = agent.filters
    if isinstance(model, Simulator):
        filters = [each for each in filters if isinstance(each, Guard | Drop)]
    first = sum(each.proposes for each in filters)  # those that choose the next state stand before all others
    used = [*filters[:first], AsPredicted(), *filters[first:]]
    return imagine(model.bind(), PolicyChooser(agent.learner.act), start, agent.horizon, used, seed=seed)


def same_actions(simulator: Simulator, start: SimulatorState, rows: Transitions, horizon: int) -> Truth:
    """The true paths from ``start [S]`` under the actions of imagined ``rows [N]``, step by step without looking again.

    A row has no truth once its true path has ended or left the finite numbers.
    """
    state, alive, found = start, torch.ones(len(start.obs), dtype=torch.bool, device=start.obs.device), []
    for depth in range(horizon):
        at = (rows.step == depth).nonzero()[:, 0]
        if not len(at):
            break
        path = rows.episode[at]
        before = state[path]
        step = simulator.step(before, rows.action[at], None)
        after = cast(SimulatorState, step.state)
        finite = after.obs.isfinite().all(-1) & step.reward.isfinite()
        exists = alive[path] & finite
        found.append(Truth(before, after, step.reward, step.terminated, exists))
        alive = alive.index_put((path,), exists & ~step.terminated)
        obs, physics = state.obs.index_put((path,), after.obs), state.physics.index_put((path,), after.physics)
        state = SimulatorState(obs, physics)
    return _joined(found)


def _joined(parts: list[Truth]) -> Truth:
    return Truth(
        SimulatorState.cat([part.state for part in parts]),
        SimulatorState.cat([part.after for part in parts]),
        torch.cat([part.reward for part in parts]),
        torch.cat([part.terminated for part in parts]),
        torch.cat([part.exists for part in parts]),
    )


def same_states(simulator: Simulator, rows: Transitions, along: Truth) -> Truth:
    """One true step from the very state and action of each imagined row ``[N]``.

    Where observations do not determine the true state, that is known of the first step alone, which starts from the
    data; ``along`` is :func:`same_actions` of the same rows.
    """
    state = physics_at(simulator, rows.obs)
    if state is None:
        return replace(along, exists=along.exists & (rows.step == 0))
    step = simulator.step(state, rows.action, None)
    after = cast(SimulatorState, step.state)
    exists = after.obs.isfinite().all(-1) & step.reward.isfinite()
    return Truth(cast(SimulatorState, state), after, step.reward, step.terminated, exists)


def seeds(seed: int) -> tuple[int, int]:
    """Of the rollouts under the model and under the true dynamics."""
    return seeding.derive_seed(seed, "oracle", "model"), seeding.derive_seed(seed, "oracle", "true")
