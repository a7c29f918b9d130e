"""The runs of a comparison as they lie on disk, read into typed records; nothing is left out silently.

Files are read as data: no code that a configuration names is loaded.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast, get_args

import numpy as np

from envs.errors import UserError
from experiments.report._learned import Data, Values, read_data, read_values
from experiments.report._run_files import TASK_EVENTS, RunFiles, checkpointed, read_run
from experiments.report._settings import differing, same_agent
from experiments.report._status import Dropped, Job, SuiteSettings, read_status
from experiments.report.statistics import FloatArray

State = Literal["done", "unfinished", "failed", "missing"]
Axis = Literal["env_steps", "updates", "seconds"]
Measure = Literal["last", "best", "area"]

RANDOM = "random"
"""The agent whose returns count as 0 where nothing else is given."""
UNKNOWN, UNKNOWN_SEED = "unknown", -1
"""Of a run whose configuration cannot be read and whose folder does not tell."""
JOB_STATES: Mapping[str, State] = {
    "done": "done",
    "running": "unfinished",
    "interrupted": "unfinished",
    "failed": "failed",
    "waiting": "missing",
}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run. ``seconds`` are those of training alone, evaluations excluded."""

    env_steps: int
    updates: int
    seconds: float
    returns: tuple[float, ...]
    act_ms: float | None = None
    """Milliseconds a call of ``act`` took, for all environments of the evaluation at once"""
    score: float | None = None
    """In per cent between the references of the dataset that the run learned from"""

    @property
    def mean(self) -> float:
        return fmean(self.returns)


@dataclass(frozen=True)
class Run:
    """One agent on one environment with one seed."""

    agent: str
    env: str
    seed: int
    folder: Path
    state: State
    error: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    fits: tuple[dict[str, Any], ...] = ()
    """The ``fit`` records of ``metrics.jsonl``"""
    tasks: tuple[dict[str, Any], ...] = ()
    """Its records of the tasks of a sequence (see :mod:`experiments.report.continual`)"""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    data: Data | None = None
    """The dataset that it learned from, itself or in the run that it continues"""
    values: Values | None = None
    start_from: str | None = None
    """The run that it continues, as its configuration names it"""
    earlier: str | None = None
    """Who made that run: an agent of this comparison, or where it lies"""
    inherited: Evaluation | None = None
    """The last evaluation of that run: how good this one was before its first env step"""

    @property
    def offline(self) -> bool:
        """It learned without a step in its environment."""
        if self.evaluations:
            return self.evaluations[-1].env_steps == 0 < self.evaluations[-1].updates
        return self.data is not None and self.start_from is None

    @property
    def last(self) -> float | None:
        """Mean return of the last evaluation; None when there was none."""
        return self.evaluations[-1].mean if self.evaluations else None

    @property
    def best(self) -> float | None:
        """Highest mean return of an evaluation: chosen after the fact, so it flatters."""
        return max((evaluation.mean for evaluation in self.evaluations), default=None)

    @property
    def area(self) -> float | None:
        """Mean over all evaluations: high for who learns fast."""
        return fmean(evaluation.mean for evaluation in self.evaluations) if self.evaluations else None


@dataclass(frozen=True)
class Reference:
    """Returns that count as 0 and 1 on an environment, and where they come from."""

    low: float
    high: float
    source: str
    own: bool = False
    """They are means of the compared runs themselves, the higher one of the best agent"""

    def normalized(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Comparison:
    """Everything a report is made from. ``agents`` and ``envs`` are in the order they are shown."""

    title: str
    root: Path
    runs: Sequence[Run]
    agents: Sequence[str]
    envs: Sequence[str]
    axis: Axis = "env_steps"
    references: Mapping[str, Reference] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By environment, the mean returns of named datasets"""
    dropped: Sequence[Dropped] = ()
    """Runs on disk that the suite does not ask for any more"""
    settings: SuiteSettings | None = None
    """What the suite sets, where there is one that says"""

    def of(self, agent: str, env: str) -> list[Run]:
        """The runs of one agent on one environment, by seed."""
        same = [run for run in self.runs if (run.agent, run.env) == (agent, env)]
        return sorted(same, key=lambda run: run.seed)

    def scores(self, agent: str, which: Measure = "last") -> dict[str, FloatArray]:
        """Normalised scores ``[runs]`` of an agent's finished runs, for every environment that has a reference."""
        found = {}
        for env in [env for env in self.envs if env in self.references]:
            values = _finished(self.of(agent, env), which)
            if values:
                found[env] = np.array([self.references[env].normalized(value) for value in values])
        return found


def _finished(runs: Iterable[Run], which: Measure = "last") -> list[float]:
    values = [getattr(run, which) for run in runs if run.state == "done"]
    return [value for value in values if value is not None]


def load(root: Path) -> Comparison:
    """Read the folder of ``mbrl compare``, or any folder with run directories in it.

    Without ``status.json`` an agent is called as its folder when runs lie as ``ENV/LABEL/seedN``, else as its recipe,
    else as its class. Runs that then have one name but cannot be repetitions of one another (the same seed again,
    another configuration) are told apart as ``LABEL #2``, so that nothing counts twice.

    Args:
        root: the folder.

    Raises:
        UserError: there are no runs, or ``status.json`` is damaged. What is wrong with one run is that run's ``error``.
    """
    if not root.is_dir():
        raise UserError("DIR", str(root), "there is no such folder; name one that holds runs or a comparison")
    comparison = _from_status(root) if (root / "status.json").is_file() else _from_folders(root)
    if not comparison.runs:
        fix = "it holds no runs (folders with config.yaml and metrics.jsonl); make some with `mbrl compare`"
        raise UserError("DIR", str(root), fix)
    comparison = replace(comparison, runs=[_linked(run, comparison) for run in comparison.runs])
    found = {env: reference for env in comparison.envs if (reference := _from_random(comparison, env))}
    found |= {env: reference for env in comparison.envs if (reference := _from_data(comparison, env))}
    return replace(comparison, references=found | dict(comparison.references))


def _linked(run: Run, comparison: Comparison) -> Run:
    """A run that continues another one, with what it began with; where that one cannot be found, as it is."""
    if run.start_from is None:
        return run
    whole = Path(run.start_from)
    beside = [other for other in comparison.runs if other.env == run.env and _ends_with(whole, other, comparison.root)]
    if beside:
        found, name = beside[0], beside[0].agent
    elif (whole / "metrics.jsonl").is_file():
        found, name = _of_folder(whole), "/".join(whole.parts[-2:])
    else:
        return replace(run, earlier="/".join(whole.parts[-2:]))
    inherited = found.evaluations[-1] if found.state == "done" and found.evaluations else None
    return replace(run, earlier=name, inherited=inherited, data=found.data)


def _ends_with(path: Path, other: Run, root: Path) -> bool:
    """Whether a path names a run below ``root``, which may have been moved since."""
    parts = other.folder.relative_to(root).parts if other.folder.is_relative_to(root) else other.folder.parts
    return bool(parts) and path.parts[-len(parts) :] == parts


def _from_data(comparison: Comparison, env: str) -> Reference | None:
    """The returns of a random and an expert policy by which the datasets here score; None where these are several."""
    known = [run.data for run in comparison.runs if run.env == env and run.data is not None]
    pairs = {data.references for data in known if data.references is not None}
    if len(pairs) != 1:
        return None
    low, high = next(iter(pairs))
    source = (
        "0 is the mean return of a random policy and 1 that of an expert, as the dataset that was learned from says"
    )
    return Reference(low, high, source)


def _from_random(comparison: Comparison, env: str) -> Reference | None:
    """The span from random actions to the best agent here; None where it cannot be known or is empty."""
    lasts = {agent: _finished(comparison.of(agent, env)) for agent in comparison.agents}
    means = {agent: fmean(values) for agent, values in lasts.items() if values}
    best = max(means, key=lambda agent: means[agent], default=RANDOM)
    if RANDOM not in means or means[best] == means[RANDOM]:
        return None
    source = (
        f"0 is the mean last return of `{RANDOM}` (seeds: {len(lasts[RANDOM])}), 1 the highest mean last return of an "
        f"agent in this comparison (`{best}`, seeds: {len(lasts[best])})"
    )
    return Reference(means[RANDOM], means[best], source, own=True)


# ---- the folder of `mbrl compare`


def _from_status(root: Path) -> Comparison:
    status = read_status(root / "status.json", get_args(Axis), JOB_STATES)
    runs = [_of_job(root, job) for job in status.jobs]
    return Comparison(
        title=status.suite,
        root=root,
        runs=runs,
        agents=list(dict.fromkeys([*status.agents, *(run.agent for run in runs)])),
        envs=list(dict.fromkeys([*status.envs, *(run.env for run in runs)])),
        axis=cast(Axis, status.budget),
        references={env: Reference(*given) for env, given in status.references.items()},
        datasets=status.datasets,
        dropped=status.dropped,
        settings=status.settings,
    )


def _of_job(root: Path, job: Job) -> Run:
    told, identity = JOB_STATES[job.state], (job.agent, job.env, job.seed)
    folder = root / (job.folder or "")
    if not job.folder or not (folder / "metrics.jsonl").is_file():
        error = job.error or ("its records are gone" if told == "done" else None)
        return Run(*identity, folder, "failed" if told == "failed" else "missing", error)
    run = _make_run(folder, read_run(folder), identity)
    return replace(run, **_verdict(run, told, job.error))


def _verdict(run: Run, told: State, error: str | None) -> dict[str, Any]:
    """State and error of a run with records, of which ``status.json`` told something."""
    if told == "failed" or run.state == "failed":
        return {"state": "failed", "error": error or run.error}
    if told == "done" and run.state != "done":
        return {"state": "failed", "error": _end(run)}
    return {"state": "done" if told == "done" else "unfinished", "error": None}


def _end(run: Run) -> str:
    """Where the records of a run that is not done stop."""
    if not run.evaluations:
        return "there is no evaluation in its records"
    return f"its records end at step {_reached(run.evaluations):,} of {run.config['steps']:,}"


# ---- any folder with runs in it


def _from_folders(root: Path) -> Comparison:
    folders = sorted(path.parent for path in root.rglob("metrics.jsonl") if (path.parent / "config.yaml").is_file())
    every = {*folders}
    alone = [folder for folder in folders if every.isdisjoint(folder.parents)]  # a run inside a run is a diagnosis's
    shown = [folder for folder in alone if not any(part.startswith(".") for part in folder.relative_to(root).parts)]
    runs = _told_apart(_of_folder(folder) for folder in shown)
    agents = sorted({run.agent for run in runs}, key=lambda agent: (agent == RANDOM, agent))
    axis: Axis = "updates" if runs and all(run.offline and run.evaluations for run in runs) else "env_steps"
    return Comparison(root.resolve().name, root, runs, agents, sorted({run.env for run in runs}), axis)


def _of_folder(folder: Path) -> Run:
    files = read_run(folder)
    env, seed = files.known("env.id"), files.known("seed")
    place = _place(folder, env)
    label, above, number = place or (files.recipe or _class_name(files), UNKNOWN, UNKNOWN_SEED)
    run = _make_run(folder, files, (label, env or above, number if seed is None else seed))
    if run.state != "unfinished":
        return run
    cut = checkpointed(folder) >= run.config["steps"]  # it was at its end, so records of it are lost
    return replace(run, state="failed" if cut else "unfinished", error=_end(run))


def _class_name(files: RunFiles) -> str:
    return str(files.known("agent.class_path") or UNKNOWN).rpartition(".")[2]


def _place(folder: Path, env: str | None) -> tuple[str, str, int] | None:
    """Agent, environment and seed of a run that lies as ``ENV/LABEL/seedN``; None for one that does not."""
    found = re.fullmatch(r"seed(\d+)(-[0-9a-f]+)?", folder.name)
    label, above = (path.name for path in folder.resolve().parents[:2]) if found else ("", "")
    same = env is None or re.sub(r"\W", "-", env) == re.sub(r"\W", "-", above)
    return (label, above, int(found[1])) if found and same else None


def _told_apart(runs: Iterable[Run]) -> list[Run]:
    """Runs of one name on one environment have different seeds and one configuration; others get another name."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for number in itertools.count(1):
            label = run.agent if number == 1 else f"{run.agent} #{number}"
            group = groups.setdefault((label, run.env), [])
            config = next((other.config for other in group if other.config), {})  # that of a damaged run is empty
            if same_agent(config, run.config) and run.seed not in {other.seed for other in group}:
                group.append(replace(run, agent=label))
                break
    return [run for group in groups.values() for run in group]


# ---- one run


def _make_run(folder: Path, files: RunFiles, identity: tuple[str, str, int]) -> Run:
    evaluations, spent, memory = [], 0.0, []
    for record in (record for record in files.records if record["event"] == "evaluation"):
        spent += record["evaluation_seconds"]
        counts = record["env_steps"], record["updates"]
        seconds = max(0.0, record["seconds"] - spent)  # the record's are rounded
        returns = tuple(float(value) for value in record["returns"])
        evaluations.append(Evaluation(*counts, seconds, returns, record.get("act_ms"), record.get("score")))
        memory.append(record.get("peak_memory_bytes"))
    return Run(
        *identity,
        folder=folder,
        state=_state(files, evaluations),
        error=files.error,
        evaluations=tuple(evaluations),
        fits=tuple(record for record in files.records if record["event"] == "fit"),
        tasks=tuple(record for record in files.records if record["event"] in TASK_EVENTS),
        config=files.config,
        versions=files.versions,
        seconds=max(0.0, files.records[-1]["seconds"] - spent) if files.records else 0.0,
        peak_memory_bytes=max((size for size in memory if isinstance(size, int)), default=None),
        data=read_data(files.config, files.versions),
        values=read_values(files.records, files.config),
        start_from=files.start_from,
    )


def _state(files: RunFiles, evaluations: Sequence[Evaluation]) -> State:
    """Done is who was evaluated at or after the last step; an offline agent's steps are its updates."""
    if files.error is not None:
        return "failed"
    return "done" if _reached(evaluations) >= files.known("steps") else "unfinished"


def _reached(evaluations: Sequence[Evaluation]) -> int:
    """The step of the last evaluation, -1 without one."""
    return max((e.env_steps or e.updates for e in evaluations[-1:]), default=-1)


# ---- tables


def differences(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Settings in which the agents differ on the same environment: ``{dotted key: {agent: value}}``.

    Seeds and environments are left out. An agent that does not have the setting has no entry.
    """
    configs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in comparison.runs:
        if run.config:
            earlier = {} if run.start_from is None else {"start_from": run.earlier}  # its path differs by seed
            configs.setdefault(run.env, {}).setdefault(run.agent, {**run.config, **earlier})
    ordered = {env: {a: own[a] for a in comparison.agents if a in own} for env, own in configs.items()}
    return differing(ordered)


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat row a run, all of them, for ``runs.csv``; what a run does not have is None.

    What runs learned from is told where one of them learned from data.
    """
    more = _row_of_data if any(run.data for run in comparison.runs) else lambda run: {}
    return [_row(comparison, run) | more(run) for run in _ordered(comparison)]


def _row_of_data(run: Run) -> dict[str, Any]:
    return {
        "data": run.data.path if run.data else None,
        "rows_of_data": run.data.rows if run.data else None,
        "score": run.evaluations[-1].score if run.evaluations else None,
        "continues": run.earlier,
        "inherited": run.inherited.mean if run.inherited else None,
    }


def _ordered(comparison: Comparison) -> list[Run]:
    envs, agents = list(comparison.envs), list(comparison.agents)
    return sorted(comparison.runs, key=lambda run: (envs.index(run.env), agents.index(run.agent), run.seed))


def _row(comparison: Comparison, run: Run) -> dict[str, Any]:
    reference, end = comparison.references.get(run.env), run.evaluations[-1] if run.evaluations else None
    return {
        "agent": run.agent,
        "env": run.env,
        "seed": run.seed,
        "state": run.state,
        "last": run.last,
        "best": run.best,
        "area": run.area,
        "last_normalized": None if reference is None or run.last is None else reference.normalized(run.last),
        "env_steps": end.env_steps if end else None,
        "updates": end.updates if end else None,
        "seconds": round(run.seconds, 3) if run.evaluations else None,
        "peak_memory_bytes": run.peak_memory_bytes,
        "commit": _commit(run),
        "folder": os.path.relpath(run.folder, comparison.root),
        "error": run.error,
    }


def _commit(run: Run) -> str | None:
    """Commit of the code that made a run; marked where files differed from it."""
    git = run.versions.get("git")
    if not isinstance(git, dict) or "commit" not in git:
        return None
    return f"{git['commit']}+changed" if git.get("changed") else str(git["commit"])


def curve_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat row an evaluation, for ``curves.csv``."""
    return [
        {
            "agent": run.agent,
            "env": run.env,
            "seed": run.seed,
            "env_steps": evaluation.env_steps,
            "updates": evaluation.updates,
            "seconds": round(evaluation.seconds, 3),
            "episodes": len(evaluation.returns),
            "return_mean": evaluation.mean,
            "return_min": min(evaluation.returns),
            "return_max": max(evaluation.returns),
        }
        for run in _ordered(comparison)
        for evaluation in run.evaluations
    ]
