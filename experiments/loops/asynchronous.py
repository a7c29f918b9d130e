"""The online loop whose environments are played by workers, each with a copy of the policy, while the agent learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from agents.base import Agent
from agents.common import random_action
from agents.off_policy import OffPolicyAgent
from agents.random_agent import RandomAgent
from envs.errors import UserError
from envs.pool import EnvPool
from envs.spec import ActionSpec
from experiments.checkpoint import CheckpointStore
from experiments.config import RunConfig
from experiments.evaluation import Evaluator
from experiments.loops.online import OnlineLoop
from experiments.reporter import Reporter
from mbrl.data.transitions import Transitions
from mbrl.distributed.async_rollouts import Act, AsyncRollouts, Rollout


class AsyncLoop(OnlineLoop):
    """Trains ``agent`` on what ``rollouts`` bring, for ``config.steps`` env steps.

    Exempt from equal data: two runs of one seed differ, and a run that is resumed begins new episodes. ``pool`` tells
    what the environment is; it is not played in.

    Raises:
        UserError: the agent acts by more than a policy that can be copied.
    """

    def __init__(
        self,
        config: RunConfig,
        agent: Agent,
        pool: EnvPool,
        evaluator: Evaluator,
        checkpoints: CheckpointStore,
        reporter: Reporter,
        rollouts: AsyncRollouts,
    ) -> None:
        super().__init__(config, agent, pool, evaluator, checkpoints, reporter)
        self.rollouts = rollouts
        policy_of(agent)

    def begin(self) -> None:
        """Workers begin with the first policy."""

    def advance(self) -> None:
        """Hand out the policy, take what was done with it and with earlier ones, and learn from that."""
        before = self.clock.env_steps
        self.rollouts.publish(policy_of(self.agent), self.clock.updates)
        for rollout in self.rollouts.take():
            self.receive(rollout)
        self.clock.previous_env_steps = before  # all of it is one round
        self.reporter.progress(self.clock)
        self.learn()

    def receive(self, rollout: Rollout) -> None:
        """Show the agent what one worker did, a step of its slots at a time."""
        rows = rollout.transitions
        for first in range(0, len(rows), rollout.slots):
            if self.clock.env_steps >= self.config.steps:
                return  # what was played beyond the run's end
            self.clock.tick(rollout.slots)
            step = rows[first : first + rollout.slots]
            self.agent.observe(step)
            self.report_episodes(step)

    def report_episodes(self, transitions: Transitions) -> None:
        """A slot whose worker was lost begins a new episode; what it had of the old one is not reported."""
        for row in range(len(transitions)):
            slot = int(transitions.episode[row]) % self.config.num_envs
            before = self.returns[slot] if transitions.step[row] else 0.0
            self.returns[slot] = before + float(transitions.reward[row])
            if transitions.terminated[row] or transitions.truncated[row]:
                self.clock.episodes += 1
                values = {"return": float(self.returns[slot]), "length": int(transitions.step[row]) + 1}
                self.reporter.record("episode", self.clock, values | {"episode": int(transitions.episode[row])})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rollouts": self.rollouts.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        super().load_own_state(state)
        self.rollouts.load_state_dict(state["rollouts"])

    def close(self) -> None:
        self.rollouts.close()
        super().close()


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform actions, as agents take them before they have learned anything."""

    action: ActionSpec

    def __call__(self, obs: Tensor, generator: Generator) -> Tensor:
        """``[n, A]`` for ``obs [n, D]``."""
        return random_action(self.action, len(obs), generator)


def policy_of(agent: Agent) -> Act:
    """How the agent explores now, as a thing that can be copied to other processes.

    Raises:
        UserError: it plans, remembers, or is somebody else's.
    """
    if isinstance(agent, RandomAgent):
        return RandomPolicy(agent.spec.action)
    if not isinstance(agent, OffPolicyAgent) or type(agent).act is not OffPolicyAgent.act:
        fix = "only agents that act by the network of an actor-critic (mbpo, sac, redq, ...) can: leave --async out"
        raise UserError("--async", type(agent).__name__, fix)
    policy: Act = RandomPolicy(agent.spec.action) if agent.warming_up else agent.learner.behaviour()
    return policy
