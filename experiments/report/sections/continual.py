"""Runs through sequences of tasks: what was kept of the old ones, what it cost, and what cannot be told."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.pages.parts import Choice, Code, Fold, Notice, Part, Section, Table
from experiments.report.comparison import RANDOM, Comparison
from experiments.report.continual import (
    SINGLE,
    Row,
    SequenceRuns,
    TaskRun,
    average,
    forgetting,
    forward_transfer,
    sequence_runs,
    summary_row,
)
from experiments.report.sections._continual_figures import matrices, progress, reached, task_labels
from experiments.report.sections._shared import listing, plural, slug

KIBIBYTE = 1024
LEAD = (
    "Tasks learned one after another, each measured again after every later one. In scores, 0 is the return of"
    f" {RANDOM} on a task and 1 that of {SINGLE}, which has a model for each task alone, both at the end. All numbers"
    " are means over the seeds that went through the whole sequence; beside them stands the worst of these seeds."
)
OUTCOMES: Mapping[str, str] = {
    "return": "return",
    "return_worst": "min return",
    "score": "score",
    "score_worst": "min score",
    "forgetting": "forgetting",
    "forgetting_worst": "max forgetting",
    "forgetting_return": "forgetting, in return",
    "forgetting_return_worst": "max forgetting, in return",
    "forward": "transfer",
    "forward_worst": "min transfer",
}
COSTS: Mapping[str, str] = {
    "seconds_second": "seconds, task 2",
    "seconds_last": "seconds, last",
    "seconds_ratio": "last / 2",
    "bytes": "KiB a task",
    "kept_bytes": "kept data, KiB",
    "shared_bytes": "shared, KiB",
    "stored_rows": "rows",
}
DECIMALS = 9
"""To which scores are rounded, so that what is 0 but for rounding errors reads 0."""


def continual(comparison: Comparison) -> Section | None:
    """Tables, matrices and curves for every sequence; None when no run went through one."""
    found = {env: runs for env in comparison.envs if (runs := sequence_runs(comparison, env)) is not None}
    if not found:
        return None
    options = {env: _parts(comparison, runs) for env, runs in found.items()}
    parts: list[Part] = [Choice("tasks-env", "Sequence", options)] if len(options) > 1 else next(iter(options.values()))
    return Section("tasks", "Task sequences", LEAD, parts)


def _parts(comparison: Comparison, runs: SequenceRuns) -> list[Part]:
    drawn = {agent: matrices(runs, agent) for agent in runs.agents}
    chosen: list[Part] = [Choice(f"tasks-{slug(runs.env)}-agent", "Matrices of", drawn)]
    shown = chosen if len(drawn) > 1 else next(iter(drawn.values()))
    notices = [*_left_out(runs), *_diverged(runs), *_unscored(comparison, runs)]
    return [*_summary(runs), *notices, progress(runs), *shown, _every_run(runs)]


# ---- tables


def _summary(runs: SequenceRuns) -> list[Table]:
    """A row an agent, in tables that fit on a page: what it reached and kept, its model's errors, what it cost."""
    rows, name = [summary_row(runs, agent) for agent in runs.agents], f"tasks-{slug(runs.env)}"
    tables = [
        _table(name, _outcomes(runs), [row | _seeds(row) for row in rows], _outcome_caption(runs)),
        _table(f"{name}-errors", _model(runs.depths), rows, _error_caption(runs), whole=bool(runs.depths)),
        _table(f"{name}-cost", COSTS, [row | _in_kibibytes(row) for row in rows], _cost_caption(runs)),
    ]
    return [table for table in tables if len(table.columns) > 1]


def _table(name: str, titles: Mapping[str, str], rows: Sequence[Row], caption: str, whole: bool = False) -> Table:
    """Unless it is to be ``whole``, what is known of no agent has no column."""
    known = [key for key in titles if whole or any(row[key] is not None for row in rows)]
    cells = [[row["agent"], *(_rounded(row[key]) for key in known)] for row in rows]
    return Table(name, ["agent", *(titles[key] for key in known)], cells, caption, digits=3)


def _rounded(cell: str | float | int | None) -> str | float | int | None:
    return round(cell, DECIMALS) + 0.0 if isinstance(cell, float) else cell


def _seeds(row: Row) -> Row:
    """How many seeds are in the means, and of how many, where that is not all."""
    finished, unfinished = row["finished"], row["unfinished"]
    return {"seeds": f"{finished} of {int(finished or 0) + int(unfinished)}" if unfinished else finished}


def _in_kibibytes(row: Row) -> Row:
    return {key: size / KIBIBYTE for key, size in row.items() if key.endswith("bytes") and isinstance(size, float)}


def _outcomes(runs: SequenceRuns) -> dict[str, str]:
    """Columns; those in units of return step back where there are scores, and worst seeds where there is one."""
    several = any(len(runs.of(agent)) > 1 for agent in runs.agents)
    hidden = [] if several else [key for key in OUTCOMES if key.endswith("_worst")]
    if runs.scored.any():
        hidden += ["return_worst", "forgetting_return", "forgetting_return_worst"]
    return {"seeds": "seeds"} | {key: title for key, title in OUTCOMES.items() if key not in hidden}


def _outcome_caption(runs: SequenceRuns) -> str:
    scored = bool(runs.scored.any())
    text = (
        f"What was reached and kept on {runs.env}, {plural(len(runs.tasks), 'task')}. Return{' and score' * scored}:"
        " mean over the tasks after the last. Forgetting: what the old tasks lost from their own end to that of the"
        " sequence"
    )
    text += f". Transfer: score of a task just learned, less the 1 of {SINGLE}" if scored else ""
    several = any(len(runs.of(agent)) > 1 for agent in runs.agents)
    return f"{text}. Min and max: the worst seed" if several else text


def _model(depths: Iterable[int]) -> dict[str, str]:
    """Columns of the errors at every depth, which may all be dashes, and of the rollouts that are not in them."""
    columns: dict[str, str] = {}
    for depth in depths:
        columns[f"error_at_{depth}_just"] = f"new, at {depth}"
        columns[f"error_at_{depth}_end"] = f"end, at {depth}"
    return {**columns, "diverged": "diverged", "rollouts": "rollouts"}


def _error_caption(runs: SequenceRuns) -> str:
    depths = listing(str(depth) for depth in runs.depths) if runs.depths else "no"
    return (
        f"Errors of the models on {runs.env}, open-loop, {depths} steps ahead, in standard deviations: means over the"
        " old tasks, right after each (new) and after the last (end), without the rollouts that diverged, which are"
        " counted over all measurements of all runs. A dash: on some task no rollout was left, or there is no model"
    )


def _cost_caption(runs: SequenceRuns) -> str:
    return (
        f"Cost of a further task on {runs.env}. Seconds are processor time of acting and learning. Memory is that for"
        " the last task (of it kept data: old rows, targets, anchors) and what all tasks share. Rows: transitions of"
        " all old tasks that are stored at the end"
    )


def _every_run(runs: SequenceRuns) -> Fold:
    """A row a run, those that count in no mean too."""
    scored = bool(runs.scored.any())
    columns = ["agent", "seed", "state", "tasks", "return after the last of them"]
    columns += ["score", "forgetting", "transfer"] if scored else []
    rows = [[*_run(runs, run), *(_scores(runs, run) if scored else [])] for run in (*runs.finished, *runs.unfinished)]
    empty = [None] * (len(columns) - 4)
    rows += [[run.agent, run.seed, "other tasks", len(run.tasks), *empty] for run in runs.others]
    caption = "Every run by itself; of an unfinished one, over the tasks that it had learned"
    return Fold("Every run", [Table(f"tasks-{slug(runs.env)}-runs", columns, rows, caption, digits=3)])


def _run(runs: SequenceRuns, run: TaskRun) -> list[str | float | int | None]:
    state = "unfinished" if run in runs.unfinished and run.state == "done" else run.state
    mean = average(run.returns, np.ones(len(run.tasks), dtype=bool))
    return [run.agent, run.seed, state, len(run.tasks), mean]


def _scores(runs: SequenceRuns, run: TaskRun) -> list[str | float | int | None]:
    scores, scored = runs.scores(run), runs.scored[: len(run.tasks)]
    return [_rounded(measure(scores, scored)) for measure in (average, forgetting, forward_transfer)]


# ---- what does not count, and why


def _left_out(runs: SequenceRuns) -> list[Notice]:
    """Runs that are in no mean, by name."""
    parts = []
    if runs.unfinished:
        named = listing(f"{_name(run)} ({_stopped(runs, run)})" for run in runs.unfinished)
        one = len(runs.unfinished) == 1
        verbs = "is drawn thin and counts" if one else "are drawn thin and count"
        text = f"{plural(len(runs.unfinished), 'run')} did not get through the sequence, {verbs} in no mean: {named}."
        parts.append(Notice(text, "warning"))
    if runs.others:
        named = "; ".join(f"{_name(run)} ({', '.join(task.name for task in run.tasks)})" for run in runs.others)
        tasks = ", ".join(task.name for task in runs.tasks)
        text = f"{plural(len(runs.others), 'run')} with other tasks, fewer or in another order than {tasks}"
        parts.append(Notice(f"{text}; compared with nothing here: {named}.", "warning"))
    return parts


def _name(run: TaskRun) -> str:
    return f"{run.agent} seed {run.seed}"


def _stopped(runs: SequenceRuns, run: TaskRun) -> str:
    return reached(runs, run) if run.complete else f"{reached(runs, run)}, not all of them measured"


def _diverged(runs: SequenceRuns) -> list[Notice]:
    """Whose errors leave something out."""
    rows = [summary_row(runs, agent) for agent in runs.agents]
    bad = [f"{row['agent']} ({row['diverged']:,} of {row['rollouts']:,})" for row in rows if row["diverged"]]
    if not bad:
        return []
    text = f"Some rollouts diverged and are in no error: {listing(bad)}."
    return [Notice(f"{text} The errors of these models are those of the rest, so they flatter.", "warning")]


def _unscored(comparison: Comparison, runs: SequenceRuns) -> list[Part]:
    """What is not normalised, why, and the commands that would mend it."""
    missing = [agent for agent, known in ((RANDOM, runs.low), (SINGLE, runs.high)) if not np.isfinite(known).all()]
    if missing:
        text = (
            "Returns are not normalised, forgetting is in units of return and forward transfer is not known: there is"
            f" no finished run of {listing(missing)} through these tasks. In a comparison, name"
            f" {'it' if len(missing) == 1 else 'them'} among the agents of its suite; else run this, with the folder of"
            " this report for DIR, and make the report again."
        )
        return [Notice(text), Code("\n".join(_command(comparison, runs.env, agent) for agent in missing))]
    empty = [label for label, scored in zip(task_labels(runs), runs.scored, strict=True) if not scored]
    if not empty:
        return []
    text = f"{SINGLE} is not above {RANDOM} on {listing(empty)}, so there is no scale for a score there:"
    return [Notice(f"{text} left out of score, forgetting and forward transfer.", "warning")]


def _command(comparison: Comparison, env: str, agent: str) -> str:
    """One that makes a run of the same sequence where the report finds it under its name."""
    given = next((run.config for run in comparison.runs if run.env == env and run.tasks and run.config), {})
    tasks: Any = given.get("tasks")
    kept = {name: value for name, value in (tasks.items() if isinstance(tasks, dict) else ()) if value is not None}
    words = [
        "mbrl",
        "train",
        agent,
        "--env",
        env,
        "--seed",
        "0",
        *(f"--tasks.{key}={_plain(kept[key])}" for key in kept),
    ]
    return shlex.join([*words, "--out", f"DIR/{re.sub(r'[^A-Za-z0-9_]', '-', env)}/{agent}/seed0"])


def _plain(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
