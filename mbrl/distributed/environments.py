"""Environments of a pool on Ray workers: the same stream of transitions, bit for bit, for any number of workers.

The pool decides everything (seeds, actions, who is reset), and all its slots take each step together. A worker only
holds some of the slots. Whatever is lost with one is made again from what the pool has told it so far.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import ray
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, LocalRayletDiedError, RayTaskError

from envs.errors import UserError
from envs.pool import Bools, Vectorize
from mbrl.distributed.cluster import check_resources
from mbrl.distributed.crew import LOST, own_error
from mbrl.distributed.worker import Arithmetic

Maker = Callable[[], gym.Env[Any, Any]]
T = TypeVar("T")

CRASHES = (*LOST, LocalRayletDiedError)
"""What a call ends with whose worker has gone, with or without its machine"""
MOST_CRASHES = 3
"""A round that takes its worker with it so many times in a row would do so for ever"""
PLACEMENT_SECONDS = 60.0
"""How long a worker may wait for its place, and its process for its start"""
RELAUNCH_SECONDS = 0.5
SNAPSHOT_EVERY = 100
"""Rounds between two states that are kept of environments which offer ``get_state``; no more are played again"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What came of one round in a worker's slots: one row each."""

    obs: NDArray[Any]
    sim_states: tuple[Any, ...]
    """Full physics states after it, None where there are none"""
    states: tuple[Any, ...] | None = None
    """What ``set_state`` takes; None where it was not asked for"""
    reward: NDArray[Any] | None = None
    terminated: Bools | None = None
    truncated: Bools | None = None


class EnvironmentWorker:
    """One actor: some slots of a pool. Its arguments are read-only, as all that Ray hands out: environments get copies.

    What an environment raises is raised here too, and Ray brings it to the driver.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def ready(self) -> int:
        """Answers once the actor has its place; the process id."""
        return os.getpid()

    def build(self, makers: Sequence[Maker]) -> bool:
        """Make the environments; whether they offer ``get_state``."""
        self.arithmetic.apply()
        self.envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        self.exact = bool(self.envs.call("restorable")[0])
        return self.exact

    def reset(self, seeds: Sequence[int], mask: Bools | None) -> Seen:
        options = None if mask is None else {"reset_mask": np.array(mask)}
        obs: NDArray[Any] = self.envs.reset(seed=list(seeds), options=options)[0]
        return Seen(obs, self.envs.call("sim_state"), self.envs.call("get_state") if self.exact else None)

    def step(self, actions: NDArray[Any], snapshot: bool) -> Seen:
        step: Any = self.envs.step(np.array(actions))
        obs, reward, terminated, truncated, _ = step
        states = self.envs.call("get_state") if snapshot else None
        return Seen(obs, self.envs.call("sim_state"), states, reward, terminated, truncated)

    def call(self, name: str, args: Sequence[Any]) -> tuple[Any, ...]:
        """A method or attribute of every environment."""
        return self.envs.call(name, *copy.deepcopy(args))

    def restore(self, plans: Mapping[int, Mapping[str, Any]]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Go on from a reset to where ``plans`` lead; observations as far as they are told, and physics states."""
        return self.envs.call("restore", copy.deepcopy(plans)), self.envs.call("sim_state")

    def close(self) -> None:
        self.envs.close()


@dataclass
class _Past:
    """What brings one slot back: reset with ``seed``, set ``state`` if there is one, then take ``actions``."""

    seed: int
    obs: NDArray[Any] | None
    """What it came to; None where that was not told"""
    state: Any = None
    actions: list[NDArray[Any]] = field(default_factory=list)

    @property
    def plan(self) -> dict[str, Any]:
        return {"state": self.state, "actions": np.stack(self.actions) if self.actions else None}


class Member(ABC):
    """One worker as the driver knows it: its slots of the pool, and the actor that holds them at present.

    Args:
        hire: starts an actor, which has the methods ``ready`` and ``build``.
        slots: those that it holds.
        num_cpus: that it asks for, as told in messages.
    """

    def __init__(self, hire: Callable[[], Any], slots: range, num_cpus: float) -> None:
        self.hire, self.slots, self.num_cpus = hire, slots, num_cpus
        self.launch()

    @property
    def name(self) -> str:
        first, last = self.slots[0], self.slots[-1]
        return f"environment {first}" if first == last else f"environments {first} to {last}"

    @abstractmethod
    def parts(self) -> tuple[Any, ...]:
        """What the actor builds its environments from."""

    def launch(self) -> None:
        """Start an actor, without waiting for it."""
        self.actor = self.hire()
        self._ready, self._built = self.actor.ready.remote(), self.actor.build.remote(*self.parts())

    def await_launch(self) -> Any:
        """What the actor's ``build`` answers.

        An actor that never ran, for its machine went meanwhile, is no crash of what it was to hold: it is launched
        again.

        Raises:
            UserError: the cluster has no place for it.
        """
        until, lost = time.monotonic() + PLACEMENT_SECONDS, ""
        while True:
            try:
                ray.get(self._ready, timeout=max(0.0, until - time.monotonic()))
                return ray.get(self._built)
            except GetTimeoutError as error:
                raise self._no_place(lost) from error
            except CRASHES as error:
                if _answered(self._ready):
                    raise
                lost = f" ({_reason(error)})"
                time.sleep(RELAUNCH_SECONDS)
                self.launch()

    def relaunch(self) -> Any:
        """Put a new actor, somewhere in the cluster, where a lost one was."""
        self.dismiss()  # it may be alive behind a broken link; nobody listens to it any more
        self.launch()
        return self.await_launch()

    def _no_place(self, lost: str) -> UserError:
        free, there = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
        seen = f"{self.num_cpus:g} CPUs asked; the cluster has {there:g}, of which {free:g} are free"
        fix = f"it could not be started in {PLACEMENT_SECONDS:.0f} s{lost}: ask for fewer workers, or add machines"
        return UserError(f"worker of {self.name}", seen, fix)

    def ask(self, method: str, *args: Any) -> Any:
        """Begin a call; the reference to its result."""
        return getattr(self.actor, method).remote(*args)

    def dismiss(self) -> None:
        """End the actor at once."""
        ray.kill(self.actor)


class _Member(Member):
    """A worker, and the past of its slots."""

    def __init__(self, hire: Callable[[], Any], slots: range, num_cpus: float, makers: Sequence[Maker]) -> None:
        self.makers = [makers[slot] for slot in slots]
        self.past: list[_Past] = []
        """Empty until the first reset"""
        self.sim_states: tuple[Any, ...] = ()
        self.exact = False
        self.since_snapshot = 0
        super().__init__(hire, slots, num_cpus)

    def parts(self) -> tuple[Any, ...]:
        return (self.makers,)

    def await_launch(self) -> None:
        self.exact = super().await_launch()

    # -- the past ----------------------------------------------------------------------------------------------------

    def began(self, seeds: Sequence[int], mask: Bools, seen: Seen) -> None:
        """Episodes in the slots of ``mask`` were begun."""
        fresh = [
            _Past(seed, obs, state)
            for seed, obs, state in zip(seeds, seen.obs, _or_nones(seen.states, seeds), strict=True)
        ]
        old = self.past or fresh
        self.past = [new if begun else kept for new, kept, begun in zip(fresh, old, mask, strict=True)]
        self.sim_states = seen.sim_states

    def stepped(self, actions: NDArray[Any], seen: Seen) -> None:
        """All slots took a step."""
        for past, action, obs in zip(self.past, actions, seen.obs, strict=True):
            past.actions.append(action)
            past.obs = obs
        self.sim_states = seen.sim_states
        self.since_snapshot += 1
        if seen.states is not None:
            self.since_snapshot = 0
            for past, state in zip(self.past, seen.states, strict=True):
                past.state, past.actions = state, []

    def restored(self, plans: Sequence[Mapping[str, Any]], obs: Sequence[Any], sim_states: tuple[Any, ...]) -> None:
        """The slots were brought to where ``plans`` (one for each slot of the pool) lead."""
        for past, slot, reached in zip(self.past, self.slots, obs, strict=True):
            plan = plans[slot]
            past.state, past.actions = plan["state"], list(() if plan["actions"] is None else plan["actions"])
            if reached is not None or past.state is not None:
                past.obs = reached
        self.sim_states = sim_states

    def revive(self) -> None:
        """Put a new actor where the lost one was, and its slots to where they were.

        Raises:
            UserError: they do not come back to the same observation, to the bit.
        """
        self.relaunch()
        if not self.past:
            return
        start: Seen = ray.get(self.ask("reset", [past.seed for past in self.past], None))
        plans = {slot: past.plan for slot, past in zip(self.slots, self.past, strict=True)}
        reached, _ = ray.get(self.ask("restore", plans))
        for slot, past, first, last in zip(self.slots, self.past, start.obs, reached, strict=True):
            told = last if last is not None or past.state is not None else first
            if past.obs is not None and told is not None and not np.array_equal(past.obs, told):
                seen = f"differs by {np.abs(past.obs - told).max():.3g} after its worker was lost"
                fix = "its episode does not replay to the same one; offer get_state/set_state, or seed all of it"
                raise UserError(f"environment {slot}: restored observation", seen, fix)


class RayVectorEnv:
    """The environments of an :class:`envs.EnvPool` on Ray actors, for its argument ``vectorize``.

    Each worker holds a run of neighbouring slots, and every round is one call to each. Crashes (of a worker, its
    machine, or an environment that takes its process with it) cost time only: the worker is started again, elsewhere if
    need be; its episodes are begun with their seeds and their actions taken again, or continued from a state where
    environments offer ``get_state``; and the round is done again. Environments have to draw all their random numbers
    from the seed of ``reset``.

    Calls other than ``restore`` have to leave environments as they are.

    Args:
        makers: one for each slot.
        workers: how many actors; of more than there are slots, some would have nothing to hold and are left out.
        num_cpus: that Ray sets aside for each; fractions are allowed.

    Raises:
        UserError: the cluster has no room for the workers; or a round lost its worker three times in a row. What an
            environment raises comes out as it would without workers, with the worker's traceback, and is not retried.
    """

    def __init__(self, makers: Sequence[Maker], workers: int, num_cpus: float = 0.5) -> None:
        workers = min(workers, len(makers))
        check_resources(workers, num_cpus, 0.0, "environment workers")
        hire = hiring(EnvironmentWorker, num_cpus)
        self.members = [_Member(hire, slots, num_cpus, makers) for slots in shares(len(makers), workers)]
        for member in self.members:
            persist(member, member.await_launch, member.revive)

    @classmethod
    def vectorizer(cls, workers: int, num_cpus: float = 0.5) -> Vectorize:
        """What an :class:`envs.EnvPool` takes, so that its environments lie on ``workers`` actors."""
        return functools.partial(cls, workers=workers, num_cpus=num_cpus)

    def reset(self, *, seed: Sequence[int], options: Mapping[str, Any] | None) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset the slots in ``options["reset_mask"]``, without options all; rows of other slots are anything."""
        mask = np.ones(len(seed), dtype=np.bool_) if options is None else options["reset_mask"]
        asked = {}
        for member in self.members:
            slots = slice(member.slots.start, member.slots.stop)
            if mask[slots].any():
                asked[member] = list(seed[slots]), None if options is None else mask[slots]
        answers = self._round("reset", asked)
        rows: list[NDArray[Any] | None] = []
        for member in self.members:
            if (seen := answers.get(member)) is not None:
                member.began(asked[member][0], mask[member.slots.start : member.slots.stop], seen)
            rows += [None] * len(member.slots) if seen is None else list(seen.obs)
        blank = np.zeros_like(next(row for row in rows if row is not None))
        return np.stack([blank if row is None else row for row in rows]), {}

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], Bools, Bools, dict[str, Any]]:
        """One step in every slot; observations ``[N, D]``, rewards, terminated and truncated ``[N]``."""
        asked = {}
        for member in self.members:
            snapshot = member.exact and member.since_snapshot + 1 >= SNAPSHOT_EVERY
            asked[member] = actions[member.slots.start : member.slots.stop], snapshot
        answers = self._round("step", asked)
        for member, seen in answers.items():
            member.stepped(asked[member][0], seen)
        columns = [
            np.concatenate([getattr(seen, name) for seen in answers.values()])
            for name in ("obs", "reward", "terminated", "truncated")
        ]
        return *columns, {}  # type: ignore[return-value]

    def call(self, name: str, *args: Any) -> tuple[Any, ...]:
        """A method or attribute of every environment, in slot order. Physics states come with every round already."""
        if name == "restore":
            return self._restore(args[0])
        if name == "sim_state" and all(member.past for member in self.members):
            return tuple(state for member in self.members for state in member.sim_states)
        answers = self._round("call", dict.fromkeys(self.members, (name, args)))
        return tuple(value for values in answers.values() for value in values)

    def _restore(self, plans: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        answers = self._round("restore", {one: ({slot: plans[slot] for slot in one.slots},) for one in self.members})
        for member, (obs, sim_states) in answers.items():
            member.restored(plans, obs, sim_states)
        return tuple(obs for reached, _ in answers.values() for obs in reached)

    def _round(self, method: str, asked: Mapping[_Member, tuple[Any, ...]]) -> dict[_Member, Any]:
        """One call to each worker that is asked, with its arguments; the answers, in slot order."""
        calls = {member: member.ask(method, *args) for member, args in asked.items()}
        return {member: _answer(member, calls[member], method, args) for member, args in asked.items()}

    def close(self) -> None:
        """Close the environments and end the workers; what is lost already is let go."""
        members, self.members = self.members, []
        if not ray.is_initialized():
            return
        closing = [member.ask("close") for member in members]
        ray.wait(closing, num_returns=max(1, len(closing)), timeout=5.0)
        for member in members:
            member.dismiss()


def _answer(member: _Member, call: Any, method: str, args: tuple[Any, ...]) -> Any:
    def again() -> Any:
        member.revive()
        return ray.get(member.ask(method, *args))

    return persist(member, lambda: ray.get(call), again)


def hiring(kind: type, num_cpus: float) -> Callable[[], Any]:
    """What starts an actor of a class whose constructor takes :class:`Arithmetic`; the driver replaces lost ones."""
    options = {"num_cpus": num_cpus, "scheduling_strategy": "SPREAD", "max_restarts": 0, "max_task_retries": 0}
    return functools.partial(ray.remote(kind).options(**options).remote, Arithmetic.here())


def shares(slots: int, workers: int) -> list[range]:
    """Neighbouring slots for each of the workers."""
    bounds = [slots * place // workers for place in range(workers + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def persist(member: Member, attempt: Callable[[], T], again: Callable[[], T]) -> T:
    """The result of ``attempt``; where the worker is lost meanwhile, that of ``again``, up to three losses in a row.

    Raises:
        UserError: three losses.
        Exception: what an environment raised, with the worker's traceback; it would do so again.
    """
    for crash in range(1, MOST_CRASHES + 1):
        try:
            return attempt() if crash == 1 else again()
        except RayTaskError as error:
            raise own_error(error) from error
        except CRASHES as error:
            why, cause = _reason(error), error
            _log.warning("the worker of %s was lost and is replaced: %s", member.name, why)
    seen = f"lost {MOST_CRASHES} workers in a row in the same round: {why}"
    fix = "the environment seems to take its process with it (memory? native code?): mend it, or run without Ray to see"
    raise UserError(f"worker of {member.name}", seen, fix) from cause


def _answered(call: Any) -> bool:
    try:
        ray.get(call, timeout=0.0)
    except (*CRASHES, GetTimeoutError):
        return False
    return True


def _reason(error: Exception) -> str:
    """What Ray says of a loss, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes")[0] if lines else type(error).__name__


def _or_nones(values: Sequence[Any] | None, like: Sequence[Any]) -> Sequence[Any]:
    return [None] * len(like) if values is None else values
