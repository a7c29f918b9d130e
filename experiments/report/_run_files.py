"""The files of one run, read as data and checked; what is damaged is said, what came before it is kept."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.metrics import read_records
from experiments.tree import read_yaml

DAMAGED = "this is not what `mbrl train` wrote; make the run again or take it out of the folder"
SETTINGS: dict[str, type] = {"env.id": str, "seed": int, "steps": int, "agent.class_path": str}
"""What is read from every run's configuration."""
COUNTS = ("env_steps", "updates")
TASK_EVENTS = ("task_evaluation", "task")
MOST_TASKS = 1000
"""Of a sequence. Records that count further are damaged, and the matrices made from them would not fit in memory."""


@dataclass
class RunFiles:
    """``config.yaml``, ``versions.json`` and the records of ``metrics.jsonl`` up to the first damage, if any."""

    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def known(self, key: str) -> Any:
        """One of :data:`SETTINGS` by its dotted name; None where it is missing or not what it must be."""
        value = self._at(key)
        return value if _is(value, SETTINGS[key]) else None

    def _at(self, key: str) -> Any:
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def check(self, path: Path) -> None:
        """Every one of :data:`SETTINGS` is there, else ``UserError``."""
        for key in SETTINGS:
            if self.known(key) is None:
                raise UserError(f"{path}: {key}", self._at(key), DAMAGED)

    @property
    def start_from(self) -> str | None:
        """The run that it continues, if it does."""
        value = self.config.get("start_from")
        return value if isinstance(value, str) else None

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that the run was made from; None when that was another run's configuration."""
        sources = self.versions.get("sources")
        first = sources[0] if isinstance(sources, list) and sources else None
        name = Path(first).stem if isinstance(first, str) else "config"
        return None if name == "config" else name


def read_run(folder: Path) -> RunFiles:
    """Never raises for what is in the files: ``error`` names the file, what was seen and what to do."""
    files = RunFiles()
    try:
        _read_config(files, folder / "config.yaml")
        _read_versions(files, folder / "versions.json")
        _read_metrics(files, folder / "metrics.jsonl")
    except UserError as error:
        files.error = str(error)
    return files


def _read_config(files: RunFiles, path: Path) -> None:
    files.config = read_yaml(path)
    files.check(path)


def _read_versions(files: RunFiles, path: Path) -> None:
    if path.exists():
        files.versions = read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises ``UserError`` when it cannot be read or is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"{type(error).__name__}: {error}", DAMAGED) from error
    if not isinstance(tree, dict):
        raise UserError(str(path), type(tree).__name__, DAMAGED)
    return tree


def _read_metrics(files: RunFiles, path: Path) -> None:
    try:
        for number, record in enumerate(read_records(path), start=1):
            _check_record(f"{path}:{number}", record)
            files.records.append(record)
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(str(path), type(error).__name__, DAMAGED) from error


def _check_record(field_name: str, record: Any) -> None:
    """The fields that a report needs are there and are finite numbers, else ``UserError``."""
    if not isinstance(record, dict) or not _is(record.get("event"), str):
        raise UserError(field_name, record, DAMAGED)
    for name in COUNTS:
        if not _is(record.get(name), int):
            raise UserError(f"{field_name}: {name}", record.get(name), DAMAGED)
    for name in ("seconds", *(("evaluation_seconds",) if record["event"] == "evaluation" else ())):
        if not _is(record.get(name), (int, float)):
            raise UserError(f"{field_name}: {name}", record.get(name), DAMAGED)
    if record["event"] == "evaluation":
        _check_returns(f"{field_name}: returns", record.get("returns"))
    if record["event"] in TASK_EVENTS:
        _check_task(field_name, record)


def _check_task(field_name: str, record: dict[str, Any]) -> None:
    """It says which task was measured, after how many; a later one cannot be measured yet."""
    places: list[Any] = [record.get("position"), record.get("learned")]
    if not all(_is(place, int) for place in places) or not 0 <= places[0] <= places[1] < MOST_TASKS:
        raise UserError(f"{field_name}: position, learned", places, DAMAGED)
    for name in ("task", "name"):
        if not _is(record.get(name), (str, int)):
            raise UserError(f"{field_name}: {name}", record.get(name), DAMAGED)
    if record["event"] == "task_evaluation":
        _check_returns(f"{field_name}: return_mean", [record.get("return_mean")])


def _check_returns(field_name: str, returns: Any) -> None:
    if not isinstance(returns, list) or not returns:
        raise UserError(field_name, returns, DAMAGED)
    if not all(_is(value, (int, float)) for value in returns):
        raise UserError(field_name, returns, "a return is not a finite number: the run diverged or its file is damaged")


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and _finite(value)


def _finite(value: Any) -> bool:
    """Not infinite, no NaN, and no whole number that is too large for a float."""
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:
        return False


def checkpointed(folder: Path) -> int:
    """Env steps of a run's newest checkpoint, as its name tells; -1 where there is none."""
    names = (re.match(r"step-(\d+)-", path.name) for path in (folder / "checkpoints").glob("step-*.pt"))
    return max((int(name[1]) for name in names if name), default=-1)
