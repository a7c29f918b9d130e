"""Chunks of imagination made by Ray workers: the same rows, bit for bit, as one process makes.

Every chunk is a function of its arguments alone (:func:`mbrl.imagination.rollout.imagine_chunk`), so it does not matter
who makes it, when, or how often.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mbrl.data.transitions import Transitions
from mbrl.distributed.cluster import assigned_device, check_resources
from mbrl.distributed.crew import Crew
from mbrl.distributed.parcel import Parcel, Replica, to_arrays, to_tensors
from mbrl.distributed.worker import Arithmetic, Placement
from mbrl.imagination.filters import Filter
from mbrl.imagination.rollout import Chooser, imagine_chunk
from mbrl.models.base import DynamicsModel, State


@dataclass(frozen=True)
class Version:
    """Model, policy and filters as they are at one time."""

    number: int
    parcel: Sequence[Any]
    """One reference to their parcel; inside a list Ray leaves it alone, so that only who needs the parcel fetches it"""


class ImaginationWorker:
    """One actor: a replica of model, policy and filters, and the chunks that it is asked for."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        arithmetic.apply()
        self.replica: Replica | None = None
        self.version = -1

    def ready(self) -> Placement:
        """Answers once the actor can work. Raises ``UserError`` where the GPU that Ray gave it is not there."""
        self.replica = self.replica or Replica(assigned_device())
        return Placement.here()

    def hold(self, version: Version) -> Any:
        """Take a version over, if it is another one than before; what is in it."""
        assert self.replica is not None
        if version.number != self.version:
            self.replica.open(ray.get(version.parcel[0]))
            self.version = version.number
        return self.replica.content

    def ready_with(self, version: Version) -> int:
        """Hold a version before it is needed; its number."""
        self.hold(version)
        return self.version

    def make(self, version: Version, start: State, horizon: int, seed: int, index: int, chunk_rows: int) -> Transitions:
        """Chunk ``index``; rows go and come as arrays."""
        model, act, filters = self.hold(version)
        assert self.replica is not None
        here, how = to_tensors(start).to(self.replica.device), {"seed": seed, "index": index, "chunk_rows": chunk_rows}
        return to_arrays(imagine_chunk(model, act, here, horizon, filters, **how))


class ImaginationWorkers:
    """Workers on a Ray cluster that make the chunks of :func:`mbrl.imagination.rollout.imagine`: its ``maker``.

    Model, policy and filters are sent once a version: they go into Ray's object store, from where each machine fetches
    them once. Chunks come back in order while later ones are made. A lost worker is replaced and its chunks are made
    elsewhere; a slow one's too. Workers compute as the process does that makes this object, see :class:`Arithmetic`.

    Args:
        workers: how many.
        num_cpus: processors that Ray sets aside for each; fractions are allowed.
        num_gpus: GPUs for each; fractions share one.

    Raises:
        UserError: the cluster does not have that much.
    """

    def __init__(self, workers: int, num_cpus: float = 1.0, num_gpus: float = 0.0) -> None:
        check_resources(workers, num_cpus, num_gpus, "imagination workers")
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
        hire = functools.partial(ray.remote(ImaginationWorker).options(**options).remote, Arithmetic.here())
        self.crew = Crew(hire, workers, "imagination workers")
        self._sent: tuple[Version, Parcel] | None = None

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
        """As :func:`mbrl.imagination.rollout.make_chunks`."""
        version = self.publish(Parcel.of((model, act, list(filters))))

        def submit(worker: Any, index: int) -> Any:
            return worker.make.remote(version, to_arrays(chunks[index]), horizon, seed, index, chunk_rows)

        return map(to_tensors, self.crew.map(len(chunks), submit))

    def publish(self, parcel: Parcel) -> Version:
        """Put a parcel where workers fetch it; one of the same content as the last is there already."""
        if self._sent is None or not parcel.same(self._sent[1]):
            number = 0 if self._sent is None else self._sent[0].number + 1
            self._sent = Version(number, [ray.put(parcel)]), parcel
        return self._sent[0]

    def placements(self) -> list[Placement]:
        """Where the workers are; waits until all have started."""
        found: list[Placement] = ray.get([worker.actor.ready.remote() for worker in self.crew.workers])
        return found

    def close(self) -> None:
        """End the workers."""
        self.crew.close()
