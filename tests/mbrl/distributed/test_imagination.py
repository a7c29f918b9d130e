"""Imagination workers: the same rows bit for bit as in one process, whoever makes them and whatever is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from mbrl.data.transitions import Transitions
from mbrl.distributed import crew
from mbrl.distributed.cluster import connect
from mbrl.distributed.imagination import ImaginationWorkers
from mbrl.distributed.parcel import Parcel
from mbrl.imagination import ChunkMaker, PolicyChooser, UncertaintyPenalty, imagine
from mbrl.imagination.filters import Filter, Move
from mbrl.imagination.rollout import make_chunks
from mbrl.models.base import DynamicsModel, State
from mbrl.models.ensemble import ProbabilisticEnsemble

ROWS, CHUNK = 300, 32  # ten chunks, the last one short


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with connect("local", num_cpus=4, object_store_bytes=100_000_000):
        yield


@pytest.fixture(scope="module")
def two(local_ray: None) -> Iterator[ImaginationWorkers]:
    workers = ImaginationWorkers(2, num_cpus=0.5)
    yield workers
    workers.close()


def ensemble(seed: int = 0) -> ProbabilisticEnsemble:
    torch.manual_seed(seed)
    return ProbabilisticEnsemble(env_spec("Pendulum-v1"), 3, 16, 2)


class Push:
    """A policy with a weight and noise."""

    def __init__(self, weight: float = 0.3) -> None:
        self.weight = torch.tensor(weight)

    def __call__(self, obs: Tensor, generator: Generator) -> Tensor:
        return torch.tanh(self.weight * obs[:, :1] + torch.randn(len(obs), 1, generator=generator))


def rows(maker: ChunkMaker = make_chunks, policy: Push | None = None, **options: object) -> Transitions:
    model = options.pop("model", None) or ensemble()
    assert isinstance(model, DynamicsModel)
    start = State(torch.linspace(-1, 1, 3 * ROWS).view(ROWS, 3))
    filters: list[Filter] = [UncertaintyPenalty("largest_std", 0.5)]
    given = options.pop("filters", filters)
    act = PolicyChooser(policy or Push())
    return imagine(model, act, start, 4, given, seed=5, chunk_rows=CHUNK, maker=maker)  # type: ignore[arg-type]


def same(one: Transitions, other: Transitions) -> bool:
    names = [name for name in vars(one) if isinstance(getattr(one, name), Tensor)]
    columns = [torch.equal(getattr(one, name), getattr(other, name)) for name in names]
    return all(columns) and all(torch.equal(one.extra[name], other.extra[name]) for name in one.extra)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_rows(count: int) -> None:
    workers = ImaginationWorkers(count, num_cpus=0.5)
    try:
        assert same(rows(workers), rows())
        assert not same(rows(workers, Push(0.31)), rows())  # new numbers in the same shape reach the replicas
        assert same(rows(workers, Push(0.31)), rows(policy=Push(0.31)))
        assert same(rows(workers, model=ensemble(1)), rows(model=ensemble(1)))
    finally:
        workers.close()


def test_weights_are_sent_once_a_version(two: ImaginationWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    put, sent = ray.put, list[Parcel]()
    monkeypatch.setattr(ray, "put", lambda value: (sent.append(value), put(value))[1])
    rows(two)
    rows(two)
    assert len(sent) == 1
    rows(two, Push(0.5))
    assert len(sent) == 2
    assert sent[0].skeleton == sent[1].skeleton


class Slow(Filter):
    """Takes its time, so that a worker can be lost in the middle of a chunk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        time.sleep(self.seconds)
        return move


@pytest.mark.parametrize("moment", [0.05, 0.4])
def test_a_killed_worker_changes_nothing(two: ImaginationWorkers, moment: float) -> None:
    def made(maker: ChunkMaker) -> Iterator[Transitions]:
        slow: list[Filter] = [UncertaintyPenalty("largest_std", 0.5), Slow(0.03)]
        chunks = [State(torch.full((CHUNK, 3), value / 10)) for value in range(10)]
        return maker(ensemble().bind(), PolicyChooser(Push()), chunks, 4, slow, seed=5, chunk_rows=CHUNK)

    victim = two.placements()[0].pid
    steps = made(two)
    first = next(steps)
    time.sleep(moment)
    os.kill(victim, signal.SIGKILL)
    there = [first, *steps]
    assert victim not in [place.pid for place in two.placements()]
    assert all(same(one, other) for one, other in zip(there, made(make_chunks), strict=True))


class Deadly(Filter):
    """Takes its process with it."""

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        os.kill(os.getpid(), signal.SIGKILL)
        return move


class Broken(Filter):
    """Raises, as a user's mistake does."""

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        raise KeyError("my own mistake")


class Refusing(Filter):
    """Raises a message for the user."""

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        raise UserError("my.field", 3, "give 4")


def test_a_chunk_that_kills_every_worker_is_not_tried_for_ever(two: ImaginationWorkers) -> None:
    with pytest.raises(UserError, match=r"imagination workers: piece \d+.*lost 3 workers"):
        rows(two, filters=[Deadly()])
    assert same(rows(two), rows())  # the crew itself goes on


def test_the_users_own_error_is_shown_whole(two: ImaginationWorkers) -> None:
    with pytest.raises(KeyError, match="my own mistake") as caught:
        rows(two, filters=[Broken()])
    assert "in __call__" in str(caught.value)  # the worker's traceback
    with pytest.raises(UserError, match=r"my.field: 3: give 4"):
        rows(two, filters=[Refusing()])
    assert same(rows(two), rows())


def test_results_that_wait_are_bounded(two: ImaginationWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that takes its time holds the workers back."""
    started, give = [], two.crew._give
    monkeypatch.setattr(two.crew, "_give", lambda *call: (started.append(call), give(*call)))
    chunks = [State(torch.zeros(CHUNK, 3))] * 40
    steps = two(ensemble().bind(), PolicyChooser(Push()), chunks, 2, [], seed=5, chunk_rows=CHUNK)
    for taken in range(1, 10):
        next(steps)
        time.sleep(0.1)  # time enough to run ahead
        assert len(started) <= taken + 2 * two.crew.ahead
    assert len(list(steps)) == 31


def test_what_cannot_be_sent_is_refused_in_words(two: ImaginationWorkers) -> None:
    policy = Push()
    policy.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot be sent to other processes"):
        rows(two, policy)


def test_more_than_the_cluster_has_is_refused_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"5 workers with 1 CPUs each.*room for 4"):
        ImaginationWorkers(5)
    with pytest.raises(UserError, match=r"1 workers with 1 GPUs each.*0 GPUs"):
        ImaginationWorkers(1, num_gpus=1)
    assert time.monotonic() - began < 5.0


class SlowInOnePlace(Filter):
    """Slow in the first worker that begins, which it marks by a file."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __call__(self, model: DynamicsModel, move: Move, generator: Generator) -> Move:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return move
        time.sleep(40.0)
        return move


def test_a_slow_workers_chunk_is_made_elsewhere(
    two: ImaginationWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SLOW_SECONDS", 0.5)
    two.placements()
    began = time.monotonic()
    made = rows(two, filters=[UncertaintyPenalty("largest_std", 0.5), SlowInOnePlace(str(tmp_path / "mark"))])
    assert time.monotonic() - began < 30.0
    assert same(made, rows())
