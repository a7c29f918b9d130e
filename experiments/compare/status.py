"""``status.json`` of a comparison: what is compared and how far every run is. Reports are made from it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.compare.fleet import Job, State, last_record
from experiments.compare.suite import EnvEntry, Suite
from experiments.metrics import steps_of
from experiments.storage import disk_errors, write_atomically

KEPT = ("agent", "env", "seed", "folder", "state")
"""What is remembered of a run that the suite no longer asks for."""


class Status:
    """The state of every job of a suite under ``root``, on disk after every change."""

    def __init__(self, root: Path, suite: Suite, jobs: Sequence[Job]) -> None:
        self.path, self.root, self.suite = root / "status.json", root, suite
        before = previous_jobs(self.path)
        done = {folder for folder, job in before.items() if job["state"] == "done"}
        self.states: dict[Job, tuple[State, str | None]] = {
            job: ("done" if self._place(job) in done and complete(job) else "waiting", None) for job in jobs
        }
        asked = {self._place(job) for job in jobs}
        self.dropped = [{key: job[key] for key in KEPT} for folder, job in before.items() if folder not in asked]

    def _place(self, job: Job) -> str:
        return str(job.folder.relative_to(self.root))

    @property
    def missing(self) -> list[Job]:
        """What has still to be run, or run again."""
        return [job for job, (state, _) in self.states.items() if state != "done"]

    def change(self, job: Job, state: State, error: str | None = None) -> None:
        self.states[job] = state, error
        self.write()

    def write(self) -> None:
        jobs = [
            {"agent": job.agent, "env": job.env, "seed": job.seed, "folder": self._place(job)}
            | {"state": state, "error": error}
            for job, (state, error) in self.states.items()
        ]
        settings = {key: value for key, value in self.suite.tree().items() if key in ("agents", "envs", "set")}
        tree = {
            "suite": self.suite.name,
            "budget": self.suite.budget,
            "agents": list(self.suite.agents),
            "envs": list(self.suite.envs),
            "references": {name: _reference(env) for name, env in self.suite.envs.items() if env.low is not None},
            "datasets": {name: dict(env.datasets) for name, env in self.suite.envs.items() if env.datasets},
            "settings": settings,
            "jobs": jobs,
            "dropped": self.dropped,
        }
        write_atomically(self.path, json.dumps(tree, indent=1).encode() + b"\n")


def _reference(env: EnvEntry) -> Mapping[str, Any]:
    return {"low": env.low, "high": env.high, "source": env.source}


def previous_jobs(path: Path) -> dict[str, dict[str, Any]]:
    """Jobs by folder as an earlier call left them, those it had dropped too, where the folder is there.

    What is damaged counts as nothing, and every run is looked at.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        jobs = [*tree["jobs"], *tree.get("dropped", [])]
        found = {job["folder"]: job for job in jobs if (path.parent / job["folder"]).is_dir()}
        return {folder: job for folder, job in found.items() if {*KEPT} <= set(job)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def complete(job: Job) -> bool:
    """Whether the run's records end with the evaluation at its last step."""
    last = last_record(job.folder)
    return last.get("event") == "evaluation" and steps_of(last) >= job.steps


@contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Hold the comparison's folder; raises ``UserError`` when another process has it."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                str(root), "in use", "another `mbrl compare` or `mbrl sweep` is running here; wait or stop it"
            ) from error
        yield
