"""The online loop: act, learn, evaluate, and be ready to be killed at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agents.base import ActorState, Agent
from agents.external import ExternalLearner, SelfRunningLearner
from envs.pool import EnvPool
from experiments.checkpoint import CheckpointStore
from experiments.config import RunConfig
from experiments.evaluation import Evaluator
from experiments.loops.base import Loop
from experiments.reporter import Reporter
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.record import from_dict
from mbrl.data.transitions import Transitions


class OnlineLoop(Loop):
    """Trains ``agent`` in ``pool`` for ``config.steps`` env steps.

    The loop owns the clock, the actor states and the action noise.
    """

    def __init__(
        self,
        config: RunConfig,
        agent: Agent,
        pool: EnvPool,
        evaluator: Evaluator,
        checkpoints: CheckpointStore,
        reporter: Reporter,
    ) -> None:
        super().__init__(config, agent, evaluator, checkpoints, reporter)
        self.pool = pool
        self.generator = seeding.generator(config.seed, "act", device=agent.device)
        self.actor_state: ActorState = agent.initial_actor_state(config.num_envs)
        self.returns = np.zeros(config.num_envs)
        self.task_id: int | None = None
        """Of a sequence of tasks, the one that is learned."""

    @property
    def steps(self) -> int:
        return self.clock.env_steps

    def due(self, every: int) -> bool:
        return self.clock.due(every)

    def begin(self) -> None:
        """Start the environments."""
        if not isinstance(self.agent, SelfRunningLearner):
            self.pool.reset()

    def advance(self) -> None:
        """One decision in every slot and what is learned from it; of an external learner, one round of its own."""
        before = self.clock.env_steps
        if isinstance(self.agent, ExternalLearner):
            self.agent.advance(self)
        else:
            self.agent.observe(self.interact())
        self.clock.previous_env_steps = before  # many ticks may be one round
        self.learn()

    def interact(self) -> Transitions:
        obs, is_first = self.current()
        sim_state = self.pool.sim_states() if self.agent.wants_sim_state else None
        sim = None if sim_state is None else torch.from_numpy(sim_state).to(self.agent.device)
        action, self.actor_state, extra = self.agent.act(
            obs, self.actor_state, is_first, "explore", self.generator, sim_state=sim
        )
        return self.collect(action, extra)

    def current(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations ``[N, D]`` and ``[N]`` first ones, on the agent's device."""
        device = self.agent.device
        return torch.from_numpy(self.pool.obs).to(device), torch.from_numpy(self.pool.is_first).to(device)

    def collect(self, action: torch.Tensor, extra: dict[str, torch.Tensor] | None = None) -> Transitions:
        """One step of every environment, counted and reported; episodes that ended begin anew."""
        step = self.pool.step(action.cpu().numpy())
        transitions = to_transitions(step, action, extra or {}, self.clock.updates, self.task_id)
        self.clock.tick(self.config.num_envs)
        self.report_episodes(transitions)
        self.pool.reset_ended()
        self.reporter.progress(self.clock)
        return transitions

    def ran(self, env_steps: int, episodes: Sequence[tuple[float, int]]) -> None:
        """Count and report what a learner did in environments of its own."""
        self.clock.tick(env_steps)
        for value, length in episodes:
            values = {"return": value, "length": length, "episode": self.clock.episodes}
            self.clock.episodes += 1
            self.reporter.record("episode", self.clock, values)
        self.reporter.progress(self.clock)

    def report_episodes(self, transitions: Transitions) -> None:
        self.returns += transitions.reward.double().cpu().numpy()
        for slot in (transitions.terminated | transitions.truncated).nonzero()[:, 0].tolist():
            self.clock.episodes += 1
            values: dict[str, float] = {"return": float(self.returns[slot]), "length": int(transitions.step[slot]) + 1}
            values |= {"episode": int(transitions.episode[slot])}
            values |= {} if self.task_id is None else {"task": self.task_id}
            self.reporter.record("episode", self.clock, values)
            self.returns[slot] = 0.0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "actor_state": self.actor_state.to_dict(),
            "pool": self.pool.state_dict(),
            "returns": torch.from_numpy(self.returns.copy()),
            "generator": self.generator.get_state(),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        actor_state = from_dict(state["actor_state"]).to(self.agent.device)
        assert isinstance(actor_state, ActorState)
        self.actor_state = actor_state
        self.pool.load_state_dict(state["pool"])
        self.returns = state["returns"].numpy().copy()
        self.generator.set_state(state["generator"])
