"""``mbrl bench offline-update``: updates a second of what learns from a dataset beside the online learner, all at one
width and batch size, drawing of batches included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import yaml

from agents.actor_critic import ActorCritic
from agents.offline.base import OfflineAgent
from agents.offline.model_based import OfflineDynaAgent
from envs.errors import UserError
from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.benchmarks._timing import Seconds, make_parser, one_thread, parse, publish, ratio, table, take_turns
from experiments.benchmarks.fit import random_rows
from experiments.config import resolve
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.imagination.model_buffer import mixed_batches

ONLINE, COMPILED = "online", "online, compiled"
RECIPES = ("bc", "td3bc", "iql", "cql", "edac", "mopo", "mobile", "ravl", "combo", "rambo")
BETWEEN = "before a round"
"""What a model-based agent does now and then: imagining anew, and RAMBO's adversary"""


@dataclass(frozen=True)
class Sizes:
    """What is measured; one turn of a case is ``updates`` updates in a row."""

    env: str = "Hopper-v5"
    hidden: int = 128
    batch: int = 256
    updates: int = 20
    rows: int = 100_000


QUICK = Sizes("Pendulum-v1", hidden=8, batch=16, updates=2, rows=200)
SMALL = {"starts": 10, "adversarial_steps": 2}
"""Of a quick run, what is done between rounds"""


def dataset(spec: EnvSpec, sizes: Sizes, seed: int) -> ReplayBuffer:
    """Rows of the environment's shapes that no environment made; all learn from the same."""
    buffer = ReplayBuffer(sizes.rows)
    buffer.extend(random_rows(spec, sizes.rows, torch.Generator().manual_seed(seed)))
    return buffer


def online(spec: EnvSpec, data: ReplayBuffer, sizes: Sizes, seed: int, compiled: bool) -> Callable[[], object]:
    """The learner of ``sac-fast``."""
    learner, generator = ActorCritic(spec, hidden=sizes.hidden, compile=compiled), torch.Generator().manual_seed(seed)
    learner.seed(seed)

    def run() -> None:
        learner.update(mixed_batches(data, None, 1.0, sizes.updates, sizes.batch, generator), generator)

    return run


def offline(recipe: str, spec: EnvSpec, data: ReplayBuffer, sizes: Sizes, quick: bool, seed: int) -> OfflineAgent:
    """The recipe's agent at the sizes of all, ready to learn: its model, if any, has been fitted for one epoch."""
    wanted: dict[str, Any] = {
        "batch_size": sizes.batch,
        "round_updates": sizes.updates,
        "learner.hidden": sizes.hidden,
        "model.hidden": sizes.hidden,
        "fitter.max_epochs": 1,
        "pretrain_updates": 1,
    } | (SMALL if quick else {})
    has = yaml.safe_load(resolve(recipe, [("data", "none")], sizes.env).text)["agent"]["init_args"]
    settings = [(f"agent.{key}", value) for key, value in wanted.items() if key.split(".")[0] in has]
    config = resolve(recipe, [("data", "none"), *settings], sizes.env).config
    torch.manual_seed(seed)
    agent = config.agent(spec)
    assert isinstance(agent, OfflineAgent)
    agent.seed(seed)
    agent.load(data)
    agent.expect(config.steps)
    return agent


def rounds(agent: OfflineAgent) -> Callable[[], object]:
    """One round of updates: batches drawn, and learned from."""
    return lambda: agent.learn(agent.draw(agent.round_updates))


def between(agent: OfflineDynaAgent) -> Callable[[], object]:
    """What is due once in ``refresh_every`` updates, each time as if so many had gone by."""
    clock = Clock()

    def run() -> None:
        clock.updates += agent.refresh_every
        agent.prepare(clock)

    return run


def make_cases(
    spec: EnvSpec, sizes: Sizes, recipes: Sequence[str], options: Any
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What takes turns; and, of the agents that do something between rounds, in how many updates once."""
    data, seed = dataset(spec, sizes, options.seed), options.seed
    cases = {ONLINE: online(spec, data, sizes, seed, False)}
    if not options.no_compile:
        cases[COMPILED] = online(spec, data, sizes, seed, True)
    every: dict[str, int] = {}
    for recipe in recipes:
        agent = offline(recipe, spec, data, sizes, options.quick, seed)
        if isinstance(agent, OfflineDynaAgent):
            agent.prepare(Clock())
            every[recipe] = agent.refresh_every
            cases[f"{recipe}, {BETWEEN}"] = between(agent)
        cases[recipe] = rounds(agent)
    return cases, every


def judge(seconds: Seconds, updates: int, every: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Of each learner: milliseconds an update, with its share of what is done between rounds, and how many times the
    online learner's that is, the median over turns.
    """
    found = {}
    for name in (name for name in seconds if BETWEEN not in name):
        spared = [0.0] * len(seconds[name])
        if name in every:
            spared = [turn * updates / every[name] for turn in seconds[f"{name}, {BETWEEN}"]]
        whole = [turn + more for turn, more in zip(seconds[name], spared, strict=True)]
        found[name] = {
            "update_ms": 1e3 * statistics.median(seconds[name]) / updates,
            "whole_ms": 1e3 * statistics.median(whole) / updates,
            "updates_per_second": updates / statistics.median(whole),
            "of_online": ratio({ONLINE: seconds[ONLINE], name: whole}, name, ONLINE),
        }
    return found


def lines_of(found: Mapping[str, Mapping[str, float]], sizes: Sizes) -> list[str]:
    """The table."""
    head = [f"{sizes.env}, 2x{sizes.hidden}, batch {sizes.batch}", "ms an update", "and between", "updates a second"]
    rows: list[list[object]] = [[*head, "times online"]]
    rows += [[name, *case.values()] for name, case in found.items()]
    said = "'and between' adds each update's share of imagining anew (and of RAMBO's adversary);"
    more = "fits of models, once a run, are left out. Ratios are medians over turns of neighbours in time; 1 thread."
    return [*table(rows), "", said, more]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench offline-update --help``."""
    parser = make_parser("offline-update", __doc__ or "", repeats=11)
    parser.add_argument("--recipes", nargs="+", metavar="RECIPE", default=[*RECIPES], help="which (default: all)")
    parser.add_argument("--hidden", type=int, help="width of the two hidden layers of every network")
    parser.add_argument("--batch", type=int, help="batch size")
    options = parse(parser, argv)
    for recipe in options.recipes:
        if recipe not in RECIPES:
            raise UserError("--recipes", recipe, f"give some of {', '.join(RECIPES)}", RECIPES)
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, hidden=options.hidden or sizes.hidden, batch=options.batch or sizes.batch)
    with one_thread():
        cases, every = make_cases(env_spec(sizes.env), sizes, options.recipes, options)
        seconds = take_turns(cases, options.repeats)
    found = judge(seconds, sizes.updates, every)
    lines = lines_of(found, sizes)
    publish("offline-update", argv, options, asdict(sizes), lines, {"learners": found, "seconds": seconds})
    return 0
