"""The router on pendulums that switch unseen, under exploring actions."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from envs.spec import EnvSpec
from experiments.benchmarks._pendulums import exploring
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.router import Router, calibrate, error_scale

LIMIT = 64
"""Steps after a switch within which the answer must be right."""
STAY = 150
"""Steps between switches."""
CALIBRATION_SEED = 500_000
"""Streams that thresholds are calibrated on start here; those that are judged do not reach it."""


def judge(models: Mapping[int, DynamicsModel], specs: Sequence[EnvSpec], switches: int, seed: int) -> dict[str, Any]:
    """Shares of switches found in time: all tasks known, and for each task in turn with that one unknown."""
    streams = {task: _calm(specs, task, seed) for task in models}
    scale = error_scale(Transitions.cat(list(streams.values())))
    thresholds = calibrate(models, streams, scale)
    found: dict[str, Any] = {"thresholds": asdict(thresholds)}
    order = _order(len(models), switches, seed)
    for unknown in (None, *models):
        router = Router(scale, thresholds)
        for task, model in models.items():
            if task != unknown:
                router.add(task, model)
        first = next(task for task in order if task != unknown)
        walk = [first, *order]
        walk = [task for i, task in enumerate(walk) if i == 0 or task != walk[i - 1]]
        found[f"unknown {unknown}"] = list(_delays(router, specs, walk, unknown, seed))
    return found


def _calm(specs: Sequence[EnvSpec], task: int, seed: int) -> Transitions:
    """A stream of one task, of five episodes."""
    seeds = [CALIBRATION_SEED + 100 * seed + part for part in range(5)]
    return Transitions.cat([exploring(specs, [task], 400, seeding.derive_seed(one, task)) for one in seeds])


def _order(tasks: int, switches: int, seed: int) -> list[int]:
    """Each task is followed by another one."""
    choose, order = random.Random(seed), [0]
    for _ in range(switches):
        order.append(choose.choice([task for task in range(tasks) if task != order[-1]]))
    return order


def _delays(
    router: Router, specs: Sequence[EnvSpec], order: Sequence[int], unknown: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Of every switch: from which task to which, and after how many steps the router said so (None: it did not)."""
    stream = exploring(specs, order, STAY, seed)
    router.start(order[0])
    said = [router.update(stream.obs[i], stream.action[i], stream.next_obs[i]).task for i in range(len(stream))]
    for k in range(1, len(order)):
        right = None if order[k] == unknown else order[k]
        stay = said[k * STAY : (k + 1) * STAY]
        yield {"from": order[k - 1], "to": order[k], "delay": stay.index(right) if right in stay else None}


def share(switches: Sequence[Mapping[str, Any]], to: int | None = None) -> float:
    """Of the switches (to one task), how many were found in time."""
    asked = [one["delay"] for one in switches if to is None or one["to"] == to]
    return statistics.mean(delay is not None and delay < LIMIT for delay in asked) if asked else float("nan")


def lines_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """All known, then the worst and mean of the unknown tasks, over seeds."""
    known = [switch for seed in found for switch in seed["unknown None"]]
    delays = sorted(switch["delay"] for switch in known if switch["delay"] is not None)
    tasks = [int(name.split()[1]) for name in found[0] if name.startswith("unknown ") and name != "unknown None"]
    new = {task: share([s for seed in found for s in seed[f"unknown {task}"]], task) for task in tasks}
    middle = delays[len(delays) // 2] if delays else "-"
    said = ", ".join(f"task {task + 1}: {part:.0%}" for task, part in new.items())
    return [
        f"router: {share(known):.1%} of {len(known)} hidden switches found within {LIMIT} steps (median {middle})",
        f'router: "new" within {LIMIT} steps when the task is unknown: {said}',
    ]
