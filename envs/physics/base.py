"""True dynamics as batched functions: what planners' oracles and diagnoses stand on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Physics(Protocol):
    """The true dynamics of one environment, batched over ``B`` states, float64, environment units.

    A *physics state* ``[B, S]`` is what the environment's ``sim_state()`` returns.
    """

    state_size: int
    can_start_from_obs: bool
    """Whether :meth:`state_from_obs` is exact here."""

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States ``[H+1, B, S]`` reached from ``state [B, S]`` under ``actions [H, B, A]`` (the first is ``state``)."""

    def observe(self, state: Tensor) -> Tensor:
        """Flat observations ``[..., D]`` of states ``[..., S]``."""

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True reward ``[...]``."""

    def terminated(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """True termination ``[...]``, bool."""

    def state_from_obs(self, obs: Tensor) -> Tensor:
        """The state ``[B, S]`` that shows this observation; raises ``UserError`` where it is not determined."""
