"""From what was typed after ``mbrl compare`` to a suite, and its runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.compare.on_ray import ray_fleet
from experiments.compare.run import compare, usable_cores
from experiments.compare.sources import with_sources
from experiments.compare.status import Status
from experiments.compare.suite import AgentEntry, EnvEntry, Suite, find_suite, list_suites, make_suite, read_suite
from experiments.names import module_of
from experiments.tree import parse_value


def run_comparison(
    options: argparse.Namespace, overrides: Sequence[tuple[str, Any]], command: Sequence[str]
) -> tuple[Path, list[str]]:
    """Run the suite that the options describe; its folder, and a line for every run that failed."""
    suite, root = the_suite(options, overrides)
    trust = [*options.trust, *(name for env in options.envs or () if (name := module_of(env)))]
    if options.ray is None:
        status = compare(suite, root, _processes(options, usable_cores()), trust)
    else:
        with ray_fleet(options.ray) as (execute, at_once):
            status = compare(suite, root.resolve(), _processes(options, at_once), trust, execute)
    return root, failures(status)


def failures(status: Status) -> list[str]:
    """What failed, a line a run."""
    failed = {job: error for job, (state, error) in status.states.items() if state == "failed"}
    return [f"{job.env} {job.agent} seed {job.seed} ({job.folder}): {error}" for job, error in failed.items()]


def _processes(options: argparse.Namespace, default: int) -> int:
    if options.processes is None:
        return default
    count = parse_value("--processes", options.processes)
    if type(count) is not int or count < 1:
        raise UserError("--processes", options.processes, "give a whole number of at least 1")
    return count


def the_suite(options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]) -> tuple[Suite, Path]:
    """The suite of a file or of flags, and the folder of its comparison."""
    if options.suite is None:
        suite, home = _from_flags(options), None
    else:
        suite, home = _from_file(options)
    suite = replace(suite, set={**suite.set, **dict(overrides)})
    suite = with_sources(suite, options.data or (), options.earlier or ())
    if options.steps is not None:
        steps = parse_value("--steps", options.steps)
        suite = replace(suite, envs={name: replace(entry, steps=steps) for name, entry in suite.envs.items()})
    out = Path(options.out) if options.out is not None else home or Path("comparisons") / suite.name
    return suite, out


def _from_file(options: argparse.Namespace) -> tuple[Suite, Path | None]:
    if options.agents or options.envs:
        seen = " ".join([*(options.agents or ()), *(options.envs or ())])
        raise UserError("--agents, --envs", seen, "give a suite or these flags, not both; edit a copy of the suite")
    path = find_suite(options.suite)
    suite = read_suite(path)
    if options.seeds is not None:
        suite = make_suite(suite.name, suite.agents, suite.envs, _seeds(options.seeds), suite.set, suite.budget)
    return suite, path.parent if path.name == "suite.yaml" and (path.parent / "status.json").is_file() else None


def _from_flags(options: argparse.Namespace) -> Suite:
    if options.ray is not None and (Path(options.ray).exists() or options.ray in list_suites()):
        raise UserError("--ray", options.ray, "it was read as an address; put the suite before --ray")
    if not options.agents or not options.envs:
        raise UserError("compare", "nothing to compare", "give a suite, or --agents RECIPE ... --envs ID ...")
    agents = dict(_labelled(word) for word in options.agents)
    if len(agents) < len(options.agents):
        raise UserError("--agents", options.agents, "every agent needs a label of its own: LABEL=RECIPE")
    seeds = 5 if options.seeds is None else _seeds(options.seeds)
    named = Path(options.out).name if options.out else "-".join(agents)
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", named).strip("-._+") or "comparison"
    return make_suite(name, agents, {env: EnvEntry() for env in options.envs}, seeds, {})


def _seeds(words: Sequence[str]) -> Any:
    """``5`` is how many, ``3 4 5`` or ``[3, 4, 5]`` are which."""
    values = [parse_value("--seeds", word) for word in words]
    return values[0] if len(values) == 1 else values


def _labelled(word: str) -> tuple[str, AgentEntry]:
    """``LABEL=RECIPE``, or a recipe under its own name."""
    label, given, recipe = word.partition("=")
    return (label, AgentEntry(recipe)) if given else (Path(word).stem, AgentEntry(word))
