"""Runs through sequences of tasks on disk, with matrices given by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ENV = "tasks:three"
NAMES = ("light", "heavy", "long")
Matrix = Sequence[Sequence[float | None]]
"""Row ``j`` holds tasks ``0`` to ``j``."""
KEPT: Matrix = ((-100.0,), (-100.0, -200.0), (-100.0, -200.0, -300.0))
LOST: Matrix = ((-100.0,), (-150.0, -200.0), (-190.0, -260.0, -300.0))
RANDOM: Matrix = ((-200.0,), (-200.0, -400.0), (-200.0, -400.0, -600.0))


def write_run(
    root: Path,
    agent: str,
    returns: Matrix = KEPT,
    *,
    seed: int = 0,
    env: str = ENV,
    names: Sequence[str] = NAMES,
    errors: Mapping[int, Matrix] | None = None,
    diverged: Matrix | None = None,
    total: int | None = None,
    seconds: Sequence[float] = (5.0, 10.0, 20.0, 40.0, 80.0),
) -> Path:
    """A run of 100 steps a task; unfinished where ``total`` steps are more than the matrix has tasks."""
    folder = root / env.replace(":", "-") / agent / f"seed{seed}"
    folder.mkdir(parents=True)
    config = {"agent": {"class_path": "agents.continual.ContinualAgent"}, "env": {"id": env}, "seed": seed}
    config |= {"steps": total or 100 * len(names), "tasks": {"steps": 100, "order": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps({"sources": [f"recipes/{agent}.yaml"]}))
    lines: list[dict[str, Any]] = []
    for learned, row in enumerate(returns):
        counts = {"env_steps": 100 * (learned + 1), "updates": 10 * (learned + 1), "seconds": 60.0 * (learned + 1)}
        for position, value in enumerate(row):
            task = {"learned": learned, "position": position, "task": f"{env}/{names[position]}"}
            task |= {"name": names[position], "return_mean": value, "returns": [value]}
            task |= {f"error_at_{depth}": matrix[learned][position] for depth, matrix in (errors or {}).items()}
            if errors:
                task |= {"rollouts": 256, "diverged": diverged[learned][position] if diverged else 0}
            lines.append({"event": "task_evaluation", **counts, **task, "evaluation_seconds": 1.0})
        cost = {"learned": learned, "position": learned, "task": f"{env}/{names[learned]}", "name": names[learned]}
        cost |= {"task_seconds": seconds[learned], "task_memory_bytes": 4096, "kept_bytes": 1024, "shared_bytes": 8192}
        lines.append({"event": "task", **counts, **cost, "stored_rows": 250 * learned, "episodes": 4})
        if len(row) == learned + 1:
            lines.append({"event": "evaluation", **counts, "returns": list(row), "evaluation_seconds": 2.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def references(root: Path, **more: Any) -> None:
    """Random actions and the agent that learns each task alone: 100, 200 and 300 apart on the three tasks."""
    write_run(root, "random", RANDOM, **more)
    write_run(root, "hypercrl-single", KEPT, **more)
