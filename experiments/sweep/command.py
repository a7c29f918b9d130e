"""From what was typed after ``mbrl sweep`` to its trials and its result."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.errors import UserError
from experiments.board import in_words
from experiments.checkpoint import CheckpointStore
from experiments.compare.run import usable_cores
from experiments.compare.status import alone_in
from experiments.config import find_recipe
from experiments.storage import write_atomically
from experiments.sweep.ledger import Ledger, Trial
from experiments.sweep.plan import Checked, Plan, check, check_same, make_plan, read_plan
from experiments.sweep.result import again, best_of, last_line, settings, shown, table, write_result
from experiments.tree import parse_value

if TYPE_CHECKING:
    from experiments.sweep.study import Study

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a Ray that is started here: trials exchange nothing but lines"""
ROUNDS = 2
"""How often trials are gone back to that are pruned and have no checkpoint of then"""
GIVEN = [
    "env",
    "param",
    "seed",
    "steps",
    "num_envs",
    "data",
    "start_from",
    "metric",
    "mode",
    "grace",
    "reduction",
    "out",
]
"""What makes a sweep another one"""


def run_sweep(options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]) -> int:
    """Run what is missing of a sweep and say what it found; 1 where a trial failed or is still open.

    Raises:
        UserError: a setting, space or value is wrong (then nothing is on disk), or another sweep lies there.
    """
    plan, root, trust = the_plan(options, overrides)
    at_once, gpus = _whole("--processes", options.processes, None, 1), _share("--gpus", options.gpus)
    if options.ray.startswith("ray://"):
        raise UserError("--ray", options.ray, "give the head's own address, HOST:6379, from a machine of the cluster")
    found = check(plan, trust)
    _check_place(root, plan)
    sweep = Sweep(root.resolve(), found)
    if sweep.todo() or len(sweep.ledger.trials) < plan.trials:
        sweep.run(options.ray, at_once, gpus)
    return sweep.tell()


def the_plan(options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]) -> tuple[Plan, Path, list[str]]:
    """What is searched, where, and the modules that were typed: by flags, or of the folder of an earlier call."""
    earlier = Path(options.recipe) / "sweep.yaml"
    if earlier.is_file():
        typed = [f"--{name.replace('_', '-')}" for name in GIVEN if getattr(options, name) is not None]
        typed += [f"--{key}" for key, _ in overrides]
        if typed:
            fix = "a sweep that is there goes on as it was; only --trials, --processes, --ray and --trust can be given"
            raise UserError(typed[0], options.recipe, fix)
        plan = read_plan(earlier)
        return replace(plan, trials=_whole("--trials", options.trials, plan.trials, 1)), earlier.parent, options.trust
    if earlier.parent.is_dir():
        raise UserError(
            "sweep", options.recipe, "there is no sweep.yaml in this folder: name a recipe, or a sweep's folder"
        )
    find_recipe(options.recipe)
    plan = _from_flags(options, overrides)
    name = re.sub(r"[^\w.+-]+", "-", f"{Path(plan.recipe).stem}-{plan.env or 'data'}")
    out = Path(options.out if options.out is not None else Path("sweeps") / name)
    return plan, out, [*options.trust, *plan.typed_modules()]


def _from_flags(options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]) -> Plan:
    params: dict[str, str] = {}
    for word in options.param or ():
        key, given, text = word.partition("=")
        if not given or key in params:
            fix = "a setting is given one space: --param 'agent.learner.lr=log(1e-4, 1e-2)'"
            raise UserError("--param", word, fix)
        params[key] = text
    numbers = {"steps": options.steps, "num_envs": options.num_envs}
    fixed = {key: parse_value(f"--{key}", text) for key, text in numbers.items() if text is not None}
    fixed |= {key: value for key in ("data", "start_from") if (value := getattr(options, key)) is not None}
    given = {
        "trials": _whole("--trials", options.trials, 16, 1),
        "seed": _whole("--seed", options.seed, 0),
        "grace": _whole("--grace", options.grace, None, 1),
        "reduction": _whole("--reduction", options.reduction, 3, 2),
        "metric": options.metric or "return_mean",
        "mode": options.mode or "max",
    }
    return make_plan(recipe=options.recipe, env=options.env, params=params, set={**fixed, **dict(overrides)}, **given)


def _whole(field: str, text: str | None, default: Any, least: int = 0) -> Any:
    if text is None:
        return default
    value = parse_value(field, text)
    if type(value) is not int or value < least:
        raise UserError(field, text, f"give a whole number of at least {least}")
    return value


def _share(field: str, text: str | None) -> float:
    value = 0 if text is None else parse_value(field, text)
    if type(value) not in (int, float) or not 0 <= value < 1000 or (value > 1 and value != int(value)):
        raise UserError(field, text, "give a share of one GPU, such as 0.5, or a number of them")
    return float(value)


def _check_place(root: Path, plan: Plan) -> None:
    """Refuse a folder with something else in it, or with another sweep."""
    if (root / "sweep.yaml").is_file():
        check_same(read_plan(root / "sweep.yaml"), plan, root)
    elif root.exists() and (not root.is_dir() or any(path.name != ".lock" for path in root.iterdir())):
        raise UserError("--out", str(root), "it exists, is not empty and is no sweep; name another place")


class Sweep:
    """A sweep under ``root``: what is known of its trials, and what has to be done."""

    def __init__(self, root: Path, found: Checked) -> None:
        self.root, self.found = root, found
        self.ledger = Ledger(root / "ledger.jsonl")
        self.ended_before: set[int] = set()
        self.errors: set[str] = set()

    def folder(self, trial: Trial) -> Path:
        """Where its run lies."""
        return self.root / self.found.folder(trial.params, trial.name)

    def todo(self) -> list[int]:
        """Trials that were suggested and are neither complete nor failed, nor pruned with a checkpoint of then."""
        return [trial.number for trial in self.ledger.trials.values() if not self._over(trial)]

    def _over(self, trial: Trial) -> bool:
        if trial.state != "pruned":
            return trial.state != "open"
        found = CheckpointStore(self.folder(trial) / "checkpoints").found()
        return bool(found) and found[-1].env_steps >= trial.steps

    def run(self, address: str, at_once: int | None, gpus: float = 0.0) -> None:
        """On Ray, ``at_once`` trials side by side (default: one a CPU), each with a CPU and so many GPUs."""
        from experiments.sweep.study import Rules, Study
        from mbrl.distributed.cluster import check_resources, connect, processors

        plan, found = self.found.plan, self.found
        rules = Rules(plan.spaces(), plan.seed, plan.mode, found.steps, found.grace, plan.reduction)
        with connect(address, at_once or usable_cores(), OBJECT_STORE_BYTES):
            check_resources(1, 1.0, gpus, "--gpus")
            with alone_in(self.root):
                self.ledger = Ledger(self.root / "ledger.jsonl")
                write_atomically(self.root / "sweep.yaml", plan.text().encode())
                self._go(Study(rules, self.ledger), at_once or processors(), gpus)

    def _go(self, study: Study, at_once: int, gpus: float) -> None:
        """Whatever is to be done, then once more what was killed between its verdict and its last checkpoint."""
        self._say(f"{self.found.plan.trials} trials, {at_once} at once; {self._rungs()}")
        self._round(study, self.todo(), at_once, gpus)
        for _ in range(ROUNDS):
            if pruned := [number for number in self.todo() if self.ledger.trials[number].state == "pruned"]:
                self._round(study, pruned, at_once, gpus)
        write_result(self.root, self.found, self.ledger)

    def _round(self, study: Study, todo: Sequence[int], at_once: int, gpus: float) -> None:
        from experiments.sweep.tuning import Asking, Judging, tune_trials

        self.ended_before = {trial.number for trial in self.ledger.trials.values() if trial.state != "open"}
        asking = Asking(study, todo, self.found.plan.trials, self._begin)
        tune_trials(asking, Judging(study, self._ended), at_once, gpus, self.root / ".tune")

    def _rungs(self) -> str:
        found, rungs = self.found, list[str]()
        steps = found.grace
        while steps < found.steps:
            rungs.append(f"{steps:,}")
            steps *= found.plan.reduction
        ends = f"{found.steps:,} {in_words(found.unit)}"
        return f"pruned at {', '.join(rungs)} of {ends}" if rungs else f"each to its {ends}"

    def _begin(self, number: int) -> Mapping[str, Any]:
        trial = self.ledger.trials[number]
        verb = "goes on" if trial.reports else "begins"
        self._say(f"{trial.name} {verb}: {settings(trial.params)}")
        return {
            "folder": str(self.folder(trial)),
            "log": str(self.root / "logs" / f"{trial.name}.txt"),
            "words": self.found.words(trial.params),
            "cwd": os.getcwd(),
            "metric": self.found.plan.metric,
        }

    def _ended(self, number: int) -> None:
        if number in self.ended_before:
            return
        trial, metric = self.ledger.trials[number], self.found.plan.metric
        over = sum(trial.state != "open" for trial in self.ledger.trials.values())
        count = f"({over} of {self.found.plan.trials} trials ended)"
        if trial.error is not None:
            self._fail(trial, count)
        else:
            value = "not a finite number" if trial.value is None else shown(trial.value)
            self._say(f"{trial.name} {trial.state} at {trial.steps:,}: {metric} {value} {count}")
        write_result(self.root, self.found, self.ledger)

    def _fail(self, trial: Trial, count: str) -> None:
        """Show an error whole when it is first seen; of the same in other trials its last line."""
        said = last_line(trial.error)
        self._say(f"{trial.name} failed {count}: {said if said in self.errors else trial.error}")
        self.errors.add(said)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def tell(self) -> int:
        """The result on the terminal; the exit code."""
        from rich.console import Console

        trials = [*self.ledger.trials.values()]
        Console(width=None if sys.stdout.isatty() else 160).print(table(self.found, trials))
        for trial in trials:
            if trial.state in ("open", "failed"):
                log = self.root / "logs" / f"{trial.name}.txt"
                said = last_line(trial.error) if trial.error else "its process was lost; the same command goes on"
                print(f"{trial.state}: {trial.name}: {said} ({log})", file=sys.stderr)
        best = best_of(trials, self.found.plan.mode)
        if best is not None:
            print(f"best: {best.name}, {self.found.plan.metric} {shown(best.value)}: {settings(best.params)}")
            print(f"alone: {again(self.root, self.found, best)}")
        print(self.root / "sweep.md")
        return int(any(trial.state in ("open", "failed") for trial in trials))
