"""Where a run's records go: ``metrics.jsonl``, TensorBoard, and the terminal."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from envs.errors import UserError
from experiments.board import TensorBoard, in_words
from experiments.config import Unit
from experiments.metrics import MetricsLog, make_record, read_records
from experiments.run import RunDirectory
from mbrl.clock import Clock


class Reporter:
    """Writes every record everywhere. It holds the run's lock from the start and writes only after :meth:`begin`.

    Args:
        run: the run directory.
        steps: steps of the whole run.
        quiet: say nothing on the terminal.
        unit: what these steps are.
    """

    def __init__(self, run: RunDirectory, steps: int, quiet: bool = False, unit: Unit = "env_steps") -> None:
        self.run, self._steps, self._quiet, self._unit = run, steps, quiet, unit
        self.log = MetricsLog(run.metrics)
        self.config_digest = hashlib.blake2b(run.config.read_bytes(), digest_size=8).hexdigest()
        self._spent, self._began = 0.0, time.perf_counter()
        self._board: TensorBoard | None = None
        self._terminal = Terminal()

    def verify(self, state: Mapping[str, Any] | None) -> None:
        """The run's files are as the checkpoint with this ``state`` remembers them, else ``UserError``."""
        if state is None:
            if self.log.offset():
                fix = "there are records but no checkpoint to continue from; train anew with another --out"
                raise UserError(str(self.run.checkpoints), "empty", fix)
            return
        self.log.verify(state["metrics_offset"], state["metrics_digest"])
        if state["config_digest"] != self.config_digest:
            fix = f"it was changed after the run began; `mbrl train {self.run.config}` starts a run with the changes"
            raise UserError(str(self.run.config), "changed", fix)

    def begin(self, state: Mapping[str, Any] | None = None) -> None:
        """Start a run, or continue one as it was at the checkpoint with this ``state``."""
        offset, resumed_at = (state["metrics_offset"], state["clock"][self._unit]) if state else (0, None)
        self.log.cut(offset)
        self._spent = float(state["seconds"]) if state else 0.0
        self._board = TensorBoard(self.run, resumed_at, past=read_records(self.run.metrics), unit=self._unit)
        self._terminal = Terminal() if self._quiet else make_terminal(self._steps, sys.stderr, self._unit)

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far, without the time between a kill and its resume."""
        return self._spent + time.perf_counter() - self._began

    def record(self, event: str, clock: Clock, values: Mapping[str, Any]) -> None:
        record = make_record(event, clock, self.seconds, values)
        self.log.write(record)
        if self._board:
            self._board.write(record)
        self._terminal.record(record)

    def progress(self, clock: Clock) -> None:
        self._terminal.progress(getattr(clock, self._unit))

    def flush(self) -> None:
        if self._board:
            self._board.flush()

    def state_dict(self) -> dict[str, Any]:
        files = {"metrics_digest": self.log.digest(), "config_digest": self.config_digest}
        return {"metrics_offset": self.log.offset(), "seconds": self.seconds, **files}

    def close(self) -> None:
        self._terminal.close()
        if self._board:
            self._board.close()
        self.log.close()


class Terminal:
    """What a person who waits sees; this one shows nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        """See one record."""

    def progress(self, steps: int) -> None:
        """See how far the run is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_terminal(steps: int, stream: IO[str], unit: Unit = "env_steps") -> Terminal:
    """A live bar on a terminal, plain lines elsewhere."""
    return LiveBar(steps, unit) if stream.isatty() else PlainLines(steps, stream, unit=unit)


class PlainLines(Terminal):
    """A line an evaluation, and one every half minute."""

    def __init__(self, steps: int, stream: IO[str], every_seconds: float = 30.0, unit: Unit = "env_steps") -> None:
        self._steps, self._stream, self._every, self._unit = steps, stream, every_seconds, unit
        self._next = time.perf_counter() + every_seconds
        self._last = "-"

    def record(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "episode":
            self._last = _number(record["return"])
        elif record["event"] == "evaluation":
            mean, std = _number(record["return_mean"]), _number(record["return_std"])
            self._say(record[self._unit], f"evaluation: return {mean} ± {std}")

    def progress(self, steps: int) -> None:
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + self._every
            self._say(steps, f"last return {self._last}")

    def _say(self, steps: int, text: str) -> None:
        print(f"{steps:>9,} / {self._steps:,} {in_words(self._unit)}  {text}", file=self._stream, flush=True)


class LiveBar(Terminal):
    """Steps, last return, last evaluation, time left."""

    def __init__(self, steps: int, unit: Unit = "env_steps") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        counted = TextColumn(in_words(unit))
        columns = [BarColumn(), MofNCompleteColumn(), counted, TextColumn("return {task.fields[last]}")]
        more = [TextColumn("evaluation {task.fields[evaluation]}"), TimeRemainingColumn()]
        self._bar = Progress(*columns, *more, console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=max(1, steps), last="-", evaluation="-")
        self._bar.start()

    def record(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "episode":
            self._bar.update(self._task, last=_number(record["return"]))
        elif record["event"] == "evaluation":
            self._bar.update(self._task, evaluation=_number(record["return_mean"]))

    def progress(self, steps: int) -> None:
        self._bar.update(self._task, completed=steps)

    def close(self) -> None:
        self._bar.stop()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
