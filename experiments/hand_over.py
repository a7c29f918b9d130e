"""Offline to online: a new run's agent begins with what an earlier run learned from its dataset, and with that data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.base import Agent
from agents.external import ExternalLearner
from agents.offline.base import OfflineAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from experiments.checkpoint import CheckpointStore
from experiments.config import EnvConfig, RunConfig, make_one_env
from experiments.given_data import learned_from
from experiments.run import RunDirectory
from experiments.tree import read_yaml
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.labels import need_actions
from mbrl.data.transitions import Transitions

PARTS = ("learner", "model")
"""What of an agent's state is handed over, where both agents have it"""
FIELD = "--from"
CALLBACKS = "callbacks"
"""Averages, resets and the like of a learner, which every agent may have of its own"""
NO_SHAPE = ("compile", "device", "lr", "actor_lr", "gamma", "tau", "backup_entropy", CALLBACKS)


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A run that learned from data, as its newest checkpoint and its dataset are."""

    path: Path
    config: Mapping[str, Any]
    agent: Mapping[str, Any]
    """State of its agent"""
    data: ReplayBuffer


def read_earlier(path: Path, spec: EnvSpec) -> Earlier:
    """The run to continue.

    Raises:
        UserError: no run, no checkpoint, no dataset or not the same any more, or another environment's.
    """
    run = RunDirectory.open(path)
    config, state = read_yaml(run.config), CheckpointStore(run.checkpoints).load_latest()
    if not isinstance(config.get("data"), str):
        raise UserError(FIELD, str(path), "this run did not learn from a dataset; `mbrl resume` continues it")
    if state is None:
        raise UserError(FIELD, str(path), "this run has no checkpoint yet")
    return Earlier(path, config, state["agent"], learned_from(config, state, spec))


def hand_over(config: RunConfig, tree: Mapping[str, Any], agent: Agent) -> list[str]:
    """Give a fresh ``agent`` the learner, the model and the rows of ``config.start_from``; notes on what it kept.

    The rows go into its buffer ``real`` as episodes with negative ids, so that none is taken for one of its own.

    Args:
        config: the new run.
        tree: its configuration as plain values, to say in which settings the two agents differ.
        agent: as it was built; changed only when all fits.

    Raises:
        UserError: it cannot take over, naming what differs.
    """
    assert config.start_from is not None
    need_taker(agent)
    earlier = read_earlier(Path(config.start_from), agent.spec)
    own, buffer = agent.state_dict(), agent.buffers["real"]
    rows = fitting_rows(earlier.data, buffer, sim_state_size(config.env))
    odd = need_fit(config.start_from, (earlier.config, earlier.agent), (tree, own))
    taken = {part: earlier.agent[part] for part, differs in odd.items() if not differs}
    taken["learner"] = taken["learner"] | _callbacks((earlier.config, earlier.agent), (tree, own))
    agent.load_state_dict(own | taken)
    buffer.extend(rows)
    notes = [f"the model begins anew: {'; '.join(differs)}" for differs in odd.values() if differs]
    if (warmup := int(getattr(agent, "warmup_steps", 0))) > 1:
        notes.append(f"it acts with what it was handed, and learns after agent.warmup_steps = {warmup:,} env steps")
    return notes


def need_taker(agent: Agent) -> None:
    """Raise ``UserError`` where an agent of this kind can take nothing over."""
    _need_taker(agent)


Side = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A run's configuration as plain values, and the state of its agent"""


def need_fit(path: str, theirs: Side, mine: Side) -> dict[str, list[str]]:
    """By part that both agents have, in words how its shapes differ; nothing for a part that fits.

    Raises:
        UserError: the learners do not fit, or one of the agents has none.
    """
    odd = {part: _differences(part, theirs, mine) for part in PARTS if part in mine[1] and part in theirs[1]}
    if "learner" not in odd:
        raise UserError(FIELD, path, "one of the two agents has no learner of a policy to hand over")
    if odd["learner"]:
        differs = "; ".join(odd["learner"])
        there, here = (str(_part(side[0], "learner").get("class_path")).rpartition(".")[2] for side in (theirs, mine))
        if there != here:
            fix = f"a learner of class {there} does not go on as {here}: it goes on in an agent that has such a learner"
            raise UserError(FIELD, path, fix)
        fix = f"the two learners have other shapes; give this run the earlier one's settings ({differs})"
        raise UserError(FIELD, path, fix)
    return odd


def _need_taker(agent: Agent) -> None:
    """Raise ``UserError`` where an agent has no place for another one's learner and rows."""
    if isinstance(agent, OfflineAgent):
        why = "it learns from data itself: name that with --data"
    elif isinstance(agent, ExternalLearner):
        why = "its networks and replay buffer are another library's, in which weights learned here have no place"
    elif "real" not in agent.buffers:
        why = "it has no replay buffer for the earlier run's rows"
    else:
        return
    fix = f"this agent cannot continue a run: {why}; sac-fast, mbpo-fast and other recipes with an ActorCritic can"
    raise UserError(FIELD, type(agent).__name__, fix)


def _callbacks(theirs: Side, mine: Side) -> dict[str, Any]:
    """The state of a learner's callbacks: the earlier run's where they are the same, else as they begin."""
    if CALLBACKS not in mine[1]["learner"]:
        return {}
    one, other = (_init_args(tree, "learner").get(CALLBACKS) or [] for tree in (theirs[0], mine[0]))
    same = one == other and CALLBACKS in theirs[1]["learner"]
    return {CALLBACKS: (theirs if same else mine)[1]["learner"][CALLBACKS]}


def _init_args(tree: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The arguments of an agent's part."""
    return _part(tree, part).get("init_args") or {}


def _part(tree: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """What a configuration says of an agent's part; nothing where it says nothing."""
    return ((tree.get("agent") or {}).get("init_args") or {}).get(part) or {}


def sim_state_size(env: EnvConfig) -> int | None:
    """Numbers in an environment's physics state, which online rows carry; None where it offers none."""
    made = make_one_env(env)()
    try:
        made.reset(seed=0)
        state = made.sim_state()
        return None if state is None else len(state)
    finally:
        made.close()


def fitting_rows(data: ReplayBuffer, buffer: ReplayBuffer, sim_size: int | None) -> Transitions:
    """The rows of a dataset as ``buffer`` wants them: with its extra columns and no others, episodes below 0.

    Physics states that the dataset does not know are NaN.
    """
    need_actions(data, "an agent that acts")
    rows = data.all()
    if missing := sorted(set(buffer.extra) - set(rows.extra)):
        fix = "this agent stores them with every row and the dataset has none: take sac-fast or mbpo-fast to continue"
        raise UserError(f"{FIELD}: columns", ", ".join(missing), fix)
    if len(rows) > buffer.capacity:
        fix = f"the dataset has {len(rows):,} rows; give the agent a larger capacity"
        raise UserError("agent.init_args.capacity", buffer.capacity, fix)
    sim_state = None if sim_size is None else torch.full((len(rows), sim_size), torch.nan, dtype=torch.float64)
    known = rows.sim_state is not None and sim_state is not None and rows.sim_state.shape == sim_state.shape
    return dataclasses.replace(
        rows,
        episode=rows.episode - rows.episode.max() - 1,
        task=None,
        sim_state=rows.sim_state if known else sim_state,
        extra={name: rows.extra[name] for name in buffer.extra},
    )


def _differences(part: str, theirs: Side, mine: Side) -> list[str]:
    """In words, how the states of a part differ in shape; none for parts that fit."""
    there, here = ({k: v for k, v in side[1][part].items() if k != CALLBACKS} for side in (theirs, mine))
    odd = list(_mismatches(there, here, part))
    return [*_settings(part, theirs[0], mine[0]), *odd[:3]] if odd else []


def _mismatches(theirs: Any, mine: Any, where: str) -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in {**theirs, **mine}:
            if key not in theirs or key not in mine:
                yield f"{where}.{key} is only in {'this run' if key in mine else 'the earlier run'}"
            else:
                yield from _mismatches(theirs[key], mine[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple) and isinstance(mine, list | tuple) and len(theirs) == len(mine):
        for place, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            yield from _mismatches(one, other, f"{where}.{place}")
    elif _shape(theirs) != _shape(mine):
        yield f"{where} is {_shape(theirs)} there and {_shape(mine)} here"


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a number" if isinstance(value, bool | int | float) else type(value).__name__


def _settings(part: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a part that the two configurations give other values."""
    one, other = (_part(tree, part) for tree in (theirs, mine))
    if one.get("class_path") != other.get("class_path"):
        yield f"agent.{part} is {one.get('class_path')} there and {other.get('class_path')} here"
    ours, own = one.get("init_args") or {}, other.get("init_args") or {}
    for key in ours:
        if key in own and key not in NO_SHAPE and ours[key] != own[key]:
            yield f"agent.{part}.{key}: {ours[key]} there, {own[key]} here"
