"""Benchmarks made of whole runs: ordinary ``mbrl train`` processes, one thread each, a few side by side.

A run that is complete is not repeated and one that was interrupted is resumed. Of every run the configuration,
versions and metrics are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.compare.fleet import Job, State, run_fleet
from experiments.compare.live import last_return

KEPT = ("config.yaml", "versions.json", "metrics.jsonl")


def make_job(options: argparse.Namespace, label: str, env: str, seed: int, command: Sequence[str]) -> Job:
    """One run, where these benchmarks keep theirs."""
    return Job(label, env, seed, tuple(command), options.work / _place(env, label, seed))


def _place(env: str, label: str, seed: int) -> Path:
    return Path(env.replace("/", "-").replace(":", "-")) / label / f"seed{seed}"


def need_dataset(folder: Path) -> None:
    """Raise ``UserError`` where a set of `mbrl bench datasets` is not there, before a run begins."""
    if not folder.exists():
        task, level = folder.parts[-2], folder.name.removesuffix("-v0")
        fix = f"no dataset: `mbrl bench datasets --env {task} --levels {level}` makes it, --data-root says where it is"
        raise UserError("--data-root", str(folder), fix)


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that these benchmarks share."""
    parser.add_argument("--out", type=Path, default=Path("experiments/results") / name)
    parser.add_argument("--work", type=Path, default=Path("runs") / f"bench-{name}", help="where the runs lie")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, help="env steps, instead of the recipe's")
    parser.add_argument("--report-only", action="store_true", help="make the table and the figure of what is there")


def run_all(jobs: Sequence[Job], options: argparse.Namespace) -> list[str]:
    """Run what is missing and keep its records; what went wrong, a line each."""
    if options.report_only:
        return []
    kept = {job: options.out / _place(job.env, job.agent, job.seed) for job in jobs}
    missing = [job for job, folder in kept.items() if not all((folder / name).is_file() for name in KEPT)]

    def changed(job: Job, state: State, error: str | None) -> None:
        if state == "done":
            _keep(job.folder, kept[job])
            print(f"{job.env} {job.agent} seed {job.seed}: last return {last_return([job])}", flush=True)

    failed = asyncio.run(run_fleet(missing, options.processes, changed))
    return [f"{job.env} {job.agent} seed {job.seed}: {error}" for job, error in failed]


def _keep(run: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(run / name, kept / name)


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
