"""``mbrl bench scaling``: what imagination gains by Ray workers, what they cost, and what that says of larger clusters.

Everything is measured in turns on one machine, by wall clock. The machine's own limit is as many processes without Ray,
each with a model of its own, that make the same chunks and keep what they made.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import torch
from scipy.optimize import nnls
from torch import Generator, Tensor

from envs.registry import env_spec
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl.distributed.cluster import connect
from mbrl.distributed.imagination import ImaginationWorkers
from mbrl.distributed.parcel import Parcel
from mbrl.imagination.rollout import ChunkMaker, PolicyChooser, imagine, make_chunks
from mbrl.models.base import State
from mbrl.models.ensemble import ProbabilisticEnsemble

GOAL = 0.85
TINY_ROWS = 16
NETWORK_BYTES_PER_SECOND = 1.25e9
"""An assumption of the plan: 10 Gbit/s between machines"""
GPU_SPEEDS = (1, 20, 200)
"""An assumption of the plan: how many times faster than one core of this machine a worker makes a chunk"""
PLANNED = (1, 2, 4, 8, 16, 32, 64)
CHUNKS_A_WORKER = 2
"""Of the largest cluster in the plan"""


@dataclass(frozen=True)
class Sizes:
    """What is imagined."""

    env: str = "HalfCheetah-v5"
    members: int = 7
    layers: int = 4
    hidden: int = 200
    rows: int = 10_000
    """Of a chunk: what the library makes in one piece"""
    horizon: int = 3
    chunks: tuple[int, ...] = (2, 4, 8)
    workers: tuple[int, ...] = (1, 2)
    widths: tuple[int, ...] = (64, 200, 640, 2000)
    """Hidden widths whose weights are sent"""


QUICK = Sizes("Pendulum-v1", 2, 2, 16, 32, 2, (2, 4), (1, 2), (8, 16))


class Policy:
    """A linear policy with noise: next to nothing beside the model."""

    def __init__(self, obs_size: int, action_size: int) -> None:
        self.weight = torch.linspace(-0.1, 0.1, obs_size * action_size).view(obs_size, action_size)

    def __call__(self, obs: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(len(obs), self.weight.shape[1], generator=generator)
        return torch.tanh(obs @ self.weight + 0.3 * noise)


class Work:
    """The same imagination, by whoever makes the chunks."""

    def __init__(self, sizes: Sizes, hidden: int | None = None) -> None:
        torch.manual_seed(0)
        self.sizes, spec = sizes, env_spec(sizes.env)
        self.model = ProbabilisticEnsemble(spec, sizes.members, hidden or sizes.hidden, sizes.layers)
        self.act = PolicyChooser(Policy(spec.obs_size, spec.action.size))

    def __call__(self, maker: ChunkMaker, chunks: int, rows: int | None = None, horizon: int | None = None) -> int:
        """Imagine so many chunks; rows made."""
        width = rows or self.sizes.rows
        start = State(torch.zeros(chunks * width, self.model.spec.obs_size))
        steps = horizon or self.sizes.horizon
        return len(imagine(self.model, self.act, start, steps, seed=0, chunk_rows=width, maker=maker))

    def change(self) -> None:
        """Another version of the weights."""
        with torch.no_grad():
            self.model.biases[0].add_(1e-6)


# -- without Ray -----------------------------------------------------------------------------------------------------

_alone: dict[str, Work] = {}


def _begin(sizes: Sizes) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _alone["work"] = Work(sizes)
    _alone["work"](make_chunks, 1)


def _some(chunks: int) -> int:
    return _alone["work"](make_chunks, chunks)


@contextmanager
def plain_processes(sizes: Sizes, count: int) -> Iterator[Callable[[int], int]]:
    """``chunks -> rows``, made by so many processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (sizes,)) as pool:
        list(pool.map(_some, [1] * count))

        def run(chunks: int) -> int:
            shares = [len(range(first, chunks, count)) for first in range(count)]
            return sum(pool.map(_some, [share for share in shares if share]))

        yield run


# -- measuring -------------------------------------------------------------------------------------------------------


def wall(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall-clock seconds of each case, in turns, after one turn that warms up."""
    for work in cases.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def throughput(sizes: Sizes, crews: Mapping[int, ImaginationWorkers], repeats: int) -> dict[str, list[float]]:
    """Seconds of every number of chunks and of workers: here, by plain processes, by Ray's."""
    work, cases = Work(sizes), dict[str, Callable[[], object]]()
    with plain_processes(sizes, 1) as one, plain_processes(sizes, max(sizes.workers)) as many:
        for chunks in sizes.chunks:
            cases[f"in process, {chunks} chunks"] = functools.partial(work, make_chunks, chunks)
            cases[f"1 plain process, {chunks} chunks"] = functools.partial(one, chunks)
            cases[f"{max(sizes.workers)} plain processes, {chunks} chunks"] = functools.partial(many, chunks)
            for count, crew in crews.items():
                cases[f"{count} workers, {chunks} chunks"] = functools.partial(work, crew, chunks)
        return wall(cases, repeats)


def overhead(sizes: Sizes, crew: ImaginationWorkers, repeats: int) -> dict[str, list[float]]:
    """Seconds of a call that has next to nothing to do: here, by a worker, and by a worker with new weights."""
    work = Work(sizes)

    def changed() -> None:
        work.change()
        work(crew, 1, TINY_ROWS, 1)

    cases = {"here": functools.partial(work, make_chunks, 1, TINY_ROWS, 1)}
    cases["ray"] = functools.partial(work, crew, 1, TINY_ROWS, 1)
    return wall({**cases, "ray, new weights": changed}, repeats)


def broadcast(sizes: Sizes, crew: ImaginationWorkers, repeats: int) -> list[dict[str, float]]:
    """For every width of the networks: bytes, seconds to pack them, and until all workers hold new weights."""
    found = []
    for hidden in sizes.widths:
        work, seconds = Work(sizes, hidden), list[tuple[float, float]]()
        for _ in range(repeats + 1):
            work.change()
            bound = work.model.bind()
            began = time.perf_counter()
            parcel = Parcel.of((bound, work.act, []))
            packed = time.perf_counter()
            version = crew.publish(parcel)
            ray.get([worker.actor.ready_with.remote(version) for worker in crew.crew.workers])
            seconds.append((packed - began, time.perf_counter() - packed))
        pack, send = (statistics.median(values) for values in zip(*seconds[1:], strict=True))
        megabytes = sum(array.nbytes for array in parcel.tensors) / 1e6
        found.append({"hidden": hidden, "megabytes": megabytes, "pack_seconds": pack, "send_seconds": send})
    return found


# -- judging ---------------------------------------------------------------------------------------------------------


def efficiency(sizes: Sizes, seconds: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Transitions a second, and share of what the same number of plain processes reach in the same turn."""
    most, found = max(sizes.workers), []
    for chunks in sizes.chunks:
        rows = chunks * sizes.rows * sizes.horizon
        for count in sizes.workers:
            name = "1 plain process" if count == 1 else f"{most} plain processes"
            ours, plain, here = (seconds[f"{who}, {chunks} chunks"] for who in (f"{count} workers", name, "in process"))
            found.append(
                {
                    "chunks": chunks,
                    "workers": count,
                    "thousand_per_second": rows / statistics.median(ours) / 1e3,
                    "of_in_process": statistics.median(a / b for a, b in zip(here, ours, strict=True)),
                    "efficiency": statistics.median(a / b for a, b in zip(plain, ours, strict=True)),
                }
            )
    return found


def fit_plan(sizes: Sizes, seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """``seconds = call + rounds * chunk + chunks * gather`` with ``rounds = ceil(chunks / workers)``, by least squares.

    ``chunk`` is what workers do side by side, ``gather`` what the driver does for every chunk, one after the other.
    """
    cases = [(chunks, count) for chunks in sizes.chunks for count in sizes.workers]
    design = np.array([[1.0, math.ceil(chunks / count), chunks] for chunks, count in cases])
    seen = np.array([statistics.median(seconds[f"{count} workers, {chunks} chunks"]) for chunks, count in cases])
    (call, chunk, gather), _ = nnls(design, seen)
    error = np.abs(design @ [call, chunk, gather] / seen - 1.0).max()
    return {"call": float(call), "chunk": float(chunk), "gather": float(gather), "largest_relative_error": float(error)}


def plan(sizes: Sizes, parts: Mapping[str, float], megabytes: float) -> list[dict[str, float]]:
    """Thousand transitions a second for more and faster workers, under the assumptions named in the table's text."""
    found = []
    columns = 2 * env_spec(sizes.env).obs_size + env_spec(sizes.env).action.size + 8
    wire = 4.0 * columns * sizes.rows * sizes.horizon / NETWORK_BYTES_PER_SECOND
    for speed in GPU_SPEEDS:
        for count in PLANNED:
            chunks = max(PLANNED) * CHUNKS_A_WORKER
            send = count * megabytes * 1e6 / NETWORK_BYTES_PER_SECOND
            rounds = math.ceil(chunks / count) * parts["chunk"] / speed
            taken = parts["call"] + send + rounds + chunks * (parts["gather"] + wire)
            rows = chunks * sizes.rows * sizes.horizon
            found.append({"times_a_core": speed, "workers": count, "thousand_per_second": rows / taken / 1e3})
    return found


def lines_of(sizes: Sizes, found: Mapping[str, Any]) -> list[str]:
    """The tables."""
    tiny, parts = found["overhead_ms"], found["parts"]
    lines = [f"a call with nothing to do: {tiny['ray']:.2f} ms more than here, {tiny['new']:.2f} with new weights", ""]
    rows: list[list[object]] = [["weights", "MB", "pack ms", "all workers have them, ms"]]
    for one in found["broadcast"]:
        milliseconds = [1e3 * one[f"{name}_seconds"] for name in ("pack", "send")]
        rows.append([f"width {one['hidden']}", one["megabytes"], *milliseconds])
    lines += [*table(rows), ""]
    rows = [["workers, chunks", "thousand/s", "of in process", "of plain processes"]]
    for one in found["efficiency"]:
        name = f"{one['workers']}, {one['chunks']}"
        rows.append([name, one["thousand_per_second"], one["of_in_process"], one["efficiency"]])
    lines += [*table(rows), f"goal: {GOAL} of plain processes with {max(sizes.chunks)} chunks", ""]
    lines += [
        f"seconds = {parts['call']:.4f} + ceil(chunks / workers) * {parts['chunk']:.4f}"
        f" + chunks * {parts['gather']:.4f}, wrong by at most {parts['largest_relative_error']:.0%}",
        f"on paper, thousand/s: {CHUNKS_A_WORKER * max(PLANNED)} chunks; weights and rows over"
        f" {NETWORK_BYTES_PER_SECOND / 1e9:g} GB/s; the driver gathers as here, and workers wait meanwhile",
    ]
    rows = [["workers", *(f"{speed} x a core" for speed in GPU_SPEEDS)]]
    for count in PLANNED:
        rows.append([str(count), *(one["thousand_per_second"] for one in found["plan"] if one["workers"] == count)])
    return [*lines, *table(rows)]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench scaling --help``."""
    options = parse(make_parser("scaling", __doc__ or "", repeats=7), argv)
    sizes = QUICK if options.quick else Sizes()
    torch.set_flush_denormal(True)
    with one_thread(), connect("local"):
        crews = {count: ImaginationWorkers(count, num_cpus=0.25) for count in sizes.workers}
        try:
            seconds = throughput(sizes, crews, options.repeats)
            calls = overhead(sizes, crews[1], 10 * options.repeats)
            sent = broadcast(sizes, crews[max(sizes.workers)], options.repeats)
        finally:
            for crew in crews.values():
                crew.close()
    here = statistics.median(calls["here"])
    parts = fit_plan(sizes, seconds)
    found: dict[str, Any] = {
        "overhead_ms": {
            "ray": (statistics.median(calls["ray"]) - here) * 1e3,
            "new": (statistics.median(calls["ray, new weights"]) - here) * 1e3,
        },
        "broadcast": sent,
        "efficiency": efficiency(sizes, seconds),
        "parts": parts,
        "plan": plan(sizes, parts, sent[0]["megabytes"] if options.quick else sent[1]["megabytes"]),
    }
    publish("scaling", argv, options, asdict(sizes), lines_of(sizes, found), {**found, "seconds": seconds})
    return 0
