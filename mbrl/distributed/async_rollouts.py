"""Workers that act on their own, each with a copy of the policy, while the driver learns.

Faster than rounds that all take together, and not exact: what is learned depends on who was ready when. How far the
policy that acted may lie behind the one that learns is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from torch import Generator, Tensor

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.pool import EnvPool
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.distributed.cluster import check_resources
from mbrl.distributed.environments import Member, hiring, persist, shares
from mbrl.distributed.parcel import Parcel, Replica
from mbrl.distributed.worker import Arithmetic

Act = Callable[[Tensor, Generator], Tensor]
"""Actions ``[n, A]`` for raw observations ``[n, D]``; an object of tensors that can be pickled"""


@dataclass(frozen=True)
class Rollout:
    """What one worker did between two policies."""

    transitions: Transitions
    """``K`` steps of ``n`` slots, a step's rows side by side; ``policy_version`` is what :meth:`publish` was told"""
    slots: int
    """``n``"""
    staleness: int
    """How many policies were published since the one that acted"""


class RolloutWorker:
    """One actor: some slots of the run, and a copy of the policy on the CPU."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic, self.replica = arithmetic, Replica(torch.device("cpu"))

    def ready(self) -> int:
        """Answers once the actor has its place; the process id."""
        return os.getpid()

    def build(
        self, make: Callable[[], BoundaryEnv], slots: range, num_envs: int, run_seed: int, first_episode: int
    ) -> None:
        """Make the environments and begin episodes in all of them."""
        self.arithmetic.apply()
        self.first, self.num_envs = slots.start, num_envs

        def episode_seed(slot: int, episode: int) -> int:
            return seeding.derive_seed(run_seed, "env", slots[slot], episode)

        self.pool = EnvPool(make, len(slots), episode_seed, first_episode=first_episode)
        self.pool.reset()

    def play(self, parcel: Parcel, version: int, steps: int, seed: int) -> Transitions:
        """So many steps with the policy in the parcel."""
        act: Act = self.replica.open(parcel)
        generator = torch.Generator().manual_seed(seed)
        return Transitions.cat([self._step(act, version, generator) for _ in range(steps)])

    def _step(self, act: Act, version: int, generator: Generator) -> Transitions:
        action = act(torch.from_numpy(self.pool.obs), generator)
        step = self.pool.step(action.numpy())
        self.pool.reset_ended()
        number, slot = torch.from_numpy(step.episode), torch.arange(self.pool.num_envs)
        episode = number // self.pool.num_envs * self.num_envs + self.first + slot  # unique in the run, not here only
        return replace(to_transitions(step, action, {}, version), episode=episode)


class _Actor(Member):
    """A worker, and the call that it has not answered."""

    def __init__(
        self, hire: Callable[[], Any], slots: range, num_cpus: float, parts: tuple[Any, ...], first_episode: int
    ) -> None:
        self._parts, self.next_episode = parts, first_episode
        self.call: Any = None
        self.version = 0
        """Of the policy that acts in the call"""
        super().__init__(hire, slots, num_cpus)

    def parts(self) -> tuple[Any, ...]:
        make, num_envs, run_seed = self._parts
        return make, self.slots, num_envs, run_seed, self.next_episode


class AsyncRollouts:
    """Workers that play ``num_envs`` environments in rounds of ``round_steps`` steps, each for itself.

    The driver calls :meth:`publish` and :meth:`take` in turn. A lost worker is started again and begins new episodes;
    what it had sent is kept, the round that it was at is lost.

    Args:
        make: builds one environment.
        num_envs: environments, spread over the workers.
        run_seed: where reset seeds come from (as those of a run without workers do) and the noise of actions.
        workers: how many actors; no more than environments.
        round_steps: steps of each of its environments that a worker takes with one policy.
        max_staleness: how many policies may have been published since the one that made a transition, when the
            transition is taken. With 0 nobody acts while the driver learns.
        num_cpus: that Ray sets aside for each worker.

    Raises:
        UserError: a count that is too small; the cluster has no room for the workers.
    """

    def __init__(
        self,
        make: Callable[[], BoundaryEnv],
        num_envs: int,
        run_seed: int,
        workers: int,
        round_steps: int = 25,
        max_staleness: int = 2,
        num_cpus: float = 0.5,
    ) -> None:
        for name, count, least in (("round_steps", round_steps, 1), ("max_staleness", max_staleness, 0)):
            if count < least:
                raise UserError(name, count, f"give a whole number of at least {least}")
        self.num_envs, self.run_seed, self.workers, self.num_cpus = num_envs, run_seed, min(workers, num_envs), num_cpus
        self.round_steps, self.max_staleness = round_steps, max_staleness
        check_resources(self.workers, num_cpus, 0.0, "environment workers")
        self._parts = make, num_envs, run_seed
        self.version, self.sent, self.first_episode = 0, 0, 0
        self.members: list[_Actor] = []
        """Started with the first policy"""
        self._policy: tuple[Any, int] = None, 0

    def publish(self, act: Act, stamp: int) -> None:
        """From now on rounds begin with this policy; its transitions have ``stamp`` as their ``policy_version``."""
        self.version += 1
        self._policy = ray.put(Parcel.of(act)), stamp
        if not self.members:
            self._start()
        for member in self.members:
            if member.call is None:
                self._send(member)

    def take(self) -> list[Rollout]:
        """What has come in since; waits for one worker at least, and for all that would be too old a policy later."""
        calls = {member.call: member for member in self.members}
        ray.wait(list(calls), num_returns=1)
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0)
        oldest = self.version - self.max_staleness
        taken = [member for member in self.members if member.call in done or member.version <= oldest]
        return [self._receive(member) for member in taken]

    def _start(self) -> None:
        hire = hiring(RolloutWorker, self.num_cpus)
        self.members = [
            _Actor(hire, slots, self.num_cpus, self._parts, self.first_episode)
            for slots in shares(self.num_envs, self.workers)
        ]
        for member in self.members:
            persist(member, member.await_launch, member.relaunch)

    def _send(self, member: _Actor) -> None:
        seed = seeding.derive_seed(self.run_seed, "act", member.slots.start, self.sent)
        self.sent += 1
        parcel, stamp = self._policy
        member.version = self.version
        member.call = member.ask("play", parcel, stamp, self.round_steps, seed)

    def _receive(self, member: _Actor) -> Rollout:
        rows: Transitions = persist(member, lambda: ray.get(member.call), lambda: self._play_again(member))
        member.next_episode = int(rows.episode.max()) // self.num_envs + 1
        found = Rollout(rows.clone(), len(member.slots), self.version - member.version)  # what Ray gives is read-only
        member.call = None
        if self.max_staleness:
            self._send(member)  # and so act while the driver learns
        return found

    def _play_again(self, member: _Actor) -> Transitions:
        member.relaunch()
        self._send(member)
        rows: Transitions = ray.get(member.call)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Where a run goes on, with new episodes."""
        seen = [member.next_episode for member in self.members]
        return {"version": self.version, "sent": self.sent, "first_episode": max(seen, default=self.first_episode)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, before the first policy."""
        self.version, self.sent, self.first_episode = state["version"], state["sent"], state["first_episode"]

    def close(self) -> None:
        """End the workers."""
        members, self.members = self.members, []
        if ray.is_initialized():
            for member in members:
                member.dismiss()
