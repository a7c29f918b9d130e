"""Imagination: rows of experience made by a model, from real states, under a policy or a planner.

Short rollouts branched from replayed states: Janner, Fu, Zhang, Levine, "When to Trust Your Model: Model-Based Policy
Optimization", 2019 (MBPO).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl import seeding
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.imagination.filters import Filter, Move, check_filters
from mbrl.models.base import DynamicsModel, State
from mbrl.planning.base import Planner
from mbrl.planning.objective import Objective

CHUNK_ROWS = 10_000
"""Rows of a chunk"""
LEAST_ROWS = 16
"""The smallest chunk: below it, libraries of matrix products change their order of summation with the batch size."""


class Chooser(Protocol):
    """Who acts in imagination."""

    def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        """Platform actions ``[B, A]`` for the ``B`` rows of one chunk. Random numbers come from ``generator`` only."""


class PolicyChooser:
    """A policy acts on decoded observations.

    Args:
        policy: ``(obs [B, D] raw, generator) -> action [B, A]``, sampled.
    """

    def __init__(self, policy: Callable[[Tensor, Generator], Tensor]) -> None:
        self.policy = policy

    def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        return self.policy(model.decode(state), generator)


class PlannerChooser:
    """A planner acts: every imagined step is planned anew, without a warm start, and its first action is taken.

    Args:
        planner: plans in the same model.
        objective: what it plans for.
    """

    def __init__(self, planner: Planner, objective: Objective) -> None:
        self.planner, self.objective = planner, objective

    def __call__(self, model: DynamicsModel, state: State, generator: Generator) -> Tensor:
        rows = len(model.decode(state))
        fresh = self.planner.initial(rows, generator.device)
        return self.planner.plan(model, self.objective, state, fresh, generator=generator).actions[0]


class ChunkMaker(Protocol):
    """Who makes the chunks of :func:`imagine`: this process (:func:`make_chunks`), or workers elsewhere."""

    def __call__(
        self,
        model: DynamicsModel,
        act: Chooser,
        chunks: Sequence[State],
        horizon: int,
        filters: Sequence[Filter],
        *,
        seed: int,
        chunk_rows: int,
    ) -> Iterator[Transitions]:
        """Each of ``chunks`` as :func:`imagine_chunk` makes it, in order; on any device."""


def make_chunks(
    model: DynamicsModel,
    act: Chooser,
    chunks: Sequence[State],
    horizon: int,
    filters: Sequence[Filter],
    *,
    seed: int,
    chunk_rows: int,
) -> Iterator[Transitions]:
    """The chunks, made here one after the other."""
    for index, start in enumerate(chunks):
        yield imagine_chunk(model, act, start, horizon, filters, seed=seed, index=index, chunk_rows=chunk_rows)


@torch.no_grad()
def imagine(
    model: DynamicsModel,
    act: Chooser,
    start: State,
    horizon: int,
    filters: Sequence[Filter] = (),
    *,
    seed: int,
    chunk_rows: int = CHUNK_ROWS,
    policy_version: int = 0,
    maker: ChunkMaker = make_chunks,
) -> Transitions:
    """Follow ``act`` in ``model`` for up to ``horizon`` steps from every row of ``start [B]``.

    Rows are cut into chunks of ``chunk_rows``, each with a seed of its own, so the result depends neither on the order
    in which chunks are made nor on the process that makes them: ``maker`` may have them made elsewhere.

    Returns:
        The rows that exist, time-major: every start row's first step, then the second step of those that go on, and
        so on. A row ends where the model or a filter ends it: that step is stored (unless it is dropped) and no later
        one exists. ``truncated`` marks steps that left the model's validity box or that a filter cut. The last step of
        a rollout is *not* marked: the bootstrap goes on from ``next_obs`` there anyhow. Steps that are no finite
        numbers are dropped. ``episode`` is the start row's index, ``step`` the depth, also kept as column ``depth``;
        ``member`` tells who moved the row where the model says so; filters add their columns.

    Args:
        model: any model; bound here, so that it is fixed for the whole call.
        act: a policy or a planner.
        start: model states, as ``model.encode`` gives them.
        horizon: steps, at least 1.
        filters: what happens to each step before it is stored, in order.
        seed: chunk ``i`` draws from a generator seeded by ``derive_seed(seed, "chunk", i)``.
        chunk_rows: rows of a chunk; fewer start rows than that make one chunk of their own size. The last chunk is
            filled up with copies, which are cut off afterwards.
        policy_version: stored with every row.
        maker: who makes the chunks.

    Raises:
        UserError: a horizon or chunk size below 1, no start rows, or filters that do not go together.
    """
    check_filters(filters)
    if horizon < 1:
        raise UserError("horizon", horizon, "imagine at least one step")
    chunks, width, device = cut(start, chunk_rows), chunk_width(start, chunk_rows), _leaf(start).device
    made = maker(model.bind(), act, chunks, horizon, filters, seed=seed, chunk_rows=width)
    return join([rows.to(device) for rows in made], chunk_rows, policy_version)


def cut(start: State, chunk_rows: int) -> list[State]:
    """The start rows of every chunk; the last one may be shorter."""
    rows = _rows(start)
    if chunk_rows < 1 or rows < 1:
        raise UserError("chunk_rows, start rows", (chunk_rows, rows), "each is at least 1")
    return [start[first : first + chunk_rows] for first in range(0, rows, chunk_rows)]


def chunk_width(start: State, chunk_rows: int) -> int:
    """Rows of every chunk: start rows that do not fill one make a chunk of their own size."""
    return min(chunk_rows, max(_rows(start), LEAST_ROWS))


@torch.no_grad()
def imagine_chunk(
    model: DynamicsModel,
    act: Chooser,
    start: State,
    horizon: int,
    filters: Sequence[Filter] = (),
    *,
    seed: int,
    index: int,
    chunk_rows: int,
) -> Transitions:
    """Chunk ``index`` of :func:`imagine`: a function of its arguments alone, wherever it is called.

    ``episode`` counts from 0 inside the chunk. All rows keep their place through the horizon, ended ones standing
    still, so shapes are fixed and the device is waited for once, when the rows that exist are taken out at the end.
    """
    rows = _rows(start)
    place = torch.arange(chunk_rows, device=_leaf(start).device)
    generator = seeding.generator(seed, "chunk", index, device=place.device)
    state, alive = start if rows == chunk_rows else start[place.clamp(max=rows - 1)], place < rows
    steps, kept = [], []
    for depth in range(horizon):
        move = _advance(model, act, state, filters, generator)
        keep = alive & move.keep
        steps.append(_as_rows(model, move, depth))
        kept.append(keep)
        alive = keep & ~(move.step.terminated | move.step.truncated)
        state = move.step.state.where(alive, state)
    exist = torch.cat(kept).nonzero()[:, 0]
    return Transitions.cat(steps).map(lambda column: column.index_select(0, exist))


def join(chunks: Sequence[Transitions], chunk_rows: int, policy_version: int = 0) -> Transitions:
    """The chunks in the order of their indices as one, time-major, with ``episode`` counted over all of them."""
    rows = chunks[0]
    if len(chunks) > 1:
        split = [_by_depth(replace(rows, episode=rows.episode + i * chunk_rows)) for i, rows in enumerate(chunks)]
        depths = itertools.zip_longest(*split)
        rows = Transitions.cat([part for parts in depths for part in parts if part is not None])
    return replace(rows, policy_version=torch.full_like(rows.step, policy_version))


def _by_depth(chunk: Transitions) -> list[Transitions]:
    """The rows of every depth. A chunk is time-major, so nothing has to be sorted."""
    ends = [0, *torch.bincount(chunk.step, minlength=1).cumsum(0).tolist()]
    return [chunk[first:end] for first, end in itertools.pairwise(ends)]


def _advance(model: DynamicsModel, act: Chooser, state: State, filters: Sequence[Filter], generator: Generator) -> Move:
    """One imagined step of all rows of a chunk."""
    action = act(model, state, generator)
    step = model.step(state, action, generator)
    move = Move(state, action, step, torch.ones_like(step.terminated), {})
    for filter in filters:
        move = filter(model, move, generator)
    finite = model.decode(move.step.state).isfinite().flatten(1).all(1) & move.step.reward.isfinite()
    return move.stop(~finite, "drop")


def _as_rows(model: DynamicsModel, move: Move, depth: int) -> Transitions:
    """The step as transitions of all rows of the chunk, ended ones too."""
    step = move.step
    row = torch.arange(len(step.reward), device=step.reward.device)
    columns = {"depth": torch.full_like(row, depth), **move.columns}
    if step.member is not None:
        columns["member"] = step.member
    obs, next_obs = model.decode(move.state), model.decode(step.state)
    # The horizon's end is no end of the episode: neither flag is set there.
    return Transitions(
        obs,
        move.action,
        step.reward,
        next_obs,
        step.terminated,
        step.truncated,
        episode=row,
        step=columns["depth"],
        policy_version=torch.zeros_like(row),
        extra=columns,
    )


def _rows(start: State) -> int:
    return _leaf(start).shape[0]


def _leaf(record: Record) -> Tensor:
    """Any tensor of a record; they share their leading dimension and their device."""
    for value in vars(record).values():
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Record):
            return _leaf(value)
    raise UserError("start", type(record).__name__, "a state holds at least one tensor")
