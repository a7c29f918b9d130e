"""``model:RUN_DIR`` as an environment: the model that a run has learned, in the units of the run's own environment."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError
from envs.registry import register_scheme
from envs.spec import EnvSpec, KnownFunction, takes_params
from mbrl import seeding
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_env import ModelEnv
from mbrl.imagination.starts import Starts, StartTable
from mbrl.models.base import DynamicsModel

if TYPE_CHECKING:
    from agents.base import Agent
    from experiments.run import RunDirectory

SCHEME = "model"
StartsFrom = Literal["first", "all"]
"""Episodes start where the run's own did, or at any observation that it saw."""

_admitted: set[str] = set()
"""Packages outside the project that were trusted on this command line."""


def outside_modules_of(run: str) -> list[str]:
    """Packages outside the project that the configuration of this run names."""
    from experiments.names import outside_modules
    from experiments.run import RunDirectory
    from experiments.tree import read_yaml

    return outside_modules(read_yaml(RunDirectory.open(Path(run)).config))


def admit(run: str, trust: Iterable[str]) -> None:
    """Let this process serve the model of ``run``.

    Raises:
        UserError: this is no run, or its configuration names code outside the project that is not in ``trust``.
    """
    trusted = {*trust, *_admitted}
    missing = [name for name in outside_modules_of(run) if name not in trusted]
    if missing:
        words = " ".join(f"--trust {name}" for name in missing)
        fix = f"{missing} in the configuration of this run is code outside the project; if you trust it: {words}"
        raise UserError("env.id", f"{SCHEME}:{run}", fix)
    _admitted.update(trust)
    register_scheme(SCHEME, functools.partial(_load_admitting, tuple(sorted(_admitted))))


class ServedModel(ModelEnv):
    """A run's learned model with the spaces and the known pieces of the environment that it was learned from.

    Physics parameters cannot be changed: the model knows those it was trained under.
    """

    def __init__(self, served: Served, starts: Starts) -> None:
        super().__init__(served.model, StartTable(starts))
        spec = served.spec
        self.max_episode_steps = spec.max_episode_steps  # kept by a wrapper, so that a user may choose another
        self.version, self.dt = served.version, spec.dt
        self.layout, self.angles, self.quadratic = spec.layout, spec.angles, spec.quadratic
        self.reward_terms = {name: _with_params(piece, spec) for name, piece in spec.reward_terms.items()}
        self.costs = {name: _with_params(piece, spec) for name, piece in spec.costs.items()}
        self._told = self.costs if spec.reward_complete else {**self.reward_terms, **self.costs}
        if not spec.action.discrete:
            low, high = (np.array(bound, dtype=np.float32) for bound in (spec.action.low, spec.action.high))
            self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._slots.obs
        if not self.model_spec.action.discrete:
            action = self.model_spec.action.from_env(torch.as_tensor(np.asarray(action, dtype=np.float32))).numpy()
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | self._known(before, action, obs)

    def _known(self, before: Any, action: Any, obs: Any) -> dict[str, float]:
        """Costs, and reward terms that are not the whole reward, of this step: so that they can be checked."""
        if not self._told:
            return {}
        action_spec, acted = self.model_spec.action, torch.as_tensor(np.asarray(action))[None]
        native = acted.long() if action_spec.discrete else action_spec.to_env(acted.double())
        here, there = torch.from_numpy(before).double(), torch.from_numpy(obs).double()[None]
        return {name: float(piece(here, native, there)) for name, piece in self._told.items()}


@dataclass(frozen=True)
class Served:
    """What is taken from a run. The environments of one process share it."""

    model: DynamicsModel
    spec: EnvSpec
    """of the run's own environment"""
    starts: Mapping[StartsFrom, Starts]
    version: str
    """the env steps that the model has seen, and a digest of its weights"""


@dataclass(frozen=True)
class _Bound:
    """A known piece with its physics parameters put in."""

    piece: KnownFunction
    params: tuple[float, ...]

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.piece(obs, action, next_obs, obs.new_tensor(self.params))


@dataclass(frozen=True)
class _Sum:
    """The sum of the known reward terms."""

    pieces: tuple[KnownFunction, ...]

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.stack([piece(obs, action, next_obs) for piece in self.pieces]).sum(0)


def _with_params(piece: KnownFunction, spec: EnvSpec) -> KnownFunction:
    return _Bound(piece, tuple(spec.params.values())) if takes_params(piece) else piece


def load(run: str, starts: StartsFrom = "first", render_mode: str | None = None) -> gym.Env[Any, Any]:
    """The environment ``model:RUN_DIR``: the newest checkpoint's model, started from the run's real data.

    Args:
        run: the run directory.
        starts: where episodes start: at the first observations of the run's real episodes, or at any observation.
        render_mode: must be None, there is nothing to draw.

    Raises:
        UserError: this is no run, its agent has no model or no real data yet, or it needs code that is not trusted.
    """
    if starts not in get_args(StartsFrom):
        raise UserError("env.kwargs.starts", starts, "give first or all", get_args(StartsFrom))
    if render_mode is not None:
        raise UserError("render_mode", render_mode, "a learned model has nothing to draw")
    admit(run, ())
    served = _serve(str(Path(run).resolve()), _newest(run))
    if not len(served.starts[starts].obs):
        fix = "the run's replay buffer holds no such observation; train it longer, or set env.kwargs.starts: all"
        raise UserError(f"{SCHEME}:{run}", starts, fix)
    return _class_for(served.spec)(served, served.starts[starts])


def _load_admitting(admitted: Sequence[str], run: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """As :func:`load`, in a process that was started elsewhere by one whose user trusts ``admitted``."""
    _admitted.update(admitted)
    return load(run, **kwargs)


def _class_for(spec: EnvSpec) -> type[ServedModel]:
    """The class whose static methods say what is known, as those of a user's environment would."""
    pieces: dict[str, Any] = {}
    if spec.termination is not None:
        pieces["termination_fn"] = staticmethod(_with_params(spec.termination, spec))
    if spec.reward_complete:
        pieces["reward_fn"] = staticmethod(_Sum(tuple(_with_params(p, spec) for p in spec.reward_terms.values())))
    return type("ServedModel", (ServedModel,), pieces)


def _newest(run: str) -> str:
    """Name of the newest checkpoint: another one is another environment."""
    from experiments.checkpoint import CheckpointStore
    from experiments.run import RunDirectory

    found = CheckpointStore(RunDirectory.open(Path(run)).checkpoints).found()
    if not found:
        raise UserError(f"{SCHEME}:{run}", "no checkpoint", "this run has none yet; train it first")
    return found[-1].path.name


@functools.lru_cache(maxsize=4)
def _serve(run: str, checkpoint: str) -> Served:
    """Build the run's agent again and take what is served; ``checkpoint`` tells when that must be done anew."""
    from experiments.checkpoint import CheckpointStore
    from experiments.config import make_one_env, resolve
    from experiments.run import RunDirectory
    from experiments.session import build_agent, foreign_state

    directory = RunDirectory.open(Path(run))
    with seeding.seeded(torch.Generator().manual_seed(0)):  # whoever asks for the environment has draws of its own
        config = resolve(str(directory.config), trust=sorted(_admitted)).config
        own = make_one_env(config.env)()
        spec = own.env_spec
        own.close()
        agent = build_agent(config, spec)
        state = CheckpointStore(directory.checkpoints).load_latest()
        assert state is not None
        with foreign_state(directory.path):
            agent.load_state_dict(state["agent"])
            rows = _real_rows(directory, agent, state)
    model = _model_of(agent, run)
    version = f"{int(state['clock']['env_steps'])}-{_digest(model)}"
    seen = Starts.of(rows).to(agent.device)
    return Served(model, spec, {"all": seen, "first": seen[(rows.step == 0).to(agent.device)]}, version)


def _model_of(agent: Agent, run: str) -> DynamicsModel:
    from agents.base import TaskLearner

    if isinstance(agent, TaskLearner) and agent.needs_tasks:
        fix = "it has a model for each task of a sequence; a run on one environment can be served"
        raise UserError(f"{SCHEME}:{run}", type(agent).__name__, fix)
    model = getattr(agent, "model", None)
    if isinstance(model, DynamicsModel):
        return model
    raise UserError(f"{SCHEME}:{run}", type(agent).__name__, "this run's agent has no dynamics model to serve")


def _real_rows(directory: RunDirectory, agent: Agent, state: Mapping[str, Any]) -> Transitions:
    """The run's real transitions, read without touching them: the run may be alive."""
    from experiments.segments import BufferStore

    _model_of(agent, str(directory.path))
    buffer, counts = agent.buffers.get("real"), state["buffers"].get("real", {})
    total, forgotten = (int(counts.get(key, 0)) for key in ("total_added", "forgotten"))
    if buffer is None or total <= forgotten:
        fix = "this run has stored no real transitions to start from; train it longer"
        raise UserError(f"{SCHEME}:{directory.path}", "no data", fix)
    BufferStore(directory.checkpoints / "buffers" / "real").read(buffer, total, forgotten)
    return buffer.all()


def _digest(model: DynamicsModel) -> str:
    """Eight hex digits of everything that the model has learned."""
    hashed = hashlib.blake2b(digest_size=4)
    for name, value in model.state_dict().items():
        hashed.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


register_scheme(SCHEME, load)
