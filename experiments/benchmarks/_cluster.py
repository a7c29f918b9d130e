"""Whole runs on a Ray cluster of this machine, what is taken from them as they go on, and what they came to."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoint import CheckpointStore
from experiments.compare.fleet import ONE_THREAD, ROOT
from experiments.metrics import comparable, read_records

IMAGINING, PLAYING = "ImaginationWorker", "EnvironmentWorker"
"""What Ray calls the processes of both kinds of workers"""
OF_THE_PROCESS = ("metrics_offset", "metrics_digest", "config_digest")
"""In a checkpoint, what depends on wall-clock by way of ``metrics.jsonl``, or on what is no data"""
FOLDER = "RAY_TMPDIR"
TAIL_BYTES = 65_536
FURTHER = 40
"""Env steps after which a run has gone on: more than can have been on their way when something was taken from it"""
WAIT_SECONDS = 300.0
"""What takes longer is counted as hanging"""


@dataclass(frozen=True)
class Worker:
    """A process that Ray started for an actor."""

    pid: int
    kind: str
    """The actor's class"""
    doing: str
    """The method that it is in; empty while it waits"""

    def __str__(self) -> str:
        return f"{self.kind}, {'in ' + self.doing if self.doing else 'waiting'}"


class Machines:
    """A Ray cluster of several nodes on this machine: a head without CPUs, where runs connect, and others that work.

    Args:
        nodes: how many work.
        cpus: of each.
        settings: of Ray, for the whole cluster, such as ``health_check_period_ms``.
    """

    def __init__(self, nodes: int = 2, cpus: int = 2, settings: Mapping[str, int] | None = None) -> None:
        from ray.cluster_utils import Cluster

        self.size: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 100 * 2**20}
        self.folder = tempfile.mkdtemp(prefix="mbrl-")  # a short path: sockets lie below it
        self.before = os.environ.get(FOLDER)
        os.environ[FOLDER] = self.folder  # else the cluster becomes what `--ray auto` means on this machine
        self.nodes: list[Any] = []
        self.cluster = Cluster()
        head = {**self.size, "num_cpus": 0, "include_dashboard": False, "_system_config": dict(settings or {})}
        try:
            self.cluster.add_node(**head)
            for _ in range(nodes):
                self.add()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the head."""
        return str(self.cluster.address)

    def workers(self, node: Any | None = None) -> list[Worker]:
        """Processes of actors, of one node or of all."""
        found = [worker_of(pid) for one in ([node] if node else self.nodes) for pid in _children(_raylet(one))]
        return sorted((worker for worker in found if worker), key=lambda worker: worker.pid)

    def lose(self, node: Any) -> None:
        """SIGKILL a node: what manages it, and at once all its workers, which would go on for a moment."""
        self.nodes.remove(node)
        manager = _raylet(node)
        for pid in (manager, *_children(manager)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def add(self) -> None:
        """Another node."""
        self.nodes.append(self.cluster.add_node(**self.size))

    def close(self) -> None:
        """End the cluster."""
        self.cluster.shutdown()
        del os.environ[FOLDER]
        os.environ |= {} if self.before is None else {FOLDER: self.before}
        shutil.rmtree(self.folder, ignore_errors=True)


def _raylet(node: Any) -> int:
    """The process that starts a node's workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def _children(parent: int) -> list[int]:
    """Processes that ``parent`` started."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = place.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[1]) == parent:
            found.append(int(place.parent.name))
    return found


def worker_of(pid: int) -> Worker | None:
    """The actor in a process, from the title that Ray gives it: ``ray::KIND`` or ``ray::KIND.METHOD``."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return None
    kind, _, doing = title.removeprefix("ray::").strip().partition(".")
    return Worker(pid, kind, doing) if title.startswith("ray::") and kind in (IMAGINING, PLAYING) else None


@contextmanager
def machines(nodes: int = 2, cpus: int = 2, settings: Mapping[str, int] | None = None) -> Iterator[Machines]:
    """Inside, a cluster."""
    there = Machines(nodes, cpus, settings)
    try:
        yield there
    finally:
        there.close()


class Driver:
    """A run in a process of its own, followed by what it writes.

    Args:
        run: its directory, which has to be new.
        training: the words after ``mbrl`` that begin it, ``--out`` aside.
        ray: words that place it, such as ``--ray ADDRESS``.
        before: words before the command, such as ``ip netns exec NAME``.
    """

    def __init__(self, run: Path, training: Sequence[str], ray: Sequence[str], before: Sequence[str] = ()) -> None:
        self.run, self.ray, self.before = run, [*ray], [*before]
        self.log = run.with_name(f"{run.name}.log")
        run.parent.mkdir(parents=True, exist_ok=True)
        self._start([*training, "--out", str(run)])

    def _start(self, words: Sequence[str]) -> None:
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
        command = [*self.before, sys.executable, "-m", "experiments.cli", *words, "--quiet", *self.ray]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def resume(self) -> None:
        """Continue the run, whose process has ended."""
        self._start(["resume", str(self.run)])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def env_steps(self) -> int:
        """Of its newest record; 0 where there is none."""
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["env_steps"]) if lines else 0

    def reach(self, env_steps: int, seconds: float = WAIT_SECONDS) -> bool:
        """Wait until a record of so many env steps is there; whether it came, and not the end or ``seconds`` before."""
        return wait_until(lambda: self.env_steps >= env_steps, seconds, lambda: not self.running)

    def end(self, seconds: float = WAIT_SECONDS) -> str | None:
        """Wait for the end; what went wrong, None where nothing did."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"it had not ended {seconds:.0f} s later"
        return None if code == 0 else f"exit code {code}: {self.said()}"

    def said(self) -> str:
        """The last of what it printed."""
        return self.log.read_text(errors="replace").strip()[-2000:]


def wait_until(true: Any, seconds: float, never: Any = lambda: False) -> bool:
    """Ask a hundred times a second; whether it came ``true``, and not ``never`` or ``seconds`` before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        if never():
            return bool(true())
        time.sleep(0.01)
    return False


# -- faults ----------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Something that was taken from a run."""

    kind: str
    lost: str
    env_steps: int
    """Of the newest record just before"""
    since: float
    """When, by the clock of this process"""
    progress_seconds: float | None = None
    """Until there was a record ``FURTHER`` env steps on; None where there never was"""


def lose_worker(there: Machines, run: Driver, number: int, moment: random.Random) -> Fault:
    """SIGKILL a worker: one that imagines (at it, if that can be met with), or one that plays, by turns."""
    wanted = (IMAGINING, PLAYING)[number % 2]
    found: list[Worker] = []

    def at_work() -> bool:
        found[:] = [worker for worker in there.workers() if worker.kind == wanted]
        return any(worker.doing in ("make", "step") for worker in found)

    wait_until(at_work, 30.0, lambda: not run.running)
    busy = [worker for worker in found if worker.doing in ("make", "step")]
    if not found:
        return Fault("worker", "nothing: there was none", run.env_steps, time.monotonic())
    lost = moment.choice(busy or found)
    fault = Fault("worker", str(lost), run.env_steps, time.monotonic())
    with suppress(ProcessLookupError):
        os.kill(lost.pid, signal.SIGKILL)
    return fault


def lose_node(there: Machines, run: Driver, number: int, moment: random.Random) -> Fault:
    """SIGKILL a node on which workers are."""
    wait_until(there.workers, 30.0, lambda: not run.running)
    node = moment.choice([node for node in there.nodes if there.workers(node)] or there.nodes)
    lost = "; ".join(map(str, there.workers(node))) or "no workers"
    fault = Fault("node", f"a node with {lost}", run.env_steps, time.monotonic())
    there.lose(node)
    return fault


def lose_driver(there: Machines, run: Driver, number: int, moment: random.Random) -> Fault:
    """SIGKILL the process of the run, and continue from its checkpoint."""
    since = time.monotonic()
    run.kill()
    reached, latest = run.env_steps, CheckpointStore(run.run / "checkpoints").found()
    run.resume()
    lost = f"the driver, {reached - latest[-1].env_steps if latest else reached} env steps after its checkpoint"
    return Fault("driver", lost, reached, since)


FAULTS = {"worker": lose_worker, "node": lose_node, "driver": lose_driver}


def suffer(kind: str, times: int, there: Machines, run: Driver, steps: int, moment: random.Random) -> list[Fault]:
    """Take something of a ``kind`` from a run of ``steps`` env steps, ``times`` times at random moments.

    The moments are drawn from the run's first nine tenths. Where one is past already, because what was lost before took
    so long to come back, it is now. A lost node is replaced once the run has gone on without it.
    """
    faults: list[Fault] = []
    for number, goal in enumerate(sorted(moment.uniform(0.1, 0.9) * (steps - FURTHER) for _ in range(times))):
        if not run.reach(int(goal)):
            break
        time.sleep(moment.uniform(0.0, 0.2))
        fault = FAULTS[kind](there, run, number, moment)
        faults.append(fault)
        if run.reach(min(fault.env_steps + FURTHER, steps)):
            fault.progress_seconds = round(time.monotonic() - fault.since, 2)
        if kind == "node":
            there.add()
    return faults


# -- equality --------------------------------------------------------------------------------------------------------


def difference(run: Path, reference: Path) -> str | None:
    """The first thing in which two runs that ended differ: records, checkpoint (weights and all) or replay buffers."""
    pairs = itertools.zip_longest(*(read_records(each / "metrics.jsonl") for each in (reference, run)), fillvalue={})
    for number, (wanted, found) in enumerate(pairs, start=1):
        if comparable(wanted) != comparable(found):
            return f"metrics.jsonl:{number}: {comparable(found)}, and not {comparable(wanted)}"
    states = [CheckpointStore(each / "checkpoints").load_latest() or {} for each in (reference, run)]
    wanted, found = ({k: v for k, v in comparable(state).items() if k not in OF_THE_PROCESS} for state in states)
    return _unlike(wanted, found, "checkpoint") or _unlike(_rows(reference), _rows(run), "buffers")


def _rows(run: Path) -> dict[str, bytes]:
    """The files of the replay buffers."""
    root = run / "checkpoints" / "buffers"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.bin"))}


def _unlike(wanted: Any, found: Any, where: str) -> str | None:
    """Where two trees of plain values and tensors differ first."""
    if isinstance(wanted, dict) and isinstance(found, dict) and wanted.keys() == found.keys():
        return next(filter(None, (_unlike(wanted[key], found[key], f"{where}.{key}") for key in wanted)), None)
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return next(filter(None, (_unlike(a, b, f"{where}[{place}]") for place, (a, b) in pairs)), None)
    if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
        same = wanted.shape == found.shape and wanted.dtype == found.dtype
        return None if same and torch.equal(wanted.nan_to_num(), found.nan_to_num()) else f"{where}: other numbers"
    return None if type(wanted) is type(found) and wanted == found else f"{where}: other values"
