"""``mbrl bench two-hosts``: one run over two hosts whose link is cut, for a while or for good.

The hosts are network namespaces of one machine with a Ray node each; the run's own process is on the head's. It has to
end with the data of the same run without Ray, or to say what is wrong. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks._cluster import FURTHER, Driver, difference, wait_until, worker_of
from experiments.benchmarks._hosts import FAR, HEAD, Hosts, hosts
from experiments.benchmarks._runs import finish, row
from experiments.benchmarks._timing import machine
from experiments.benchmarks.faults import STEPS, training
from experiments.cli import Parser
from experiments.run import versions

QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 1000}
"""Of Ray: a node that does not answer five times in a row is dead; else it is asked every 3 s, and waited for 10"""
LONGEST = 400.0


@dataclass(frozen=True)
class Case:
    """What happens to the link."""

    seconds: float | None
    """For how long it is cut; None is for good"""
    cpus: tuple[int, int] = (2, 2)
    """Of the head and of the far host"""
    settings: Mapping[str, int] = field(default_factory=dict)
    """Of Ray"""
    same: bool = True
    """Whether the run can end; without, it has to say why not"""


CASES = {
    "not cut": Case(0.0),
    "5 s": Case(5.0),
    "75 s": Case(75.0),
    "for good": Case(None),
    "for good, quick health checks": Case(None, settings=QUICK),
    "for good, no room on the head": Case(None, cpus=(0, 2), same=False),
}


def make_parser() -> Parser:
    """Its options."""
    parser = Parser(prog="mbrl bench two-hosts", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/two-hosts"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-two-hosts"), help="where runs lie; is emptied")
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES], help="how the link is cut")
    parser.add_argument("--seed", type=int, default=0, help="of the run, and of the moments")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the benchmark, then write ``summary.json`` and ``summary.md``; 1 where a run failed or differs."""
    options = make_parser().parse_args([*argv])
    with hosts(cpus=(0, 0)):
        pass  # where this cannot be, it is said before anything is run
    shutil.rmtree(options.work, ignore_errors=True)
    reference = Driver(options.work / "reference", training(STEPS, options.seed), ray=[])
    if problem := reference.end():
        return finish([f"without Ray: {problem}"])
    found: list[dict[str, Any]] = []
    for name in options.cases:
        found.append(one_case(name, CASES[name], reference.run, options))
        report(options, shlex.join(["mbrl", "bench", "two-hosts", *argv]), found)
    return finish([f"{case['name']}: {case['problem']}" for case in found if case["problem"]])


def one_case(name: str, case: Case, reference: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A run whose link is cut in its middle third."""
    moment = random.Random(f"{name} {options.seed}")
    with hosts(case.cpus, case.settings) as there:
        words = ["--ray", there.address]
        place = options.work / name.replace(" ", "-").replace(",", "")
        run = Driver(place, training(STEPS, options.seed), words, there.inside(HEAD))
        try:
            record = cut(run, there, case, int(moment.uniform(0.3, 0.6) * STEPS))
            said = run.end(LONGEST)
        finally:
            if run.running:
                run.kill()
    problem = judge(said, case, run.run, reference)
    record |= {"name": name, "problem": problem, "said": said, "run_seconds": since(record.pop("began"))}
    print(f"{name}: {record['gone_on_seconds']} s until it went on; {problem or said or 'the same'}", flush=True)
    return record


def cut(run: Driver, there: Hosts, case: Case, env_steps: int) -> dict[str, Any]:
    """Cut the link at ``env_steps``, and restore it in time; what was on the far host, and when the run went on."""
    began = time.monotonic()
    run.reach(env_steps)
    beyond = [str(worker) for worker in map(worker_of, there.processes(FAR)) if worker]
    cut_at, at = time.monotonic(), run.env_steps
    gone_on: list[float] = []

    def goes_on() -> bool:
        if not gone_on and run.env_steps >= at + FURTHER:
            gone_on.append(since(cut_at))
        return bool(gone_on)

    if case.seconds != 0.0:
        there.cut()
    if case.seconds:
        wait_until(lambda: goes_on() and False, case.seconds)
        there.restore()
    restored = run.running if case.seconds else None
    wait_until(goes_on, LONGEST, lambda: not run.running)
    return {
        "env_steps": at,
        "beyond": beyond,
        "cut_seconds": case.seconds,
        "restored_while_it_ran": restored,
        "settings": {**case.settings},
        "gone_on_seconds": gone_on[0] if gone_on else None,
        "ended_seconds": None if gone_on else since(cut_at),
        "began": began,
    }


def since(moment: float) -> float:
    """Seconds."""
    return round(time.monotonic() - moment, 2)


def judge(said: str | None, case: Case, run: Path, reference: Path) -> str | None:
    """What is not as it has to be."""
    if case.same:
        return said or difference(run, reference)
    if said is None:
        return difference(run, reference)
    clear = said.startswith("exit code 2") and said.count("error: ") == 1
    return None if clear else f"no clear error: {said}"


def report(options: argparse.Namespace, command: str, found: Sequence[dict[str, Any]]) -> None:
    """Write what was found so far."""
    options.out.mkdir(parents=True, exist_ok=True)
    config = {"steps": STEPS, "training": training(STEPS, options.seed)}
    about: dict[str, Any] = {"benchmark": "two-hosts", "command": command, "config": config, "machine": machine()}
    about = {**about, "versions": versions(), "cases": [*found]}
    (options.out / "summary.json").write_text(json.dumps(about, indent=1) + "\n")
    (options.out / "summary.md").write_text("\n".join(lines_of(command, found)) + "\n")


def lines_of(command: str, found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The page."""
    yield f"# One run over two hosts whose link is cut\n\n`{command}`\n"
    yield "Two network namespaces of one machine, a Ray node in each, one file system; the run's process is on the"
    yield "head's. The same: records but for wall-clock, the last checkpoint and the replay buffer equal those of the"
    yield "run without Ray, to the bit.\n"
    yield row(("link cut", "workers beyond it", "s until the run went on", "end"))
    yield row(("---", "---:", "---:", "---"))
    for case in found:
        end = case["problem"] or (case["said"] or "the same").rpartition("error: ")[2]
        gone_on = case["gone_on_seconds"] if case["gone_on_seconds"] is not None else "never"
        yield row((case["name"], len(case["beyond"]), gone_on, " ".join(end.split()).replace("|", "/")))
    yield f"\nSeconds: from the cut until the run was {FURTHER} env steps further."
    yield f"\nQuick health checks: `ray start --head --system-config='{json.dumps(QUICK)}'`."
