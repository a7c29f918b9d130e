"""Comparisons made by hand, with known winners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.comparison import Comparison, Evaluation, Reference, Run

ROOT = Path("/runs")
VERSIONS = {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "git": {"commit": "0123abcd" * 5, "changed": False}}


def run(agent: str, env: str, seed: int, level: float, points: int = 6, **changes: Any) -> Run:
    """A run whose return rises to about ``level`` over 6000 env steps."""
    rng = np.random.default_rng([seed, *map(ord, agent + env)])
    evaluations = []
    for point in range(1, points + 1):
        returns = level * point / points + rng.normal(0, 1.0, 5)
        steps = point * 1000
        evaluations.append(Evaluation(steps, 2 * steps, steps * (0.01 + 0.001 * seed), tuple(map(float, returns))))
    made = Run(
        agent=agent,
        env=env,
        seed=seed,
        folder=ROOT / env / agent / f"seed{seed}",
        state="done",
        evaluations=tuple(evaluations),
        fits=fits(points),
        config={"agent": {"class_path": f"agents.{agent}", "init_args": {}}, "steps": 6000, "seed": seed},
        versions=VERSIONS,
        seconds=evaluations[-1].seconds if evaluations else 0.0,
        peak_memory_bytes=300 * 2**20,
    )
    return replace(made, **changes)


def fits(points: int) -> tuple[dict[str, Any], ...]:
    """Fit records with three measures of a model and a loss that is none."""
    return tuple(
        {
            "event": "fit",
            "env_steps": 1000 * point,
            "updates": 2000 * point,
            "loss": -1.0,
            "error_at_1": 1 / point,
            "error_at_8": 3 / point,
            "coverage_90": 0.8,
        }
        for point in range(1, points + 1)
    )


def comparison(
    levels: dict[str, float], seeds: int = 5, envs: Sequence[str] = ("Pole-v1", "Cart-v1"), **changes: Any
) -> Comparison:
    """Agents that end at ``levels`` on every environment; returns of 0 and 100 count as 0 and 1."""
    runs = [run(agent, env, seed, level) for env in envs for agent, level in levels.items() for seed in range(seeds)]
    references = {env: Reference(0.0, 100.0, "made up") for env in envs}
    made = Comparison("Synthetic", ROOT, runs, list(levels), list(envs), references=references)
    return replace(made, **changes)
