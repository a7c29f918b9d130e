"""``mbrl bench koopman-diagonal``: long predictions of a diagonal Koopman model and of an unrolled network.

A damped pendulum librates about its hanging point. Both kinds are trained on windows of several lengths for as many
updates and judged open loop; then the Koopman model is lifted anew on the way, every so many steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.benchmarks._koopman_baseline import SCALE, UnrolledMLP, librating
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl import seeding
from mbrl.data.buffer import consecutive
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel
from mbrl.models.koopman.diagonal import DiagonalKoopman

KOOPMAN, FORGETFUL = "Koopman", "Koopman, mu = -5"
PLAIN, SHORT, RESIDUAL = "MLP", "MLP, short windows", "MLP of changes"
GOALS = {"koopman_of_mlp": 0.6, "worst_of_best_seed": 2.0, "reencoded_of_none": 0.6, "every_step_of_best": 2.0}
PERIODS = (0, 1, 5, 10, 25)
COMPARED = (5, 10, 25)
COOL = 0.1
EVERY = 7
"""Test windows start at every so many-th place."""


@dataclass(frozen=True)
class Sizes:
    """``horizon`` steps ahead errors are judged at."""

    sequences: int = 400
    test_sequences: int = 100
    length: int = 200
    window: int = 50
    short_window: int = 10
    horizon: int = 50
    modes: int = 64
    hidden: int = 128
    step: float = 0.01
    updates: int = 2500
    batch: int = 64
    lr: float = 1e-3
    seeds: int = 3


QUICK = Sizes(20, 5, 60, 10, 5, 30, 4, 8, 0.01, 5, 8, 1e-3, 2)


def cases(sizes: Sizes, spec: EnvSpec) -> Mapping[str, Callable[[], DynamicsModel]]:
    """Models by name. A linear action encoder and one hidden layer: more learned no better here, and slower."""

    def koopman(mu: float) -> DiagonalKoopman:
        kind: dict[str, Any] = {"layers": 1, "action_net": "linear", "reencode_every": 0}
        own: dict[str, Any] = {"modes": sizes.modes, "window": sizes.window, "hidden": sizes.hidden}
        return DiagonalKoopman(spec, mu=mu, step=sizes.step, **own, **kind)

    return {
        KOOPMAN: lambda: koopman(-0.2),
        FORGETFUL: lambda: koopman(-5.0),
        PLAIN: lambda: UnrolledMLP(spec, sizes.window, sizes.hidden),
        SHORT: lambda: UnrolledMLP(spec, sizes.short_window, sizes.hidden),
        RESIDUAL: lambda: UnrolledMLP(spec, sizes.window, sizes.hidden, residual=True),
    }


def trained(make: Callable[[], DynamicsModel], rows: Transitions, sizes: Sizes, seed: int) -> DynamicsModel:
    """The model after ``updates`` steps of Adam, the last fifth of them shorter: at a constant step size what the last
    updates happened to do decides a long prediction.
    """
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    model, luck = make(), seeding.generator(seed, "fit")
    shares: dict[str, Any] = {"lr": sizes.lr, "batch_size": sizes.batch, "weight_decay": 0.0, "holdout": 0.0}
    fitter = Fitter(**shares, max_updates=sizes.updates - sizes.updates // 5, max_epochs=sizes.updates)
    fitter.fit(model, rows, luck)
    assert fitter.optimizer is not None
    for group in fitter.optimizer.param_groups:
        group["lr"] *= COOL
    fitter.max_updates = sizes.updates // 5
    fitter.fit(model, rows, luck)
    return model


def test_windows(sizes: Sizes, seed: int) -> Transitions:
    """``[horizon, W]`` rows of unseen sequences."""
    rows = librating(sizes.test_sequences, sizes.length, seeding.generator(seed, "test"))
    return rows[consecutive(rows.episode, rows.step, sizes.horizon)[:, ::EVERY]]


@torch.no_grad()
def errors(model: DynamicsModel, lived: Transitions) -> dict[int, float]:
    """Mean squared error of cos, sin and velocity / 8 at the last step, by re-encoding period (0: none)."""

    def judge(last: Tensor) -> float:
        return float(((last - lived.next_obs[-1]) / torch.tensor(SCALE)).square().mean().nan_to_num(torch.inf))

    if isinstance(model, UnrolledMLP):
        return {0: judge(model.open_loop(lived.obs[0], lived.action)[-1])}
    assert isinstance(model, DiagonalKoopman)
    start = model.encode(lived.obs[0])
    paths = {k: model.rollout(start, lived.action, None, reencode_every=k) for k in PERIODS}
    return {period: judge(path.states.obs[-1, 0]) for period, path in paths.items()}


def run(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Every case's errors, one dictionary for each of the seeds."""
    spec = env_spec("Pendulum-v1")
    found: dict[str, list[dict[int, float]]] = {}
    for name, make in cases(sizes, spec).items():
        found[name] = []
        for number in range(seed, seed + sizes.seeds):
            rows = librating(sizes.sequences, sizes.length, seeding.generator(number, "rows"))
            found[name].append(errors(trained(make, rows, sizes, number), test_windows(sizes, number)))
    return {"errors": found, "ratios": ratios(found)}


def ratios(found: Mapping[str, list[dict[int, float]]]) -> dict[str, float]:
    """What the goals are set on, of means over the seeds where nothing else is said."""

    def mean(name: str, period: int = 0) -> float:
        return statistics.mean(seed[period] for seed in found[name])

    seeds = [seed[0] for seed in found[KOOPMAN]]
    middle = statistics.median(seeds) / statistics.median(seed[0] for seed in found[PLAIN])
    best = min(mean(KOOPMAN, period) for period in COMPARED)
    return {
        "koopman_of_mlp": mean(KOOPMAN) / mean(PLAIN),
        "koopman_of_mlp_median": middle,
        "worst_of_best_seed": max(seeds) / min(seeds),
        "reencoded_of_none": best / mean(KOOPMAN),
        "every_step_of_best": mean(KOOPMAN, 1) / best,
        "forgetful_of_koopman": mean(FORGETFUL) / mean(KOOPMAN),
        "koopman_of_short_mlp": mean(KOOPMAN) / mean(SHORT),
        "koopman_of_mlp_of_changes": mean(KOOPMAN) / mean(RESIDUAL),
    }


def lines_of(sizes: Sizes, found: Mapping[str, Any]) -> list[str]:
    rows: list[list[object]] = [[f"squared error at step {sizes.horizon}", "mean", "each seed"]]
    rows += [
        [name, statistics.mean(s[0] for s in seeds), "  ".join(f"{s[0]:.2g}" for s in seeds)]
        for name, seeds in found["errors"].items()
    ]
    again: list[list[object]] = [[f"{KOOPMAN}, lifted anew every", "mean", "each seed"]]
    seeds = found["errors"][KOOPMAN]
    again += [
        [f"{k or 'never'}", statistics.mean(s[k] for s in seeds), "  ".join(f"{s[k]:.2g}" for s in seeds)]
        for k in PERIODS
    ]
    got = found["ratios"]
    aims = [
        f"Koopman / MLP trained over as many steps: {got['koopman_of_mlp']:.2f} (goal <= 0.6), of medians "
        f"{got['koopman_of_mlp_median']:.2f}; "
        f"/ MLP of changes, not a goal: {got['koopman_of_mlp_of_changes']:.3g}",
        f"worst / best seed: {got['worst_of_best_seed']:.2f} (goal < 2)",
        f"best of {COMPARED} / none: {got['reencoded_of_none']:.2f} (goal <= 0.6); every step / best: "
        f"{got['every_step_of_best']:.1f} (goal >= 2)",
        f"mu = -5 / mu = -0.2 at the start: {got['forgetful_of_koopman']:.2f}",
    ]
    return [*table(rows), "", *table(again), "", *aims]


def main(argv: Sequence[str]) -> None:
    options = parse(make_parser("koopman-diagonal", __doc__ or "", repeats=1), argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        found = run(sizes, options.seed)
    config = {"sizes": asdict(sizes), "seed": options.seed, "goals": GOALS}
    publish("koopman-diagonal", argv, options, config, lines_of(sizes, found), found)
