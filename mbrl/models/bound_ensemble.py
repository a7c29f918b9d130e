"""An ensemble made ready for many fast steps: elite weights, normalisers folded into the first and last layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from mbrl.models.base import DynamicsModel, Estimator, Prediction, Propagation, State, Step, Trajectory

if TYPE_CHECKING:
    from mbrl.models.ensemble import ProbabilisticEnsemble

CHUNK_ROWS = {"cpu": 256}
"""Rows a member that one step moves at once, by device. Measured on a CPU with 7 networks of 4 layers of width 200:
256 and 512 cost the same, 64 and all at once a tenth to a third more. Other devices want one large call."""


class BoundEnsemble(DynamicsModel):
    """Steps as its :class:`ProbabilisticEnsemble` did when it was bound; later fits do not reach :meth:`step` and
    :meth:`rollout`. :meth:`predict` and :meth:`uncertainty` ask the ensemble as it is now.
    """

    @torch.no_grad()
    def __init__(self, source: ProbabilisticEnsemble) -> None:
        super().__init__(source.spec)
        self._source = [source]  # in a list, so that the ensemble is not a submodule of its own view
        self.coordinates = source.coordinates
        self.learns_reward, self.learns_end = source.learns_reward, source.learns_end
        self.probabilistic, self.target_size = source.probabilistic, source.target_size
        self.dtype = torch.bfloat16 if source.inference_dtype == "bfloat16" else torch.float32
        self.has_box = source.validity > 0
        self.box = source.get_buffer("box").clone()
        elites = source.get_buffer("elites").clone()
        self.elites, self.active = elites, len(elites)
        weights = [w.detach()[elites].double() for w in source.weights]
        biases = [b.detach()[elites].double() for b in source.biases]
        self._fold_inputs(source, weights, biases)
        scale = source.target_norm.std * source.get_buffer("varies").double()
        weights[-1][..., : self.target_size] *= scale
        biases[-1][..., : self.target_size] *= scale
        if self.centre is None:
            biases[-1][..., : self.target_size] += source.target_norm.mean
        if self.probabilistic:
            self._fold_variance(source, biases, scale, elites)
        self.weights = [w.to(self.dtype) for w in weights]
        self.biases = [b.to(self.dtype) for b in biases]
        self._choose_advance()

    def _choose_advance(self) -> None:
        compiled = self._source[0].compile_step
        self._advance = torch.compile(self._advance_rows, dynamic=True) if compiled else self._advance_rows

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled code, which cannot be pickled; another process compiles its own."""
        return {name: value for name, value in vars(self).items() if name != "_advance"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._choose_advance()

    def _fold_inputs(self, source: ProbabilisticEnsemble, weights: list[Tensor], biases: list[Tensor]) -> None:
        """First layer for raw inputs: ``((x - mean) / std) W + b = x (W / std) + (b - (mean / std) W)``.

        Eight bits of bfloat16 do not hold a value far from zero: there means stay outside the networks, in float32.
        """
        norm = source.input_norm
        weights[0] = weights[0] / norm.std[:, None]
        self.centre = None
        if self.dtype == torch.float32:
            biases[0] = biases[0] - norm.mean[None] @ weights[0]
        else:
            self.centre = norm.mean.float(), source.target_norm.mean.float()

    def _fold_variance(
        self, source: ProbabilisticEnsemble, biases: list[Tensor], scale: Tensor, elites: Tensor
    ) -> None:
        """The two soft clamps in closed form: ``exp(l) = exp(min) + exp(max) * sigmoid(raw - max)``."""
        high, low = (bound.detach()[elites].double() for bound in (source.max_log_var, source.min_log_var))
        biases[-1][..., self.target_size : 2 * self.target_size] -= high
        self.var_span = (high.exp() * scale.square()).float()
        self.var_floor = (low.exp() * scale.square()).float()

    def predict(self, state: State, action: Tensor) -> Prediction:
        return self._source[0].predict(state, action)

    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        return self._source[0].uncertainty(state, action, kind)

    def check_particles(self, particles: int, propagation: Propagation) -> None:
        check_balance(self.active, particles, propagation)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _advance_rows(self, z: Tensor, action: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Next coordinates and raw outputs of rows in member order: ``z [E, R, Z]``, ``action [E, R, A]``."""
        x = self.coordinates.features(z, action)
        if self.centre is not None:
            x = x - self.centre[0]
        x = torch.bmm(x.to(self.dtype), self.weights[0]).add_(self.biases[0])
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            x = torch.bmm(F.silu(x, inplace=True), weight).add_(bias)
        x = x.float()
        target = x[..., : self.target_size]
        if self.centre is not None:
            target = target + self.centre[1]
        if noise is not None and self.probabilistic:
            spread = x[..., self.target_size : 2 * self.target_size].sigmoid()
            std = spread.mul_(self.var_span).add_(self.var_floor).sqrt_()
            target = torch.addcmul(target, std, noise)
        return z + target[..., : self.coordinates.size], self._heads(x, target)

    def _heads(self, x: Tensor, target: Tensor) -> Tensor:
        """Learned reward and end logit, ``[E, R, 0..2]``."""
        parts = [target[..., self.coordinates.size :]] if self.learns_reward else []
        return torch.cat([*parts, x[..., -1:]], -1) if self.learns_end else (parts[0] if parts else x[..., :0])

    @torch.no_grad()
    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        """Each row is moved by a random elite: rows are shuffled and split evenly, copies of the last one fill up.

        A learned end is sampled, so that an end of low probability happens as often as the model says. Planners go
        through :meth:`rollout`, where an end is what is more likely than not.
        """
        rows, device = len(action), action.device
        places = rows + -rows % self.active
        order = torch.arange(places, device=device)
        if generator is not None:
            order = torch.randperm(places, generator=generator, device=device)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(places, device=device))[:rows]
        order = order.clamp(max=rows - 1)
        z = self.coordinates.from_obs(state.obs)
        grouped, acting = (x.index_select(0, order).unflatten(0, (self.active, -1)) for x in (z, action))
        noise = None
        if generator is not None:
            noise = torch.randn(*grouped.shape[:2], self.target_size, generator=generator, device=device)
        next_z, heads = (x.flatten(0, 1).index_select(0, back) for x in self._in_chunks(grouped, acting, noise))
        next_obs = self.coordinates.to_obs(next_z)
        reward, terminated, truncated = self._judge(state.obs, action, next_obs, next_z, heads)
        if generator is not None and self.learns_end:
            terminated = torch.rand(rows, generator=generator, device=device) < heads[..., -1].sigmoid()
        member = self.elites[back // (places // self.active)]
        return Step(State(next_obs), reward, terminated, truncated, member)

    def _in_chunks(self, z: Tensor, action: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`_advance`, a block of rows at a time, so that what a layer writes is in the cache when it is read."""
        size = CHUNK_ROWS.get(z.device.type, z.shape[1])
        blocks = [slice(i, i + size) for i in range(0, z.shape[1], size)]
        moved = [self._advance(z[:, b], action[:, b], None if noise is None else noise[:, b]) for b in blocks]
        next_z, heads = zip(*moved, strict=True)
        return torch.cat(next_z, 1), torch.cat(heads, 1)

    @torch.no_grad()
    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        """See :meth:`mbrl.models.base.DynamicsModel.rollout`.

        ``particles`` must be a multiple of the elites (balanced assignment, as in both reference codes), except for
        ``mean``, which needs none, and ``all``, which takes one particle for each elite.
        """
        self.check_particles(particles, propagation)
        if propagation in ("mean", "all"):
            particles, generator = self.active, None
        noise = self._noise(actions, particles // self.active, generator)
        orders = self._orders(len(actions), particles, generator) if propagation == "step" else None
        spread = actions.repeat(1, particles // self.active, 1)[:, None].expand(-1, self.active, -1, -1)
        start = self.coordinates.from_obs(state.obs)
        zs, heads = [start.expand(particles, *start.shape)], []
        for h in range(len(actions)):
            z, head = self._move(zs[-1], spread[h], noise[h], None if orders is None else orders[h])
            if propagation == "mean":
                z, head = z.mean(0).expand_as(z), head.mean(0).expand_as(head)
            zs.append(z)
            heads.append(head)
        keep = 1 if propagation == "mean" else particles
        return self._trajectory(state.obs, torch.stack(zs)[:, :keep], actions, torch.stack(heads)[:, :keep])

    def _move(self, z: Tensor, action: Tensor, noise: Tensor | None, order: Tensor | None) -> tuple[Tensor, Tensor]:
        """All particles ``z [P, B, Z]`` one step on; ``order`` says which particle sits at which member."""
        mixed = z if order is None else z[order]
        moved, head = self._advance(mixed.reshape(self.active, -1, z.shape[-1]), action, noise)
        moved, head = moved.view(*z.shape[:2], -1), head.view(*z.shape[:2], -1)
        if order is None:
            return moved, head
        back = order.argsort()
        return moved[back], head[back]

    def _noise(self, actions: Tensor, share: int, generator: Generator | None) -> Sequence[Tensor | None]:
        """``H`` times ``[E, share * B, T]`` (or one broadcast row): drawn for each particle, common to the rows."""
        horizon, rows = actions.shape[:2]
        if generator is None or not self.probabilistic:
            return [None] * horizon
        shape = (horizon, self.active, share, 1, self.target_size)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return list(noise[:, :, 0] if share == 1 else noise.expand(-1, -1, -1, rows, -1).flatten(2, 3))

    def _orders(self, horizon: int, particles: int, generator: Generator | None) -> Tensor:
        """``[H, P]``: a balanced assignment of particles to members for each step; in turn when nothing is random."""
        if generator is None:
            step = torch.arange(horizon, device=self.box.device)[:, None] * (particles // self.active)
            return (step + torch.arange(particles, device=self.box.device)) % particles
        return torch.rand(horizon, particles, generator=generator, device=generator.device).argsort(-1)

    def _trajectory(self, start_obs: Tensor, z: Tensor, actions: Tensor, heads: Tensor) -> Trajectory:
        obs = self.coordinates.to_obs(z)
        obs[0] = start_obs  # as it was seen, not as it comes back from its coordinates
        action = actions[:, None].expand(-1, z.shape[1], -1, -1)
        return Trajectory(State(obs), *self._judge(obs[:-1], action, obs[1:], z[1:], heads))

    def _judge(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, next_z: Tensor, heads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, termination and validity of any number of moves at once: known pieces first, learned ones added."""
        reward = self.spec.known_reward(obs, action, next_obs)
        if self.learns_reward:
            reward = reward + heads[..., 0]
        terminated = heads[..., -1] > 0.0 if self.learns_end else self.spec.known_termination(obs, action, next_obs)
        if not self.has_box:
            return reward, terminated, torch.zeros_like(terminated)
        next_z = self.coordinates.fold(next_z)
        return reward, terminated, ((next_z < self.box[0]) | (next_z > self.box[1])).any(-1)


def check_balance(elites: int, particles: int, propagation: Propagation) -> None:
    """Where particles are assigned to elites, each elite must get as many; raises ``UserError``."""
    if propagation in ("trajectory", "step") and particles % elites:
        near = max(1, round(particles / elites)) * elites
        raise UserError("particles", particles, f"give a multiple of the {elites} elites, such as {near}")
