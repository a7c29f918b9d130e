"""Rows of a policy in its environment: episodes that all began early enough, in the order in which they began."""

from __future__ import annotations

import numpy as np
import torch

from agents.base import Agent
from envs.pool import EnvPool, PoolStep
from experiments.config import EnvConfig, make_one_env
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions

SLOTS = 10
"""Environments side by side; part of what decides the rows"""


class Began:
    """Episodes in the order in which they began, and how many rows the finished ones at the front have.

    Taking episodes as they end would favour short ones: those that began early count, however long they last.
    """

    def __init__(self) -> None:
        self.place: dict[int, int] = {}
        """By id"""
        self.rows: list[int] = []
        self.over: list[bool] = []
        self.finished, self.finished_rows = 0, 0

    def see(self, step: PoolStep) -> None:
        for id, over in zip(step.episode.tolist(), step.ended.tolist(), strict=True):
            place = self.place.setdefault(id, len(self.place))
            if place == len(self.rows):
                self.rows.append(0)
                self.over.append(False)
            self.rows[place] += 1
            self.over[place] = over
        while self.finished < len(self.over) and self.over[self.finished]:
            self.finished_rows += self.rows[self.finished]
            self.finished += 1


def play(agent: Agent, env: EnvConfig, count: int, seed: int, stream: str, version: int = 0) -> Transitions:
    """``count`` rows of ``agent``, sampling its actions; episodes are numbered from 0, the last one may be cut off.

    Args:
        agent: as it is to act; where it samples nothing, its actions are those of an evaluation.
        env: where.
        count: rows.
        seed: with ``stream``, where every random number comes from.
        stream: name of the policy.
        version: ``policy_version`` of the rows.
    """
    pool = EnvPool(make_one_env(env), SLOTS, lambda slot, e: seeding.derive_seed(seed, "collect", stream, slot, e))
    noise = seeding.generator(seed, "collect", stream, device=agent.device)
    began, parts, actor_state = Began(), list[Transitions](), agent.initial_actor_state(SLOTS)
    pool.reset()
    try:
        with seeding.seeded(seeding.generator(seed, "collect-library", stream)), torch.no_grad():
            while began.finished_rows < count:
                obs, first = (torch.from_numpy(part).to(agent.device) for part in (pool.obs, pool.is_first))
                states = pool.sim_states() if agent.wants_sim_state else None
                sim = None if states is None else torch.from_numpy(states).to(agent.device)
                action, actor_state, _ = agent.act(obs, actor_state, first, "explore", noise, sim_state=sim)
                step = pool.step(action.cpu().numpy())
                began.see(step)
                parts.append(to_transitions(step, action, {}, version))
                pool.reset_ended()
    finally:
        pool.close()
    return _in_order(Transitions.cat(parts), began)[:count]


def _in_order(rows: Transitions, began: Began) -> Transitions:
    rows.episode = torch.tensor([began.place[id] for id in rows.episode.tolist()])
    return rows[torch.from_numpy(np.lexsort((rows.step.numpy(), rows.episode.numpy())))]


def some_episodes(rows: Transitions, count: int, seed: int) -> Transitions:
    """Whole episodes of ``rows``, drawn at random and kept in their order, until there are ``count``; the last one of
    them is cut off. All rows where there are no more.
    """
    if len(rows) <= count:
        return rows
    ids, index, lengths = np.unique(rows.episode.numpy(), return_inverse=True, return_counts=True)
    order = torch.randperm(len(ids), generator=seeding.generator(seed, "episodes")).numpy()
    enough = int(np.searchsorted(np.cumsum(lengths[order]), count)) + 1
    chosen = np.isin(index, order[:enough])
    spare = int(lengths[order[:enough]].sum()) - count
    chosen[np.flatnonzero(index == order[enough - 1])[lengths[order[enough - 1]] - spare :]] = False
    return rows[torch.from_numpy(np.flatnonzero(chosen))]
