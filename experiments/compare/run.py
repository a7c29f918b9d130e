"""Running a suite to its end: what is done is skipped, what was interrupted goes on, what fails is named."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from envs.errors import UserError
from experiments.compare.fleet import Execute, Job, State, in_process, run_fleet
from experiments.compare.jobs import make_jobs
from experiments.compare.live import Lines, LiveTable, Progress
from experiments.compare.status import Status, alone_in
from experiments.compare.suite import Suite
from experiments.storage import write_atomically

REDRAW_SECONDS = 2.0


def compare(
    suite: Suite,
    root: Path,
    processes: int,
    trust: Sequence[str] = (),
    execute: Execute = in_process,
    stream: IO[str] = sys.stderr,
) -> Status:
    """Run what is missing of ``suite`` under ``root``, ``processes`` runs at once.

    Raises:
        UserError: a configuration is wrong (then nothing has run), or the folder is in use.
    """
    jobs = make_jobs(suite, root, trust)
    if root.exists() and not (root / "suite.yaml").is_file() and any(root.iterdir()):
        raise UserError("--out", str(root), "it exists, is not empty and is no comparison; name another place")
    with alone_in(root):
        write_atomically(root / "suite.yaml", suite.text().encode())
        status = Status(root, suite, jobs)
        status.write()
        asyncio.run(_watch(status, processes, execute, stream))
    return status


async def _watch(status: Status, processes: int, execute: Execute, stream: IO[str]) -> None:
    """The fleet, and what a person sees of it."""
    progress = Progress(status, processes)
    view = LiveTable(progress, stream) if stream.isatty() else Lines(progress, stream)

    def changed(job: Job, state: State, error: str | None) -> None:
        status.change(job, state, error)
        view.changed(job, state, error)

    async def redraw() -> None:
        while True:
            await asyncio.sleep(REDRAW_SECONDS)
            view.tick()

    drawing = asyncio.create_task(redraw())
    try:
        await run_fleet(status.missing, processes, changed, execute)
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
        view.close()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
