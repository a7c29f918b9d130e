"""The run that ``mbrl diagnose RUN --oracle`` is asked about, opened at its newest checkpoint, and what it recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.external import ExternalLearner
from agents.offline.base import OfflineAgent
from agents.offline.model_based import OfflineDynaAgent, OfflineModelAgent
from envs.errors import UserError
from experiments.checkpoint import CheckpointStore
from experiments.config import Resolved, resolve
from experiments.diagnosis.building import build
from experiments.diagnosis.fit import RECORD
from experiments.given_data import GivenData
from experiments.metrics import read_records
from experiments.run import RunDirectory
from experiments.session import foreign_state
from mbrl.data.buffer import ReplayBuffer
from mbrl.models.simulator import Simulator

RECIPES = "mopo, mobile, combo, ravl, rambo and morec-*"


@dataclass(frozen=True)
class Training:
    """What a run's ``metrics.jsonl`` says of its learning, by updates."""

    evaluations: list[tuple[int, list[float]]]
    """Returns of every evaluation; episode ``i`` always starts alike"""
    depths: dict[int, list[tuple[int, float]]]
    """Values along imagined rollouts, by depth"""
    sides: list[tuple[int, int]]
    """Of every record whose mean value was compared with the attainable range: 1 above it, -1 below, 0 inside"""
    range: tuple[float, float] | None

    @property
    def edge(self) -> list[tuple[int, float]]:
        """Values at the last depth."""
        return self.depths[max(self.depths)] if self.depths else []

    def late_share(self, side: int) -> float:
        """Of the last third of those records, the share on that side; NaN where there are none."""
        late = self.sides[2 * len(self.sides) // 3 :]
        return sum(each == side for _, each in late) / len(late) if late else float("nan")


@dataclass(frozen=True)
class Subject:
    """An offline Dyna run."""

    run: RunDirectory
    resolved: Resolved
    agent: OfflineDynaAgent
    """At its newest checkpoint, with its data"""
    simulator: Simulator
    updates: int
    training: Training
    data_returns: list[float] = field(default_factory=list)
    """Of the whole episodes in the data"""

    @property
    def title(self) -> str:
        return f"{self.run.path.resolve().name} after {self.updates:,} updates ({type(self.agent).__name__})"


def open_run(path: Path, trust: Sequence[str]) -> Subject:
    """The run, its agent and its data.

    Raises:
        UserError: no run that learns offline from rollouts in a model, none that has begun to, data that is gone or
            has changed, or an environment whose true dynamics are not known.
    """
    if (path / RECORD).is_file():
        raise UserError("RUN", str(path), f"a fit has no agent: --oracle is of offline Dyna runs, such as {RECIPES}")
    run = RunDirectory.open(path)
    resolved = resolve(str(run.config), trust=trust)
    agent = _need_dyna(path, build(resolved))
    simulator = true_dynamics(agent, resolved)
    state = CheckpointStore(run.checkpoints).load_latest()
    updates = 0 if state is None else int(state["clock"]["updates"])
    if state is None or updates == 0:
        raise UserError("RUN", str(path), f"it has not learned yet: `mbrl resume {path}` trains it first")
    assert resolved.config.data is not None  # an offline agent is refused without
    data = GivenData(resolved.config.data, resolved.config.env, agent.spec)
    data.verify(state.get("data"))
    with foreign_state(path):
        agent.load_state_dict(state["agent"])
    agent.load(data.buffer)
    return Subject(run, resolved, agent, simulator, updates, read_training(run.metrics), whole_returns(data.buffer))


def _need_dyna(path: Path, agent: Any) -> OfflineDynaAgent:
    """Refuse every other kind of agent, and say what it is."""
    if isinstance(agent, OfflineDynaAgent):
        return agent
    name = type(agent).__name__
    if isinstance(agent, OfflineModelAgent):
        what = "has a model and plans in it, but no critics that learn from imagined rollouts"
    elif isinstance(agent, OfflineAgent):
        what = "learns from data without a dynamics model, so it has neither a model's error nor an edge"
    elif isinstance(agent, ExternalLearner):
        what = "is a learner of another library, which acts to learn and has no dynamics model"
    else:
        what = "learns by acting, not from a dataset"
    raise UserError("--oracle", f"{path} ({name})", f"this agent {what}: --oracle is of offline Dyna runs ({RECIPES})")


def true_dynamics(agent: OfflineDynaAgent, resolved: Resolved) -> Simulator:
    """The environment's own dynamics. Raises ``UserError`` where none are known."""
    try:
        return Simulator(agent.spec, resolved.config.env.kwargs or None)
    except UserError as error:
        raise error.within("--oracle: true dynamics") from error


def read_training(metrics: Path) -> Training:
    """The records of a run. Raises ``UserError`` where they are damaged."""
    evaluations: list[tuple[int, list[float]]] = []
    depths: dict[int, list[tuple[int, float]]] = {}
    sides: list[tuple[int, int]] = []
    seen = None
    for record in read_records(metrics):
        updates = int(record["updates"])
        if record["event"] == "evaluation":
            evaluations.append((updates, [float("nan") if x is None else float(x) for x in record["returns"]]))
        for name, value in record.items():
            if record["event"] == "imagine" and name.startswith("q_at_depth_") and value is not None:
                depths.setdefault(int(name.removeprefix("q_at_depth_")), []).append((updates, float(value)))
        if record["event"] == "update" and record.get("value_low") is not None:
            seen = float(record["value_low"]), float(record["value_high"])
            q = float("inf") if record.get("q") is None else float(record["q"])
            sides.append((updates, int(q > seen[1]) - int(q < seen[0])))
    return Training(evaluations, depths, sides, seen)


def whole_returns(data: ReplayBuffer) -> list[float]:
    """Returns of the data's episodes that begin with step 0, end and miss no step between; in order of their ids."""
    ids, where = _compact(data.columns["episode"][: len(data)])
    reward, step = (data.columns[name][: len(data)] for name in ("reward", "step"))
    ended = data.columns["terminated"][: len(data)] | data.columns["truncated"][: len(data)]
    total = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, where, torch.as_tensor(reward).double())
    count = torch.bincount(where, minlength=len(ids))
    last = torch.zeros(len(ids), dtype=torch.int64).scatter_reduce_(0, where, torch.as_tensor(step).long(), "amax")
    over = torch.zeros(len(ids), dtype=torch.int64).index_add_(0, where, torch.as_tensor(ended).long())
    whole: list[float] = total[(count == last + 1) & (over == 1)].tolist()
    return whole


def _compact(episode: Tensor) -> tuple[Tensor, Tensor]:
    ids, where = torch.as_tensor(episode).unique(return_inverse=True)
    return ids, where
