"""Benchmarks made of whole runs: ordinary ``mbrl train`` processes, one thread each, a few side by side.

A run that is complete is not repeated and one that was interrupted is resumed. Of every run the configuration,
versions and metrics are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT = ("config.yaml", "versions.json", "metrics.jsonl")


@dataclass(frozen=True)
class Job:
    """One run: what it is called, and the words after ``mbrl`` that make it."""

    label: str
    env: str
    seed: int
    command: tuple[str, ...]

    def folder(self, root: Path) -> Path:
        return root / self.env.replace("/", "-") / self.label / f"seed{self.seed}"


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that these benchmarks share."""
    parser.add_argument("--out", type=Path, default=Path("experiments/results") / name)
    parser.add_argument("--work", type=Path, default=Path("runs") / f"bench-{name}", help="where the runs lie")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, help="env steps, instead of the recipe's")
    parser.add_argument("--report-only", action="store_true", help="make the table and the figure of what is there")


def run_all(jobs: Sequence[Job], options: argparse.Namespace) -> list[str]:
    """Run what is missing; what went wrong, a line each."""
    if options.report_only:
        return []
    with ThreadPoolExecutor(options.processes) as workers:
        done = workers.map(lambda job: _run(job, options.work, options.out), jobs)
        return [problem for problem in done if problem]


def _run(job: Job, work: Path, out: Path) -> str | None:
    """Run or resume one job and keep its records; what went wrong, if something did."""
    folder, kept = job.folder(work), job.folder(out)
    if all((kept / name).is_file() for name in KEPT):
        return None
    words = ["resume", str(folder)] if (folder / "config.yaml").is_file() else [*job.command, "--out", str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "experiments.cli", *words, "--quiet"]
    result = subprocess.run(program, capture_output=True, text=True, env=os.environ | threads, check=False)
    last = (result.stderr.strip().splitlines() or ["no output"])[-1]
    print(f"{job.env} {job.label} seed {job.seed}: {result.stdout.strip() or last}", flush=True)
    if result.returncode:
        return f"mbrl {shlex.join(words)}: {last}"
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(folder / name, kept / name)
    return None


def identity(metrics: Path) -> dict[str, Any]:
    """Task, agent and seed of a kept run, from where it lies."""
    env, label, seed = (folder.name for folder in (metrics.parents[2], metrics.parents[1], metrics.parent))
    return {"env": env, "label": label, "seed": int(seed.removeprefix("seed"))}


def row(cells: Iterable[object]) -> str:
    """A line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def write_summary(root: Path, command: str, runs: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """``summary.json`` with every run's figures, and ``summary.md`` with the lines of a table."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "summary.json").write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    (root / "summary.md").write_text("\n".join(lines) + "\n")


def finish(failed: Sequence[str]) -> int:
    """Say what failed; the exit code."""
    for problem in failed:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if failed else 0
