"""``mbrl bench continual-online``: sequences learned from scratch, interaction included, by every way to remember.

Env steps include the random ones that each task begins with. After each task all tasks so far are played from the same
starts by all agents. `random` gives the score 0 and `hypercrl-single`, a network for each task, the score 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.benchmarks._continual_report import write_report
from experiments.benchmarks._runs import add_options, finish, make_job, run_all
from experiments.compare.fleet import Job


@dataclass(frozen=True)
class Course:
    """A sequence, by whom it is learned, and what differs from the recipes."""

    agents: tuple[str, ...]
    seeds: int
    steps: int
    """Env steps of each task."""
    order: tuple[int, ...]
    settings: tuple[str, ...] = ()
    """What differs from the recipes, of all agents that learn."""


CONTROLS = ("random", "hypercrl-single")
COURSES: Mapping[str, Course] = {
    "tasks:pendulum-five": Course(
        (
            "hypercrl",
            "hypercrl-finetune",
            "hypercrl-coreset",
            "hypercrl-ewc",
            "hypercrl-si",
            "hypercrl-progressive",
            "hypercrl-oracle",
            *CONTROLS,
        ),
        seeds=3,
        steps=1200,
        order=(0, 1, 2, 3, 4),
    ),
    "tasks:cartpole-lengths": Course(
        ("hypercrl", "hypercrl-finetune", "hypercrl-oracle", *CONTROLS),
        seeds=2,
        steps=800,
        order=(0, 1, 2, 3, 4),
        settings=("--agent.model.hidden=64",),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and the figures."""
    parser = argparse.ArgumentParser(prog="mbrl bench continual-online", description=__doc__)
    add_options(parser, "continual-online")
    parser.add_argument("--env", nargs="+", default=list(COURSES), choices=list(COURSES))
    parser.add_argument("--labels", nargs="+", help="only these agents")
    parser.add_argument("--seeds", type=int, help="instead of 3 and 2")
    options = parser.parse_args(argv)
    failed = run_all(list(jobs(options)), options)
    write_report(options.out, shlex.join(["mbrl", "bench", "continual-online", *argv]))
    return finish(failed)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, seed by seed."""
    for seed in range(options.seeds or max(course.seeds for course in COURSES.values())):
        for env in options.env:
            course = COURSES[env]
            if seed >= (options.seeds or course.seeds):
                continue
            for label in course.agents:
                if options.labels and label not in options.labels:
                    continue
                yield make_job(options, label, env, seed, command(label, env, seed, options.steps))


def command(label: str, env: str, seed: int, steps: int | None = None) -> tuple[str, ...]:
    """One run as typed; ``steps`` of each task instead of the benchmark's."""
    course = COURSES[env]
    each = steps or course.steps
    length = f"--steps={each * len(course.order)}" if label == "random" else f"--tasks.steps={each}"
    order = f"--tasks.order={json.dumps(course.order)}"
    judged = ("--evaluation.episodes=10", "--evaluation.num_envs=10")
    settings = () if label == "random" else course.settings
    return ("train", label, "--env", env, "--seed", str(seed), length, order, *settings, *judged)
