"""A trial's own process: an ordinary ``mbrl train`` or ``mbrl resume`` that waits behind every evaluation.

``python -m experiments.sweep.process PARENT FOLDER WORDS...``: the words after ``mbrl`` that begin the run. A run that
is there goes on. Behind an evaluation a line of JSON (its record) goes to stdout, and a line is awaited on stdin:
``go``, or ``prune``, which writes a checkpoint of this very moment and ends the process. So a pruned run has not seen a
single step more, and `mbrl resume` would continue it as if it had never been asked. Behind the last evaluation nothing
is awaited: its line, which says ``"last": true``, comes when the run is complete on the disk.

What the run says goes to stderr, which is the trial's log, and which is locked as long as the process lives.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from experiments.cli import main
from experiments.compare.fleet import last_record
from experiments.compare.worker import die_with_parent
from experiments.loops.base import Loop
from experiments.metrics import steps_of

LOCK_SECONDS = 120.0
"""How long the process of a sweep that was killed may take to notice"""


class Gate:
    """Asks after every evaluation whether the run is to go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders, self.answers = _own(0, "r"), _own(1, "w")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)

    def __call__(self, loop: Loop) -> None:
        """Behind an evaluation. Raises ``SystemExit`` where the run is not to go on now."""
        if loop.steps >= loop.config.steps:
            return
        self.answer(last=False)
        order = self.orders.readline().strip()
        if order == "prune":
            loop.save()
        if order != "go":  # nobody listens any more, or pruned
            sys.exit(0 if order == "prune" else 1)

    def answer(self, last: bool) -> None:
        """Say what the newest evaluation was."""
        record: dict[str, Any] = last_record(self.folder)
        told = {"last": last, "steps": steps_of(record), "record": record}
        print(json.dumps(told), file=self.answers, flush=True)


def _own(handle: int, mode: str) -> IO[str]:
    """A private copy of a standard stream; what the run itself reads and prints does not come there."""
    return os.fdopen(os.dup(handle), mode, encoding="utf-8")


def wait_for_log() -> None:
    """Until no other process works on this trial."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(2, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                print("error: another process still works on this trial; stop it, then give the command again")
                sys.exit(os.EX_TEMPFAIL)
            time.sleep(0.1)


def command(folder: Path, words: Sequence[str]) -> list[str]:
    """The words that begin the run, or continue it; errors are told with their traceback."""
    if not (folder / "config.yaml").is_file():
        return [*words, "--out", str(folder), "--quiet", "--debug"]
    trust = [word for pair in itertools.pairwise(words) if pair[0] == "--trust" for word in pair]
    return ["resume", str(folder), *trust, "--quiet", "--debug"]


def run(parent: int, folder: Path, words: Sequence[str]) -> int:
    """Run the trial until it is complete, pruned, or broken; the exit code."""
    die_with_parent(parent)
    gate = Gate(folder)
    wait_for_log()
    Loop.watcher = gate
    code = main(command(folder, words))
    if code == 0:
        gate.answer(last=True)
    return code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
