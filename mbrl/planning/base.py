"""The contract of a planner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.models.base import DynamicsModel, State
from mbrl.planning.objective import Objective


@dataclass
class NoMemory(Record):
    """The warm start of a planner that remembers nothing."""


@dataclass
class Plan(Record):
    """What to do in ``B`` environments."""

    actions: Tensor
    """``[H, B, A]`` platform actions"""
    value: Tensor
    """``[B]`` value that the objective gives them; -inf where no candidate was finite"""
    warm_start: Record = field(default_factory=NoMemory)
    """Planner memory for the next call, already shifted by one step; rows belong to environments"""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Diagnostics such as ``iterations``, each a scalar or ``[B]``"""


class Planner(ABC):
    """Searches for actions that score well under a model.

    ``plan`` is batched over ``B`` environments. Random numbers are common to the environments of one call, so a plan
    does not depend on which other environments are planned beside it; inside, environments are worked in chunks
    that stay in the cache.
    """

    def __init__(self, spec: EnvSpec, horizon: int) -> None:
        self.spec = spec
        self.horizon = horizon

    def initial(self, batch: int, device: Any = "cpu") -> Record:
        """Warm start of ``batch`` environments at an episode's start; every tensor is ``[batch, ...]``."""
        return NoMemory()

    @abstractmethod
    def plan(
        self,
        model: DynamicsModel,
        objective: Objective,
        state: State,
        warm_start: Record | None,
        proposals: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Plan:
        """Plan from ``state [B]``. ``proposals [H, K, B, A]`` are extra candidates (from a policy, say)."""
