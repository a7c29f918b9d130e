"""``mbrl bench semi-supervised``: data of which a tenth has actions, and what predicted ones are worth.

The data is all that a training run on Pendulum stored. Of a tenth of its episodes, drawn from the worst quarter,
the actions are known; windowed inverse dynamics predict the others, and IQL learns from all rows. Beside it: all
actions known, and the tenth alone. The same data without the angular velocity shows what the window is for: how much of
the hidden actions inverse dynamics explain, by window.
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

from experiments.benchmarks._pendulum_data import (
    ENV,
    HIDDEN,
    add_data_options,
    collected,
    keep_facts,
    score,
    without_speed,
)
from experiments.benchmarks._runs import add_options, finish, identity, make_job, row, run_all, write_summary
from experiments.compare.fleet import Job
from experiments.metrics import read_records

SEEN, UNSEEN = ENV, "Pendulum-without-speed"
UPDATES = 4000
WINDOWS = (0, 1, 2)
LEVEL = "full-replay"
ENOUGH = 0.85
"""Share of the fully labelled score that proxies must reach."""
GAIN = 0.5
"""What a window of 2 must explain of the actions beyond a window of 0, where the velocity is hidden."""
IQL = ("--agent.learner.hidden=64", "--agent.learner.lr=0.001")
LABELS_ONLY = 50
"""Updates of runs that are made for the labels alone."""


@dataclass(frozen=True)
class Agent:
    """A recipe, what differs from it, and whether a policy is to be learned."""

    recipe: str
    settings: tuple[str, ...] = ()
    learns: bool = True


ALL, PROXIES, ALONE = "all-labels", "ss-orl", "tenth-alone"
POOR = "--agent.lowest=0.25"
"""The tenth comes from the worst quarter (published: the worse half), or it would be enough alone"""
AGENTS: Mapping[str, Mapping[str, Agent]] = {
    SEEN: {
        ALL: Agent("iql"),
        PROXIES: Agent("ss-orl", (POOR,)),
        ALONE: Agent("ss-orl", (POOR, "--agent.proxies=false")),
    },
    UNSEEN: {ALL: Agent("iql")}
    | {f"window-{k}": Agent("ss-orl", (f"--agent.inverse.window={k}",), learns=False) for k in WINDOWS},
}


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write ``summary.md`` and ``summary.json``."""
    parser = argparse.ArgumentParser(prog="mbrl bench semi-supervised", description=__doc__)
    add_options(parser, "semi-supervised")
    add_data_options(parser)
    parser.add_argument("--labels", nargs="+", help="only these agents")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="which")
    options = parser.parse_args(argv)
    failed = [] if options.report_only else run_course(options)
    write_report(options.out, shlex.join(["mbrl", "bench", "semi-supervised", *argv]))
    return finish(failed)


def run_course(options: argparse.Namespace) -> list[str]:
    """The data where it is missing, then the runs; what went wrong, a line each."""
    seen = collected(options, LEVEL, None)
    data = {SEEN: seen, UNSEEN: without_speed(seen)}
    for name, folder in data.items():
        keep_facts(folder, name, options.out)
    return run_all(list(jobs(data, options)), options)


def jobs(data: Mapping[str, Path], options: argparse.Namespace) -> Iterator[Job]:
    """Every run, seed by seed."""
    for seed in options.seeds:
        for name, agents in AGENTS.items():
            for label in [label for label in agents if not options.labels or label in options.labels]:
                words = command(name, label, seed, data[name], options.steps or UPDATES)
                yield make_job(options, label, name, seed, words)


def command(name: str, label: str, seed: int, data: Path, updates: int) -> tuple[str, ...]:
    """One run as typed."""
    agent, env = AGENTS[name][label], ENV if name == SEEN else HIDDEN
    updates = updates if agent.learns else min(updates, LABELS_ONLY)
    length = ("--steps", str(updates), f"--evaluation.every={max(1, updates // 3)}", f"--checkpoint.every={updates}")
    judged = ("--evaluation.episodes=20", "--evaluation.num_envs=20")
    own = (*length, *judged, *IQL, *agent.settings)
    return ("train", agent.recipe, "--env", env, "--data", str(data), "--seed", str(seed), *own)


# -- report ------------------------------------------------------------------------------------------------------------


def write_report(root: Path, command: str) -> None:
    """Write ``summary.md`` and ``summary.json`` from what is kept under ``root``."""
    lines, runs = [f"Made by `{command}`.", ""], []
    for name in [name for name in AGENTS if (root / name / "data.json").is_file()]:
        facts: dict[str, Any] = json.loads((root / name / "data.json").read_text())
        paths = [path for label in AGENTS[name] for path in sorted((root / name / label).glob("seed*/metrics.jsonl"))]
        found = [summarise(path, facts) for path in paths]
        lines += [
            *about(facts),
            *table(name, found),
            *(verdict(found) if name == SEEN else verdict_of_windows(found)),
            "",
        ]
        runs += found
    write_summary(root, command, runs, lines)


def summarise(metrics: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The last evaluation of a run that learned a policy, and how good its labels are."""
    records = list(read_records(metrics))
    last = [record for record in records if record["event"] == "evaluation"][-1]
    fits = [record for record in records if record["event"] == "fit"]
    run = identity(metrics) | {"updates": last["updates"], "seconds": last["seconds"]}
    if AGENTS[run["env"]][run["label"]].learns:
        run |= {"last": last["return_mean"], "score": score(last["return_mean"], facts)}
    return run | {name: fits[-1].get(name) if fits else None for name in ("labelled_rows", "label_r2")}


def about(facts: dict[str, Any]) -> list[str]:
    """What the data is."""
    low, high = facts["references"]
    lines = [f"## {facts['env']}", ""]
    lines += [f"{facts['rows']:,} rows in {facts['episodes']} episodes, of mean return {facts['return_mean']:,.0f}."]
    lines += [f"Score: 0 is random actions ({low:,.0f}), 100 the best policy of the data's run ({high:,.0f})."]
    return [*lines, "Each run's last evaluation, 20 episodes from the same starts; R^2 is of the hidden actions.", ""]


COLUMNS = ("agent", "seeds", "return", "lowest", "highest", "score", "R^2 of labels", "lowest")


def table(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """A row an agent."""
    lines = [row(COLUMNS), row("---" for _ in COLUMNS)]
    for label in [label for label in AGENTS[name] if any(run["label"] == label for run in runs)]:
        same = [run for run in runs if run["label"] == label]
        last = [run["last"] for run in same if "last" in run]
        explained = [run["label_r2"] for run in same if run["label_r2"] is not None]
        cells = [f"{value:,.0f}" for value in (mean(last), min(last), max(last))] if last else ["-"] * 3
        cells += [f"{mean(run['score'] for run in same):.1f}" if last else "-"]
        cells += [f"{value:.3f}" for value in (mean(explained), min(explained))] if explained else ["-"] * 2
        lines.append(row([label, len(same), *cells]))
    return lines


def verdict(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Whether proxies come within 15 % of all labels, and the tenth alone does not."""
    scores = {name: [run["score"] for run in runs if run["label"] == name] for name in (ALL, PROXIES, ALONE)}
    if not scores[ALL] or not scores[PROXIES]:
        return []
    whole, ours = mean(scores[ALL]), mean(scores[PROXIES])
    yes = "yes" if ours >= ENOUGH * whole else "NO"
    lines = [
        "",
        f"Proxies reach {100 * ours / whole:.1f} % of the score of all labels (goal: {100 * ENOUGH:.0f}): {yes}.",
    ]
    if scores[ALONE]:
        lines += [f"The tenth alone, the control, reaches {100 * mean(scores[ALONE]) / whole:.1f} %."]
    return lines


def verdict_of_windows(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the window explains what one state cannot, and whether a policy can do without the velocity."""
    explained = {k: [run["label_r2"] for run in runs if run["label"] == f"window-{k}"] for k in (0, 2)}
    if not explained[0] or not explained[2]:
        return []
    gain = mean(explained[2]) - mean(explained[0])
    yes = "yes" if gain > GAIN else "NO"
    lines = ["", f"A window of 2 explains {gain:.2f} more of the hidden actions than one of 0 (goal: {GAIN}): {yes}."]
    if found := [run["score"] for run in runs if run["label"] == ALL]:
        lines += [
            f"With every true label IQL has a score of {mean(found):.1f} there: its policy sees one state at a time."
        ]
    return lines
