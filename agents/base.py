"""The contract of an agent: something that acts and may learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.imagination.rollout import ChunkMaker
from mbrl.models.base import DynamicsModel

Mode = Literal["explore", "evaluate"]


@dataclass
class ActorState(Record):
    """What an agent carries from one decision to the next, a row an environment slot. The loop owns it.

    A memoryless agent uses this empty one; others subclass it.
    """


class Agent(ABC):
    """Acts in ``N`` environment slots at once, learns from what happened there.

    Built as ``Agent(spec, ..., **parts)``. ``buffers`` are saved by row appends beside the checkpoint; everything else
    that learning changes is in :meth:`state_dict` (tensors, numbers, strings, lists and dicts only).
    """

    wants_sim_state: bool = False
    """Whether :meth:`act` needs the environments' full physics state (oracles)."""

    def __init__(self, spec: EnvSpec, device: str = "cpu") -> None:
        self.spec = spec
        self.device = usable_device(device)
        self.buffers: dict[str, ReplayBuffer] = {}

    def seed(self, run_seed: int) -> None:
        """Start every random stream and every network of the agent from ``run_seed``; called once, before anything."""

    def initial_actor_state(self, slots: int) -> ActorState:
        """The state before the first decision of ``slots`` environment slots."""
        return ActorState()

    @abstractmethod
    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """Actions ``[N, A]`` (platform units) for ``obs [N, D]``; rows with ``is_first [N]`` begin an episode.

        The third value holds extra columns to be stored with the transition (each ``[N]`` or ``[N, ·]``).
        """

    def observe(self, transitions: Transitions) -> None:
        """See what happened, one row a slot."""

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """Learn if it is time to.

        Returns metrics by event (``fit``, ``update``, ``plan``): ``{event: {name: number}}``, empty when nothing was
        done. The agent adds its gradient steps to ``clock.updates``.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, bit for bit."""


@runtime_checkable
class Imagines(Protocol):
    """Agents that imagine. Who makes the chunks can be changed at any time: what is made stays the same."""

    maker: ChunkMaker


class TaskLearner:
    """What an agent adds that can meet one task after another, told apart by whole-number ids; boundaries are known.

    The defaults are those of an agent for which all tasks are alike.
    """

    needs_tasks: bool = False
    """Whether it must be told of tasks; then a single environment is a sequence of one."""

    def start_task(self, task: int, spec: EnvSpec) -> None:
        """From now on everything that is acted on and observed is of this new task."""

    def end_task(self, task: int, clock: Clock) -> dict[str, dict[str, Any]]:
        """The task is over; learn what is still to be learned of it. Metrics by event, as of :meth:`Agent.update`."""
        return {}

    def attach_task(self, task: int, spec: EnvSpec) -> None:
        """Say again what a task is that was started before this agent's state was saved and loaded."""

    @contextmanager
    def acting_on(self, task: int) -> Iterator[None]:
        """Inside, :meth:`Agent.act` is asked about a task that has been started, which need not be the newest."""
        yield

    def model_of(self, task: int) -> DynamicsModel | None:
        """What is predicted of a task now; None for an agent that predicts nothing."""
        return None

    def knows(self, task: int) -> bool:
        """Whether it has learned anything of a task that has been started."""
        return True

    def costs(self, task: int) -> dict[str, float]:
        """What a task costs to keep: ``task_memory_bytes``, ``kept_bytes`` (of them what only serves to remember),
        ``shared_bytes`` (once for all tasks) and ``stored_rows`` (transitions of all old tasks).
        """
        return {}


def usable_device(name: str) -> torch.device:
    """The device of this name, once it has held a number. Raises ``UserError`` when it cannot."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            "agent.init_args.device", name, "there is no such device; give cpu, cuda or cuda:N", ("cpu", "cuda")
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("agent.init_args.device", name, "CUDA is not available here; give cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # each backend refuses in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError("agent.init_args.device", name, f"this device cannot be used here ({reason})") from error
    return device
