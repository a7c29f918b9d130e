"""The true dynamics as a model: the oracle that planners and learned models are judged against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import make_physics
from envs.spec import EnvSpec
from mbrl.models.base import DynamicsModel, Propagation, State, Step, Trajectory


@dataclass
class SimulatorState(State):
    """The observation, and the physics state behind it."""

    physics: Tensor
    """``[B, S]`` float64, as the environment's ``sim_state`` gives it"""


class Simulator(DynamicsModel):
    """The environment's own physics, rewards and terminations, deterministic and batched.

    States start from ``sim_state`` where it is given, else from the observation where that determines the state.
    Nothing is learned; the physics parameters are those of the spec.

    Args:
        spec: the environment; its id and physics parameters name the dynamics.
        env_kwargs: further arguments with which the environment was made, if any.

    Raises:
        UserError: no true dynamics are known for this environment, or actions are repeated.
    """

    wants_sim_state = True
    """Agents hand over the environments' physics states, where there are any."""

    def __init__(self, spec: EnvSpec, env_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(spec)
        kwargs: dict[str, Any] = {"action_repeat": spec.action_repeat, **(env_kwargs or {})}
        self.physics = make_physics(spec.id, params=dict(spec.params), **kwargs)

    def encode(self, obs: Tensor, task: Tensor | None = None, sim_state: Tensor | None = None) -> SimulatorState:
        if sim_state is None:
            return SimulatorState(obs, self._from_obs(obs))
        if sim_state.shape[-1] != self.physics.state_size:
            fix = f"the physics state of {self.spec.id} has {self.physics.state_size} entries"
            raise UserError("sim_state", tuple(sim_state.shape), fix)
        return SimulatorState(obs, sim_state.to(obs.device, torch.float64))

    def _from_obs(self, obs: Tensor) -> Tensor:
        fix = f"the observation of {self.spec.id} does not determine the physics state; pass `sim_state`"
        if not self.physics.can_start_from_obs:
            raise UserError("sim_state", None, fix)
        try:
            return self.physics.state_from_obs(obs.double())
        except ValueError as error:
            raise UserError("sim_state", None, f"{fix} ({error})") from error

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        path = self.rollout(state, action.unsqueeze(0), generator)
        return Step(path.states[1, 0], path.reward[0, 0], path.terminated[0, 0], path.truncated[0, 0])

    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        """As in the base class. Without noise all particles are alike: one is simulated, the others are views of it."""
        if not isinstance(state, SimulatorState):
            raise UserError("state", type(state).__name__, "a Simulator starts from what its `encode` returned")
        control = self.spec.action.to_env(actions.double())
        physics = self.physics.rollout(state.physics, control)
        before, after = physics[:-1], physics[1:]
        obs = torch.cat([state.obs.unsqueeze(0), self.physics.observe(after).to(state.obs.dtype)])
        reward = self.physics.reward(before, control, after).to(state.obs.dtype)
        terminated = self.physics.terminated(before, control, after)
        path = Trajectory(SimulatorState(obs, physics), reward, terminated, torch.zeros_like(terminated))
        return path.map(lambda x: x.unsqueeze(1).expand(-1, particles, *x.shape[1:]))
