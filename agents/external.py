"""Learners that decide for themselves when to act and when to train: foreign libraries, run by the platform's loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from agents.base import Agent
from mbrl.data.transitions import Transitions


class Environments(Protocol):
    """The loop's environments, as a learner steps them. Clock, episode records and resets stay with the loop."""

    def current(self) -> tuple[Tensor, Tensor]:
        """Observations ``[N, D]`` to act on now, and ``[N]`` which of them begin an episode; on the agent's device."""
        ...

    def collect(self, action: Tensor, extra: dict[str, Tensor] | None = None) -> Transitions:
        """Act in every slot with ``[N, A]`` (platform units); what happened, one row a slot, in memory of the CPU.

        ``next_obs`` is the true successor; episodes that ended have begun anew when this returns.
        """
        ...

    def ran(self, env_steps: int, episodes: Sequence[tuple[float, int]]) -> None:
        """Count what a :class:`SelfRunningLearner` did elsewhere: env steps, and ``(return, length)`` of each episode
        that ended in them.
        """
        ...


class ExternalLearner(Agent):
    """An agent with a collect-and-train cycle of its own.

    The loop calls :meth:`setup` once, then :meth:`advance` until the run's env steps are reached, and after each of
    them :meth:`update` for what there is to record. It evaluates and writes checkpoints only between two calls of
    ``advance``, so :meth:`state_dict` is never asked for inside one. ``observe`` is not called.
    """

    @abstractmethod
    def setup(self, num_envs: int, total_steps: int) -> None:
        """Build what depends on the run: ``num_envs`` slots and ``total_steps`` env steps, which schedules span.

        Called before :meth:`seed`, with torch's global generator seeded for the initial weights.

        Raises:
            UserError: the learner cannot be built so.
        """

    @abstractmethod
    def advance(self, environments: Environments) -> None:
        """One round: step the environments at least once, and train if that is due."""

    def close(self) -> None:
        """Let go of processes that it started; nothing is learned afterwards."""


class SelfRunningLearner(ExternalLearner):
    """An external learner that steps environments of its own, made in the way of the run's.

    It never calls ``current`` or ``collect``: each ``advance`` tells the loop by :meth:`Environments.ran` what was
    done, and the loop's environments stay as they are.
    """

    @abstractmethod
    def take_environment(self, arguments: Mapping[str, Any]) -> None:
        """What :func:`envs.registry.make_env` makes one of the run's environments from. Called before ``setup``."""
