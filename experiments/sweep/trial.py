"""A trial of a sweep as Ray Tune sees it. Little is imported here: every actor imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray import tune

from experiments.compare.fleet import environment


class Lost(RuntimeError):
    """A trial's process was ended from outside; it can be begun again."""


class TrialProcess(tune.Trainable):
    """A trial where it landed: a step is the way to its next evaluation.

    Its configuration: ``folder``, ``log``, ``words``, ``cwd``, ``metric``.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing runs before the first step."""
        self.job = config["job"]
        self.process: subprocess.Popen[str] | None = None

    def step(self) -> dict[str, Any]:
        """``steps``, ``value`` and whether it was the ``last``; or ``error`` where the run failed.

        Raises:
            Lost: a signal ended the process.
        """
        if self.process is None:
            self.process = self._start()
        else:
            self._order("go")
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return self._failed()
        told = json.loads(line)
        if told["last"]:
            self.process.wait()
        if self.job["metric"] not in told["record"]:
            return {"error": f"--metric: the evaluation has no {self.job['metric']!r}", "done": True}
        value = told["record"][self.job["metric"]]
        return {"steps": told["steps"], "value": value, "last": told["last"], "done": told["last"]}

    def cleanup(self) -> None:
        """A run that waits behind an evaluation writes its checkpoint and ends."""
        if self.process is not None and self.process.poll() is None:
            self._order("prune")
            self.process.wait()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial in the same actor, which saves the time to start one."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _start(self) -> subprocess.Popen[str]:
        log = Path(self.job["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        cwd = self.job["cwd"] if Path(self.job["cwd"]).is_dir() else None
        program = [sys.executable, "-m", "experiments.sweep.process", str(os.getpid())]
        pipe = subprocess.PIPE
        with log.open("ab") as said:
            self._said = said.tell()
            command = [*program, self.job["folder"], *self.job["words"]]
            return subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=said, text=True, cwd=cwd, env=environment()
            )

    def _order(self, word: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the next line that is awaited says how

    def _failed(self) -> dict[str, Any]:
        assert self.process is not None
        code = self.process.wait()
        if code < 0 or code == os.EX_TEMPFAIL:
            raise Lost(f"its process was ended by signal {-code}" if code < 0 else "its last process is still there")
        said = Path(self.job["log"]).read_bytes()[self._said :].decode(errors="replace").strip()
        silent = not said or said.splitlines()[-1].startswith("run directory:")
        return {"error": f"exit code {code} without a message" if silent else said, "done": True}
