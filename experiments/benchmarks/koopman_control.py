"""``mbrl bench koopman-control``: a pendulum held upright by quadratic programs on lifted models, and their limits.

Each model is fitted in closed form on the same random transitions; then controllers start near upright, in the real
environment. Swing-up from any angle comes after: linear-input models fail at it, and are reported to.

After the settings of Korda, Mezić, "Linear predictors for nonlinear dynamical systems: Koopman operator meets model
predictive control", Automatica 2018, on a task of our own.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from agents.common import random_action
from envs.boundary import BoundaryEnv
from envs.registry import env_spec, make_env
from envs.spec import EnvSpec
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, ratio, table, take_turns
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.fitting import ClosedFormFitter
from mbrl.models.base import DynamicsModel, State
from mbrl.models.koopman.dictionaries import Dictionary, GaussianRBF
from mbrl.models.koopman.edmd import EDMD
from mbrl.models.simulator import Simulator
from mbrl.planning.base import Planner
from mbrl.planning.cem import CEM
from mbrl.planning.objective import ActionCost, Objective, QuadraticState
from mbrl.planning.qp import QPPlanner

ENV = "Pendulum-v1"
GOAL = Objective([QuadraticState({0: 1.0, 1: 1.0, 2: 0.1}, {0: 1.0}), ActionCost(0.004)])
"""``(cos - 1)^2 + sin^2 + 0.1 speed^2 + 0.001 torque^2``: the reward with ``2 - 2 cos`` for ``angle^2``. The
quadratic form that fits the reward best over all angles explains 0.98 of it and is flat at the top."""
UPRIGHT = 0.3
"""Radians. A success stays inside during the last :data:`LAST` steps of its episode."""
LAST = 20
DATA_EPISODE = 25
WIDTH = 1.0
"""Of the Gaussians. At 0.5, 50 of them hold less well (return -3.7). At either width, models of rows whose episodes all
begin close to upright, or slowly and last 10 steps, do not hold it: what they say of 40 steps is extrapolation."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """``cem`` is horizon, candidates, iterations."""

    rows: int = 20_000
    centres: tuple[int, ...] = (50, 200)
    starts: int = 10
    steps: int = 100
    swing_starts: int = 8
    swing_steps: int = 200
    cem: tuple[int, int, int] = (25, 200, 4)


QUICK = Sizes(400, (10,), 2, 5, 2, 5, (5, 20, 2))


@dataclass(frozen=True)
class Controller:
    """A planner, the model that it asks, and what it wants; without them actions are random."""

    planner: Planner | None = None
    model: DynamicsModel | None = None
    objective: Objective = GOAL


# -- the real pendulum -----------------------------------------------------------------------------------------------


class Pendulums:
    """Real environments side by side, put where an experiment begins: ``starts [N, 2]``, angle and speed."""

    def __init__(self, starts: Floats) -> None:
        self.envs: list[BoundaryEnv] = [make_env(ENV) for _ in starts]
        self.place(starts)

    def place(self, starts: Floats) -> None:
        """Begin an episode at ``starts``."""
        for env, start in zip(self.envs, starts, strict=True):
            env.reset(seed=0)
            base: Any = env.unwrapped
            base.state = start.copy()

    @property
    def states(self) -> Tensor:
        """``[N, 2]`` float64."""
        return torch.from_numpy(np.stack([np.asarray(_base(env).state, dtype=np.float64) for env in self.envs]))

    @property
    def obs(self) -> Tensor:
        """``[N, 3]`` float32: cos, sin, speed."""
        angle, speed = self.states.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1).float()

    def step(self, action: Tensor) -> Tensor:
        """Rewards ``[N]`` of ``action [N, 1]``."""
        pairs = zip(self.envs, action.numpy(), strict=True)
        return torch.tensor([float(env.step(one)[1]) for env, one in pairs])


def _base(env: BoundaryEnv) -> Any:
    return env.unwrapped


def draw_starts(count: int, angle: float, speed: float, generator: Generator) -> Floats:
    """``[count, 2]`` uniform in both."""
    sides = torch.tensor([angle, speed], dtype=torch.float64)
    drawn: Floats = ((2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1) * sides).numpy()
    return drawn


def collect(sizes: Sizes, seed: int) -> Transitions:
    """``[rows]`` of random actions in short episodes that begin at any angle and any speed, so upright is seen too."""
    generator, count, spec = seeding.generator(seed, "data"), sizes.rows // DATA_EPISODE, env_spec(ENV)
    world = Pendulums(draw_starts(count, math.pi, 8.0, generator))
    ids, columns = torch.arange(count), []
    no = torch.zeros(count, dtype=torch.bool)
    for step in range(DATA_EPISODE):
        obs, action = world.obs, random_action(spec.action, count, generator)
        reward = world.step(action)
        columns.append(Transitions(obs, action, reward, world.obs, no, no, ids, 0 * ids + step, 0 * ids))
    by_episode = Transitions.stack(columns, dim=1)
    return by_episode.map(lambda x: x.flatten(0, 1))


# -- models and controllers ------------------------------------------------------------------------------------------


def fit(spec: EnvSpec, rows: Transitions, centres: int, bilinear: bool, seed: int) -> tuple[EDMD, dict[str, float]]:
    """A lifted model after one fit, and its report; without centres nothing is lifted (DMDc)."""
    model = EDMD(spec, _lift(centres) if centres else [], bilinear)
    began = time.process_time()
    report = ClosedFormFitter().fit(model, rows, seeding.generator(seed, "fit", centres))
    return model, report | {"r2": float(model.reward_form.r2), "seconds": time.process_time() - began}


def _lift(centres: int) -> list[Callable[[EnvSpec], Dictionary]]:
    return [functools.partial(GaussianRBF, centres=centres, width=WIDTH)]


def with_period(model: EDMD, period: int) -> EDMD:
    """The same weights, lifted anew every so many predicted steps."""
    other = EDMD(model.spec, _lift(model.dictionary.size), model.bilinear)
    other.load_state_dict(model.state_dict())
    other.reencode_every = period
    return other


def regulators(spec: EnvSpec, models: Mapping[str, EDMD], sizes: Sizes) -> dict[str, Controller]:
    """Who starts near upright."""
    largest, cem = f"{sizes.centres[-1]} RBF", _cem(spec, sizes)
    found = {
        f"QP, H = {horizon}, {name}": Controller(QPPlanner(spec, horizon), models[name])
        for name in [f"{count} RBF" for count in sizes.centres]
        for horizon in (40, 20)
    }
    found["QP, H = 40, no lift (DMDc)"] = Controller(QPPlanner(spec, 40), models["no lift"])
    found[f"QP, H = 40, {largest}, bilinear"] = Controller(QPPlanner(spec, 40), models["bilinear"])
    found[f"CEM, {largest}"] = Controller(cem, with_period(models[largest], 0))
    found["CEM, true model"] = Controller(cem, Simulator(spec))
    return found | {"random": Controller()}


def swingers(spec: EnvSpec, models: Mapping[str, EDMD], sizes: Sizes) -> dict[str, Controller]:
    """Who starts anywhere."""
    largest, cem = models[f"{sizes.centres[-1]} RBF"], _cem(spec, sizes)
    return {
        "QP, H = 40, linear input": Controller(QPPlanner(spec, 40), largest),
        "QP, H = 40, bilinear, relinearised": Controller(QPPlanner(spec, 40), models["bilinear"]),
        "QP, H = 40, bilinear, 3 passes": Controller(QPPlanner(spec, 40, relinearize=3), models["bilinear"]),
        "CEM, linear input, re-encoded": Controller(cem, with_period(largest, 5), Objective()),
        "CEM, linear input": Controller(cem, with_period(largest, 0), Objective()),
        "random": Controller(),
    }


def _cem(spec: EnvSpec, sizes: Sizes) -> CEM:
    horizon, candidates, iterations = sizes.cem
    return CEM(spec, horizon, candidates, iterations, particles=1)


def play(controller: Controller, starts: Floats, steps: int, seed: int) -> dict[str, Any]:
    """Returns, which episodes ended upright, and mean milliseconds a decision (all starts planned in one call)."""
    world, luck, spec = Pendulums(starts), seeding.generator(seed, "play"), env_spec(ENV)
    memory = controller.planner.initial(len(starts)) if controller.planner else None
    total, inside, seconds = torch.zeros(len(starts)), torch.ones(len(starts), dtype=torch.bool), 0.0
    for step in range(steps):
        began = time.process_time()
        if controller.planner is None or controller.model is None:
            action = random_action(spec.action, len(starts), luck)
        else:
            state = _state(controller.model, world)
            plan = controller.planner.plan(controller.model, controller.objective, state, memory, generator=luck)
            action, memory = plan.actions[0], plan.warm_start
        seconds += time.process_time() - began
        total += world.step(action)
        if step >= steps - LAST:
            inside &= torch.atan2(world.obs[:, 1], world.obs[:, 0]).abs() < UPRIGHT
    ms = 1000 * seconds / steps / len(starts)
    return {"returns": total.tolist(), "upright": inside.tolist(), "ms": ms}


def _state(model: DynamicsModel, world: Pendulums) -> State:
    return model.encode(world.obs, sim_state=world.states if isinstance(model, Simulator) else None)


# -- the parts -------------------------------------------------------------------------------------------------------


def timed(cases: Mapping[str, Controller], starts: Floats, repeats: int) -> dict[str, list[float]]:
    """Seconds of a decision for one environment, each case in turn: a turn plans twice from every start, the second
    time with the first's memory.
    """
    luck = seeding.generator(0, "time")

    def work(controller: Controller) -> None:
        planner, model = controller.planner, controller.model
        assert planner is not None
        assert model is not None
        world = Pendulums(starts)
        states, memory = _state(model, world), planner.initial(1)
        for i in range(len(starts)):
            for _ in range(2):
                memory = planner.plan(model, controller.objective, states[i : i + 1], memory, generator=luck).warm_start

    seconds = take_turns({name: functools.partial(work, one) for name, one in cases.items()}, repeats)
    return {name: [value / (2 * len(starts)) for value in values] for name, values in seconds.items()}


def regulation_part(
    spec: EnvSpec, models: Mapping[str, EDMD], sizes: Sizes, seed: int, repeats: int
) -> tuple[list[str], dict[str, Any]]:
    """Near upright: returns, successes, and time side by side."""
    starts = draw_starts(sizes.starts, 0.3, 0.5, seeding.generator(seed, "upright"))
    cases = regulators(spec, models, sizes)
    found = {name: play(one, starts, sizes.steps, seed) for name, one in cases.items()}
    seconds = timed({name: one for name, one in cases.items() if one.planner}, starts, repeats)
    largest = f"{sizes.centres[-1]} RBF"
    ours, theirs = f"QP, H = 40, {largest}", f"CEM, {largest}"
    rows: list[list[object]] = [["near upright", "return", "worst", "stay upright", "ms a step"]]
    for name, one in found.items():
        ms = 1000 * statistics.median(seconds[name]) if name in seconds else "-"
        rows.append([name, statistics.mean(one["returns"]), min(one["returns"]), _share(one["upright"]), ms])
    faster = ratio(seconds, theirs, ours)
    lines = [*table(rows), f"the program is {faster:.0f} times as fast as CEM on the same model (goal: 10)"]
    lines.append(
        f"goals: with a lift H = 40 holds 9 of 10, return >= -2, <= 3 ms; without one at most 2 of 10. {DEFINED}"
    )
    return lines, {"played": found, "seconds": seconds, "times_as_fast": faster}


DEFINED = f"Upright: |angle| < {UPRIGHT} during the last {LAST} steps"


def swing_part(spec: EnvSpec, models: Mapping[str, EDMD], sizes: Sizes, seed: int) -> tuple[list[str], dict[str, Any]]:
    """From any angle: what a linear-input program cannot do."""
    starts = draw_starts(sizes.swing_starts, math.pi, 1.0, seeding.generator(seed, "swing"))
    found = {name: play(one, starts, sizes.swing_steps, seed) for name, one in swingers(spec, models, sizes).items()}
    rows: list[list[object]] = [["swing-up", "return", "worst", "upright at the end", "ms a step"]]
    for name, one in found.items():
        rows.append([name, statistics.mean(one["returns"]), min(one["returns"]), _share(one["upright"]), one["ms"]])
    linear, bilinear = (statistics.mean(found[name]["returns"]) for name in list(found)[:2])
    gain = f"bilinear relinearised minus linear input: {bilinear - linear:.0f} (goal: 300)"
    return [*table(rows), gain, "the linear-input program does not swing up: it regulates"], {"played": found}


def _share(upright: Sequence[bool]) -> str:
    return f"{sum(upright)}/{len(upright)}"


def main(argv: Sequence[str]) -> None:
    options = parse(make_parser("koopman-control", __doc__ or "", repeats=7), argv)
    sizes, spec, seed = QUICK if options.quick else Sizes(), env_spec(ENV), options.seed
    with one_thread():
        rows = collect(sizes, seed)
        wanted = {f"{count} RBF": (count, False) for count in sizes.centres}
        wanted |= {"no lift": (0, False), "bilinear": (sizes.centres[-1], True)}
        fits = {name: fit(spec, rows, centres, bilinear, seed) for name, (centres, bilinear) in wanted.items()}
        models, found = {name: model for name, (model, _) in fits.items()}, dict[str, Any]()
        found["fits"] = {name: report for name, (_, report) in fits.items()}
        regulation, found["regulation"] = regulation_part(spec, models, sizes, seed, options.repeats)
        swing, found["swing"] = swing_part(spec, models, sizes, seed)
    what = f"{ENV}: models fitted on {len(rows):,} random transitions in {max(_seconds(fits)):.1f} s or less"
    publish("koopman-control", argv, options, asdict(sizes), [what, *regulation, *swing], found)


def _seconds(fits: Mapping[str, tuple[EDMD, dict[str, float]]]) -> list[float]:
    return [report["seconds"] for _, report in fits.values()]
