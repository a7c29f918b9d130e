"""What a person who waits for a comparison sees: a table that lives on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean
from typing import IO, TYPE_CHECKING

from experiments.compare.fleet import Job, State, last_record
from experiments.compare.status import Status
from experiments.metrics import steps_of

if TYPE_CHECKING:
    from rich.table import Table

WELL_ON_ITS_WAY = 0.05
"""Part of a run from which on its own pace says how long it takes"""


class Progress:
    """How far every job is and how long the rest will take, read from the runs' own records."""

    def __init__(self, status: Status, processes: int) -> None:
        self.status, self.processes = status, processes
        self.took: dict[Job, float] = {}

    def share(self, job: Job) -> float:
        """Part of the job that is done."""
        state, _ = self.status.states[job]
        if state in ("done", "failed"):
            return 1.0
        return min(1.0, steps_of(last_record(job.folder)) / max(1, job.steps))

    def seconds_left(self) -> float | None:
        """Wall-clock until all is done, from the runs that are done or well on their way; None before any."""
        open_jobs = {job: self.share(job) for job in self.status.missing if self.status.states[job][0] != "failed"}
        known = self._usual_times()
        for job, share in open_jobs.items():
            if share > WELL_ON_ITS_WAY:
                known.setdefault((job.agent, job.env), _seconds(job) / share)
        if not known:
            return None
        usual = mean(known.values())
        rest = [(1.0 - share) * known.get((job.agent, job.env), usual) for job, share in open_jobs.items()]
        return max(sum(rest) / self.processes, max(rest, default=0.0))

    def _usual_times(self) -> dict[tuple[str, str], float]:
        """Mean seconds of the runs that are done, by agent and environment."""
        done = [job for job, (state, _) in self.status.states.items() if state == "done"]
        self.took |= {job: _seconds(job) for job in done if job not in self.took}
        kinds = {(job.agent, job.env) for job in done}
        return {kind: mean(self.took[job] for job in done if (job.agent, job.env) == kind) for kind in kinds}


def _seconds(job: Job) -> float:
    """Wall-clock that the run's records tell of, earlier processes included."""
    return float(last_record(job.folder).get("seconds", 0.0))


def last_return(jobs: Sequence[Job]) -> float | None:
    """Mean of the last evaluations of complete jobs."""
    found = [last_record(job.folder).get("return_mean") for job in jobs]
    known = [value for value in found if isinstance(value, int | float)]
    return mean(known) if known else None


def table(progress: Progress) -> Table:
    """A row an agent and environment: runs done, running, failed, the mean last return, part done."""
    from rich.table import Table

    states = progress.status.states
    kinds: dict[tuple[str, str], list[Job]] = {}
    for job in states:
        kinds.setdefault((job.env, job.agent), []).append(job)
    shown = Table(title=f"{progress.status.suite.name}: {headline(progress)}", title_justify="left")
    for name in ("environment", "agent", "done", "running", "failed", "last return", "progress"):
        shown.add_column(name, justify="left" if name in ("environment", "agent") else "right")
    for (env, agent), jobs in kinds.items():
        done = [job for job in jobs if states[job][0] == "done"]
        count = {state: sum(states[job][0] == state for job in jobs) for state in ("running", "failed")}
        value = last_return(done)
        cells = [env, agent, f"{len(done)}/{len(jobs)}", str(count["running"] or ""), str(count["failed"] or "")]
        part = mean(progress.share(job) for job in jobs)
        shown.add_row(*cells, "-" if value is None else f"{value:.4g}", f"{part:.0%}")
    return shown


def headline(progress: Progress) -> str:
    """Runs done, and time left."""
    states = [state for state, _ in progress.status.states.values()]
    left = progress.seconds_left()
    ended = sum(state in ("done", "failed") for state in states)
    time_left = "" if ended == len(states) else f", about {duration(left)} left" if left is not None else ""
    return f"{states.count('done')} of {len(states)} runs done{time_left}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


class Lines:
    """A line a change and one every minute, for logs and pipes."""

    def __init__(self, progress: Progress, stream: IO[str], every_seconds: float = 60.0) -> None:
        self.progress, self.stream, self._every = progress, stream, every_seconds
        self._next = time.monotonic() + every_seconds

    def changed(self, job: Job, state: State, error: str | None) -> None:
        value = last_return([job]) if state == "done" else None
        said = f" {error}" if error else f" last return {value:.4g}" if value is not None else ""
        rest = f" ({headline(self.progress)})" if state in ("done", "failed") else ""
        print(f"{state:>11}  {job.env} {job.agent} seed {job.seed}{said}{rest}", file=self.stream, flush=True)

    def tick(self) -> None:
        """Called every few seconds."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            print(headline(self.progress), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing to leave."""


class LiveTable(Lines):
    """The table, redrawn in place; failures stay above it."""

    def __init__(self, progress: Progress, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(progress, stream)
        self.live = Live(table(progress), console=Console(file=stream), auto_refresh=False)
        self.live.start()

    def changed(self, job: Job, state: State, error: str | None) -> None:
        if error:
            self.live.console.print(f"failed: {job.env} {job.agent} seed {job.seed}: {error}", markup=False)
        self.tick()

    def tick(self) -> None:
        self.live.update(table(self.progress), refresh=True)

    def close(self) -> None:
        self.tick()
        self.live.stop()
