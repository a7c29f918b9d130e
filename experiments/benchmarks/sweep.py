"""``mbrl bench sweep``: a sweep with pruning whose process is killed (SIGKILL) again and again, and is called again.

Afterwards every trial must be finished or pruned exactly once: nothing lost, nothing done twice, what the ledger says
bit for bit what the runs' own records say. The best trial is then run alone, by the command that the sweep prints, and
must give every evaluation that it gave in the sweep.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks._runs import row, write_summary
from experiments.checkpoint import CheckpointStore
from experiments.compare.fleet import environment
from experiments.metrics import comparable, read_records, steps_of
from experiments.sweep.ledger import Ledger
from mbrl import seeding

SWEEP = (
    "sac-fast --env Pendulum-v1 --param agent.learner.lr=log(1e-4,1e-2) agent.learner.hidden=[16,32,64]"
    " agent.learner.gamma=uniform(0.9,0.999) --agent.learner.compile=false --agent.updates_per_step=4"
    " --agent.warmup_steps=300"
)
LINES = (2, 18)
"""A process is killed when it has written so many lines to the ledger, at random, and up to a second later"""
PATIENCE_SECONDS = 1800.0
"""Longest time without a new line"""


def main(argv: Sequence[str]) -> int:
    """Run the sweep to its end whatever kills it, look at what is there, and write ``summary.md``."""
    parser = argparse.ArgumentParser(prog="mbrl bench sweep", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/sweep"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-sweep"), help="where the sweep lies")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the sweep, and of the moments of the kills")
    options = parser.parse_args(argv)
    root: Path = options.work / "sweep"
    if options.work.exists():
        shutil.rmtree(options.work)
    began = time.monotonic()
    kills, problems = sweep_and_kill(words_of(options, root), root, options.kills, options.seed)
    seconds = time.monotonic() - began
    problems += audit(root, options.trials)
    if (
        len({json.dumps(dict(trial.params)) for trial in Ledger(root / "ledger.jsonl").trials.values()})
        < options.trials
    ):
        problems.append("two trials have the same settings")
    best = alone(root, options.work / "alone") if not problems else {}
    problems += [] if best.get("equal") else ["the best trial alone is not what it was in the sweep"]
    write_report(options, shlex.join(["mbrl", "bench", "sweep", *argv]), kills, problems, best, seconds)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def words_of(options: argparse.Namespace, root: Path) -> list[str]:
    """The words after ``mbrl``."""
    numbers = {name: getattr(options, name) for name in ("trials", "steps", "processes", "seed")}
    numbers |= {"grace": options.steps // 5, "evaluation.every": options.steps // 10}
    return ["sweep", *SWEEP.split(), *(f"--{name}={value}" for name, value in numbers.items()), "--out", str(root)]


# ---- killing


def sweep_and_kill(words: Sequence[str], root: Path, kills: int, seed: int) -> tuple[list[int], list[str]]:
    """Call the sweep until it ends by itself, with ``kills`` on the way; lines at each, and what went wrong."""
    generator = seeding.generator(seed, "kills")
    ledger, killed, problems = root / "ledger.jsonl", list[int](), list[str]()
    while True:
        before = ledger.read_bytes() if ledger.exists() else b""
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *words], env=environment(), start_new_session=True
        )
        try:
            if len(killed) < kills:
                count = int(torch.randint(*LINES, (), generator=generator))
                if _wait_for_lines(process, ledger, count_lines(before) + count):
                    time.sleep(float(torch.rand((), generator=generator)))
            else:
                process.wait()
        finally:
            ended = process.poll() is not None
            kill_session(process)
        if not ledger.exists() or not ledger.read_bytes().startswith(before[: before.rfind(b"\n") + 1]):
            problems.append(f"lines of the ledger were lost after kill {len(killed)}")
        if ended:
            return killed, problems + ([f"the sweep ended with {process.returncode}"] if process.returncode else [])
        killed.append(count_lines(ledger.read_bytes()))
        print(f"killed at line {killed[-1]} of the ledger", flush=True)


def _wait_for_lines(process: subprocess.Popen[bytes], ledger: Path, count: int) -> bool:
    """Whether there are so many lines before the process ends."""
    until, seen = time.monotonic() + PATIENCE_SECONDS, 0
    while process.poll() is None and time.monotonic() < until:
        lines = count_lines(ledger.read_bytes()) if ledger.exists() else 0
        if lines >= count:
            return True
        if lines > seen:
            until, seen = time.monotonic() + PATIENCE_SECONDS, lines
        time.sleep(0.05)
    return False


def count_lines(data: bytes) -> int:
    """Whole lines."""
    return data.count(b"\n")


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process, and after it what Ray leaves of its own for a while."""
    leader.kill()
    leader.wait()
    until = time.monotonic() + 2.0
    while (left := list(members(leader.pid))) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def members(session: int) -> Iterator[int]:
    """Processes of a session that still run (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(folder.name)


# ---- looking at what is there


def audit(root: Path, trials: int) -> list[str]:
    """Everything that is not as a sweep must be that was never killed; nothing is the good case."""
    problems = list[str]()
    ledger = Ledger(root / "ledger.jsonl")
    told = json.loads((root / "summary.json").read_text())["trials"]
    if [*ledger.trials] != [*range(trials)] or len(told) != trials:
        problems.append(f"there are trials {[*ledger.trials]}, and {trials} were asked for")
    for number, entry in enumerate(told):
        lines = [line for line in ledger.lines if line["trial"] == number]
        problems += [f"{entry['trial']}: {problem}" for problem in _of_trial(lines, root / entry["folder"])]
    return problems


def _of_trial(lines: Sequence[dict[str, Any]], run: Path) -> Iterator[str]:
    if [line for line in lines if "params" in line] != lines[:1]:
        yield "it was not suggested exactly once"
    ends = [line.get("verdict") in ("prune", "finish") for line in lines]
    if sum(ends) != 1 or not ends[-1]:
        yield f"it ended {sum(ends)} times"
    reports = [(line["steps"], line["value"]) for line in lines[1:] if "steps" in line]
    records = [record for record in read_records(run / "metrics.jsonl") if record["event"] == "evaluation"]
    seen = [(steps_of(record), record["return_mean"]) for record in records]
    if reports != seen:
        yield f"the ledger has {reports}, the run itself {seen}"
    found = CheckpointStore(run / "checkpoints").found()
    if not found or found[-1].env_steps != reports[-1][0]:
        yield f"its last checkpoint is not at {reports[-1][0]}"


def in_own_process(words: Sequence[str]) -> None:
    """Run ``mbrl`` with these words."""
    subprocess.run([sys.executable, "-m", "experiments.cli", *words], env=environment(), check=True)


def alone(root: Path, out: Path, run: Callable[[list[str]], object] = in_own_process) -> dict[str, Any]:
    """The best trial, run by the command that the sweep tells; ``equal``: each of its records is the same."""
    told = json.loads((root / "summary.json").read_text())
    best: dict[str, Any] = told["best"]
    words = shlex.split(best["command"])[1:-1]  # its --out is another one here
    run([*words, str(out), "--quiet"])
    folder = next(entry["folder"] for entry in told["trials"] if entry["trial"] == best["trial"])
    there, here = ([comparable(r) for r in read_records(at / "metrics.jsonl")] for at in (root / folder, out))
    return {**best, "equal": there == here, "records": len(here), "alone": here[-1]["return_mean"]}


# ---- the report


def write_report(
    options: argparse.Namespace,
    command: str,
    kills: Sequence[int],
    problems: Sequence[str],
    best: dict[str, Any],
    seconds: float,
) -> None:
    """``summary.json`` and ``summary.md``; the sweep's own files beside them."""
    trials = json.loads((options.work / "sweep" / "summary.json").read_text())["trials"]
    states = [entry["state"] for entry in trials]
    steps = sum(entry["env_steps"] for entry in trials)
    figures: dict[str, Any] = {
        "trials": len(trials),
        "finished": states.count("finished"),
        "pruned": states.count("pruned"),
        "kills, at these lines of the ledger": f"{len(kills)}: {', '.join(map(str, kills))}",
        "problems": len(problems),
        "env steps, and of as many whole runs": f"{steps:,}, {len(trials) * options.steps:,}",
        "best trial": best.get("trial"),
        "its metric in the sweep": best.get("value"),
        "its metric alone": best.get("alone"),
        "records of both, and whether they are equal": f"{best.get('records')}, {best.get('equal')}",
    }
    lines = [f"`{command}`\n", row(["what", "measured"]), "|---|---|", *(row(pair) for pair in figures.items())]
    run = {**figures, "problems": list(problems), "seconds": round(seconds, 1), "best": best}
    write_summary(options.out, command, [run], lines)
    for name in ("ledger.jsonl", "sweep.md", "sweep.yaml"):
        shutil.copy(options.work / "sweep" / name, options.out / name)
    print("\n".join(lines))
