"""A model and its fitter out of a configuration: the configured agent is built, and its parts are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agents.base import Agent
from envs.errors import UserError
from envs.spec import EnvSpec
from experiments.config import Resolved, make_one_env, resolve
from experiments.session import build_agent
from mbrl.fitting import ModelFitter
from mbrl.models.base import DynamicsModel
from mbrl.seeding import seeded


def build(resolved: Resolved) -> Agent:
    """The configured agent, freshly initialised; the global random states are left as they were."""
    torch.set_num_threads(resolved.config.threads)  # one thread gives the same numbers everywhere
    with seeded(torch.Generator().manual_seed(0)):
        return build_agent(resolved.config, spec_of(resolved))


def spec_of(resolved: Resolved) -> EnvSpec:
    """What is known of the configured environment."""
    env = make_one_env(resolved.config.env)()
    try:
        return env.env_spec
    finally:
        env.close()


def rebuild(config: Path, trust: Sequence[str]) -> Agent:
    """The agent of a ``config.yaml``. Raises ``UserError`` where it names code that is not trusted."""
    return build(resolve(str(config), trust=trust))


def model_of(agent: Agent, where: str) -> DynamicsModel:
    """The agent's dynamics model."""
    model = getattr(agent, "model", None)
    if isinstance(model, DynamicsModel):
        return model
    raise UserError(where, type(agent).__name__, "this agent has no dynamics model; pets and mbpo-fast have one")


def fitter_of(agent: Agent, where: str) -> ModelFitter:
    """How the agent trains its model."""
    fitter: Any = getattr(agent, "fitter", None)
    if isinstance(fitter, ModelFitter):
        return fitter
    raise UserError(where, type(agent).__name__, "its model is not learned (it has no fitter)")
