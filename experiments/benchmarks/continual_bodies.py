"""``mbrl bench continual-bodies``: bodies of a cheetah, blocks to push and doors to open, learned one after another
from fixed data, by every way to remember.

Model error on every task right after it was learned and after all of them, one step ahead and open loop; then planning
with the same models in the true environments, beside a scripted expert, random actions and the true dynamics. Where
the rows come from is told in :mod:`experiments.benchmarks._body_courses`. Networks are a few hundredths of those of
Huang et al. (2021), "Continual model-based reinforcement learning with hypernetworks", and nothing is collected while
learning: what is measured is how each learner remembers, not how well the tasks can be solved.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from envs.spec import EnvSpec
from envs.tasks import Task
from experiments.benchmarks._body_courses import COURSES, Course, Data
from experiments.benchmarks._body_drives import Act, Search, at_random, drive, following, planning
from experiments.benchmarks._body_errors import OpenLoop, open_loop, scale_of
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from experiments.benchmarks.continual_offline import normalised_error
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.fitting.continual import ContinualFitter
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.base import ContinualModel
from mbrl.models.continual.baselines import ElasticWeights, Replay, SharedTrunk, SingleModels, SynapticIntelligence
from mbrl.models.continual.hypernet import HyperNetwork
from mbrl.models.simulator import Simulator

HIDDEN = 64
"""Width of the main network's two hidden layers; hypernetworks have the trunk 10-32-32 and a head for each tensor."""
CORESET = 100
"""Rows of each old task that a coreset keeps; published for pushing, out of 6,000."""

LEARNERS: Mapping[str, Callable[[EnvSpec, Course], ContinualModel]] = {
    "hypernet": lambda spec, course: HyperNetwork(spec, HIDDEN, beta=course.beta),
    "hypernet beta 0": lambda spec, course: HyperNetwork(spec, HIDDEN, beta=0.0),
    "finetune one head": lambda spec, course: SharedTrunk(spec, HIDDEN, heads=False),
    "finetune": lambda spec, course: SharedTrunk(spec, HIDDEN),
    "single": lambda spec, course: SingleModels(spec, HIDDEN),
    "oracle": lambda spec, course: Replay(spec, HIDDEN, rows=None),
    "coreset": lambda spec, course: Replay(spec, HIDDEN, rows=CORESET),
    "ewc": lambda spec, course: ElasticWeights(spec, HIDDEN),
    "si": lambda spec, course: SynapticIntelligence(spec, HIDDEN),
}
DRIVERS = ("hypernet", "hypernet beta 0", "single", "finetune one head", "finetune")
"""Whose models are planned with, after the last task."""
RANDOM, EXPERT, TRUE = "random actions", "expert", "true dynamics"
SEARCH = Search(horizon=12, candidates=100, iterations=4, elites=10)
TRUE_SEARCH = Search(horizon=15, candidates=32, iterations=3, elites=6)
"""With the true dynamics, which are simulated contact by contact: hence small, and for few episodes."""
DEFAULT = ("halfcheetah-bodies", "push-density", "door-handles")


@dataclass(frozen=True)
class Sizes:
    """How much is learned, judged and driven."""

    learners: tuple[str, ...] = tuple(LEARNERS)
    drivers: tuple[str, ...] = DRIVERS
    depths: tuple[int, ...] = (1, 5, 15)
    search: Search = SEARCH
    episodes: int = 10
    true_search: Search = TRUE_SEARCH
    true_episodes: int = 1
    short: bool = False
    """Courses are cut to what shows that they run."""


QUICK = Sizes(
    learners=("hypernet", "hypernet beta 0", "finetune one head", "single"),
    drivers=("hypernet", "single"),
    search=Search(horizon=3, candidates=10, iterations=1, elites=3),
    episodes=1,
    true_search=Search(horizon=2, candidates=4, iterations=1, elites=2),
    true_episodes=1,
    short=True,
)


def course_of(name: str, sizes: Sizes) -> Course:
    """The sequence's course, cut short where the sizes say so."""
    course = COURSES[name]
    if not sizes.short:
        return course
    few = dataclasses.replace(course, updates=4, train_episodes=2, test_episodes=2)
    return dataclasses.replace(few, steps=max(sizes.depths), driven_steps=2)


def rows_of(episodes: Transitions) -> Transitions:
    """Episodes ``[T, N]`` as rows."""
    return episodes.map(lambda x: x.flatten(0, 1))


def learn(name: str, course: Course, data: Data, sizes: Sizes, seed: int) -> tuple[ContinualModel, dict[str, Any]]:
    """A learner after all tasks, and its matrix of one-step errors: row j after task j, column t of task t."""
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    model, fitter = LEARNERS[name](data.tasks.spec, course), ContinualFitter(course.updates, holdout=0.0)
    draw, scale = seeding.generator(seed, "fit"), scale_of(data.test)
    errors, just, seconds = list[list[float]](), list[OpenLoop](), list[float]()
    for place, task in enumerate(data.tasks):
        seconds.append(_learn_task(model, fitter, task, rows_of(data.train[place]), draw))
        bound = [model.bind(old) for old in data.tasks.ids[: place + 1]]
        errors.append([normalised_error(bound[old], rows_of(data.test[old])) for old in range(place + 1)])
        just.append(open_loop(bound[-1], data.test[place], scale, sizes.depths))
    end = [open_loop(known, test, scale, sizes.depths) for known, test in zip(bound, data.test, strict=True)]
    found: dict[str, Any] = {"errors": errors, "just": statistics.mean(row[-1] for row in errors[:-1])}
    found |= {"end": statistics.mean(errors[-1][:-1]), "seconds": seconds, "shared_bytes": model.shared_bytes()}
    found |= {"bytes": [model.memory_bytes(task) for task in model.tasks]}
    return model, found | {"open_loop": {"just": list(map(asdict, just)), "end": list(map(asdict, end))}}


def _learn_task(
    model: ContinualModel, fitter: ContinualFitter, task: Task, rows: Transitions, draw: torch.Generator
) -> float:
    """Processor seconds of one task, from its start to its end."""
    began = time.process_time()
    model.start_task(task.id, draw, task.spec)
    fitter.fit(model, rows, draw)
    model.end_task(task.id, rows, draw)
    return time.process_time() - began


def no_change(data: Data, depths: Sequence[int]) -> dict[str, Any]:
    """What predicting that nothing changes comes to on the same rows, by task."""
    scale, rows = scale_of(data.test), [rows_of(test) for test in data.test]
    changes = [one.next_obs - one.obs for one in rows]
    one_step = [float((change.square().mean(0) / change.var(0)).mean()) for change in changes]
    return {"one_step": one_step, "open_loop": [asdict(open_loop(None, test, scale, depths)) for test in data.test]}


def drive_with(models: Sequence[DynamicsModel], course: Course, data: Data, sizes: Sizes, seed: int) -> list[Any]:
    """Episodes of every task, planned with its model."""
    return [
        asdict(drive(task, course, planning(model, task, sizes.search, seed), sizes.episodes, seed))
        for task, model in zip(data.tasks, models, strict=True)
    ]


def references(course: Course, data: Data, sizes: Sizes, seed: int) -> dict[str, list[Any]]:
    """Random actions, the expert where there is one, and planning with the true dynamics: every task."""
    acts: dict[str, Callable[[Task], Act]] = {
        RANDOM: lambda task: at_random(seeding.generator(seed, "random", task.id))
    }
    if (expert := course.expert) is not None:
        acts[EXPERT] = lambda _: following(expert)
    acts[TRUE] = lambda task: planning(Simulator(task.spec), task, sizes.true_search, seed)
    episodes = {name: sizes.true_episodes if name == TRUE else sizes.episodes for name in acts}
    return {
        name: [asdict(drive(task, course, act(task), episodes[name], seed)) for task in data.tasks]
        for name, act in acts.items()
    }


def run(sequence: str, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Everything of one sequence for one seed."""
    course = course_of(sequence, sizes)
    data, learners = Data.of(sequence, course, seed), dict[str, Any]()
    drives = references(course, data, sizes, seed)
    for name in sizes.learners:
        model, learners[name] = learn(name, course, data, sizes, seed)
        if name in sizes.drivers:
            bound = [model.bind(task) for task in data.tasks.ids]
            drives[name] = drive_with(bound, course, data, sizes, seed)
        just, end = learners[name]["just"], learners[name]["end"]
        print(f"{sequence}, seed {seed}: {name}: just {just:.4f}, end {end:.4f}", flush=True)
    found = {"tasks": list(data.tasks.names), "no_change": no_change(data, sizes.depths)}
    return found | {"learners": learners, "drives": drives}


Seeds = Sequence[Mapping[str, Any]]
"""What :func:`run` found of one sequence, by seed."""


def lines_of(sequence: str, sizes: Sizes, found: Seeds) -> list[str]:
    """Errors, claims and returns of one sequence."""
    return [*error_lines(sequence, sizes, found), *claim_lines(found), *drive_lines(sizes, found)]


def _mean(found: Seeds, name: str, what: str) -> float:
    return float(statistics.mean(seed["learners"][name][what] for seed in found))


def error_lines(sequence: str, sizes: Sizes, found: Seeds) -> list[str]:
    """Old tasks: one-step error right after learning and at the end, open-loop errors at the end, and what it took."""
    depths = [f"at {depth}" for depth in sizes.depths]
    head = ["learner", "just learned", "end", *depths, "diverged", "seconds", "bytes a task", "shared"]
    still = [seed["no_change"] for seed in found]
    level = statistics.mean(value for one in still for value in one["one_step"][:-1])
    rows: list[list[object]] = [[*head], ["no change", level, level, *_open([one["open_loop"] for one in still])]]
    rows[-1] += ["", "", ""]
    for name in sizes.learners:
        runs = [seed["learners"][name] for seed in found]
        seconds = statistics.mean(sum(one["seconds"]) for one in runs)
        took = [seconds, sum(runs[0]["bytes"][-1].values()), runs[0]["shared_bytes"]]
        ends = _open([one["open_loop"]["end"] for one in runs])
        rows.append([name, _mean(found, name, "just"), _mean(found, name, "end"), *ends, *took])
    about = "normalised one-step error, then open loop at the end in standard deviations"
    return [f"{sequence}, old tasks, {len(found)} seeds: {about}", *table(rows)]


def _open(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[object]:
    """Mean errors of old tasks at each depth, then the share that has diverged at the greatest."""
    old = [task for tasks in seeds for task in tasks[:-1]]
    for errors in zip(*(task["errors"] for task in old), strict=True):
        there = [error for error in errors if error is not None]
        yield statistics.mean(there) if there else "-"
    yield f"{statistics.mean(task['diverged'][-1] for task in old):.1%}"


def claim_lines(found: Seeds) -> list[str]:
    """The order that is expected of the learners, on means over seeds."""
    end, just = _mean(found, "hypernet", "end"), _mean(found, "hypernet", "just")
    overwritten, loose = (_mean(found, name, "end") for name in ("finetune one head", "hypernet beta 0"))
    claims = {
        f"end <= 3 x just learned ({end / just:.2f} x)": end <= 3 * just,
        f"end below finetune's, one head ({end / overwritten:.2f} x)": end < overwritten,
        f"beta 0 forgets more than finetune, one head ({loose / overwritten:.2f} x)": loose > overwritten,
    }
    return [f"hypernet: {claim}: {'yes' if holds else 'NO'}" for claim, holds in claims.items()]


def drive_lines(sizes: Sizes, found: Seeds) -> list[str]:
    """Mean returns by task, with the shares of episodes that succeed at some step and at the last."""
    names = list(found[0]["drives"])
    rows: list[list[object]] = [["acting", *(f"task {place + 1}" for place in range(len(found[0]["tasks"])))]]
    for name in names:
        rows.append([name, *map(_told, zip(*(seed["drives"][name] for seed in found), strict=True))])
    about = f"return (success at some step, at the last) of {sizes.episodes} episodes, {sizes.true_episodes} with true"
    return [f"{about} dynamics", *table(rows)]


def _told(seeds: Sequence[Mapping[str, Any]]) -> str:
    mean = statistics.mean(value for one in seeds for value in one["returns"])
    if seeds[0]["reached"] is None:
        return f"{mean:.1f}"
    reached, held = (statistics.mean(one[what] for one in seeds) for what in ("reached", "held"))
    return f"{mean:.1f} ({reached:.0%}, {held:.0%})"


def main(argv: Sequence[str]) -> None:
    parser = make_parser("continual-bodies", "bodies, pushing and doors in a row, every way to remember", repeats=1)
    parser.add_argument("--sequences", nargs="+", metavar="NAME", default=list(DEFAULT), choices=list(COURSES))
    options = parse(parser, argv)
    sizes = QUICK if options.quick else Sizes()
    config = asdict(sizes) | {"courses": {name: course_of(name, sizes).told() for name in options.sequences}}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.sequences}
    with one_thread():
        for seed in range(options.seed, options.seed + options.repeats):
            for name in options.sequences:  # minutes each: what is found is written as it is found
                found[name].append(run(name, sizes, seed))
                lines = lines_of(name, sizes, found[name])
                publish("continual-bodies", argv, options, config, lines, found)
