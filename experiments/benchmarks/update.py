"""``mbrl bench update``: soft actor-critic updates a second beside stable-baselines3's, drawing of batches included,
and where the time of one MBPO env step goes.
"""

from __future__ import annotations

import os
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium
import torch

from agents.actor_critic import ActorCritic
from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.benchmarks._mbpo_step import profile_step
from experiments.benchmarks._timing import Seconds, make_parser, one_thread, parse, publish, ratio, table, take_turns
from experiments.benchmarks.fit import random_rows
from mbrl.data.buffer import ReplayBuffer
from mbrl.imagination.model_env import spaces_of

REFERENCE = "stable-baselines3"
GOALS = {(64, 128): 4.0, (128, 128): 2.0, (256, 128): 1.0}
"""Updates a second of the compiled learner over the reference's, by (hidden, batch)."""


@dataclass(frozen=True)
class Sizes:
    """What is measured; one turn of a case is ``updates`` updates in a row."""

    env: str = "Hopper-v5"
    hidden: tuple[int, ...] = (64, 128, 256)
    batch: tuple[int, ...] = (128, 256)
    updates: int = 20
    rows: int = 10_000


QUICK = Sizes("Pendulum-v1", hidden=(8,), batch=(16,), updates=2, rows=100)


class Spaces(gymnasium.Env[Any, Any]):
    """Nothing but the spaces of an environment: learning from stored rows needs no more."""

    def __init__(self, spec: EnvSpec) -> None:
        self.observation_space, self.action_space = spaces_of(spec)


def reference(spec: EnvSpec, sizes: Sizes, hidden: int, batch: int, seed: int) -> Callable[[], object]:
    """Their SAC with its own buffer: the same work, as their ``learn`` would ask for it."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    learner = SAC(
        "MlpPolicy",
        Spaces(spec),
        batch_size=batch,
        buffer_size=sizes.rows,
        policy_kwargs={"net_arch": [hidden, hidden]},
        seed=seed,
        device="cpu",
    )
    learner.set_logger(Logger(None, []))
    rows = random_rows(spec, sizes.rows, torch.Generator().manual_seed(seed)).map(torch.Tensor.cpu)
    assert learner.replay_buffer is not None
    columns = (rows.obs, rows.next_obs, rows.action, rows.reward, rows.terminated)
    for obs, next_obs, action, reward, done in zip(*(column.numpy() for column in columns), strict=True):
        learner.replay_buffer.add(obs, next_obs, action, reward, done, [{}])
    return lambda: learner.train(sizes.updates, batch)


def ours(spec: EnvSpec, sizes: Sizes, hidden: int, batch: int, seed: int, compiled: bool) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(seed)
    buffer = ReplayBuffer(sizes.rows)
    buffer.extend(random_rows(spec, sizes.rows, torch.Generator().manual_seed(seed)))
    learner = ActorCritic(spec, hidden=hidden, compile=compiled)

    def run() -> None:
        rows = buffer.sample(sizes.updates * batch, generator)
        learner.update(rows.map(lambda x: x.view(sizes.updates, batch, *x.shape[1:])), generator)

    return run


def measure(sizes: Sizes, hidden: int, batch: int, seed: int, compiled: bool, repeats: int) -> dict[str, Any]:
    """Updates a second of every case at one size, ratios to the reference, and the seconds of the first call."""
    spec = env_spec(sizes.env)
    cases = {
        REFERENCE: reference(spec, sizes, hidden, batch, seed),
        "eager": ours(spec, sizes, hidden, batch, seed, False),
    }
    if compiled:
        cases["compiled"] = ours(spec, sizes, hidden, batch, seed, True)
    first = processor_seconds(cases[list(cases)[-1]])
    seconds: Seconds = take_turns(cases, repeats)
    found = {
        name: {
            "updates_per_second": sizes.updates / statistics.median(turns),
            "best_updates_per_second": sizes.updates / min(turns),
            "of_reference": ratio(seconds, REFERENCE, name),
        }
        for name, turns in seconds.items()
    }
    return {"hidden": hidden, "batch": batch, "cases": found, "first_call_seconds": first, "seconds": seconds}


def processor_seconds(work: Callable[[], object]) -> float:
    """Of this process and of the compilers that it starts."""
    began = os.times()
    work()
    return sum(after - before for before, after in zip(began[:4], os.times()[:4], strict=True))


def lines_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table of all sizes."""
    rows: list[list[object]] = [["updates a second", "median", "best", "times reference", "goal"]]
    for size in found:
        for name, case in size["cases"].items():
            goal = GOALS.get((size["hidden"], size["batch"])) if name == "compiled" else None
            where = f"2x{size['hidden']}, batch {size['batch']}: {name}"
            rows.append([where, *case.values(), f">= {goal:g}" if goal else ""])
    return table(rows)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench update --help``."""
    parser = make_parser("update", __doc__ or "", repeats=15)
    parser.add_argument("--hidden", type=int, nargs="+", help="widths of the two hidden layers")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes")
    options = parse(parser, argv)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, hidden=tuple(options.hidden or sizes.hidden), batch=tuple(options.batch or sizes.batch))
    with one_thread():
        profile = profile_step(sizes.env, _step_options(options), 5 if options.quick else 500)
        found = [
            measure(sizes, hidden, batch, options.seed, not options.no_compile, options.repeats)
            for batch in sizes.batch
            for hidden in sizes.hidden
        ]
    lines = [
        *lines_of(found),
        "",
        f"{sizes.env}, 2 critics, 1 thread; the first call compiles and took, in processor seconds",
    ]
    lines += [f"  2x{size['hidden']}, batch {size['batch']}: {size['first_call_seconds']:.1f} s" for size in found]
    shares: list[list[object]] = [["one env step of mbpo-fast", "ms", "share"]]
    shares += [[part, ms, f"{ms / profile['whole']:.0%}"] for part, ms in profile.items()]
    lines += ["", *table(shares)]
    publish("update", argv, options, asdict(sizes), lines, {"sizes": found, "mbpo_step_ms": profile})
    return 0


def _step_options(options: Namespace) -> list[tuple[str, Any]]:
    """Settings of the profiled run."""
    small = [("agent.warmup_steps", 20), ("agent.fit_every", 5), ("agent.fitter.max_epochs", 1)]
    eager = [("agent.learner.compile", False)] if options.no_compile else []
    return eager + (small if options.quick else [])
