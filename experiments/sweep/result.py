"""What a sweep found: ``summary.json``, ``sweep.md``, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.board import in_words
from experiments.storage import write_atomically
from experiments.sweep.ledger import Ledger, Trial
from experiments.sweep.plan import Checked

if TYPE_CHECKING:
    from rich.table import Table


def best_of(trials: Iterable[Trial], mode: str) -> Trial | None:
    """The complete trial with the best last evaluation; the earlier one of equals. None where none is complete."""
    whole = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    sign = 1.0 if mode == "max" else -1.0
    return max(whole, key=lambda trial: (sign * (trial.value or 0.0), -trial.number), default=None)


def write_result(root: Path, found: Checked, ledger: Ledger) -> None:
    """``summary.json`` and ``sweep.md``, of what is known by now."""
    write_atomically(root / "summary.json", json.dumps(summary(root, found, ledger), indent=1).encode() + b"\n")
    write_atomically(root / "sweep.md", markdown(root, found, ledger).encode())


def summary(root: Path, found: Checked, ledger: Ledger) -> dict[str, Any]:
    """Everything that a program may want to know."""
    trials = [
        {"trial": trial.name, "params": dict(trial.params), "state": trial.state, "value": trial.value}
        | {found.unit: trial.steps, "folder": found.folder(trial.params, trial.name), "error": trial.error}
        for trial in ledger.trials.values()
    ]
    best = best_of(ledger.trials.values(), found.plan.mode)
    told = None if best is None else {"trial": best.name, "value": best.value, "command": again(root, found, best)}
    return {"sweep": found.plan.tree(), "unit": found.unit, "trials": trials, "best": told}


def again(root: Path, found: Checked, trial: Trial) -> str:
    """The command that makes the same run alone."""
    return found.command(trial.params, f"runs/{root.resolve().name}-{trial.name}")


def headings(found: Checked) -> list[str]:
    """Names of the table's columns; a setting by the end of its name, where that tells it apart."""
    ends = [key.rpartition(".")[2] for key in found.plan.params]
    short = [end if ends.count(end) == 1 else key for key, end in zip(found.plan.params, ends, strict=True)]
    return ["trial", *short, "state", found.plan.metric, in_words(found.unit)]


def cells(trial: Trial) -> list[str]:
    """A row of the table."""
    settings = [shown(value) for value in trial.params.values()]
    return [trial.name, *settings, trial.state, shown(trial.value), f"{trial.steps:,}"]


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def settings(params: Mapping[str, Any]) -> str:
    """What is set in a trial, in a line."""
    return ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in params.items())


def table(found: Checked, trials: Sequence[Trial]) -> Table:
    """The trials for a terminal, best first among those that came as far."""
    from rich.table import Table

    made = Table()
    for name in headings(found):
        made.add_column(name, justify="left" if name in ("trial", "state") else "right", overflow="fold")
    for trial in ranked(trials, found.plan.mode):
        made.add_row(*cells(trial))
    return made


def ranked(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Complete trials before pruned ones, those before others; further ones first, then better ones."""
    order = ("finished", "pruned", "open", "failed")
    sign = -1.0 if mode == "max" else 1.0

    def place(trial: Trial) -> tuple[Any, ...]:
        worst = trial.value is None
        return order.index(trial.state), -trial.steps, worst, sign * (trial.value or 0.0), trial.number

    return sorted(trials, key=place)


def markdown(root: Path, found: Checked, ledger: Ledger) -> str:
    """``sweep.md``."""
    plan, trials = found.plan, [*ledger.trials.values()]
    best = best_of(trials, plan.mode)
    spaces = [f"| `{key}` | `{text}` |" for key, text in plan.params.items()]
    rows = [f"| {' | '.join(cells(trial))} |" for trial in ranked(trials, plan.mode)]
    heads = headings(found)
    told = "No trial is complete yet."
    if best is not None:
        command = again(root, found, best)
        told = f"Best: `{best.name}`, {plan.metric} {shown(best.value)}. The same run alone:\n\n```sh\n{command}\n```"
    failed = [f"- `{trial.name}`: {last_line(trial.error)}" for trial in trials if trial.error is not None]
    return "\n".join(
        [
            f"# {plan.recipe} on {found.env}: {len(trials)} of {plan.trials} trials\n",
            f"{plan.metric}, {plan.mode}, behind {found.steps:,} {in_words(found.unit)}; seed {plan.seed}.\n",
            "| setting | space |\n|---|---|",
            *spaces,
            f"\n{told}\n",
            f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}",
            *rows,
            *(["\nFailed:\n", *failed] if failed else []),
            "",
        ]
    )


def last_line(said: str | None) -> str:
    """What a failed run said last: of a traceback the exception."""
    lines = [line for line in (said or "").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
