"""``mbrl bench dyna``: learning inside a model beside the same learner without one, and beside library baselines.

All agents of a task see the same evaluation starts at the same env steps; env steps include the warm-up.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

from experiments.benchmarks._curves_report import write_report
from experiments.benchmarks._runs import add_options, finish, make_job, run_all
from experiments.compare.fleet import Job

UTD_1 = ("--agent.init_args.updates_per_step=1",)
AVERAGED = "--agent.init_args.learner.init_args.callbacks=[{class_path: PolicyAverage, init_args: {decay: 0.9998}}]"
"""Evaluated with the mean of the policies of the last 500 env steps or so."""
GAMMA = "--agent.init_args.learner.init_args.gamma="
AGENTS: Mapping[str, tuple[str, ...]] = {
    "mbpo-fast": ("mbpo-fast",),
    "mbpo-mpc": ("mbpo-mpc",),
    "pets": ("pets",),
    "sac-utd10": ("sac-fast",),
    "sac-utd1": ("sac-fast", *UTD_1),
    "sb3-sac": ("sb3-sac",),
    "sb3-tqc": ("sb3-tqc",),
    "sb3-crossq": ("sb3-crossq",),
    "mbpo-fast-0.99": ("mbpo-fast", GAMMA + "0.99"),
    "sac-utd10-0.99": ("sac-fast", GAMMA + "0.99"),
    "mbpo-fast-averaged": ("mbpo-fast", AVERAGED),
    "sac-utd10-averaged": ("sac-fast", AVERAGED),
    "sb3-sac-0.997": ("sb3-sac", "--agent.init_args.kwargs.gamma=0.997"),
}
"""Label -> recipe and overrides. ``sac-fast`` is the learner of ``mbpo-fast`` at the same sizes, without a model."""
PLANNING = ("mbpo-mpc", "pets")
"""Agents that plan: an evaluation takes minutes, so they get a fifth as many."""
OTHER_DISCOUNT = ("sb3-sac-0.997", "mbpo-fast-0.99", "sac-utd10-0.99")
AVERAGES = ("mbpo-fast-averaged", "sac-utd10-averaged")
HOPPER = ("mbpo-fast", "mbpo-mpc", "sac-utd10", "sb3-sac", "sb3-tqc", "sb3-crossq", *OTHER_DISCOUNT, *AVERAGES)
"""``mbpo-fast`` and ``sac-fast`` discount by 0.997 there; what that changes is shown beside it."""
TASKS: Mapping[str, tuple[tuple[str, ...], int, int, int]] = {
    "InvertedPendulum-v5": (("mbpo-fast", "sac-utd10", "sac-utd1", "sb3-sac"), 3, 3000, 250),
    "Hopper-v5": (HOPPER, 2, 15_000, 1000),
    "CartPole-v1": (("mbpo-fast", "pets", "sac-utd10"), 2, 3000, 500),
    "Acrobot-v1": (("mbpo-fast", "pets", "sac-utd10"), 2, 2500, 500),
    "HalfCheetah-v5": (("mbpo-fast", "mbpo-mpc", "pets", "sac-utd10", "sb3-sac"), 2, 10_000, 1000),
}
"""Task -> agents, seeds, env steps, env steps between evaluations."""


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md``, ``summary.json`` and ``learning-curves.png``."""
    parser = argparse.ArgumentParser(prog="mbrl bench dyna", description=__doc__)
    add_options(parser, "dyna")
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--labels", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, help="seeds, instead of the task's number")
    options = parser.parse_args(argv)
    failed = run_all(list(jobs(options)), options)
    write_report(options.out, shlex.join(["mbrl", "bench", "dyna", *argv]))
    return finish(failed)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run of the benchmark, seed by seed."""
    for env in options.env:
        labels, seeds, steps, every = TASKS[env]
        steps = options.steps or steps
        for seed in range(options.seeds or seeds):
            for label in [label for label in labels if label in options.labels]:
                run = ["train", *AGENTS[label], "--env", env, "--seed", str(seed), "--steps", str(steps)]
                rate = every * 5 if label in PLANNING else every
                judged = [f"--evaluation.every={rate}", "--evaluation.episodes=5", "--evaluation.num_envs=5"]
                yield make_job(options, label, env, seed, (*run, *judged))
