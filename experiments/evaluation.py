"""How good an agent is: fixed starts, its own environments, no trace left in the training run."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import torch
from torch import Generator

from agents.base import Agent
from envs.errors import UserError
from envs.pool import EnvPool
from experiments.config import EvaluationConfig, RunConfig, make_one_env
from mbrl.seeding import seeded

LONGEST_EPISODE = 10_000
"""Steps after which an evaluation episode counts as endless, where the environment declares no limit."""


class Evaluator:
    """Plays ``evaluation.episodes`` episodes; episode ``i`` is reset with seed ``evaluation.seed + i``.

    The starts do not depend on the run's seed, so all agents see the same ones. Every call of ``act`` has the same
    number of rows: slots that have nothing left to play act on in an episode that does not count.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config: EvaluationConfig = config.evaluation
        slots = min(self.config.num_envs, self.config.episodes)
        self.playing = np.zeros(slots, dtype=np.int64)
        self.begun = 0
        self.pool = EnvPool(make_one_env(config.env), slots, self._next_seed)

    def _next_seed(self, slot: int, episode: int) -> int:
        self.playing[slot] = self.begun
        self.begun += 1
        return self.config.seed + int(self.playing[slot])

    def evaluate(self, agent: Agent, generator: Generator) -> dict[str, Any]:
        """``return_mean``, ``return_std``, ``returns`` and ``lengths`` by episode, ``act_ms`` a call of ``act``.

        ``peak_memory_bytes`` is the most that this process has held in memory since it began.
        """
        began = time.perf_counter()
        noise = torch.Generator(agent.device).manual_seed(generator.initial_seed())
        with seeded(generator), torch.no_grad():
            returns, lengths, calls, acting = self._play(agent, noise)
        return {
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "returns": returns.tolist(),
            "lengths": lengths.tolist(),
            "act_ms": 1000.0 * acting / calls,
            "evaluation_seconds": time.perf_counter() - began,
            "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # Linux counts KiB
        }

    def _play(self, agent: Agent, noise: Generator) -> tuple[Any, Any, int, float]:
        pool, episodes = self.pool, self.config.episodes
        returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
        over = np.zeros(episodes, dtype=bool)
        actor_state, self.begun, calls, acting = agent.initial_actor_state(pool.num_envs), 0, 0, 0.0
        pool.reset()
        while not over.all():
            calls += 1
            started = time.perf_counter()
            action, actor_state = _act(agent, pool, actor_state, noise)
            acting += time.perf_counter() - started
            step = pool.step(action)
            counts = self.playing < episodes
            which = self.playing[counts]
            returns[which] += step.reward[counts]
            lengths[which] += 1
            over[which] |= step.ended[counts]
            if pool.spec.max_episode_steps is None and lengths.max() >= LONGEST_EPISODE and not over.all():
                fix = (
                    f"an evaluation episode did not end within {lengths.max()} steps, and {pool.spec.id} has no limit;"
                    " set env.max_episode_steps, for example --env.max_episode_steps=1000"
                )
                raise UserError("env.max_episode_steps", None, fix)
            pool.reset_ended()
        return returns, lengths, calls, acting

    def close(self) -> None:
        self.pool.close()


def _act(agent: Agent, pool: EnvPool, actor_state: Any, noise: Generator) -> tuple[Any, Any]:
    obs, is_first = torch.from_numpy(pool.obs).to(agent.device), torch.from_numpy(pool.is_first).to(agent.device)
    states = pool.sim_states() if agent.wants_sim_state else None
    sim_state = None if states is None else torch.from_numpy(states).to(agent.device)
    action, actor_state, _ = agent.act(obs, actor_state, is_first, "evaluate", noise, sim_state=sim_state)
    return action.cpu().numpy(), actor_state
