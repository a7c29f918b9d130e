"""``mbrl demo``: watch an agent learn the dynamics of a pendulum and plan with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.commands import finish
from experiments.config import resolve
from experiments.metrics import read_records
from experiments.session import Session

SETTINGS: Sequence[tuple[str, Any]] = (("steps", 1000), ("evaluation.episodes", 5), ("evaluation.num_envs", 5))
WIDTH = 48


def run_demo(out: str | None) -> Path:
    """Train ``pets`` on Pendulum-v1 and show what it learned; the run directory."""
    print("PETS on Pendulum-v1: fit an ensemble to what was seen, plan with it, repeat.", file=sys.stderr)
    session = Session(resolve("pets", SETTINGS, env="Pendulum-v1"))
    try:
        run = session.create(out, ["mbrl", "demo"])
        finish(session, run, quiet=False)
    finally:
        session.close()
    points = learning_curve(run.metrics)
    print("\nReturn of each training episode (the first one acts at random; a perfect one gets between 0 and -300):\n")
    print("\n".join(text_curve(points)))
    picture = draw(points, run.path / "learning-curve.png")
    print(f"\nlearning curve: {picture}\n\nnext:\n  mbrl evaluate {run.path} --video")
    print("  mbrl train pets --env mbrl/CartPoleSwingUp-v0\n  mbrl list recipes")
    print(f"  tensorboard --logdir {run.path.parent}")
    return run.path


def learning_curve(metrics: Path) -> list[tuple[int, float]]:
    """``(env steps, return)`` of every training episode."""
    return [(r["env_steps"], r["return"]) for r in read_records(metrics) if r["event"] == "episode"]


def text_curve(points: Sequence[tuple[int, float]]) -> list[str]:
    """A bar a point, longest for the best return."""
    low, high = min(v for _, v in points), max(v for _, v in points)
    span = (high - low) or 1.0
    return [f"{s:>7,} {v:>10.1f} " + "█" * (1 + round((v - low) / span * WIDTH)) for s, v in points]


def draw(points: Sequence[tuple[int, float]], path: Path) -> Path:
    """The learning curve as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="env steps", ylabel="return of the episode", title="PETS on Pendulum-v1")
    axes.plot([s for s, _ in points], [v for _, v in points], marker="o")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return path
