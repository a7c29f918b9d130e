"""What all Koopman models share: a latent that is lifted once, moved many times, and lifted anew now and then.

Periodic re-encoding: Fathi, Gehring, Pilault, Kanaa, Bacon, Goroshin, "Course Correcting Koopman Representations",
2024.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, Propagation, State, Step, Trajectory
from mbrl.models.coordinates import Coordinates
from mbrl.models.koopman.reencoding import choose_period
from mbrl.models.quadratic import QuadraticReward


@dataclass
class KoopmanState(State):
    """The observation that the latent reads as, the latent, and how long ago it was lifted."""

    latent: Tensor
    """``[B, N]``"""
    age: Tensor
    """``[B]`` int64: steps since ``latent`` was lifted from an observation"""


class KoopmanModel(DynamicsModel):
    """A deterministic model whose latent moves (bi)linearly; a subclass says how to lift, move and read it.

    Args:
        spec: the environment.
        reencode_every: steps after which a latent is read, put back into the range of the data and lifted anew; 0 is
            never, ``auto`` chooses on held-out rows after every fit among :data:`PERIODS`.
        validation_steps: how many steps ahead that choice looks.
        margin: what is lifted anew is clipped to the data's range, widened on both sides by this share of it.
    """

    reencode_every: int
    """The period in force; 0 is never."""

    def __init__(
        self,
        spec: EnvSpec,
        reencode_every: int | Literal["auto"] = "auto",
        validation_steps: int = 25,
        margin: float = 0.05,
    ) -> None:
        super().__init__(spec)
        if reencode_every != "auto" and reencode_every < 0:
            raise UserError("reencode_every", reencode_every, "give a number of steps, 0 for never, or auto")
        if validation_steps < 1 or not 0.0 <= margin < math.inf:
            seen = (validation_steps, margin)
            raise UserError("validation_steps, margin", seen, "validation_steps is at least 1, margin at least 0")
        self.chooses_period = reencode_every == "auto"
        self.reencode_every = 0 if reencode_every == "auto" else reencode_every
        self.validation_steps, self.margin = validation_steps, margin
        self.coordinates = Coordinates(spec)
        self.learns_reward, self.learns_end = not spec.reward_complete, spec.termination is None
        self.reward_form = QuadraticReward(spec)
        self.register_buffer("box", torch.tensor([[-math.inf], [math.inf]]).repeat(1, self.coordinates.size))

    # -- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def lift(self, obs: Tensor) -> Tensor:
        """Latents ``[..., N]`` of raw observations ``[..., D]``."""

    @abstractmethod
    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latents ``[B, N]`` one step on."""

    @abstractmethod
    def read(self, latent: Tensor) -> Tensor:
        """Raw observations ``[..., D]`` of latents ``[..., N]``."""

    def learned_reward(self, latent: Tensor, action: Tensor, next_latent: Tensor) -> Tensor:
        """``[...]``: the part of the reward that the spec does not know; asked only where there is one."""
        raise NotImplementedError

    def end_logit(self, next_latent: Tensor) -> Tensor:
        """``[...]``: logit of the episode's end; asked only where the spec does not know it."""
        raise NotImplementedError

    # -- stepping ------------------------------------------------------------------------------------------------

    def encode(self, obs: Tensor, task: Tensor | None = None, sim_state: Tensor | None = None) -> KoopmanState:
        return KoopmanState(obs, self.lift(obs), torch.zeros(obs.shape[:-1], dtype=torch.long, device=obs.device))

    @torch.no_grad()
    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        """One step; rows whose latent is a full period old are lifted anew first."""
        now = self._refreshed(_own(state))
        latent = self.advance(now.latent, action)
        next_obs = self.read(latent)
        reward, terminated, truncated = self._judge(now.obs, action, next_obs, now.latent, latent)
        if self.learns_end and generator is not None:
            luck = torch.rand(len(action), generator=generator, device=action.device)
            terminated = luck < self.end_logit(latent).sigmoid()
        return Step(KoopmanState(next_obs, latent, now.age + 1), reward, terminated, truncated)

    @torch.no_grad()
    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
        reencode_every: int | None = None,
    ) -> Trajectory:
        """As in the base class, without decoding on the way but where a latent is lifted anew.

        The period (``reencode_every``, default: the model's own) counts from ``state``. The model is deterministic:
        one particle is moved, the others are views of it.
        """
        period = self.reencode_every if reencode_every is None else reencode_every
        start = _own(state)
        before, after = self._follow(start.latent, actions, period or len(actions))
        obs, latents = torch.cat([start.obs[None], self.read(after)]), torch.cat([start.latent[None], after])
        age = start.age + torch.arange(len(latents), device=obs.device)[:, None]
        judged = self._judge(obs[:-1], actions, obs[1:], before, after)
        path = Trajectory(KoopmanState(obs, latents, age), *judged)
        return path.map(lambda x: x.unsqueeze(1).expand(-1, particles, *x.shape[1:]))

    def rollout_latent(self, latent: Tensor, actions: Tensor) -> Tensor:
        """``[H, B, N]``: latents after each of ``actions [H, B, A]``, nothing decoded."""
        path = []
        for action in actions:
            latent = self.advance(latent, action)
            path.append(latent)
        return torch.stack(path)

    def _follow(self, latent: Tensor, actions: Tensor, period: int) -> tuple[Tensor, Tensor]:
        """The latents ``[H, B, N]`` before and after each move, lifted anew after every ``period`` steps."""
        before: list[Tensor] = []
        after: list[Tensor] = []
        for piece in actions.split(period):
            first = self.relift(after[-1][-1]) if after else latent
            after.append(self.rollout_latent(first, piece))
            before += [first[None], after[-1][:-1]]
        return torch.cat(before), torch.cat(after)

    def _refreshed(self, state: KoopmanState) -> KoopmanState:
        if not self.reencode_every:
            return state
        due = (state.age > 0) & (state.age % self.reencode_every == 0)
        return KoopmanState(state.obs, torch.where(due[..., None], self.relift(state.latent), state.latent), state.age)

    def relift(self, latent: Tensor) -> Tensor:
        """Read, put back into the range of the data, lift."""
        return self.lift(self.project(self.read(latent)))

    def project(self, obs: Tensor) -> Tensor:
        """Observations where the data was: cos and sin on their circle, all else clipped to the box."""
        low, high = self.get_buffer("box").to(obs.dtype)
        return self.coordinates.to_obs(torch.minimum(torch.maximum(self.coordinates.from_obs(obs), low), high))

    def _judge(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, latent: Tensor, next_latent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, end and leaving the data's range, of any number of moves: known pieces first."""
        reward = self.spec.known_reward(obs, action, next_obs)
        if self.learns_reward:
            reward = reward + self.learned_reward(latent, action, next_latent).to(reward.dtype)
        if self.learns_end:
            terminated = self.end_logit(next_latent) > 0.0
        else:
            terminated = self.spec.known_termination(obs, action, next_obs)
        return reward, terminated, torch.zeros_like(terminated)

    # -- after a fit ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_range(self, data: Transitions) -> None:
        """Take the data's range (for :meth:`project`) and a quadratic form of its reward; part of every fit."""
        z = self.coordinates.from_obs(torch.cat([data.obs, data.next_obs]))
        low, high = z.amin(0), z.amax(0)
        wide = self.margin * (high - low)
        box = torch.stack([low - wide, high + wide])
        box[0, self.coordinates.get_buffer("_folded")] = -math.inf
        box[1, self.coordinates.get_buffer("_folded")] = math.inf
        self.get_buffer("box").copy_(box)
        self.reward_form.fit(data)

    def calibrate(self, held: Transitions, generator: Generator) -> dict[str, float]:
        if not self.chooses_period:
            return {}
        self.reencode_every, report = choose_period(self, held, self.validation_steps, generator)
        return {"reencode_every": float(self.reencode_every)} | report

    def get_extra_state(self) -> dict[str, Any]:
        return {"reencode_every": self.reencode_every}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.reencode_every = state["reencode_every"]


def _own(state: State) -> KoopmanState:
    if not isinstance(state, KoopmanState):
        raise UserError("state", type(state).__name__, "a Koopman model starts from what its `encode` returned")
    return state
