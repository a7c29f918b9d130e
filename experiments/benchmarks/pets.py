"""``mbrl bench pets``: PETS on its tasks beside its controls, and a table and a figure of what came out.

Runs are ordinary ``mbrl train`` processes, one thread each, a few side by side; a run that is complete is not repeated
and one that was interrupted is resumed. Of every run the configuration, versions and metrics are kept.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.pets_report import write_report

TASKS = ("Pendulum-v1", "InvertedPendulum-v5", "mbrl/CartPoleSwingUp-v0", "Reacher-v5")
ONE_NET = ("members=1", "probabilistic=false")
NO_ORACLE = ("InvertedPendulum-v5",)
"""Its best return, 1000, is known, and simulating MuJoCo inside the planner for 20,000 decisions takes an hour."""
LABELS = ("pets", "oracle-mpc", "random", "one-net")
KEPT = ("config.yaml", "versions.json", "metrics.jsonl")


@dataclass(frozen=True)
class Job:
    """One run: what it is called, and the command that makes it."""

    label: str
    env: str
    seed: int
    command: tuple[str, ...]

    def folder(self, root: Path) -> Path:
        return root / self.env.replace("/", "-") / self.label / f"seed{self.seed}"


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and ``learning-curves.png``."""
    parser = argparse.ArgumentParser(prog="mbrl bench pets", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/pets"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-pets"), help="where the run directories lie")
    parser.add_argument("--env", nargs="+", default=list(TASKS))
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--control-seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, help="env steps, instead of the recipe's")
    parser.add_argument("--report-only", action="store_true", help="make the table and the figure of what is there")
    options = parser.parse_args(argv)
    failed: list[str] = []
    if not options.report_only:
        with ThreadPoolExecutor(options.processes) as workers:
            done = workers.map(lambda job: run(job, options.work, options.out), list(jobs(options)))
            failed = [problem for problem in done if problem]
    write_report(options.out, shlex.join(["mbrl", "bench", "pets", *argv]))
    for problem in failed:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if failed else 0


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, the decisive ones first."""
    steps = [] if options.steps is None else ["--steps", str(options.steps)]
    for label in options.labels:
        for env in options.env:
            seeds = {"pets": options.seeds, "one-net": options.control_seeds, "random": options.seeds}.get(label, 1)
            seeds = 0 if label == "oracle-mpc" and env in NO_ORACLE else seeds
            for seed in range(seeds):
                yield Job(label, env, seed, ("train", *_recipe(label, steps), "--env", env, "--seed", str(seed)))


def _recipe(label: str, steps: Sequence[str]) -> tuple[str, ...]:
    if label == "pets":
        return ("pets", *steps)
    if label == "one-net":
        model = "--agent.init_args.model.init_args."
        options = [f"{model}{option}" for option in ONE_NET]
        return ("pets", *steps, *options, "--agent.init_args.planner.init_args.particles=1")
    return (label, "--steps", "0")


def run(job: Job, work: Path, out: Path) -> str | None:
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
