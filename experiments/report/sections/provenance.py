"""With what the runs were made, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.pages.parts import Code, Fold, Notice, Part, Section, Table, Text
from experiments.report.comparison import Comparison, Run
from experiments.report.sections._shared import listing, plural, spread


def provenance(comparison: Comparison) -> Section | None:
    """Versions, commit, seeds and commands; None when no run left a configuration."""
    made = [run for run in comparison.runs if run.config or run.versions]
    if not made:
        return None
    lead = "Versions, commit and seeds of the runs, and the commands that repeat them."
    parts: list[Part] = [*_commits(made), *_versions(made), _seeds(comparison), *_commands(comparison, made)]
    return Section("repeat", "How to repeat it", lead, parts)


def _commits(made: Sequence[Run]) -> list[Part]:
    states = [state for run in made if isinstance(state := run.versions.get("git"), Mapping) and state.get("commit")]
    runs = Counter(str(state["commit"]) for state in states)
    changed = Counter(str(state["commit"]) for state in states if state.get("changed"))
    parts: list[Part] = []
    if len(runs) > 1:
        parts.append(Notice("The runs were made with different commits; a difference may be the code's.", "warning"))
    if count := changed.total():
        text = f"{plural(count, 'run')} used code that differs from its commit, so the commit alone cannot repeat it."
        parts.append(Notice(text, "warning"))
    rows = [(commit, runs[commit], changed[commit]) for commit in sorted(runs)]
    columns = ["commit", "runs", "of them with changed files"]
    return [*parts, Table("commits", columns, rows, "Code the runs were made with")] if rows else parts


def _versions(made: Sequence[Run]) -> list[Part]:
    found: dict[str, set[str]] = defaultdict(set)
    for run in made:
        packages = run.versions.get("packages") or {}
        for name, version in (("python", run.versions.get("python")), *sorted(packages.items())):
            if version:
                found[name].add(str(version))
    rows = [(name, listing(sorted(versions))) for name, versions in found.items()]
    return [Table("versions", ["package", "version"], rows, "Versions the runs were made with")] if rows else []


def _seeds(comparison: Comparison) -> Table:
    rows = []
    for agent in comparison.agents:
        for env in comparison.envs:
            if runs := comparison.of(agent, env):
                steps = [run.evaluations[-1].env_steps for run in runs if run.evaluations]
                rows.append((agent, env, ", ".join(str(run.seed) for run in runs), spread(steps) if steps else None))
    columns = ["agent", "environment", "seeds", "env steps at the last evaluation"]
    return Table("seeds", columns, rows, "Seeds of every agent and environment")


def _commands(comparison: Comparison, made: Sequence[Run]) -> list[Part]:
    commands = [_command(comparison.root, run) for run in made if run.config]
    if not commands:
        return []
    text = (
        "Run in the folder of the runs, each command repeats one of them from its resolved configuration; the same"
        " seed gives the same metrics on the same machine."
    )
    return [Text(text), Fold(f"{plural(len(commands), 'command')}", [Code("\n".join(commands))])]


def _command(root: Path, run: Run) -> str:
    folder = run.folder.relative_to(root) if run.folder.is_relative_to(root) else run.folder
    out = Path("again") / (folder if not folder.is_absolute() else folder.name)
    return f"mbrl train {shlex.quote(str(folder / 'config.yaml'))} --out {shlex.quote(str(out))}"
