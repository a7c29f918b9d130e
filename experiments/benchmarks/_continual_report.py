"""Table and pages of runs over sequences of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks._runs import identity, row, write_summary
from experiments.metrics import read_records
from experiments.report.comparison import load
from experiments.report.continual import SINGLE, continual_rows

ORACLE = "hypercrl-oracle"
COLUMNS: Mapping[str, str] = {
    "agent": "agent",
    "finished": "seeds",
    "return": "return at the end",
    "score": "score",
    "score_worst": "lowest",
    "forgetting": "forgetting",
    "forward": "forward transfer",
    "error_at_5_just": "error at 5, just learned",
    "error_at_5_end": "at the end",
    "error_at_25_just": "error at 25, just learned",
    "error_at_25_end": "at the end",
    "diverged": "diverged",
    "rollouts": "of rollouts",
    "seconds_ratio": "last / second task's seconds",
    "bytes": "bytes a task",
    "kept_bytes": "of them kept",
    "stored_rows": "old rows",
}


def write_report(root: Path, command: str) -> None:
    """Write ``summary.md`` and ``summary.json`` from the runs kept under ``root``."""
    comparison = load(root)
    found = {env: continual_rows(comparison, env) for env in comparison.envs}
    runs = [_run(path) for path in sorted(root.glob("*/*/seed*/metrics.jsonl"))]
    lines = [
        f"Made by `{command}`. Score: 0 is random, 1 a network of its own for every task (`{SINGLE}`), by task.",
        "",
    ]
    for env, rows in found.items():
        lines += table(env, rows) + verdict(rows) + [""]
    write_summary(root, command, runs, lines)


def _run(path: Path) -> dict[str, Any]:
    """The last evaluation of a run, which is over all its tasks."""
    last = [record for record in read_records(path) if record["event"] == "evaluation"][-1]
    return identity(path) | {"env_steps": last["env_steps"], "last": last["return_mean"], "by_task": last["returns"]}


def table(env: str, rows: list[dict[str, Any]]) -> list[str]:
    """A row an agent."""
    lines = [f"## {env}", "", row(COLUMNS.values()), row("---" for _ in COLUMNS)]
    return [*lines, *(row(_cell(found.get(name)) for name in COLUMNS) for found in rows)]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    if abs(value) < 1e-9:  # what rounding leaves of a zero
        return "0"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """The goal: 95 % of the oracle's normalised score."""
    scores = {found["agent"]: found.get("score") for found in rows}
    ours, oracle = scores.get("hypercrl"), scores.get(ORACLE)
    if ours is None or oracle is None:
        return []
    share = ours / oracle
    return [
        "",
        f"hypercrl has {100 * share:.1f} % of the oracle's score (goal: 95): {'yes' if share >= 0.95 else 'NO'}",
    ]
