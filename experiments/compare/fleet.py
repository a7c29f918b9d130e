"""Many runs, each an ordinary ``mbrl train`` or ``mbrl resume`` in a process of its own with one thread, a few at once.

One failing run stops no other. A run that was interrupted goes on where it was; one that is complete says so at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "done", "failed", "interrupted"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
TAIL = 65_536
"""Bytes at the end of ``metrics.jsonl`` that are looked at: more than any record is long."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One run: whose it is, the words after ``mbrl`` that make it, where it lies, its steps.

    ``after`` is the folder of the run that it continues and that is run before it; None where it needs none.
    """

    agent: str
    env: str
    seed: int
    command: tuple[str, ...]
    folder: Path
    steps: int = 0
    after: Path | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words that start the run, or continue it when it has begun."""
        if not (self.folder / "config.yaml").is_file():
            return (*self.command, "--out", str(self.folder), "--quiet")
        trust = [
            word
            for flag, name in zip(self.command, self.command[1:], strict=False)
            if flag == "--trust"
            for word in (flag, name)
        ]
        return ("resume", str(self.folder), *trust, "--quiet")


Changed = Callable[[Job, State, str | None], None]
Execute = Callable[[Job], Awaitable[tuple[int, str]]]


def program(job: Job) -> list[str]:
    """The command line of the job's process, which ends with this one."""
    return [sys.executable, "-m", "experiments.compare.worker", str(os.getpid()), *job.words]


def environment() -> dict[str, str]:
    """Its environment: this project first on the path, one thread."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | ONE_THREAD | {"PYTHONPATH": paths}


async def in_process(job: Job) -> tuple[int, str]:
    """Run a job on this machine; its exit code and what it said on stderr."""
    quiet, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*program(job), stdout=quiet, stderr=pipe, env=environment())
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace")


async def run_fleet(
    jobs: Sequence[Job], processes: int, changed: Changed, execute: Execute = in_process
) -> list[tuple[Job, str]]:
    """Run every job, at most ``processes`` at once and in order; the failed ones, each with its error.

    One that continues another of ``jobs`` waits for it, while others run, and fails with it.
    ``changed(job, state, error)`` is told of every step. Cancelled, it ends its processes; their runs can be resumed.
    """
    room, failed = asyncio.Semaphore(processes), list[tuple[Job, str]]()
    ended = {job.folder: asyncio.Event() for job in jobs}

    async def begin(job: Job) -> str | None:
        if job.after in ended:
            await ended[job.after].wait()
            if broken := next((other for other, _ in failed if other.folder == job.after), None):
                return f"the run that it continues failed ({broken.agent} seed {broken.seed})"
        async with room:
            changed(job, "running", None)
            try:
                code, said = await execute(job)
            except asyncio.CancelledError:
                changed(job, "interrupted", None)
                raise
            return None if code == 0 else failure(job, code, said)

    async def run(job: Job) -> None:
        if (error := await begin(job)) is not None:
            failed.append((job, error))
        changed(job, "done" if error is None else "failed", error)
        ended[job.folder].set()

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(run(job))
    return failed


def failure(job: Job, code: int, said: str) -> str:
    """What went wrong, in a line: the run's own message, its exception, or the signal that ended it."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    if code < 0:
        return f"ended by signal {-code} (`mbrl {shlex.join(job.words)}`)"
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code} without a message"


def last_record(folder: Path) -> dict[str, Any]:
    """The last whole record of a run; empty when there is none yet."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    try:
        record: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return record
