"""Where a run's records go: ``metrics.jsonl``, TensorBoard, and the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from experiments.metrics import MetricsLog, make_record
from experiments.run import RunDirectory
from mbrl.clock import Clock


class Reporter:
    """Writes every record everywhere.

    Args:
        run: the run directory.
        steps: env steps of the whole run.
        state: what :meth:`state_dict` gave at the checkpoint that the run continues from; None at its start.
        quiet: say nothing on the terminal.
    """

    def __init__(
        self, run: RunDirectory, steps: int, state: Mapping[str, Any] | None = None, quiet: bool = False
    ) -> None:
        self.log = MetricsLog(run.metrics, state["metrics_offset"] if state else 0)
        self._spent = float(state["seconds"]) if state else 0.0
        self._began = time.perf_counter()
        self._board = TensorBoard(run, state["clock"]["env_steps"] if state else None)
        self._terminal: Terminal = Quiet() if quiet else make_terminal(steps, sys.stderr)

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far, without the time between a kill and its resume."""
        return self._spent + time.perf_counter() - self._began

    def record(self, event: str, clock: Clock, values: Mapping[str, Any]) -> None:
        record = make_record(event, clock, self.seconds, values)
        self.log.write(record)
        self._board.write(record)
        self._terminal.record(record)

    def progress(self, clock: Clock) -> None:
        self._terminal.progress(clock.env_steps)

    def flush(self) -> None:
        self._board.flush()

    def state_dict(self) -> dict[str, Any]:
        return {"metrics_offset": self.log.offset(), "seconds": self.seconds}

    def close(self) -> None:
        self._terminal.close()
        self._board.close()
        self.log.close()


class TensorBoard:
    """Every number of every record as ``event/name`` over env steps."""

    def __init__(self, run: RunDirectory, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import; only runs need it

        purge = None if resumed_at is None else resumed_at + 1
        self._writer: Any = SummaryWriter(str(run.tensorboard), purge_step=purge)

    def write(self, record: Mapping[str, Any]) -> None:
        skip = ("env_steps", "event", "seconds")
        for name, value in record.items():
            if name not in skip and isinstance(value, int | float):
                self._writer.add_scalar(f"{record['event']}/{name}", value, record["env_steps"])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Terminal:
    """What a person who waits sees."""

    def record(self, record: Mapping[str, Any]) -> None:
        """See one record."""

    def progress(self, env_steps: int) -> None:
        """See how far the run is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Quiet(Terminal):
    """Nothing."""


def make_terminal(steps: int, stream: IO[str]) -> Terminal:
    """A live bar on a terminal, plain lines elsewhere."""
    return LiveBar(steps) if stream.isatty() else PlainLines(steps, stream)


class PlainLines(Terminal):
    """A line an evaluation, and one every half minute."""

    def __init__(self, steps: int, stream: IO[str], every_seconds: float = 30.0) -> None:
        self._steps, self._stream, self._every = steps, stream, every_seconds
        self._next = time.perf_counter() + every_seconds
        self._last = "-"

    def record(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "episode":
            self._last = _number(record["return"])
        elif record["event"] == "evaluation":
            mean, std = _number(record["return_mean"]), _number(record["return_std"])
            self._say(record["env_steps"], f"evaluation: return {mean} ± {std}")

    def progress(self, env_steps: int) -> None:
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + self._every
            self._say(env_steps, f"last return {self._last}")

    def _say(self, env_steps: int, text: str) -> None:
        print(f"{env_steps:>9,} / {self._steps:,} env steps  {text}", file=self._stream, flush=True)


class LiveBar(Terminal):
    """Steps, last return, last evaluation, time left."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("env steps"), TextColumn("return {task.fields[last]}")]
        more = [TextColumn("evaluation {task.fields[evaluation]}"), TimeRemainingColumn()]
        self._bar = Progress(*columns, *more, console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=max(1, steps), last="-", evaluation="-")
        self._bar.start()

    def record(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "episode":
            self._bar.update(self._task, last=_number(record["return"]))
        elif record["event"] == "evaluation":
            self._bar.update(self._task, evaluation=_number(record["return_mean"]))

    def progress(self, env_steps: int) -> None:
        self._bar.update(self._task, completed=env_steps)

    def close(self) -> None:
        self._bar.stop()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
