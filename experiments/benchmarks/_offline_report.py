"""Table and figure of agents that learn from data: scores of the last evaluation, datasets by agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.benchmarks._runs import identity, row, write_summary
from experiments.metrics import read_records

Runs = Sequence[dict[str, Any]]
TUNING = 100
"""The seed on which settings were chosen: not in the tables"""
COLOURS: Mapping[str, str] = {
    "mopo": "#2563eb",
    "mobile": "#7c3aed",
    "ravl": "#0d9488",
    "bc": "#6b7280",
    "td3bc": "#d97706",
    "iql": "#be185d",
}


def write_report(root: Path, command: str, model_based: Sequence[str], model_free: Sequence[str]) -> None:
    """Write ``summary.json``, ``summary.md`` and ``scores.png`` from the runs kept under ``root``."""
    runs = [summarise(path) for path in sorted(root.glob("*/*/seed*/metrics.jsonl"))]
    judged = [run for run in runs if run["seed"] != TUNING]
    lines = [f"Made by `{command}`. Scores of the last evaluation, 10 episodes: 0 is uniformly random actions, 100 the"]
    lines += ["best policy of the run that made the data. Mean ± standard deviation over the seeds in brackets.", ""]
    lines += layout(judged, [*model_based, *model_free])
    lines += verdict(judged, model_based, model_free)
    others = sorted({run["label"] for run in judged} - {*model_based, *model_free})
    for env in dict.fromkeys(run["env"] for run in judged if run["label"] in others):
        updates = sorted({run["updates"] for run in judged if run["env"] == env and run["label"] in others})
        lines += ["", f"Others on {env}, one seed, {' or '.join(f'{n:,}' for n in updates)} updates (below):", ""]
        lines += layout([run for run in judged if run["env"] == env], others)
    lines += ["", *each_run(runs)]
    write_summary(root, command, runs, lines)
    draw(judged, root / "scores.png")


def summarise(path: Path) -> dict[str, Any]:
    """Evaluations over gradient steps, and what the critics said at the end."""
    records = list(read_records(path))
    evaluations = [record for record in records if record["event"] == "evaluation"]
    update: dict[str, Any] = next((record for record in reversed(records) if record["event"] == "update"), {})
    last, spent = evaluations[-1], sum(record["evaluation_seconds"] for record in evaluations)
    return {
        **identity(path),
        "updates": last["updates"],
        "last": last["return_mean"],
        "score": last["score"],
        "best": max(record["score"] for record in evaluations),
        "q": update.get("q"),
        "q_outside": update.get("q_outside"),
        "train_seconds": round(last["seconds"] - spent, 1),
        "curve": [(record["updates"], record["score"]) for record in evaluations],
    }


def layout(runs: Runs, labels: Sequence[str]) -> list[str]:
    """Datasets by agents; the last line averages over all datasets, for agents that learned from each."""
    labels = [label for label in labels if any(run["label"] == label for run in runs)]
    lines = [row(["data", *labels]), row("---" for _ in ["data", *labels])]
    table: dict[str, dict[str, list[float]]] = {}
    for env in dict.fromkeys(run["env"] for run in runs):
        table[env] = {label: scores(runs, env, label) for label in labels}
        lines.append(row([env, *(_cell(table[env][label]) for label in labels)]))
    if len(table) > 1:
        lines.append(row(["average", *(_average([found[label] for found in table.values()]) for label in labels)]))
    return lines


def _average(found: Sequence[Sequence[float]]) -> str:
    return f"{mean(mean(scores) for scores in found):.1f}" if all(found) else "-"


def scores(runs: Runs, env: str, label: str) -> list[float]:
    """Of the seeds of an agent on a dataset."""
    return [run["score"] for run in runs if (run["env"], run["label"]) == (env, label)]


def _cell(found: Sequence[float]) -> str:
    if not found:
        return "-"
    spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
    return f"{mean(found):.1f}{spread} ({len(found)})"


def verdict(runs: Runs, model_based: Sequence[str], model_free: Sequence[str]) -> list[str]:
    """Whether the best agent with a model has the highest average over datasets."""
    envs = list(dict.fromkeys(run["env"] for run in runs))
    labels = [label for label in (*model_based, *model_free) if all(scores(runs, env, label) for env in envs)]
    average = {label: mean(mean(scores(runs, env, label)) for env in envs) for label in labels}
    ours = max((label for label in labels if label in model_based), key=lambda label: average[label], default=None)
    theirs = max((label for label in labels if label in model_free), key=lambda label: average[label], default=None)
    if ours is None or theirs is None:
        return []
    means = f"{ours} {average[ours]:.1f}, {theirs} {average[theirs]:.1f}"
    leads = "yes" if average[ours] > average[theirs] else "NO"
    return ["", f"The best agent with a model leads the average ({means}): {leads}"]


def each_run(runs: Runs) -> list[str]:
    """A row a run."""
    numbers = ("last", "score", "best", "q", "q_outside")
    names = ("data", "agent", "seed", "updates", "return", "score", "best score", "q", "outside", "seconds")
    lines = [row(names), row("---" for _ in names)]
    for run in runs:
        seed = f"{run['seed']} (tuning)" if run["seed"] == TUNING else run["seed"]
        found = ("-" if run[name] is None else f"{run[name]:.4g}" for name in numbers)
        lines.append(row([run["env"], run["label"], seed, f"{run['updates']:,}", *found, run["train_seconds"]]))
    return lines


def draw(runs: Runs, path: Path) -> None:
    """For each dataset the score over gradient steps: means over seeds (line), and every seed (thin)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(run["env"] for run in runs))
    figure = Figure(figsize=(4.2 * max(1, len(envs)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    shown: dict[str, Any] = {}
    for place, env in enumerate(envs):
        axes = figure.add_subplot(1, len(envs), place + 1, title=env, xlabel="gradient steps", ylabel="score")
        for label, colour in COLOURS.items():
            curves = [run["curve"] for run in runs if (run["env"], run["label"]) == (env, label)]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.3, linewidth=0.8)
            if curves:
                steps = [step for step, _ in curves[0]]
                middle = [mean(values) for values in zip(*([v for _, v in curve] for curve in curves), strict=False)]
                (shown[label],) = axes.plot(steps[: len(middle)], middle, color=colour, linewidth=1.8)
        axes.grid(alpha=0.25)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
