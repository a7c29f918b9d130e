"""Table and figure of benchmarks made of whole runs: returns against env steps and against wall-clock."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from experiments.benchmarks._runs import identity, row, write_summary
from experiments.metrics import read_records

COLOURS = {
    "mbpo-fast": "#2563eb",
    "mbpo-mpc": "#7c3aed",
    "pets": "#16a34a",
    "sac-utd10": "#d97706",
    "sac-utd1": "#fbbf24",
    "sb3-sac": "#6b7280",
    "sb3-tqc": "#0d9488",
    "sb3-crossq": "#be185d",
    "mbpo-fast-0.99": "#93c5fd",
    "sac-utd10-0.99": "#fde68a",
    "sb3-sac-0.997": "#111827",
    "mbpo-fast-averaged": "#0ea5e9",
    "sac-utd10-averaged": "#92400e",
    "koopman-mpc": "#2563eb",
    "koopman-edmd": "#d97706",
    "koopman-dyna": "#0d9488",
}
SOLVED = {"InvertedPendulum-v5": 900.0}
"""Return from which a task counts as solved, where seconds to it are reported."""


def write_report(root: Path, command: str) -> None:
    """Write ``summary.json``, ``summary.md`` and ``learning-curves.png`` from the runs kept under ``root``."""
    runs = [summarise(path) for path in sorted(root.glob("*/*/seed*/metrics.jsonl"))]
    write_summary(root, command, runs, table(runs, command))
    draw(runs, root / "learning-curves.png")


def summarise(path: Path) -> dict[str, Any]:
    """Evaluations of one run over env steps and over training seconds (evaluations themselves are not counted)."""
    spent, curve = 0.0, []
    for record in read_records(path):
        if record["event"] == "evaluation":
            spent += record["evaluation_seconds"]
            curve.append((record["env_steps"], round(record["seconds"] - spent, 2), record["return_mean"]))
    returns = [value for _, _, value in curve]
    env = identity(path)["env"]
    return {
        **identity(path),
        "env_steps": curve[-1][0],
        "last": returns[-1],
        "best": max(returns),
        "area": mean(returns),
        "train_seconds": curve[-1][1],
        "seconds_to_solve": next((s for _, s, value in curve if value >= SOLVED.get(env, float("inf"))), None),
        "curve": curve,
    }


def table(runs: list[dict[str, Any]], command: str) -> list[str]:
    """A row a run, and a row of means for each task and agent."""
    lines = [f"Made by `{command}`. Every evaluation has the same starts for all; `area` is the mean of all"]
    lines += ["evaluations; seconds are training alone, on one thread (compilation included).", ""]
    lines += ["| task | agent | seed | env steps | last | best | area | seconds | seconds to solve |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for run in runs:
        solved = "-" if run["seconds_to_solve"] is None else run["seconds_to_solve"]
        cells = [run["env"], run["label"], run["seed"], f"{run['env_steps']:,}"]
        cells += [f"{run[name]:.1f}" for name in ("last", "best", "area")] + [run["train_seconds"], solved]
        lines.append(row(cells))
    lines += ["", "| task | agent | seeds | last | lowest last | area | seconds |", "|---|---|---|---|---|---|---|"]
    for env, label in dict.fromkeys((run["env"], run["label"]) for run in runs):
        same = [run for run in runs if (run["env"], run["label"]) == (env, label)]
        last = [run["last"] for run in same]
        cells = [env, label, len(same), f"{mean(last):.1f}", f"{min(last):.1f}"]
        cells += [f"{mean(run['area'] for run in same):.1f}", f"{mean(run['train_seconds'] for run in same):.0f}"]
        lines.append(row(cells))
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """For each task the mean over seeds (line) and each seed (thin): against env steps, and against seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(run["env"] for run in runs))
    figure = Figure(figsize=(10.4, 3.3 * max(1, len(tasks))), layout="constrained")
    FigureCanvasAgg(figure)
    for line, task in enumerate(tasks):
        for column, (axis, label) in enumerate([(0, "env steps"), (1, "training seconds, one thread")]):
            axes = figure.add_subplot(len(tasks), 2, 2 * line + column + 1, title=task, xlabel=label, ylabel="return")
            for run in (run for run in runs if run["env"] == task):
                _line(axes, run, axis)
            axes.grid(alpha=0.25)
            if column == 0:
                axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def _line(axes: Any, run: dict[str, Any], axis: int) -> None:
    xs, ys = [point[axis] for point in run["curve"]], [point[2] for point in run["curve"]]
    name = run["label"] if run["seed"] == 0 else None
    axes.plot(xs, ys, color=COLOURS.get(run["label"], "#b91c1c"), alpha=0.8, linewidth=1.3, marker=".", label=name)
