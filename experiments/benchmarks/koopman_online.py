"""``mbrl bench koopman-online``: Koopman models that learn while they act, beside PETS and its ensemble.

All agents of a task see the same evaluation starts at the same env steps; env steps include the warm-up.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

from experiments.benchmarks._curves_report import write_report
from experiments.benchmarks._runs import add_options, finish, make_job, run_all
from experiments.compare.fleet import Job

LABELS = ("koopman-edmd", "koopman-mpc", "pets")
TASKS: Mapping[str, tuple[int, int]] = {"Pendulum-v1": (1500, 300), "mbrl/CartPoleSwingUp-v0": (4000, 1000)}
"""Task -> env steps, env steps between evaluations."""


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and ``learning-curves.png``."""
    parser = argparse.ArgumentParser(prog="mbrl bench koopman-online", description=__doc__)
    add_options(parser, "koopman-online")
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(argv)
    failed = run_all(list(jobs(options)), options)
    write_report(options.out, shlex.join(["mbrl", "bench", "koopman-online", *argv]))
    return finish(failed)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, seed by seed."""
    for seed in range(options.seeds):
        for env in options.env:
            steps, every = TASKS[env]
            judged = [f"--evaluation.every={every}", "--evaluation.episodes=10", "--evaluation.num_envs=10"]
            for label in options.labels:
                run = ["train", label, "--env", env, "--seed", str(seed), "--steps", str(options.steps or steps)]
                yield make_job(options, label, env, seed, (*run, *judged))
