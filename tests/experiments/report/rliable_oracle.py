"""What rliable says about the arrays below, written to ``rliable_oracle.json``, which ``test_statistics.py`` reads.

rliable 1.2 cannot be installed beside the tested set: it wants arch < 8, which wants pandas < 3 (its import fails
under pandas 3), and Ray's tested set has pandas 3. So its numbers are made once, in an environment of their own:

    python3.11 -m venv /tmp/rliable && /tmp/rliable/bin/pip install rliable==1.2.0 "pandas<3"
    /tmp/rliable/bin/python tests/experiments/report/rliable_oracle.py

It takes about two minutes. rliable draws from NumPy's global state and ignores the random state it is given.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np

REPETITIONS = 50_000
PAIR_REPETITIONS = 20_000
PROFILE_REPETITIONS = 20_000
TAUS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


def scores(runs: int, tasks: int, shift: float) -> np.ndarray:
    """``[runs, tasks]``, scattered between tasks and runs, with a far outlier, from arithmetic alone."""
    run, task = np.mgrid[:runs, :tasks]
    scatter = ((7919 * run + 104729 * task + 17 * run * task * task) % 1009) / 1009
    found = np.round(shift + 0.15 * task + 0.5 * scatter, 4)
    found[0, 0] = 3.0
    return found


def curves(runs: int, points: int) -> np.ndarray:
    """``[runs, 1, points]``: learning curves of one task."""
    run, point = np.mgrid[:runs, :points]
    return np.round(point / points + 0.4 * ((389 * run + 31 * point * run) % 101) / 101, 4)[:, None, :]


def main() -> None:
    from rliable import library, metrics

    np.random.seed(0)
    x, y, lines = scores(8, 5, 0.1), scores(6, 5, 0.02), curves(7, 4)
    named = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }

    def aggregates(drawn: np.ndarray) -> np.ndarray:
        return np.array([metric(drawn) for metric in named.values()])

    def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(ours, theirs)])

    def curve(drawn: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(drawn[..., point]) for point in range(drawn.shape[-1])])

    def found(data: object, statistic: object, repetitions: int, **options: object) -> dict[str, list[float]]:
        value, interval = library.get_interval_estimates({"it": data}, statistic, reps=repetitions, **options)
        return {"value": value["it"].tolist(), "low": interval["it"][0].tolist(), "high": interval["it"][1].tolist()}

    profile, bands = library.create_performance_profile({"it": x}, np.array(TAUS), reps=PROFILE_REPETITIONS)
    result = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("rliable", "arch", "numpy", "scipy", "pandas")
        },
        "x": x.T.tolist(),
        "y": y.T.tolist(),
        "curves": lines[:, 0].tolist(),
        "aggregates": list(named),
        "runs": found(x, aggregates, REPETITIONS),
        "runs and tasks": found(x, aggregates, REPETITIONS, task_bootstrap=True),
        "improvement": found([x, y], improvement, PAIR_REPETITIONS),
        "curve": found(lines, curve, PROFILE_REPETITIONS),
        "taus": TAUS,
        "profile": {"value": profile["it"].tolist(), "low": bands["it"][0].tolist(), "high": bands["it"][1].tolist()},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
