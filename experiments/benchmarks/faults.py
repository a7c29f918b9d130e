"""``mbrl bench faults``: whole runs on a Ray cluster that lose workers, nodes or their own process at random moments.

Each has to end with the records, the checkpoint and the replay buffer of the same run without Ray, to the bit. The
cluster is one of several nodes on this machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.benchmarks._cluster import FAULTS, FURTHER, Driver, difference, machines, suffer
from experiments.benchmarks._runs import finish, row
from experiments.benchmarks._timing import machine
from experiments.cli import Parser
from experiments.run import versions

STEPS, PER_RUN = 1200, 4
HORIZON = "{class_path: HorizonSchedule, init_args: {start_step: 0, end_step: 0, start_horizon: 3, end_horizon: 3}}"
TRAINING: Mapping[str, Any] = {
    "env": "Pendulum-v1",
    "num-envs": 4,
    "agent.warmup_steps": 100,
    "agent.fit_every": 100,
    "agent.rollouts_per_step": 100,
    "agent.chunk_rows": 500,
    "agent.horizon": HORIZON,
    "agent.updates_per_step": 1,
    "agent.log_every": 4,
    "agent.learner.compile": "false",
    "agent.learner.hidden": 32,
    "agent.model.hidden": 32,
    "agent.model.members": 3,
    "agent.model.elites": 2,
    "agent.fitter.max_epochs": 5,
    "evaluation.every": 400,
    "evaluation.episodes": 2,
    "checkpoint.every": 100,
    "workers.imagination": 2,
    "workers.environments": 2,
}
"""``mbpo-fast``, small, with a record every round. Imagination: every 100 env steps, 20 pieces of 500 rollouts"""


def training(steps: int, seed: int, changes: Mapping[str, Any] | None = None) -> list[str]:
    """The words after ``mbrl`` that train, ``--out`` and ``--ray`` aside."""
    settings = {**TRAINING, **(changes or {})}
    return ["train", "mbpo-fast", f"--steps={steps}", f"--seed={seed}", *(f"--{k}={v}" for k, v in settings.items())]


def make_parser() -> Parser:
    """Its options."""
    parser = Parser(prog="mbrl bench faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/faults"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-faults"), help="where the runs lie; is emptied")
    parser.add_argument("--kinds", nargs="+", default=[*FAULTS], choices=[*FAULTS], help="what is lost (default: all)")
    parser.add_argument("--times", type=int, default=20, help="how often each (default: 20)")
    parser.add_argument("--per-run", type=int, default=PER_RUN, help=f"of them in one run (default: {PER_RUN})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"env steps of a run (default: {STEPS:,})")
    parser.add_argument("--seed", type=int, default=0, help="of the first run, and of its moments")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, then write ``summary.json`` and ``summary.md``; 1 where a run failed or differs."""
    options = make_parser().parse_args([*argv])
    for name in ("times", "per_run", "steps"):
        least = 5 * FURTHER if name == "steps" else 1
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')}", getattr(options, name), f"give {least} or more")
    shutil.rmtree(options.work, ignore_errors=True)
    runs: list[dict[str, Any]] = []
    for run in trials(options):
        runs.append(run)
        report(options, shlex.join(["mbrl", "bench", "faults", *argv]), runs)
    return finish([f"{run['name']}: {run['problem']}" for run in runs if run["problem"]])


def trials(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One run after the other; each seed's without Ray first."""
    with machines() as there:
        for number, first in enumerate(range(0, options.times, options.per_run)):
            seed, times = options.seed + number, min(options.per_run, options.times - first)
            reference = Driver(options.work / f"reference-{seed}", training(options.steps, seed), ray=[])
            if problem := reference.end():
                yield {"name": reference.run.name, "kind": "none", "problem": problem, "faults": [], "seconds": 0.0}
                continue
            for kind in options.kinds:
                yield one_run(kind, times, seed, there, reference.run, options)


def one_run(
    kind: str, times: int, seed: int, there: Any, reference: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """A run that loses something, and what is wrong with it in the end (None: nothing)."""
    began = time.monotonic()
    words = ["--ray", there.address]
    run = Driver(options.work / f"{kind}-{seed}", training(options.steps, seed), words)
    try:
        faults = suffer(kind, times, there, run, options.steps, random.Random(f"{kind} {seed}"))
        problem = run.end() or difference(run.run, reference)
    finally:
        if run.running:
            run.kill()
    short = f"it ended after {len(faults)} of {times} losses" if len(faults) < times else None
    seconds = round(time.monotonic() - began, 1)
    print(f"{run.run.name}: {len(faults)} losses, {seconds:.0f} s: {problem or short or 'the same'}", flush=True)
    found = [{k: v for k, v in asdict(fault).items() if k != "since"} for fault in faults]
    return {"name": run.run.name, "kind": kind, "problem": problem or short, "faults": found, "seconds": seconds}


def report(options: argparse.Namespace, command: str, runs: Sequence[dict[str, Any]]) -> None:
    """Write what was found so far."""
    options.out.mkdir(parents=True, exist_ok=True)
    config = {"steps": options.steps, "training": training(options.steps, options.seed)}
    about = {"benchmark": "faults", "command": command, "config": config, "machine": machine(), "versions": versions()}
    (options.out / "summary.json").write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
    (options.out / "summary.md").write_text("\n".join(lines_of(options, command, runs)) + "\n")


def lines_of(options: argparse.Namespace, command: str, runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The page."""
    yield f"# What a run loses when something is taken from it\n\n`{command}`\n"
    yield f"`mbpo-fast`, small, {options.steps:,} env steps in 4 environments; a cluster of a head and two nodes with 2"
    yield "CPUs each on one machine; 2 workers that imagine and 2 that play. The same: records but for wall-clock, the"
    yield "last checkpoint and the replay buffer equal those of the run without Ray, to the bit.\n"
    yield row(("lost", "times", "runs", "the same", "median s", "longest s"))
    yield row(("---", *["---:"] * 5))
    for kind in options.kinds:
        mine = [run for run in runs if run["kind"] == kind]
        seconds = [fault["progress_seconds"] for run in mine for fault in run["faults"]]
        there = [second for second in seconds if second is not None]
        middle = (f"{statistics.median(there):.1f}", f"{max(there):.1f}") if there else ("", "")
        yield row((kind, len(seconds), len(mine), sum(run["problem"] is None for run in mine), *middle))
    yield f"\nSeconds: from a loss until the run was {FURTHER} env steps further. Each loss stands in `summary.json`."
    for run in runs:
        if run["problem"]:
            yield f"\n**{run['name']}**: {run['problem']}"
