"""Table and figure of :mod:`experiments.benchmarks.pets`: last evaluations, regret to the oracle on the same starts."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from experiments.benchmarks._runs import identity, row, write_summary
from experiments.metrics import read_records

COLOURS = {"pets": "#2563eb", "one-net": "#d97706", "random": "#6b7280", "oracle-mpc": "#059669"}
OTHER = "#b91c1c"


def write_report(root: Path, command: str) -> None:
    """Write ``summary.json``, ``summary.md`` and ``learning-curves.png`` from the runs kept under ``root``."""
    runs = [summarise(path) for path in sorted(root.glob("*/*/seed*/metrics.jsonl"))]
    oracle = {run["env"]: run["returns"] for run in runs if run["label"] == "oracle-mpc"}
    for run in runs:
        run |= regret(run["returns"], oracle.get(run["env"]))
    write_summary(root, command, runs, table(runs, command))
    draw(runs, root / "learning-curves.png")


def summarise(path: Path) -> dict[str, Any]:
    """The last evaluation of one run, its training episodes and its seconds."""
    records = list(read_records(path))
    last = [record for record in records if record["event"] == "evaluation"][-1]
    episodes = [(record["env_steps"], record["return"]) for record in records if record["event"] == "episode"]
    return {
        **identity(path),
        "env_steps": last["env_steps"],
        "return_mean": last["return_mean"],
        "return_min": min(last["returns"]),
        "returns": last["returns"],
        "train_seconds": round(last["seconds"] - last["evaluation_seconds"], 1),
        "episodes": episodes,
    }


def regret(returns: list[float], oracle: list[float] | None) -> dict[str, float]:
    """Mean and worst loss to the oracle, episode by episode on the same starts."""
    if oracle is None or len(oracle) != len(returns):
        return {}
    losses = [best - got for best, got in zip(oracle, returns, strict=True)]
    return {"regret_mean": mean(losses), "regret_worst": max(losses)}


def table(runs: list[dict[str, Any]], command: str) -> list[str]:
    """A row a run and a row of means for each task and label."""
    lines = [f"Made by `{command}`. Mean of the last evaluation's 20 episodes (fixed starts); no best-of.", ""]
    lines += ["| task | agent | seed | env steps | return | worst episode | regret to oracle: mean, worst | seconds |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for run in runs:
        loss = f"{run['regret_mean']:.1f}, {run['regret_worst']:.1f}" if "regret_mean" in run else "-"
        cells = [run["env"], run["label"], run["seed"], f"{run['env_steps']:,}", f"{run['return_mean']:.2f}"]
        cells += [f"{run['return_min']:.2f}", loss, run["train_seconds"]]
        lines.append(row(cells))
    lines += ["", "| task | agent | seeds | mean return | lowest seed |", "|---|---|---|---|---|"]
    for env, label in sorted({(run["env"], run["label"]) for run in runs}):
        values = [run["return_mean"] for run in runs if (run["env"], run["label"]) == (env, label)]
        lines.append(f"| {env} | {label} | {len(values)} | {mean(values):.2f} | {min(values):.2f} |")
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Training returns of every seed; the oracle and the random policy as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = sorted({run["env"] for run in runs})
    columns = min(len(tasks), 2) or 1
    rows = -(-len(tasks) // columns) or 1
    figure = Figure(figsize=(5.2 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(rows, columns, place, title=task, xlabel="env steps", ylabel="episode return")
        for run in (run for run in runs if run["env"] == task):
            label = run["label"] if run["seed"] == 0 else None
            if run["episodes"]:
                xs, ys = zip(*run["episodes"], strict=True)
                axes.plot(
                    xs,
                    ys,
                    marker=".",
                    markersize=3,
                    color=COLOURS.get(run["label"], OTHER),
                    alpha=0.75,
                    linewidth=1.1,
                    label=label,
                )
            elif run["seed"] == 0:
                axes.axhline(run["return_mean"], color=COLOURS.get(run["label"], OTHER), linestyle="--", label=label)
        axes.set_ylim(bottom=lowest(runs, task))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def lowest(runs: list[dict[str, Any]], task: str) -> float:
    """Where a task's axis begins: a little below the random policy, so that one wild episode does not flatten it."""
    shown = [run["return_mean"] for run in runs if run["env"] == task]
    low: float = min(shown)
    high: float = max(shown)
    return low - 0.1 * (high - low or 1.0)
