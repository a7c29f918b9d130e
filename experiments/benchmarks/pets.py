"""``mbrl bench pets``: PETS on its tasks beside its controls, and a table and a figure of what came out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence

from experiments.benchmarks._pets_report import write_report
from experiments.benchmarks._runs import add_options, finish, make_job, run_all
from experiments.compare.fleet import Job

TASKS = ("Pendulum-v1", "InvertedPendulum-v5", "mbrl/CartPoleSwingUp-v0", "Reacher-v5")
ONE_NET = ("members=1", "probabilistic=false")
NO_ORACLE = ("InvertedPendulum-v5", "Reacher-v5", "HalfCheetah-v5")
"""Simulating MuJoCo inside the planner takes an hour or more for 20 episodes."""
LABELS = ("pets", "oracle-mpc", "random", "one-net")


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and ``learning-curves.png``."""
    parser = argparse.ArgumentParser(prog="mbrl bench pets", description=__doc__)
    add_options(parser, "pets")
    parser.add_argument("--env", nargs="+", default=list(TASKS))
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--control-seeds", type=int, default=3)
    options = parser.parse_args(argv)
    failed = run_all(list(jobs(options)), options)
    write_report(options.out, shlex.join(["mbrl", "bench", "pets", *argv]))
    return finish(failed)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, the decisive ones first."""
    steps = [] if options.steps is None else ["--steps", str(options.steps)]
    for label in options.labels:
        for env in options.env:
            seeds = {"pets": options.seeds, "one-net": options.control_seeds, "random": options.seeds}.get(label, 1)
            seeds = 0 if label == "oracle-mpc" and env in NO_ORACLE else seeds
            for seed in range(seeds):
                yield make_job(
                    options, label, env, seed, ("train", *_recipe(label, steps), "--env", env, "--seed", str(seed))
                )


def _recipe(label: str, steps: Sequence[str]) -> tuple[str, ...]:
    if label == "pets":
        return ("pets", *steps)
    if label == "one-net":
        model = "--agent.init_args.model.init_args."
        options = [f"{model}{option}" for option in ONE_NET]
        return ("pets", *steps, *options, "--agent.init_args.planner.init_args.particles=1")
    return (label, "--steps", "0")
