"""Deterministic sequence models, trained on their own open-loop predictions: the honest rivals of Koopman models.

A plain network or a gated recurrent unit (Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", 2014). Mondal et al., "Efficient Dynamics Modeling in Interactive Environments with
Koopman Theory", 2024, compare with both; their sizes and rates are not known here, so the ones below are our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.normalizer import Normalizer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel, Propagation, State, Step, Trajectory
from mbrl.models.coordinates import Coordinates

Cell = Literal["gru", "mlp"]
FIRST_CHANGE = 0.1
"""Scale of the last layer's first weights: before training little moves, so that long windows do not explode."""


@dataclass
class SequenceState(State):
    """The observation, and what is remembered of everything before it."""

    memory: Tensor
    """``[B, M]``; ``M`` is 0 for a model without memory"""


@dataclass
class Moves(Record):
    """Prepared training rows; the network standardises its own inputs, because it feeds itself."""

    z: Tensor
    """``[..., Z]`` coordinates"""
    action: Tensor
    """``[..., A]``"""
    next_z: Tensor
    """``[..., Z]``"""
    reward: Tensor
    """``[..., R]`` standardised, the part that is not known; ``R`` = 1 when reward is learned, else 0"""
    ends: Tensor
    """``[..., K]`` 0/1; ``K`` = 1 when termination is learned, else 0"""


class SequenceModel(DynamicsModel):
    """One network that predicts the change of the state from the state, the action and, as a GRU, its memory.

    The memory after a step is made of the state and the action before it, so filtering (:meth:`observe`) and imagining
    (:meth:`step`) are the same move: one goes on from the true observation, the other from its own. Training follows
    windows of real data open loop and sends the gradient through time. Errors are in standard deviations of a
    coordinate, means over steps and coordinates, so late errors weigh as much as early ones.

    A state made by :meth:`encode` remembers nothing: wherever windows are cut out of episodes (a diagnosis, a fit),
    the memory starts cold. With ``burn_in`` every second window of a batch is shown its first true observations before
    it is left alone, so the model learns both to start cold and to use a memory; that split is our choice. After a fit
    an episode that is under way goes on with the memory that the weights before it made.

    Args:
        spec: the environment.
        cell: ``gru`` remembers, ``mlp`` does not.
        hidden: width of the memory and of the hidden layers.
        layers: number of hidden layers; the first of a GRU is the GRU itself.
        window: tau, steps of a training window.
        burn_in: true observations that every second window of a GRU is shown first (0: none).
    """

    def __init__(
        self,
        spec: EnvSpec,
        cell: Cell = "gru",
        hidden: int = 128,
        layers: int = 2,
        window: int = 10,
        burn_in: int = 0,
    ) -> None:
        super().__init__(spec)
        _check(cell, hidden, layers, window, burn_in)
        self.window, self.burn_in = window, burn_in
        self.coordinates = Coordinates(spec)
        self.learns_reward, self.learns_end = not spec.reward_complete, spec.termination is None
        inputs = self.coordinates.feature_size + spec.action.size
        self.input_norm = Normalizer(inputs)
        self.change_norm, self.state_norm = Normalizer(self.coordinates.size), Normalizer(self.coordinates.size)
        self.reward_norm = Normalizer(int(self.learns_reward))
        self.register_buffer("varies", torch.ones(self.coordinates.size))
        self.memory = nn.GRUCell(inputs, hidden) if cell == "gru" else None
        self.memory_size = hidden if cell == "gru" else 0
        outputs = self.coordinates.size + self.learns_reward + self.learns_end
        self.head = _head(inputs if cell == "mlp" else hidden, hidden, layers - (cell == "gru"), outputs)

    # -- training --------------------------------------------------------------------------------------------------

    def prepare(self, data: Transitions) -> Moves:
        """Training rows of raw transitions ``[N]``; refits the normalisers on them first."""
        z, next_z = self.coordinates.from_obs(data.obs), self.coordinates.from_obs(data.next_obs)
        reward = (data.reward - self.spec.known_reward(data.obs, data.action, data.next_obs))[:, None]
        reward, ends = reward[:, : int(self.learns_reward)], data.terminated[:, None].to(z.dtype)
        self.input_norm.fit(self.coordinates.features(z, data.action))
        self.get_buffer("varies").copy_(self.change_norm.fit(self.coordinates.difference(z, next_z)).float())
        self.state_norm.fit(z)
        if self.learns_reward:
            self.reward_norm.fit(reward)
        return Moves(z, data.action, next_z, self.reward_norm.normalize(reward), ends[:, : int(self.learns_end)])

    def loss(self, batch: Moves) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over windows ``[1, B, window, ...]``, their steps, and the coordinates that vary."""
        rows = batch.map(lambda x: x[0] if self.window > 1 else x[0].unsqueeze(1))
        z, outputs = self._follow(rows)
        miss = self.coordinates.difference(rows.next_z, z) / self.state_norm.std.to(z.dtype)
        varies = self.get_buffer("varies")
        loss = (miss.square() * varies).sum(-1).mean() / varies.sum().clamp(min=1.0)
        if self.learns_reward:
            loss = loss + (outputs[..., self._reward_place] - rows.reward[..., 0]).square().mean()
        if self.learns_end:
            loss = loss + F.binary_cross_entropy_with_logits(outputs[..., -1:], rows.ends)
        return loss, {"loss": loss.detach()}

    def _follow(self, rows: Moves) -> tuple[Tensor, Tensor]:
        """Predicted coordinates ``[B, T, Z]`` and all outputs ``[B, T, ·]`` along windows ``[B, T, ...]``."""
        z, memory = rows.z[:, 0], self._cold(rows.z[:, 0])
        shown = torch.arange(len(z), device=z.device) % 2 * self.burn_in  # steps that start from the truth
        path, said = [], []
        for t in range(rows.z.shape[1]):
            if 0 < t < self.burn_in:
                z = torch.where((t < shown)[:, None], rows.z[:, t], z)
            memory, outputs = self._move(z, rows.action[:, t], memory)
            z = self._moved(z, outputs)
            path.append(z)
            said.append(outputs)
        return torch.stack(path, 1), torch.stack(said, 1)

    # -- moving ----------------------------------------------------------------------------------------------------

    def _remember(self, z: Tensor, action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the head sees, and the memory ``[B, M]``, after acting with ``action [B, A]`` at ``z [B, Z]``."""
        inputs = self.input_norm.normalize(self.coordinates.features(z, action))
        if self.memory is None:
            return inputs, memory
        memory = self.memory(inputs, memory)
        return memory, memory

    def _move(self, z: Tensor, action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The memory after ``action``, and the network's outputs ``[B, Z + R + K]``."""
        seen, memory = self._remember(z, action, memory)
        return memory, self.head(seen)

    def _moved(self, z: Tensor, outputs: Tensor) -> Tensor:
        change = self.change_norm.denormalize(outputs[..., : self.coordinates.size] * self.get_buffer("varies"))
        return z + change

    @property
    def _reward_place(self) -> int:
        return self.coordinates.size

    def _cold(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), self.memory_size)

    def encode(self, obs: Tensor, task: Tensor | None = None, sim_state: Tensor | None = None) -> SequenceState:
        return SequenceState(obs, self._cold(obs))

    @torch.no_grad()
    def observe(
        self,
        state: State | None,
        prev_action: Tensor | None,
        obs: Tensor,
        is_first: Tensor,
        task: Tensor | None = None,
        sim_state: Tensor | None = None,
    ) -> SequenceState:
        """``obs [B, D]`` with the memory of all that was seen and done before it in the episode."""
        fresh = self.encode(obs)
        if state is None or prev_action is None:
            return fresh
        past = _own(state)
        _, memory = self._remember(self.coordinates.from_obs(past.obs), prev_action, past.memory)
        return fresh.where(is_first, SequenceState(obs, memory))

    @torch.no_grad()
    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        """One step; nothing is random but a learned end, where there is a ``generator``."""
        now = _own(state)
        z = self.coordinates.from_obs(now.obs)
        memory, outputs = self._move(z, action, now.memory)
        next_obs = self.coordinates.to_obs(self._moved(z, outputs))
        reward = self.spec.known_reward(now.obs, action, next_obs)
        if self.learns_reward:
            reward = reward + self.reward_norm.denormalize(outputs[..., self._reward_place, None])[..., 0]
        if self.learns_end:
            terminated = _ended(outputs[..., -1], generator)
        else:
            terminated = self.spec.known_termination(now.obs, action, next_obs)
        return Step(SequenceState(next_obs, memory), reward, terminated, torch.zeros_like(terminated))

    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        """As in the base class. Particles that nothing random tells apart are moved once: the others are views."""
        if self.learns_end and generator is not None:
            return super().rollout(state, actions, generator, particles=particles, propagation=propagation)
        path = super().rollout(state, actions, None)
        return path.map(lambda x: x.expand(-1, particles, *x.shape[2:]))


def matched_width(make: Callable[[int], nn.Module], parameters: int, most: int = 4096) -> int:
    """The width at which ``make(width)`` has the number of parameters nearest to ``parameters``, to compare models of
    equal size. The number is taken to grow with the width.

    Raises ``UserError`` when even ``most`` is too few.
    """
    low, high = 1, most
    if count_parameters(make(most)) < parameters:
        raise UserError("parameters", parameters, f"a width of {most} has fewer; name a smaller number")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_parameters(make(middle)) < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(count_parameters(make(width)) - parameters))


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters())


def _head(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """SiLU layers and a linear one whose first weights are small."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.SiLU()]
        inputs = hidden
    last = nn.Linear(inputs, outputs)
    with torch.no_grad():
        last.weight.mul_(FIRST_CHANGE)
        last.bias.zero_()
    return nn.Sequential(*parts, last)


def _ended(logit: Tensor, generator: Generator | None) -> Tensor:
    if generator is None:
        return logit > 0.0
    return torch.rand(logit.shape, generator=generator, device=logit.device) < logit.sigmoid()


def _own(state: State) -> SequenceState:
    if not isinstance(state, SequenceState):
        raise UserError("state", type(state).__name__, "a sequence model starts from what its `encode` returned")
    return state


def _check(cell: Cell, hidden: int, layers: int, window: int, burn_in: int) -> None:
    if cell not in get_args(Cell):
        raise UserError("cell", cell, "name a cell", get_args(Cell))
    if min(hidden, layers, window) < 1:
        raise UserError("hidden, layers, window", (hidden, layers, window), "each is at least 1")
    if not 0 <= burn_in < window:
        raise UserError("burn_in", burn_in, f"give a number of steps of at least 0 and below window = {window}")
    if burn_in and cell == "mlp":
        raise UserError("burn_in", burn_in, "cell is mlp, which has no memory to warm: set cell: gru, or leave it out")
