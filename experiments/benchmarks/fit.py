"""``mbrl bench fit``: a gradient step of the ensemble beside a plain reference and beside the arithmetic floor."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Generator

from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.benchmarks import _floor as floor
from experiments.benchmarks._reference import PlainEnsemble
from experiments.benchmarks._timing import Seconds, make_parser, one_thread, parse, publish, ratio, table, take_turns
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.ensemble import ProbabilisticEnsemble

EAGER_GOAL, COMPILED_GOAL = 1.5, 1.3
SQUARE = "large square products"


@dataclass(frozen=True)
class Sizes:
    """What is fitted; one turn of a case is one epoch of ``updates`` gradient steps."""

    env: str = "HalfCheetah-v5"
    members: int = 7
    layers: int = 4
    hidden: int = 200
    batch: int = 256
    updates: int = 20


QUICK = Sizes("Pendulum-v1", members=2, layers=2, hidden=16, batch=8, updates=2)


def random_rows(spec: EnvSpec, rows: int, generator: Generator) -> Transitions:
    """Transitions of the environment's shapes that no environment made."""
    obs = torch.randn(rows, spec.obs_size, generator=generator)
    action = torch.rand(rows, spec.action.size, generator=generator) * 2 - 1
    next_obs = obs + 0.1 * torch.randn(obs.shape, generator=generator)
    reward = torch.randn(rows, generator=generator)
    ids, no = torch.arange(rows), torch.zeros(rows, dtype=torch.bool)
    return Transitions(obs, action, reward, next_obs, no, no, torch.zeros_like(ids), ids, torch.zeros_like(ids))


def make_model(sizes: Sizes, seed: int) -> ProbabilisticEnsemble:
    torch.manual_seed(seed)
    return ProbabilisticEnsemble(env_spec(sizes.env), sizes.members, sizes.hidden, sizes.layers)


def make_cases(sizes: Sizes, seed: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """Every case does ``sizes.updates`` gradient steps' worth of work, except the square products."""
    generator = torch.Generator().manual_seed(seed)
    models = [make_model(sizes, seed) for _ in range(3)]
    data = random_rows(models[0].spec, sizes.batch * sizes.updates, generator)
    fitters = [Fitter(batch_size=sizes.batch, holdout=0.0, max_updates=sizes.updates, compile=c) for c in (False, True)]
    plain = PlainEnsemble(models[2])
    products = floor.shaped_products(models[2], sizes.batch, backward=True)
    cases: dict[str, Callable[[], object]] = {
        "plain reference": lambda: plain.fit(data, sizes.batch, generator),
        "eager": lambda: fitters[0].fit(models[0], data, generator),
        "compiled": lambda: fitters[1].fit(models[1], data, generator),
        "its matrix products alone": lambda: [products() for _ in range(sizes.updates)],
        SQUARE: floor.square_products(),
    }
    return {name: work for name, work in cases.items() if compiled or name != "compiled"}


def judge(seconds: Seconds, sizes: Sizes) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The table, and its ratios."""
    work = floor.training_flops(make_model(sizes, 0), sizes.batch) * sizes.updates / floor.square_flops()
    found: dict[str, dict[str, float]] = {}
    rows: list[list[object]] = [["a gradient step", "ms", "of reference", "of its products", "of square rate"]]
    for name in [case for case in seconds if case != SQUARE]:
        found[name] = {
            "ms": 1000 * statistics.median(seconds[name]) / sizes.updates,
            "of_reference": ratio(seconds, name, "plain reference"),
            "of_its_products": ratio(seconds, name, "its matrix products alone"),
            "of_square_rate": ratio(seconds, name, SQUARE) / work,
        }
        rows.append([name, *found[name].values()])
    return table(rows), found


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench fit --help``."""
    options = parse(make_parser("fit", __doc__ or "", repeats=15), argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        seconds = take_turns(make_cases(sizes, options.seed, not options.no_compile), options.repeats)
    lines, found = judge(seconds, sizes)
    goal = f"goals: eager <= {EAGER_GOAL}, compiled <= {COMPILED_GOAL} of the floor, its matrix products alone"
    lines += ["", goal, "square rate: the floor if these products ran at the rate of 512 x 512 ones"]
    publish("fit", argv, options, asdict(sizes), lines, {"ratios": found, "seconds": seconds})
    return 0
