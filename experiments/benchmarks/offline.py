"""``mbrl bench offline``: agents that learn from data alone, on the sets of ``mbrl bench datasets``, in D4RL's layout.

Recipes are run as they are, but for what ``OF_DATA`` names: 30,000 gradient steps, networks of the same width; the last
evaluation counts. Scores are 0 for uniformly random actions, 100 for the best policy of the run that the data is from.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks._offline_report import write_report
from experiments.benchmarks._runs import add_options, finish, make_job, need_dataset, run_all
from experiments.compare.fleet import Job

MODEL_BASED, MODEL_FREE = ("mopo", "mobile", "ravl"), ("bc", "td3bc", "iql")
MAIN = (*MODEL_BASED, *MODEL_FREE)
OTHERS = ("morec-mopo", "morec-mobile", "combo", "rambo", "edac", "cql")


@dataclass(frozen=True)
class Course:
    """A dataset, and how many seeds of which agents learn from it."""

    data: str
    """Below the folder of sets"""
    seeds: int
    others: bool = False
    """Whether the agents of one seed on one dataset learn from it"""


COURSES: Mapping[str, Course] = {
    "hopper-medium": Course("Hopper-v5/medium-v0", 3),
    "hopper-medium-replay": Course("Hopper-v5/medium-replay-v0", 3, others=True),
    "halfcheetah-medium": Course("HalfCheetah-v5/medium-v0", 1),
}
PENALTY = "--agent.filters=[{class_path: UncertaintyPenalty, init_args: {kind: largest_std, weight: 3.0}}]"
OF_DATA: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "hopper-medium-replay": {
        "mopo": (PENALTY,),
        "morec-mopo": (PENALTY,),
        "mobile": ("--agent.penalty.weight=1.0",),
        "morec-mobile": ("--agent.penalty.weight=1.0",),
    }
}
"""What differs from the recipes where the data covers more: published weights are lower there too. Those of ``mopo``
and ``mobile`` were tried on seeds that are not in the table."""
KEPT_EVERY = ("--checkpoint.every=10000",)


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and ``scores.png``."""
    parser = argparse.ArgumentParser(prog="mbrl bench offline", description=__doc__)
    add_options(parser, "offline")
    parser.add_argument("--data-root", type=Path, default=Path("runs/bench-datasets/data"))
    parser.add_argument("--courses", nargs="+", default=list(COURSES), choices=list(COURSES))
    parser.add_argument("--labels", nargs="+", help="only these agents")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    options = parser.parse_args(argv)
    for name in () if options.report_only else options.courses:
        need_dataset(options.data_root / COURSES[name].data)
    failed = run_all(list(jobs(options)), options)
    write_report(options.out, shlex.join(["mbrl", "bench", "offline", *argv]), MODEL_BASED, MODEL_FREE)
    return finish(failed)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, seed by seed."""
    most = max(course.seeds for course in COURSES.values())
    for seed in options.seeds or range(most):
        for name in options.courses:
            course = COURSES[name]
            once = OTHERS if course.others and seed == 0 else ()
            labels = (MAIN if seed < course.seeds or seed >= most else ()) + once
            for label in labels:
                if options.labels is None or label in options.labels:
                    yield make_job(options, label, name, seed, command(label, name, seed, options))


def command(label: str, name: str, seed: int, options: argparse.Namespace) -> tuple[str, ...]:
    """One run as typed."""
    data = ("--data", str(options.data_root / COURSES[name].data))
    length = () if options.steps is None else ("--steps", str(options.steps))
    own = OF_DATA.get(name, {}).get(label, ())
    return ("train", label, *data, "--seed", str(seed), *length, *KEPT_EVERY, *own)
