"""Workers that do numbered pieces of work. A lost or slow one changes when a piece is done, never what comes of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from envs.errors import UserError

LOST = (RayActorError, WorkerCrashedError, ObjectLostError, NodeDiedError, OutOfMemoryError)
"""What a call ends with whose worker, or whose result, has gone with its process or its machine"""
MOST_LOSSES = 3
"""A piece that takes so many workers with it is at fault itself"""
START_SECONDS = 60.0
"""How long a cluster without any worker may take to start one"""
SLOW, SLOW_SECONDS = 3.0, 2.0
"""A piece is given to a second worker after so many times the usual, and at least so many seconds"""
TICK_SECONDS = 1.0


@dataclass
class _Worker:
    """One actor, and the calls that it has not answered: which piece of which round, and since when."""

    actor: Any
    ready: Any
    started: bool = False
    calls: dict[Any, tuple[int, int, float]] = field(default_factory=dict)


@dataclass
class _Round:
    """Pieces on their way."""

    number: int
    pieces: int
    submit: Callable[[Any, int], Any]
    waiting: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    losses: Counter[int] = field(default_factory=Counter)
    stillborn: int = 0
    """Workers that were lost before they could work"""
    given: int = 0
    """Pieces whose result has been given on"""

    def open(self, piece: int) -> bool:
        return piece >= self.given and piece not in self.results


class Crew:
    """``size`` actors of one kind. Those that die are replaced.

    Args:
        hire: starts one actor; it has a method ``ready()`` that answers when the actor can work.
        size: how many.
        name: what they are called in messages.
        ahead: pieces a worker has at hand (being done or queued) at most; results that wait for an earlier one count.
    """

    def __init__(self, hire: Callable[[], Any], size: int, name: str, ahead: int = 2) -> None:
        self.hire, self.size, self.name, self.ahead = hire, size, name, ahead
        self.rounds = 0
        self.workers = [self._new() for _ in range(size)]

    def _new(self) -> _Worker:
        actor = self.hire()
        return _Worker(actor, actor.ready.remote())

    def map(self, pieces: int, submit: Callable[[Any, int], Any]) -> Iterator[Any]:
        """The results of pieces 0, 1, ... in this order, each as soon as it and all before it are there.

        At most ``ahead`` pieces a worker are under way, so what waits to be taken stays bounded. A piece whose worker
        is lost, or takes far longer than the others, is done by another; the first result counts.

        Args:
            pieces: how many.
            submit: starts one piece on one actor; the reference to its result. The result is to be a function of the
                piece alone.

        Raises:
            UserError: no worker could be started, or one piece lost three workers.
            Exception: what a piece itself raised, with the traceback of its worker.
        """
        self.rounds += 1
        work = _Round(self.rounds, pieces, submit, deque(range(pieces)))
        since = time.monotonic()
        while work.given < pieces:
            self._hand_out(work)
            since = time.monotonic() if self._collect(work) else since
            self._check_started(time.monotonic() - since)
            while work.given in work.results:
                work.given += 1
                yield work.results.pop(work.given - 1)

    # -- giving ------------------------------------------------------------------------------------------------------

    def _hand_out(self, work: _Round) -> None:
        """Give pieces to those who have the fewest; those who get none take a slow one over."""
        for held in range(self.ahead):
            for worker in self.workers:
                room = sum(map(work.open, self._under_way(work))) + len(work.results) < self.ahead * self.size
                if work.waiting and len(worker.calls) == held and room and (worker.started or held == 0):
                    self._give(worker, work.waiting.popleft(), work)
        for worker in self.workers:
            if worker.started and not worker.calls and (late := self._late(work)) is not None:
                self._give(worker, late, work)

    def _give(self, worker: _Worker, piece: int, work: _Round) -> None:
        worker.calls[work.submit(worker.actor, piece)] = (work.number, piece, time.monotonic())

    def _under_way(self, work: _Round) -> list[int]:
        calls = [call for worker in self.workers for call in worker.calls.values()]
        return [piece for number, piece, _ in calls if number == work.number]

    def _late(self, work: _Round) -> int | None:
        """A piece that only one worker has had, for longer than is usual; None where there is none."""
        counts, now = Counter(self._under_way(work)), time.monotonic()
        usual = statistics.median(work.seconds) if work.seconds else START_SECONDS / SLOW
        for worker in self.workers:
            for number, piece, since in worker.calls.values():
                slow = now - since > max(SLOW * usual, SLOW_SECONDS) or not worker.started
                if number == work.number and work.open(piece) and counts[piece] == 1 and slow:
                    return piece
        return None

    # -- taking ------------------------------------------------------------------------------------------------------

    def _collect(self, work: _Round) -> bool:
        """Take what is finished, waiting for at least one a moment long; whether anything was."""
        starting = [worker.ready for worker in self.workers if not worker.started]
        calls = [call for worker in self.workers for call in worker.calls]
        done, _ = ray.wait([*calls, *starting], num_returns=1, timeout=TICK_SECONDS)
        for reference in done:
            self._take(reference, work)
        return bool(done)

    def _take(self, reference: Any, work: _Round) -> None:
        worker = next((one for one in self.workers if reference == one.ready or reference in one.calls), None)
        if worker is None:  # of one that was replaced a moment ago
            return
        number, piece, since = worker.calls.pop(reference, (work.number, -1, 0.0))
        try:
            result = ray.get(reference)
        except LOST as error:
            self._replace(worker, number, piece, work, error)
            return
        except RayTaskError as error:
            if number == work.number:
                raise own_error(error) from error
            return
        if piece < 0:
            worker.started = True
        elif number == work.number and work.open(piece):
            work.results[piece] = result
            work.seconds.append(time.monotonic() - since)

    def _replace(self, worker: _Worker, number: int, piece: int, work: _Round, error: Exception) -> None:
        """Put a new worker in the place of a lost one, and its pieces back in front."""
        taken = [(number, piece, 0.0), *worker.calls.values()]
        lost = sorted({each for of, each, _ in taken if of == work.number and each >= 0 and work.open(each)})
        self.workers[self.workers.index(worker)] = self._new()
        again = [each for each in lost if each not in self._under_way(work)]
        work.waiting.extendleft(reversed(again))
        if not worker.started:
            work.stillborn += 1
        elif number == work.number:
            work.losses[min(lost, default=piece)] += 1  # only the first of those it had can have been under way
        if work.stillborn >= MOST_LOSSES * self.size:
            fix = "workers die as they start (memory? another version of the platform on a machine?): see Ray's logs"
            raise UserError(self.name, f"{work.stillborn} were lost: {error}", fix) from error
        if work.losses and (most := work.losses.most_common(1)[0])[1] >= MOST_LOSSES:
            fix = "it takes every worker with it (memory? a crash in native code?): make it smaller, or run without Ray"
            raise UserError(f"{self.name}: piece {most[0]}", f"lost {most[1]} workers: {error}", fix) from error

    def _check_started(self, quiet_seconds: float) -> None:
        if quiet_seconds > START_SECONDS and not any(worker.started for worker in self.workers):
            free = {name: round(have, 2) for name, have in ray.available_resources().items() if name in ("CPU", "GPU")}
            fix = "none of them could be started: something else may hold the cluster's CPUs or GPUs; ask for fewer"
            raise UserError(self.name, f"{self.size} workers, free now: {free}", fix)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers = []


def own_error(error: RayTaskError) -> BaseException:
    """What a user's function raised in a worker: his own message, or the exception with the worker's traceback."""
    cause = error.cause
    return cause if isinstance(cause, UserError) else error.as_instanceof_cause()
