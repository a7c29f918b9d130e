"""What is judged, and on which rows: those that the model has not seen, wherever that can be known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, TaskLearner
from envs.errors import UserError
from experiments.checkpoint import CheckpointStore
from experiments.diagnosis.building import model_of, rebuild
from experiments.diagnosis.dataset import JudgedRows, need_fit, of_episodes, read_dataset, subset
from experiments.diagnosis.fit import RECORD, load_weights, read_record, stranger
from experiments.given_data import learned_from
from experiments.metrics import read_records
from experiments.run import RunDirectory
from experiments.session import foreign_state
from experiments.tree import read_yaml
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.fitting import ModelFitter
from mbrl.models.base import DynamicsModel

LEAST_ROWS = 100
"""Unseen rows from which on a judgement rests on them alone"""


@dataclass(frozen=True)
class Subject:
    """A model and the rows that it is judged on."""

    title: str
    model: DynamicsModel
    reference: Transitions
    """Rows that it was trained on: units and the linear baseline come from them"""
    steps: ReplayBuffer
    """Rows for one-step judgements"""
    windows: ReplayBuffer
    """Rows for judgements over several steps"""
    unseen_steps: bool
    unseen_windows: bool
    provenance: list[str] = field(default_factory=list)
    """In plain words, which rows these are"""
    fits: int | None = None
    """How often the model had been fitted; None when that is not known"""

    @property
    def unseen(self) -> bool:
        return self.unseen_steps and self.unseen_windows


def open_subject(source: Path, data: Path | None, trust: Sequence[str]) -> Subject:
    """The model of a run (its newest checkpoint) or of a fit, with its own rows or those at ``data``.

    Raises:
        UserError: ``source`` is neither, its agent has no model, it names code that is not trusted, or data that does
            not fit.
    """
    if (source / RECORD).is_file():
        return _of_fit(source, data, trust)
    return _of_run(RunDirectory.open(source), data, trust)


def _of_fit(path: Path, data: Path | None, trust: Sequence[str]) -> Subject:
    record = read_record(path)
    agent = rebuild(path / "config.yaml", trust)
    model = model_of(agent, str(path))
    load_weights(path, model)
    own = _data_of_fit(path, record)
    need_fit(own, model.spec)
    train, title = of_episodes(own.buffer, record["split"]["train"]), f"{path.name} ({type(model).__name__})"
    if data is not None:
        return _on_other(title, model, train.all(), read_dataset(data), fits=1)
    held = of_episodes(own.buffer, record["split"]["heldout"])
    about = f"{len(held):,} transitions of {len(record['split']['heldout'])} episodes that were held out of the fit"
    provenance = [f"Judged on {about}: {own.path}.", *stranger(own, model)]
    return Subject(title, model, train.all(), held, held, True, True, provenance, fits=1)


def _data_of_fit(path: Path, record: dict[str, Any]) -> JudgedRows:
    about = record["data"]
    own = read_dataset(Path(about["path"]), most=int(about["total_added"]))
    if own.digest() != about["digest"]:
        fix = "they are not the rows that this model was fitted on; fit it anew"
        raise UserError(str(path / RECORD), f"the rows at {own.path} have changed", fix)
    return own


def _on_other(title: str, model: DynamicsModel, reference: Transitions, other: JudgedRows, fits: int | None) -> Subject:
    """Rows that came from elsewhere; those among them that it was fitted on after all are left out."""
    need_fit(other, model.spec)
    rows = other.buffer.all()
    learned = fits is not None  # a simulator has seen nothing, whatever its units come from
    seen = in_both(rows, reference) if learned else torch.zeros(len(rows), dtype=torch.bool)
    if bool(seen.all()):
        about = [f"All {len(rows):,} transitions of {other.path} are among those that the model was fitted on."]
        return Subject(title, model, reference, other.buffer, other.buffer, False, False, about, fits)
    about = [f"Judged on {int((~seen).sum()):,} transitions of {other.path}, none of which the model was fitted on."]
    if bool(seen.any()):
        about.append(f"{int(seen.sum()):,} more are left out, because it was fitted on the same ones.")
    about += stranger(other, model)
    new = subset(rows, ~seen)
    return Subject(title, model, reference, new, new, True, True, about, fits)


def in_both(rows: Transitions, others: Transitions) -> Tensor:
    """``[N]`` bool: rows whose observation, action and successor are, bit for bit, those of a row of ``others``."""

    def keys(of: Transitions) -> np.ndarray[Any, Any]:
        parts = [part.cpu().float() for part in (of.obs, of.action, of.next_obs)]
        table = torch.cat(parts, -1).contiguous().numpy()
        return table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1])))[:, 0]

    return torch.from_numpy(np.isin(keys(rows), keys(others)))


def _of_run(run: RunDirectory, data: Path | None, trust: Sequence[str]) -> Subject:
    agent = rebuild(run.config, trust)
    if isinstance(agent, TaskLearner) and agent.needs_tasks:
        fix = "it has a model for each task and no rows of old ones; `mbrl report` shows the models' errors by task"
        raise UserError("RUN", str(run.path), f"a run over a sequence of tasks is not diagnosed: {fix}")
    model = model_of(agent, str(run.path))
    state = CheckpointStore(run.checkpoints).load_latest()
    if state is None:
        raise UserError("RUN", str(run.path), "this run has no checkpoint yet")
    with foreign_state(run.path):
        agent.load_state_dict(state["agent"])
        env_steps = int(state["clock"]["env_steps"])
    title = f"{run.path.resolve().name} after {env_steps:,} env steps ({type(model).__name__})"
    fits = getattr(getattr(agent, "fitter", None), "fits", None)
    config = read_yaml(run.config)
    given = learned_from(config, state, model.spec) if config.get("data") else None
    if data is not None and Path(data).resolve() != run.path.resolve():
        other = read_dataset(data)
        own = given or (read_dataset(run.path).buffer if agent.buffers else other.buffer)
        return _on_other(title, model, own.all(), other, fits)
    if given is not None:
        about = [f"Judged on the dataset that it was fitted on, {config['data']}: {len(given):,} transitions."]
        return Subject(title, model, given.all(), given, given, False, False, about, fits)
    stored = read_dataset(run.path)
    need_fit(stored, model.spec)
    return _on_own(title, agent, model, stored.buffer, last_fit(run, env_steps, stored.buffer.total_added), fits)


def last_fit(run: RunDirectory, env_steps: int, total_added: int) -> int | None:
    """How many transitions had come when the model of the checkpoint was last fitted; None when that is not known."""
    if env_steps != total_added:  # this agent does not store one row for each env step
        return None
    fits = [record["env_steps"] for record in read_records(run.metrics) if record["event"] == "fit"]
    return max((step for step in fits if step <= env_steps), default=0)


def _on_own(
    title: str, agent: Agent, model: DynamicsModel, buffer: ReplayBuffer, fitted: int | None, fits: int | None
) -> Subject:
    """The run's own rows, parted into those that came since its last fit, those held out of it, and the rest."""
    rows, ids = buffer.all(), buffer.ids
    since = torch.zeros(len(rows), dtype=torch.bool) if fitted is None else ids >= fitted
    held = torch.zeros_like(since)
    if fitted is not None and bool((~since).any()):
        held[~since] = held_out(agent, rows[~since], wrapped=buffer.total_added > len(buffer))
    unseen = since | held
    enough, enough_in_a_row = int(unseen.sum()) >= LEAST_ROWS, int(since.sum()) >= LEAST_ROWS
    reference = rows[~unseen] if bool((~unseen).any()) else rows
    steps = subset(rows, unseen) if enough else buffer
    windows = subset(rows, since) if enough_in_a_row else buffer
    about = _provenance(len(rows), since, held, enough, enough_in_a_row)
    return Subject(title, model, reference, steps, windows, enough, enough_in_a_row, about, fits)


def held_out(agent: Agent, rows: Transitions, wrapped: bool) -> Tensor:
    """``[N]`` bool: rows that no fit of the agent has taken a gradient from; all False where that cannot be known.

    A fitter whose holdout is fixed parts the same rows the same way whatever the random numbers; one that draws it
    anew does not, which is how it is told. Once the oldest rows are gone and the holdout is full, its line may rise.
    """
    nobody = torch.zeros(len(rows), dtype=torch.bool)
    fitter = getattr(agent, "fitter", None)
    if not isinstance(fitter, ModelFitter) or not fitter.holdout:
        return nobody
    once, again = (_mask(fitter, model_of(agent, "agent").window, rows, seed) for seed in (0, 1))
    moves = wrapped and int(once.sum()) >= fitter.max_holdout
    return once if torch.equal(once, again) and not moves else nobody


def _mask(fitter: ModelFitter, window: int, rows: Transitions, seed: int) -> Tensor:
    _, held = fitter.split(rows, torch.Generator().manual_seed(seed), window)
    mask = torch.zeros(len(rows), dtype=torch.bool)
    mask[held] = True
    return mask


def _provenance(rows: int, since: Tensor, held: Tensor, enough: bool, enough_in_a_row: bool) -> list[str]:
    """What the rows are, in plain words."""
    new, kept = int(since.sum()), int(held.sum())
    about = [
        f"The run's own {rows:,} transitions: {new:,} came after its last fit, {kept:,} were held out of its fits."
    ]
    if enough:
        about.append("One step ahead it is judged on those alone.")
        if kept:
            about.append("Nothing was fitted to held-out rows, but they decided what a fit chooses: when to stop, say.")
    else:
        about.append("These are too few: one step ahead it is judged on all rows, most of which it was trained on.")
    if enough_in_a_row:
        about.append("Over several steps it is judged on what came after its last fit.")
    else:
        about.append("Over several steps it is judged on rows that it was trained on: too few in a row are new.")
    return about
