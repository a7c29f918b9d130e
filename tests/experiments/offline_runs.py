"""Small runs that learn from small datasets, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agents.offline.base import OfflineAgent
from envs.spec import EnvSpec
from experiments.metrics import comparable, read_records
from mbrl.clock import Clock
from mbrl.data.offline import About, save_folder
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel
from tests.mbrl.data.made import play

ENV = {"id": "Pendulum-v1", "max_episode_steps": 25}
RECIPE = """# A learner of the tests
agent:
  class_path: OfflineAgent
  init_args:
    learner: {class_path: ActorCritic, init_args: {hidden: 8}}
    batch_size: 16
    round_updates: 10
    log_every: 20
steps: 100
evaluation: {every: 40, episodes: 2}
checkpoint: {every: 30}
"""


def write_recipe(folder: Path) -> str:
    (folder / "toy.yaml").write_text(RECIPE)
    return str(folder / "toy.yaml")


def write_set(path: Path, about: About | None = None, change: float = 0.0) -> Transitions:
    """Random episodes of the pendulum, with ``change`` added to one reward."""
    rows = play("Pendulum-v1", episodes=4, limit=25)
    rows.reward = rows.reward + change * torch.eye(len(rows))[7]
    save_folder([rows], len(rows), path, about or About(env=ENV, references=(-200.0, -100.0)))
    return rows


def records(run: Path, kind: str | None = None) -> list[dict[str, object]]:
    found = [comparable(record) for record in read_records(run / "metrics.jsonl")]
    return [record for record in found if kind in (None, record["event"])]


class WithModel(OfflineAgent):
    """Has a dynamics model besides; what it has learned shows in its weights."""

    def __init__(self, spec: EnvSpec, model: Callable[[EnvSpec], DynamicsModel], **options: Any) -> None:
        super().__init__(spec, **options)
        self.model = model(spec)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        for parameter in self.model.parameters():
            parameter.data.add_(0.01)
        return super().update(clock)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"model": self.model.state_dict()}
