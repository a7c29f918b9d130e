"""Imitation in Gymnasium's ``Reacher-v5``: an arm with inertia, so that the tracker must learn its inverse dynamics."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from agents.koopman_imitation import KoopmanImitation
from agents.tracking import InverseDynamics
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from envs.two_link_arm import SUCCESS, joints_at
from experiments.benchmarks._timing import table
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.kodex import LinearLift, PolynomialLift, RobotLift

ENV = "Reacher-v5"
OFFSET = slice(8, 10)
"""Entries of the observation: from the target to the tip, metres."""


class ReacherExpert(Agent):
    """PD torques towards the pose at the target. Knows the arm's geometry, which is that of ``TwoLinkReach``."""

    kp, kd = 0.02, 0.002

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        joints, speed = torch.atan2(obs[:, 2:4], obs[:, 0:2]), obs[:, 6:8]
        way = joints_at(obs[:, 4:6]) - joints
        way[:, 0] = torch.remainder(way[:, 0] + torch.pi, 2.0 * torch.pi) - torch.pi  # the shoulder turns all the way
        return (self.kp * way - self.kd * speed).clamp(-1.0, 1.0), actor_state, {}


@dataclass(frozen=True)
class Episodes:
    """Episodes side by side, whole."""

    rows: Transitions
    """Episode by episode, ``[N * T]``"""
    success: float
    """Share of episodes that end with the tip within 2 cm"""
    diverged: float
    """Share of episodes in which the rollout did"""
    mean_return: float

    def told(self) -> dict[str, float]:
        """Its figures."""
        return {"success": self.success, "diverged": self.diverged, "return": self.mean_return}


def play(agent: Agent, number: int, seed: int) -> Episodes:
    """``number`` episodes, one a slot."""
    pool = EnvPool(lambda: make_env(ENV), number, lambda slot, episode: seeding.derive_seed(seed, slot, episode))
    actor, luck, seen = agent.initial_actor_state(number), torch.Generator().manual_seed(0), list[Transitions]()
    pool.reset()
    diverged = torch.zeros(number, dtype=torch.bool)
    for _ in range(pool.spec.max_episode_steps or 0):
        obs, first = torch.from_numpy(pool.obs), torch.from_numpy(np.asarray(pool.is_first))
        action, actor, extra = agent.act(obs, actor, first, "evaluate", luck)
        diverged |= extra.get("diverged", torch.zeros(number)) > 0.0
        seen.append(to_transitions(pool.step(action.numpy()), action, {}, version=0))
    pool.close()
    apart = torch.linalg.vector_norm(seen[-1].next_obs[:, OFFSET], dim=1)
    total = torch.stack([rows.reward for rows in seen]).sum(0)
    rows = Transitions.stack(seen, dim=1).map(lambda x: x.flatten(0, 1))
    return Episodes(rows, *(float(x.double().mean()) for x in (apart <= SUCCESS, diverged, total)))


@dataclass(frozen=True)
class Sizes:
    """How much is shown, learned and judged."""

    demonstrations: int = 50
    goals: int = 100
    periods: tuple[int, ...] = (0, 10, 1)
    tracker_updates: int = 2000


QUICK = Sizes(demonstrations=10, goals=2, tracker_updates=20)
LIFTS: Mapping[str, type[RobotLift]] = {"linear": LinearLift, "polynomial": PolynomialLift}


def make_agent(lift: RobotLift, relift_every: int, updates: int) -> KoopmanImitation:
    """The robot: cosines, sines and speeds of its joints; the object: the target."""
    robot, tracker = ["cos", "sin", "qvel"], InverseDynamics(updates=updates)
    return KoopmanImitation(
        env_spec(ENV), robot, ["target"], tracker, expert=ReacherExpert, lift=lift, relift_every=relift_every
    )


class Still(Agent):
    """The control: no torque at all."""

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        return torch.zeros(len(obs), self.spec.action.size), actor_state, {}


def run(sizes: Sizes, seed: int) -> dict[str, dict[str, float]]:
    """Expert, control, and every lift and period; all on the same new targets."""
    spec, test = env_spec(ENV), seeding.derive_seed(seed, "test")
    shown = play(ReacherExpert(spec), sizes.demonstrations, seeding.derive_seed(seed, "shown")).rows
    found = {"expert": play(ReacherExpert(spec), sizes.goals, test).told()}
    found["no torque"] = play(Still(spec), sizes.goals, test).told()
    for name, kind in LIFTS.items():
        for period in sizes.periods:
            agent = make_agent(kind(), period, sizes.tracker_updates)
            agent.seed(seed)
            report = agent.fit(shown)
            judged = play(agent, sizes.goals, test).told() | {"tracker_loss": report["tracker_loss"]}
            found[f"{name}, lifted every {period}" if period else name] = judged
    return found


def lines_of(sizes: Sizes, found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A line an agent: means over the seeds."""
    names = ("success", "return", "diverged")
    rows: list[list[object]] = [[f"{ENV}, {sizes.demonstrations} demonstrations", *names]]
    for agent in found[0]:
        rows.append([agent, *(statistics.mean(seed[agent][name] for seed in found) for name in names)])
    return [f"{ENV}: {sizes.goals} targets, {len(found)} seeds; no goal was set for it", *table(rows)]
