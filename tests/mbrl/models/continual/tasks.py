"""Small task sequences: the system of the ensemble's tests with its push turned by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.fitting.continual import ContinualFitter
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
from tests.mbrl.models.conftest import System

KINDS: dict[str, Callable[..., ContinualModel]] = {
    "hypernet": lambda spec, **options: HyperNetwork(spec, trunk=[16, 16], **options),
    "restart": lambda spec, **options: HyperNetwork(spec, trunk=[16], targets="restart", old_tasks=1, **options),
    "chunked": lambda spec, **options: HyperNetwork(spec, trunk=[16], chunk=50, **options),
    "finetune": SharedTrunk,
    "one head": lambda spec, **options: SharedTrunk(spec, heads=False, **options),
    "single": SingleModels,
    "oracle": lambda spec, **options: Replay(spec, rows=None, **options),
    "coreset": lambda spec, **options: Replay(spec, **{"rows": 7, **options}),
    "ewc": ElasticWeights,
    "si": SynapticIntelligence,
    "progressive": ProgressiveHeads,
}


def make(kind: str, system: System | None = None, seed: int = 0, **options: Any) -> ContinualModel:
    torch.manual_seed(seed)
    return KINDS[kind]((system or System()).spec, **{"hidden": 8, **options})


def rows(task: int, count: int = 120, system: System | None = None, seed: int = 0) -> Transitions:
    """Transitions of a task. Of the plain system, the change of (p, v) is tanh of a task's own mixture of what there
    is to see: nothing hidden, and nothing that standardised targets would make alike. Others are all alike.
    """
    system = system or System("plain")
    data, ids = system.data(count, seed + 10 * task), torch.full((count,), task)
    if system.layout != "plain":
        return dataclasses.replace(data, task=ids)
    mixture = 2 * torch.randn(2, 3, generator=Generator().manual_seed(100 + task))
    change = 0.3 * torch.tanh(torch.cat([data.obs, data.action], -1) @ mixture.T)
    return dataclasses.replace(data, next_obs=data.obs + change, task=ids)


def fitter(updates: int = 3, **options: Any) -> ContinualFitter:
    return ContinualFitter(updates, batch_size=20, **{"holdout": 0.0, **options})


def learn(
    model: ContinualModel,
    tasks: range,
    generator: Generator,
    trainer: ContinualFitter | None = None,
    data: Callable[[int], Transitions] = rows,
    spec: Callable[[int], EnvSpec | None] = lambda task: None,
) -> ContinualFitter:
    """Every task of ``tasks`` from its start to its end."""
    trainer = trainer or fitter()
    for task in tasks:
        model.start_task(task, generator, spec(task))
        trainer.fit(model, data(task), generator)
        model.end_task(task, data(task), generator)
    return trainer


def error(model: ContinualModel, task: int, data: Transitions) -> float:
    said = model.bind(task).step(model.encode(data.obs), data.action, None).state.obs
    return float((said - data.next_obs).square().mean() / (data.next_obs - data.obs).var(0).mean())
