"""``mbrl bench imagine``: many rows imagined one step on, beside a plain reference and the arithmetic floor."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from envs.registry import env_spec
from experiments.benchmarks import _floor as floor
from experiments.benchmarks._reference import PlainEnsemble
from experiments.benchmarks._timing import (
    Seconds,
    bfloat16_note,
    make_parser,
    one_thread,
    parse,
    publish,
    ratio,
    table,
    take_turns,
)
from mbrl.models.base import State, Step
from mbrl.models.bound_ensemble import CHUNK_ROWS
from mbrl.models.ensemble import ProbabilisticEnsemble

FLOAT32_GOAL, BFLOAT16_GOAL = 1.5, 2.5


@dataclass(frozen=True)
class Sizes:
    """What is imagined."""

    env: str = "HalfCheetah-v5"
    members: int = 7
    layers: int = 4
    hidden: int = 200
    rows: int = 100_000


class _Steps(Protocol):
    def step(self, state: State, action: Tensor, generator: Generator) -> Step: ...


QUICK = Sizes("Pendulum-v1", members=2, layers=2, hidden=16, rows=50)


def make_model(
    sizes: Sizes, seed: int, dtype: Literal["float32", "bfloat16"] = "float32", compiled: bool = False
) -> ProbabilisticEnsemble:
    torch.manual_seed(seed)
    return ProbabilisticEnsemble(
        env_spec(sizes.env), sizes.members, sizes.hidden, sizes.layers, inference_dtype=dtype, compile=compiled
    )


def make_cases(sizes: Sizes, seed: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """Every case moves ``sizes.rows`` rows by one step, each by a random member, with sampled noise."""
    plain = make_model(sizes, seed)
    spec, generator = plain.spec, torch.Generator().manual_seed(seed)
    state = State(torch.randn(sizes.rows, spec.obs_size, generator=generator))
    action = torch.rand(sizes.rows, spec.action.size, generator=generator) * 2 - 1
    models: dict[str, _Steps] = {"plain reference": PlainEnsemble(plain), "eager": plain.bind()}
    models["bfloat16"] = make_model(sizes, seed, "bfloat16").bind()
    if compiled:
        models["compiled"] = make_model(sizes, seed, compiled=True).bind()
        models["bfloat16 compiled"] = make_model(sizes, seed, "bfloat16", compiled=True).bind()
    cases: dict[str, Callable[[], object]] = {
        name: functools.partial(model.step, state, action, generator) for name, model in models.items()
    }
    chunk = min(CHUNK_ROWS["cpu"], sizes.rows)
    products, turns = floor.shaped_products(plain, chunk, backward=False), sizes.rows / (chunk * sizes.members)
    cases["its matrix products alone"] = lambda: [products() for _ in range(round(turns))]
    return cases


def judge(seconds: Seconds, sizes: Sizes) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The table, and its ratios."""
    found: dict[str, dict[str, float]] = {}
    rows: list[list[object]] = [["one imagined step", "thousand rows/s", "times reference", "of its products"]]
    for name in seconds:
        found[name] = {
            "thousand_per_second": sizes.rows / statistics.median(seconds[name]) / 1000,
            "speedup": ratio(seconds, "plain reference", name),
            "of_its_products": ratio(seconds, name, "its matrix products alone"),
        }
        rows.append([name, *found[name].values()])
    return table(rows), found


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench imagine --help``."""
    options = parse(make_parser("imagine", __doc__ or "", repeats=11), argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        seconds = take_turns(make_cases(sizes, options.seed, not options.no_compile), options.repeats)
    lines, found = judge(seconds, sizes)
    lines += [
        "",
        f"goals: compiled >= {FLOAT32_GOAL} times the reference's speed, in bfloat16 >= {BFLOAT16_GOAL} times",
        bfloat16_note(),
    ]
    publish("imagine", argv, options, asdict(sizes), lines, {"ratios": found, "seconds": seconds})
    return 0
