"""Table and page of runs over sequences of tasks."""

from __future__ import annotations

from pathlib import Path


def write_report(root: Path, command: str) -> None:
    """Write ``summary.md`` and ``summary.json`` from the runs kept under ``root``."""
