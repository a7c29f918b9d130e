"""``mbrl bench koopman-reencoding``: what lifting anew is worth to lifted models of the Pendulum.

Linear-input and bilinear EDMD with Gaussians, fitted on transitions of random actions from states all over the range:
open-loop error by period, then swing-up in the real environment by CEM on each model with and without lifting anew,
beside random actions and CEM on the true dynamics.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.common import random_action
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl import seeding
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, State
from mbrl.models.koopman.dictionaries import GaussianRBF
from mbrl.models.koopman.edmd import EDMD
from mbrl.models.koopman.reencoding import drift
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import CEM
from mbrl.planning.objective import Objective

ENV = "Pendulum-v1"
FIRST_EVALUATION_SEED = 10_000
KINDS = {"linear-input": False, "bilinear": True}
PERIODS = (0, 1, 2, 5, 10, 25)
PLAYED = (0, 5)
DIVERGED = 10.0
"""Squared error in scaled entries (range [-1, 1]) beyond which a prediction counts as diverged."""
HUGE = 1e30
"""Stands for numbers that are none."""
GOAL, MARGIN = -300.0, 500.0


@dataclass(frozen=True)
class Sizes:
    """``held`` and ``tested`` are walks of ``steps`` steps; ``play_steps`` None means whole episodes."""

    transitions: int = 20_000
    held: int = 60
    tested: int = 300
    steps: int = 50
    centres: int = 200
    width: float = 0.5
    episodes: int = 4
    play_steps: int | None = None
    horizon: int = 25
    candidates: int = 200
    iterations: int = 4


QUICK = Sizes(600, 20, 20, 10, 20, episodes=2, play_steps=5, horizon=5, candidates=20, iterations=2)


# -- data and models -----------------------------------------------------------------------------------------------


def walks(episodes: int, steps: int, seed: int) -> Transitions:
    """``[episodes, steps]`` transitions of random actions; any angle and any speed to start with."""
    luck, model = seeding.generator(seed, "walks"), Simulator(env_spec(ENV))
    angle, speed = (torch.rand(2, episodes, generator=luck) * 2 - 1).unbind(0)
    obs = torch.stack([(math.pi * angle).cos(), (math.pi * angle).sin(), 8 * speed], -1)
    actions = torch.rand(steps, episodes, 1, generator=luck) * 2 - 1
    path = model.rollout(model.encode(obs), actions, None)
    seen, over = path.states.obs[:, 0], path.terminated[:, 0]
    step = torch.arange(steps)[:, None].expand(steps, episodes)
    episode = torch.arange(episodes).expand(steps, episodes)
    rows = Transitions(
        seen[:-1], actions, path.reward[:, 0], seen[1:], over, over, episode, step, torch.zeros_like(step)
    )
    return rows.map(lambda x: x.transpose(0, 1))


def fit(sizes: Sizes, bilinear: bool, seed: int) -> tuple[EDMD, dict[str, float]]:
    """The model on single transitions, its ridge and period chosen on held walks; and the report."""
    dictionary = functools.partial(GaussianRBF, centres=sizes.centres, width=sizes.width)
    model = EDMD(env_spec(ENV), [dictionary], bilinear)
    train = walks(sizes.transitions, 1, seeding.derive_seed(seed, "train"))
    held = walks(sizes.held, sizes.steps, seeding.derive_seed(seed, "held"))
    rows = [part.map(lambda x: x.flatten(0, 1)) for part in (train, held)]
    report = model.fit_closed_form(rows[0], rows[1], seeding.generator(seed, "fit"))
    return model, report | model.calibrate(rows[1], seeding.generator(seed, "calibrate"))


# -- open loop -----------------------------------------------------------------------------------------------------


def open_loop(model: EDMD, sizes: Sizes, seed: int) -> dict[str, dict[str, float]]:
    """By period: median error at the last step in scaled entries, share diverged, median drift."""
    lived = walks(sizes.tested, sizes.steps, seeding.derive_seed(seed, "test"))
    start, actions = model.encode(lived.obs[:, 0]), lived.action.transpose(0, 1)
    truth, found = model.scale(lived.next_obs[:, -1]), {}
    for period in (period for period in PERIODS if period <= sizes.steps):
        said = model.rollout(start, actions, None, reencode_every=period).states.obs[-1, 0]
        miss = (model.scale(said) - truth).square().mean(1).nan_to_num(HUGE).clamp(max=HUGE)
        away = drift(model, lived.obs[:, 0], actions, period)[-1]
        found[str(period)] = {
            "error": float(miss.median()),
            "diverged": float((miss > DIVERGED).float().mean()),
            "drift": float(away.nan_to_num(HUGE).clamp(max=HUGE).median()),
        }
    return found


# -- closed loop ---------------------------------------------------------------------------------------------------


def play(model: DynamicsModel | None, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Returns of ``episodes`` episodes planned side by side in one call a step; random actions without a model."""
    pool = EnvPool(lambda: make_env(ENV), sizes.episodes, lambda slot, episode: FIRST_EVALUATION_SEED + slot)
    luck, began = seeding.generator(seed, "play"), time.perf_counter()
    planner = CEM(pool.spec, sizes.horizon, sizes.candidates, sizes.iterations, particles=1)
    warm_start: Record = planner.initial(sizes.episodes)
    total = np.zeros(sizes.episodes)
    pool.reset()
    steps = sizes.play_steps or pool.spec.max_episode_steps or 0
    for _ in range(steps):
        if model is None:
            action = random_action(pool.spec.action, sizes.episodes, luck)
        else:
            plan = planner.plan(model, Objective(), _state(model, pool), warm_start, generator=luck)
            action, warm_start = plan.actions[0], plan.warm_start
        total += pool.step(action.numpy()).reward
    pool.close()
    milliseconds = 1000 * (time.perf_counter() - began) / (steps * sizes.episodes)
    return {"returns": total.tolist(), "decision_ms": milliseconds}


def _state(model: DynamicsModel, pool: EnvPool) -> State:
    physics: Tensor | None = None
    if isinstance(model, Simulator) and (known := pool.sim_states()) is not None:
        physics = torch.from_numpy(known)
    return model.encode(torch.from_numpy(pool.obs), sim_state=physics)


def closed_loop(models: Mapping[str, EDMD], sizes: Sizes, seed: int) -> dict[str, dict[str, Any]]:
    """Every way of playing the same episodes."""
    found = {"random": play(None, sizes, seed), "true model": play(Simulator(env_spec(ENV)), sizes, seed)}
    for kind, model in models.items():
        for period in PLAYED:
            model.reencode_every = period
            found[_named(kind, period)] = play(model, sizes, seed)
    return found


def _named(kind: str, period: int) -> str:
    return f"{kind}, every {period}" if period else f"{kind}, never"


# -- report --------------------------------------------------------------------------------------------------------


def open_lines(sizes: Sizes, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Median over seeds, worst share of diverged walks."""
    rows: list[list[object]] = [
        ["lifted anew every", *(f"{kind}: {what}" for kind in KINDS for what in ("error", "drift"))]
    ]
    for period in found[0]["open loop"]["bilinear"]:
        cells = [
            statistics.median(seed["open loop"][kind][period][what] for seed in found)
            for kind in KINDS
            for what in ("error", "drift")
        ]
        rows.append([period if period != "0" else "never", *cells])
    worst = max(cell["diverged"] for seed in found for kind in KINDS for cell in seed["open loop"][kind].values())
    head = f"{ENV}: median squared error and drift at step {sizes.steps} of {sizes.tested} walks, {len(found)} seeds"
    return [head, *table(rows), f"largest share of diverged walks: {worst:.3g}"]


def closed_lines(sizes: Sizes, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Mean and worst return by model, and whether the goals are met."""
    rows: list[list[object]] = [["CEM on", "return", "worst episode", "ms a decision"]]
    means = {name: statistics.mean(one["returns"]) for name, one in found.items()}
    rows += [[name, means[name], min(one["returns"]), one["decision_ms"]] for name, one in found.items()]
    with_it, without = means[_named("linear-input", 5)], means[_named("linear-input", 0)]
    lines = [f"swing-up, {sizes.episodes} episodes", *table(rows)]
    for met, goal in (
        (with_it >= GOAL, f"linear-input, every 5: {with_it:.0f} (goal >= {GOAL:g})"),
        (with_it - without >= MARGIN, f"better than without by {with_it - without:.0f} (goal >= {MARGIN:g})"),
    ):
        lines.append(f"{goal}: {'reached' if met else 'missed'}")
    return lines


def main(argv: Sequence[str]) -> None:
    parser = make_parser("koopman-reencoding", "lifted models of the Pendulum, lifted anew or not", repeats=3)
    options = parse(parser, argv)
    sizes, found = QUICK if options.quick else Sizes(), list[dict[str, Any]]()
    with one_thread():
        for seed in range(options.seed, options.seed + options.repeats):
            fitted = {kind: fit(sizes, bilinear, seed) for kind, bilinear in KINDS.items()}
            errors = {kind: open_loop(model, sizes, seed) for kind, (model, _) in fitted.items()}
            found.append({"seed": seed, "fit": {k: report for k, (_, report) in fitted.items()}, "open loop": errors})
            if seed == options.seed:
                models = {kind: model for kind, (model, _) in fitted.items()}
                played = closed_loop(models, sizes, seed)
    config = asdict(sizes) | {"env": ENV, "seeds": options.repeats, "periods": PERIODS}
    lines = [*open_lines(sizes, found), *closed_lines(sizes, played)]
    publish("koopman-reencoding", argv, options, config, lines, {"seeds": found, "closed loop": played})
