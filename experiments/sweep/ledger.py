"""``ledger.jsonl`` of a sweep: every suggestion, evaluation and verdict, written down before anything follows from it.

A line is one of::

    {"trial": 3, "params": {"agent.planner.horizon": 20}}                 what was suggested
    {"trial": 3, "steps": 500, "value": -812.4, "verdict": "go"}          an evaluation; or "prune", or "finish"
    {"trial": 3, "error": "..."}                                          the trial failed by itself

It is the only state of a sweep: the searcher and the pruner are built again by telling them these lines. Nothing else
is read back, no pickle in particular.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from envs.errors import UserError
from experiments.storage import disk_errors, sync

Verdict = Literal["go", "prune", "finish"]
State = Literal["open", "pruned", "finished", "failed"]


@dataclass(frozen=True)
class Report:
    """The metric at an evaluation (None: not a finite number), and what followed."""

    value: float | None
    verdict: Verdict


@dataclass
class Trial:
    """What is known of one trial; ``reports`` by steps, in order."""

    number: int
    params: Mapping[str, Any]
    reports: dict[int, Report] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """What it is called, and its folder."""
        return f"trial-{self.number:03d}"

    @property
    def state(self) -> State:
        """How it ended, or that it did not."""
        if self.error is not None:
            return "failed"
        states: dict[Verdict, State] = {"go": "open", "prune": "pruned", "finish": "finished"}
        return states[self.last.verdict] if self.last else "open"

    @property
    def last(self) -> Report | None:
        """The newest evaluation."""
        return self.reports[self.steps] if self.reports else None

    @property
    def steps(self) -> int:
        """Steps at the newest evaluation."""
        return next(reversed(self.reports), 0)

    @property
    def value(self) -> float | None:
        """The metric at the newest evaluation."""
        return self.last.value if self.last else None


class Ledger:
    """The lines of a sweep and the trials that they tell of, by number.

    Raises:
        UserError: a line is damaged. One that a killed process left unfinished is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.trials: dict[int, Trial] = {}
        self._read()

    def suggest(self, number: int, params: Mapping[str, Any]) -> None:
        """Trial ``number`` begins with these settings."""
        self._write({"trial": number, "params": dict(params)})

    def report(self, number: int, steps: int, value: float | None, verdict: Verdict) -> None:
        """An evaluation of a trial, and what is to follow."""
        self._write({"trial": number, "steps": steps, "value": value, "verdict": verdict})

    def fail(self, number: int, error: str) -> None:
        """A trial cannot be run to its end, however often it is tried."""
        self._write({"trial": number, "error": error})

    def _write(self, line: dict[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            sync(file)
        self._add(line)

    def _read(self) -> None:
        if not self.path.exists():
            return
        with disk_errors(self.path), self.path.open("r+b") as file:
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                file.truncate(len(whole))
        for place, text in enumerate(whole.splitlines(), start=1):
            try:
                self._add(json.loads(text))
            except (ValueError, KeyError, TypeError) as error:
                fix = "`mbrl sweep` did not write this line; begin a new sweep elsewhere"
                raise UserError(f"{self.path}:{place}", text.decode(errors="replace")[:60], fix) from error

    def _add(self, line: dict[str, Any]) -> None:
        number = line["trial"]
        if "params" in line:
            self.trials[number] = Trial(number, dict(line["params"]))
        elif "error" in line:
            self.trials[number].error = str(line["error"])
        else:
            if line["verdict"] not in get_args(Verdict) or not isinstance(line["value"], float | int | None):
                raise ValueError(line)
            self.trials[number].reports[int(line["steps"])] = Report(line["value"], line["verdict"])
        self.lines.append(line)
