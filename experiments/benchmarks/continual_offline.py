"""``mbrl bench continual-offline``: five pendulums learned one after another from fixed data, by every way to remember.

Model error on every task right after it was learned and after all five; returns of planning with the same models;
what a further task costs; and the router, which is told of no switch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.spec import EnvSpec
from experiments.benchmarks import _continual_router as routing
from experiments.benchmarks._pendulums import PENDULUMS, pendulum, random_transitions
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl import seeding
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.fitting.continual import ContinualFitter
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.base import ContinualModel
from mbrl.models.continual.baselines import (
    ElasticWeights,
    ProgressiveHeads,
    Replay,
    SharedTrunk,
    SingleModels,
    SynapticIntelligence,
)
from mbrl.models.continual.hypernet import HyperNetwork
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import CEM
from mbrl.planning.objective import Objective

Learner = Callable[[EnvSpec], ContinualModel]

LEARNERS: Mapping[str, Learner] = {
    "hypernet": lambda spec: HyperNetwork(spec),
    "hypernet beta 0": lambda spec: HyperNetwork(spec, beta=0.0),
    "hypernet beta 0.005": lambda spec: HyperNetwork(spec, beta=0.005),
    "hypernet beta 0.5": lambda spec: HyperNetwork(spec, beta=0.5),
    "hypernet no look-ahead": lambda spec: HyperNetwork(spec, look_ahead=False),
    "hypernet targets restart": lambda spec: HyperNetwork(spec, targets="restart"),
    "hypernet chunked": lambda spec: HyperNetwork(spec, chunk=128, beta=0.005),
    "finetune one head": lambda spec: SharedTrunk(spec, heads=False),
    "finetune": lambda spec: SharedTrunk(spec),
    "single": lambda spec: SingleModels(spec),
    "oracle": lambda spec: Replay(spec, rows=None),
    "coreset": lambda spec: Replay(spec),
    "ewc": lambda spec: ElasticWeights(spec),
    "si": lambda spec: SynapticIntelligence(spec),
    "progressive": lambda spec: ProgressiveHeads(spec),
}
"""All with the main network 4-32-32-3; hypernetworks with the trunk 10-32-32, beta 0.05 unless named."""

DRIVERS = ("single", "finetune one head", "hypernet", "hypernet beta 0")
"""Whose models are planned with."""
LOW_GRAVITY = 2
"""The task on which finetune must fail."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each task, gradient steps of each, and how the models are driven."""

    rows: int = 2000
    updates: int = 3000
    learners: tuple[str, ...] = tuple(LEARNERS)
    drivers: tuple[str, ...] = DRIVERS
    episodes: int = 3
    steps: int = 150
    horizon: int = 25
    candidates: int = 200
    iterations: int = 4
    cost_tasks: int = 10
    cost_updates: int = 50
    cost_turns: int = 8
    switches: int = 60


QUICK = Sizes(
    rows=100,
    updates=4,
    learners=("hypernet", "hypernet beta 0", "finetune one head", "single"),
    episodes=1,
    steps=3,
    horizon=3,
    candidates=10,
    iterations=1,
    cost_updates=2,
    cost_turns=1,
    cost_tasks=3,
    switches=2,
)


def normalised_error(model: DynamicsModel, rows: Transitions) -> float:
    """Mean over dimensions of (squared error of the change / its variance)."""
    said = model.step(model.encode(rows.obs), rows.action, None).state.obs
    variance = (rows.next_obs - rows.obs).var(0)
    return float(((said - rows.next_obs).square().mean(0) / variance).mean())


@dataclass
class Data:
    """Five tasks: specs, rows to learn from, rows to judge on."""

    specs: list[EnvSpec]
    train: list[Transitions]
    test: list[Transitions]

    @classmethod
    def of(cls, rows: int, seed: int) -> Data:
        specs = [pendulum(*physics) for physics in PENDULUMS]
        train = [random_transitions(spec, rows, task, seed) for task, spec in enumerate(specs)]
        test = [random_transitions(spec, 2000, task, seed + 1_000_000) for task, spec in enumerate(specs)]
        return cls(specs, train, test)


def learn(name: str, data: Data, updates: int, seed: int) -> tuple[ContinualModel, dict[str, Any]]:
    """A learner after all tasks, and its matrix of errors: row j after task j, column t of task t."""
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    model, fitter = LEARNERS[name](data.specs[0]), ContinualFitter(updates, holdout=0.0)
    draw, errors, seconds = seeding.generator(seed, "fit"), [], []
    for task, spec in enumerate(data.specs):
        began = time.process_time()
        model.start_task(task, draw, spec)
        fitter.fit(model, data.train[task], draw)
        model.end_task(task, data.train[task], draw)
        seconds.append(time.process_time() - began)
        errors.append([normalised_error(model.bind(old), data.test[old]) for old in range(task + 1)])
    just = statistics.mean(errors[task][task] for task in range(len(errors) - 1))
    found = {"errors": errors, "just": just, "end": statistics.mean(errors[-1][:-1]), "seconds": seconds}
    found |= {"bytes": [model.memory_bytes(task) for task in model.tasks], "shared_bytes": model.shared_bytes()}
    return model, found


def drive(model: DynamicsModel, spec: EnvSpec, sizes: Sizes, seed: int) -> float:
    """Mean true return of episodes from hanging at rest, planned with ``model``."""
    planner = CEM(
        spec,
        horizon=sizes.horizon,
        candidates=sizes.candidates,
        iterations=sizes.iterations,
        elite_ratio=min(1.0, 20 / sizes.candidates),
        particles=1,
    )
    world, draw, total = Simulator(spec), seeding.generator(seed, "plan"), torch.zeros(sizes.episodes)
    obs = _hanging(sizes.episodes, seeding.generator(seed, "start"))
    warm: Record = planner.initial(sizes.episodes)
    state = world.encode(obs)
    for _ in range(sizes.steps):
        plan = planner.plan(model, Objective(), model.encode(state.obs), warm, generator=draw)
        step = world.step(state, plan.actions[0], None)
        warm, total = plan.warm_start, total + step.reward
        state = world.encode(step.state.obs)
    return float(total.mean())


def _hanging(episodes: int, draw: torch.Generator) -> Tensor:
    """Hanging, up to 0.05 rad and rad/s, so that episodes differ."""
    angle = torch.pi + 0.05 * (2 * torch.rand(episodes, generator=draw) - 1)
    return torch.stack([angle.cos(), angle.sin(), 0.05 * (2 * torch.rand(episodes, generator=draw) - 1)], -1)


def cost(name: str, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Processor time and memory of each of ``cost_tasks`` tasks, the five pendulums over and over.

    The time is that of the fastest of a task's fits: what else the machine does only ever adds to it.
    """
    torch.manual_seed(seed)
    specs = [pendulum(*PENDULUMS[task % len(PENDULUMS)]) for task in range(sizes.cost_tasks)]
    model, fitter = LEARNERS[name](specs[0]), ContinualFitter(sizes.cost_updates, holdout=0.0)
    draw, seconds = seeding.generator(seed, "fit"), []
    for task, spec in enumerate(specs):
        rows = random_transitions(spec, sizes.rows, task, seed)
        model.start_task(task, draw, spec)
        seconds.append(min(_seconds(fitter, model, rows, draw) for _ in range(sizes.cost_turns)))
        model.end_task(task, rows, draw)
    return {"seconds": seconds, "bytes": [model.memory_bytes(task) for task in model.tasks]}


def _seconds(fitter: ContinualFitter, model: ContinualModel, rows: Transitions, draw: torch.Generator) -> float:
    began = time.process_time()
    fitter.fit(model, rows, draw)
    return time.process_time() - began


def run(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Everything for one seed."""
    data, found = Data.of(sizes.rows, seed), dict[str, Any]()
    for name in sizes.learners:
        model, found[name] = learn(name, data, sizes.updates, seed)
        if name in sizes.drivers:
            found[name]["returns"] = [drive(model.bind(t), spec, sizes, seed) for t, spec in enumerate(data.specs)]
        if name == "hypernet":
            bound = {task: model.bind(task) for task in model.tasks}
            found["router"] = routing.judge(bound, data.specs, sizes.switches, seed)
        print(f"seed {seed}: {name}: just {found[name]['just']:.5f}, end {found[name]['end']:.5f}", flush=True)
    return found


def _mean(found: Sequence[Mapping[str, Any]], name: str, what: str) -> float:
    return float(statistics.mean(seed[name][what] for seed in found))


def error_lines(sizes: Sizes, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks 1-4: error right after learning and at the end, and what it took."""
    rows: list[list[object]] = [
        ["learner", "just learned", "end", "worst seed", "seconds", "bytes a task", "of them kept", "shared"]
    ]
    for name in sizes.learners:
        worst, one = max(seed[name]["end"] for seed in found), found[0][name]
        seconds = statistics.mean(sum(seed[name]["seconds"]) for seed in found)
        last = one["bytes"][-1]
        kept = sum(size for part, size in last.items() if part in ("targets", "rows", "fisher", "anchor"))
        rows.append([name, _mean(found, name, "just"), _mean(found, name, "end"), worst, seconds])
        rows[-1] += [sum(last.values()), kept, one["shared_bytes"]]
    return [f"normalised error on tasks 1-4, {len(found)} seeds", *table(rows)]


def verdict_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The three conditions on the errors, on means over seeds."""
    end, just = _mean(found, "hypernet", "end"), _mean(found, "hypernet", "just")
    claims = {
        "end <= 3 x just learned": end <= 3 * just,
        "end <= 0.1 x finetune (one head)": end <= 0.1 * _mean(found, "finetune one head", "end"),
        "beta 0 >= 100 x beta 0.05": _mean(found, "hypernet beta 0", "end") >= 100 * end,
    }
    return [f"hypernet: {claim}: {'yes' if holds else 'NO'}" for claim, holds in claims.items()]


def return_lines(sizes: Sizes, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean returns by task of planning with each model, and the two conditions on them."""
    drivers = [name for name in sizes.drivers if name in sizes.learners]
    tasks = range(len(PENDULUMS))
    means = {name: [statistics.mean(seed[name]["returns"][t] for seed in found) for t in tasks] for name in drivers}
    rows = [["learner", *(f"task {t + 1}" for t in tasks)], *([name, *means[name]] for name in drivers)]
    close = all(ours >= 1.15 * single for ours, single in zip(means["hypernet"], means["single"], strict=True))
    low = means["finetune one head"][LOW_GRAVITY] / means["single"][LOW_GRAVITY]
    lines = [f"mean return of {sizes.episodes} episodes x {sizes.steps} steps with CEM", *table(rows)]
    lines.append(f"hypernet within 15 % of single on every task: {'yes' if close else 'NO'}")
    return [*lines, f"finetune on low gravity: {low:.2f} x single's cost (>= 2 wanted): {'yes' if low >= 2 else 'NO'}"]


COSTED = ("hypernet", "oracle")
KEPT = ("targets", "rows")


def cost_lines(costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Task 10 beside task 2."""
    lines = ["a further task: the last beside the second"]
    for name, one in costs.items():
        seconds, (second, last) = one["seconds"], (one["bytes"][1], one["bytes"][-1])
        grown = sum(v for k, v in last.items() if k not in KEPT) / sum(v for k, v in second.items() if k not in KEPT)
        kept = ", ".join(f"{part} {last[part]} B a task" for part in KEPT if part in last)
        lines.append(f"{name}: time x {seconds[-1] / seconds[1]:.2f}, memory x {grown:.2f} ({kept} aside)")
    return lines


def main(argv: Sequence[str]) -> None:
    parser = make_parser(
        "continual-offline", "five pendulums in a row from fixed data, every way to remember", repeats=3
    )
    options = parse(parser, argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        costs = {name: cost(name, sizes, options.seed) for name in COSTED}
        found: list[dict[str, Any]] = []
        for seed in range(options.seed, options.seed + options.repeats):  # hours: what is found is written seed by seed
            found.append(run(sizes, seed))
            lines = [*error_lines(sizes, found), *verdict_lines(found), *return_lines(sizes, found)]
            lines += [*routing.lines_of([one["router"] for one in found]), *cost_lines(costs)]
            publish("continual-offline", argv, options, asdict(sizes), lines, {"seeds": found, "cost": costs})
