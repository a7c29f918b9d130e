"""``mbrl bench hybrid``: a dataset of the real system and a simulator with other gravity, together and each alone.

The simulator of Pendulum has gravity 15, the real one 10; of HalfCheetah the simulator has twice the real gravity. All
agents make as many updates on batches of one size, are evaluated in the real system from the same starts, and are
judged by their last evaluation. The data of Pendulum is made here: 5,000 rows of a medium policy. That of HalfCheetah
is the set ``medium`` of `mbrl bench datasets`; ``--data-root`` says where its sets lie.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.benchmarks._pendulum_data import ENV as PENDULUM
from experiments.benchmarks._pendulum_data import add_data_options, collected, keep_facts, score
from experiments.benchmarks._runs import (
    add_options,
    finish,
    identity,
    make_job,
    need_dataset,
    row,
    run_all,
    write_summary,
)
from experiments.compare.fleet import Job
from experiments.metrics import read_records

CHEETAH = "HalfCheetah-v5"
LEVEL = "medium"
ALLOWED = 5.0
"""Per cent of the way from random to best that the hybrid may lack of the better of its two sources alone."""
BETA_0 = "--agent.learner.terms=[{class_path: SimulatedValues, init_args: {beta: 0}}]"
NO_WEIGHTS, NO_DATA = "--agent.weigh=false", "--agent.use_data=false"
OFFLINE = ("iql", "cql")
"""Learn from the data alone; the better of them is what the data is worth."""

SMALL = ("--agent.learner.hidden=64", "--agent.learner.lr=0.001")
AVERAGED = "--agent.learner.callbacks=[{class_path: PolicyAverage, init_args: {decay: 0.999}}]"
"""Evaluated with the mean of the policies of the last 1,000 updates or so: single ones come and go."""
BOUNDED = ("--agent.ratio.lr=0.003", "--agent.ratio.squash=2", "--agent.ratio.noise=1.0")
"""Scores bounded and inputs noisy, as released, but by 1 standard deviation and not 0.1. Pendulum has no noise of its
own, so sharp discriminators tell the two systems apart for certain, and nothing of the simulator is left."""


@dataclass(frozen=True)
class Course:
    """A task, its simulator, and who learns it."""

    simulator: Mapping[str, float]
    agents: tuple[str, ...]
    seeds: int
    updates: int
    settings: Mapping[str, tuple[str, ...]]
    """By recipe, what differs from it"""


COURSES: Mapping[str, Course] = {
    PENDULUM: Course(
        {"gravity": 15.0},
        ("h2o", "simulator-only", *OFFLINE, "h2o-no-weights", "h2o-beta-0", "h2o-neither", "real-only"),
        seeds=3,
        updates=40_000,
        settings={
            "h2o": (*SMALL, AVERAGED, *BOUNDED),
            "cql": (*SMALL, AVERAGED),
            "iql": SMALL,
        },
    ),
    CHEETAH: Course({"gravity": 2 * 9.81}, ("h2o", "simulator-only", "iql"), seeds=1, updates=20_000, settings={}),
}


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md`` and ``summary.json``."""
    parser = argparse.ArgumentParser(prog="mbrl bench hybrid", description=__doc__)
    add_options(parser, "hybrid")
    add_data_options(parser)
    parser.add_argument("--env", nargs="+", default=[PENDULUM], choices=list(COURSES))
    parser.add_argument("--labels", nargs="+", help="only these agents")
    parser.add_argument("--seeds", nargs="+", type=int, help="which, instead of 0, 1, 2 and of 0")
    options = parser.parse_args(argv)
    failed = []
    for env in options.env if not options.report_only else ():
        failed += run_course(env, options)
    write_report(options.out, shlex.join(["mbrl", "bench", "hybrid", *argv]))
    return finish(failed)


def run_course(env: str, options: argparse.Namespace) -> list[str]:
    """The data of a task where it is missing, then its runs; what went wrong, a line each."""
    data = dataset(env, options)
    keep_facts(data, env, options.out)
    return run_all(list(jobs(env, data, options)), options)


def dataset(env: str, options: argparse.Namespace) -> Path:
    """Where the rows of the real system lie.

    Raises:
        UserError: those of HalfCheetah are not there, or those of Pendulum cannot be made.
    """
    if env == PENDULUM:
        return collected(options, LEVEL, 5000)
    folder: Path = options.data_root.resolve() / env / f"{LEVEL}-v0"
    need_dataset(folder)
    return folder


def jobs(env: str, data: Path, options: argparse.Namespace) -> Iterator[Job]:
    """Every run of a task, seed by seed."""
    for seed in options.seeds if options.seeds is not None else range(COURSES[env].seeds):
        for label in COURSES[env].agents:
            if not options.labels or label in options.labels:
                yield make_job(options, label, env, seed, command(label, env, seed, data, options.steps))


def command(label: str, env: str, seed: int, data: Path, updates: int | None = None) -> tuple[str, ...]:
    """One run as typed."""
    course = COURSES[env]
    updates = updates or course.updates
    recipe = label if label in OFFLINE else "h2o"
    length = ("--steps", str(updates), f"--evaluation.every={max(1, updates // 4)}", f"--checkpoint.every={updates}")
    judged = ("--evaluation.episodes=20", "--evaluation.num_envs=20")
    own = (*course.settings.get(recipe, ()), *difference(label, course))
    return ("train", recipe, "--env", env, "--data", str(data), "--seed", str(seed), *length, *judged, *own)


def difference(label: str, course: Course) -> tuple[str, ...]:
    """What makes an agent of a recipe."""
    if label in OFFLINE:
        return ()
    simulator = f"--agent.simulator={json.dumps(course.simulator)}"
    real = f"--agent.simulator={json.dumps({})}"
    return {
        "h2o": (simulator,),
        "h2o-no-weights": (simulator, NO_WEIGHTS),
        "h2o-beta-0": (simulator, BETA_0),
        "h2o-neither": (simulator, NO_WEIGHTS, BETA_0),
        "simulator-only": (simulator, NO_DATA, BETA_0),
        "real-only": (real, NO_DATA, BETA_0),
    }[label]


# -- report ------------------------------------------------------------------------------------------------------------


def write_report(root: Path, command: str) -> None:
    """Write ``summary.md`` and ``summary.json`` from what is kept under ``root``."""
    lines, runs = [f"Made by `{command}`.", ""], []
    for path in sorted(root.glob("*/data.json")):
        facts: dict[str, Any] = json.loads(path.read_text())
        found = [summarise(each, facts) for each in sorted(path.parent.glob("*/seed*/metrics.jsonl"))]
        lines += [*table(facts, found), *verdict(found), ""]
        runs += found
    write_summary(root, command, runs, lines)


def summarise(metrics: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The last evaluation of a run, and what its discriminators said last."""
    records = list(read_records(metrics))
    curve = [record for record in records if record["event"] == "evaluation"]
    said = [record for record in records if record["event"] == "update"]
    last = curve[-1]
    return {
        **identity(metrics),
        "updates": last["updates"],
        "last": last["return_mean"],
        "score": score(last["return_mean"], facts),
        "curve": [(record["updates"], record["return_mean"]) for record in curve],
        "seconds": last["seconds"],
        **{name: said[-1].get(name) if said else None for name in ("simulated_weight", "gap")},
    }


COLUMNS = ("agent", "seeds", "return", "lowest", "highest", "score", "its weight of simulated rows", "its gap")


def table(facts: dict[str, Any], runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the data is, and a row an agent."""
    low, high = facts["references"]
    lines = [f"## {facts['env']}", ""]
    lines += [
        f"{facts['rows']:,} real rows in {facts['episodes']} episodes, of mean return {facts['return_mean']:,.0f}."
    ]
    lines += [f"Score: 0 is random actions ({low:,.0f}), 100 the best policy of the data's run ({high:,.0f})."]
    lines += ["Each run's last evaluation, 20 episodes in the real system from the same starts.", ""]
    lines += [row(COLUMNS), row("---" for _ in COLUMNS)]
    for label in [label for label in COURSES[facts["env"]].agents if any(run["label"] == label for run in runs)]:
        same = [run for run in runs if run["label"] == label]
        last = [run["last"] for run in same]
        cells = [label, len(same), *(f"{value:,.0f}" for value in (mean(last), min(last), max(last)))]
        cells += [f"{mean(run['score'] for run in same):.1f}", *(_mean(same, n) for n in ("simulated_weight", "gap"))]
        lines.append(row(cells))
    return lines


def _mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    known = [run[name] for run in runs if run[name] is not None]
    return f"{mean(known):.2f}" if known else "-"


def verdict(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the hybrid is at least as good as the better of its sources alone, but for :data:`ALLOWED`."""
    names = dict.fromkeys(run["label"] for run in runs)
    scores = {label: mean(run["score"] for run in runs if run["label"] == label) for label in names}
    alone = {label: scores[label] for label in ("simulator-only", *OFFLINE) if label in scores}
    if "h2o" not in scores or not alone:
        return []
    best = max(alone, key=lambda label: alone[label])
    short = alone[best] - scores["h2o"]
    said = f"h2o: score {scores['h2o']:.1f}; the better source alone, {best}: {alone[best]:.1f}."
    return ["", f"{said} Goal: at most {ALLOWED:.0f} less: {'yes' if short <= ALLOWED else 'NO'}"]
