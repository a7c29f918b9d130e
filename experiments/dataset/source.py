"""A training run as a source of data: its policies, how good they are, and what it stored."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.random_agent import RandomAgent
from envs.errors import UserError
from experiments.checkpoint import CheckpointStore
from experiments.diagnosis.dataset import RunRows
from experiments.evaluation import Evaluator
from experiments.run import RunDirectory
from experiments.session import Session, foreign_state
from mbrl import seeding
from mbrl.data.transitions import Transitions

TRIED_EPISODES = 20
"""Episodes from which a policy is called medium"""


@dataclasses.dataclass(frozen=True)
class Policy:
    """Weights at one moment of a run."""

    name: str
    clock: Mapping[str, Any]
    digest: str
    """Of the file that they are in"""
    weights: Mapping[str, Any]


class Source:
    """A run, its environment and its policies.

    Args:
        session: the run, built again.
        run: its directory.
        episodes: those from which the returns of the random and the expert policy are taken.
        seed: where these random numbers come from.
    """

    def __init__(self, session: Session, run: RunDirectory, episodes: int = 100, seed: int = 0) -> None:
        if session.in_turn:
            raise UserError("--recipe", str(run.path), "this run learns tasks in turn; data is made of one environment")
        self.session, self.run, self.episodes, self.seed = session, run, episodes, seed
        self.store = CheckpointStore(run.checkpoints)
        self.random = RandomAgent(session.pool.spec)

    def mean_return(self, agent: Agent, episodes: int, stream: str) -> float:
        """Of an agent as it is evaluated."""
        config = self.session.config
        evaluation = dataclasses.replace(config.evaluation, episodes=episodes, num_envs=min(episodes, 20))
        evaluator = Evaluator(dataclasses.replace(config, evaluation=evaluation))
        try:
            values = evaluator.evaluate(agent, seeding.generator(self.seed, "collect-evaluation", stream))
        finally:
            evaluator.close()
        return float(values["return_mean"])

    def acting(self, policy: Policy) -> Agent:
        """The run's agent with the weights of ``policy``, and past its warm-up."""
        agent = self.session.agent
        with foreign_state(self.run.path):
            agent.load_state_dict(dict(policy.weights))
        for buffer in agent.buffers.values():  # an agent tells by the rows that came whether it is still warming up
            buffer.total_added = buffer.forgotten = max(buffer.total_added, int(policy.clock["env_steps"]))
        return agent

    @functools.cached_property
    def expert(self) -> Policy:
        """The best of the run's evaluations."""
        return _policy(self.run.checkpoints / "best.pt", self.store.load_best())

    @functools.cached_property
    def references(self) -> tuple[float, float]:
        """Mean returns of the random and of the expert policy.

        Raises:
            UserError: the run has learned nothing.
        """
        low = self.mean_return(self.random, self.episodes, "random")
        high = self.mean_return(self.acting(self.expert), self.episodes, "expert")
        if high <= low:
            fix = f"random actions return {low:.4g} on average: this run has learned nothing; train it longer"
            raise UserError(f"{self.run.path}: best policy", high, fix)
        return low, high

    @functools.cached_property
    def references_or_why(self) -> tuple[tuple[float, float] | None, str]:
        """The same, or None and why there are none: for levels that say nothing of a policy's worth."""
        try:
            return self.references, ""
        except UserError as error:
            return None, error.fix

    @functools.cached_property
    def medium(self) -> Policy:
        """The first policy whose mean return is a third of the way from the random to the expert one, or better.

        Raises:
            UserError: the run kept no policies, or none of them is as good.
        """
        low, high = self.references
        best = -float("inf")
        for path, state in self.store.load_policies():
            policy = _policy(path, state)
            found = self.mean_return(self.acting(policy), min(TRIED_EPISODES, self.episodes), policy.name)
            if found >= low + (high - low) / 3.0:
                return policy
            best = max(best, found)
        if best == -float("inf"):
            fix = "this run kept no policies: train it with --checkpoint.policies=true and --evaluation.every=N"
            raise UserError(str(self.store.policies), "empty", fix)
        fix = f"the best of the kept policies returned {best:.4g}; evaluate more often, or train longer"
        raise UserError(f"{self.run.path}: medium policy", low + (high - low) / 3.0, fix)

    def stored(self, env_steps: int | None = None) -> Transitions:
        """What the run stored, or its first ``env_steps`` rows.

        Raises:
            UserError: it stores nothing, or its first rows are gone.
        """
        rows, state = RunRows(self.run.path).rows(), self.store.load_latest()
        buffers = (state or {})["buffers"]
        counts = buffers.get("real") or next(iter(buffers.values()))
        if int(counts["total_added"]) > len(rows):
            fix = f"{counts['total_added']:,} came; train with a capacity that holds all of them"
            raise UserError(f"{self.run.path}: stored rows", f"{len(rows):,}", fix)
        return dataclasses.replace(rows, task=None, extra={})[: len(rows) if env_steps is None else env_steps]


def _policy(path: Path, state: dict[str, Any]) -> Policy:
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return Policy(path.stem, state["clock"], digest, state["agent"])
