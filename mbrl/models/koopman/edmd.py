"""Extended dynamic mode decomposition with control: a lifted linear or bilinear model, solved for in closed form.

Williams, Kevrekidis, Rowley, "A Data-Driven Approximation of the Koopman Operator: Extending Dynamic Mode
Decomposition", 2015; with inputs: Korda, Mezić, "Linear predictors for nonlinear dynamical systems: Koopman operator
meets model predictive control", 2018.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import LinearParts
from mbrl.models.koopman.base import KoopmanModel
from mbrl.models.koopman.dictionaries import Combined, Dictionary, GaussianRBF, RangeScale
from mbrl.models.koopman.gram import CHUNK_ROWS, Gram, logistic
from mbrl.models.koopman.reencoding import held_windows, period_errors

RIDGES = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
JUDGED_WITH = (0, 1, 5)
"""While the period is not chosen yet, a ridge is as good as the best of these makes it."""
END_RIDGE = 1e-5


@dataclass
class EDMDStatistics(Record):
    """All that a fit needs to know of any number of rows; sums of parts are that of the whole."""

    dynamics: Gram
    """From the lifted state and action to the next lifted state"""
    reward: Gram | None
    """To what the spec does not know of the reward; None where it knows all"""
    reward_range: Tensor | None
    """``[2]``: the smallest and the largest of that"""

    def __add__(self, other: EDMDStatistics) -> EDMDStatistics:
        reward = None if self.reward is None or other.reward is None else self.reward + other.reward
        return EDMDStatistics(self.dynamics + other.dynamics, reward, _wider(self.reward_range, other.reward_range))


class EDMD(KoopmanModel):
    """``z' = A z + B u + sum_i u_i N_i z`` with ``z = [1, scaled observation, dictionary]``, by ridge regression.

    The lifted state itself is predicted, not its change; the cos and sin of an angle are entries like others, which
    re-encoding puts back on their circle. Of one-hot actions the last is the reference (its column and matrix are 0).
    What the spec does not know is learned too: the reward by ridge regression on ``z, u, u^2`` and the scaled next
    observation, clipped to the range seen; the end by logistic regression on the next ``z``.

    Everything fitted is a buffer of a size known at construction, float64; predictions are computed in the
    observation's dtype (float32). Without a fitter, in one call or as rows come::

        model = EDMD(spec)
        model.fit_closed_form(train, held, generator)

        model.fit_lift(first_rows, generator)               # scale and centres, from some rows
        stats = model.statistics(first_rows)
        for rows in stream:                                 # or on several workers, in any order
            stats = stats + model.statistics(rows)
        model.solve(stats, ridge=1e-6)
        model.fit_end(some_rows)                            # where the end is learned: several passes over its rows

    Args:
        spec: the environment.
        dictionaries: factories of the functions beside constant and observation (default: 200 Gaussians); an empty
            list leaves the observation alone.
        bilinear: the action also multiplies the lifted state, as control-affine systems want; False is ``A z + B u``.
        ridges: candidates, of which the best on held windows is taken; without held rows the middle one.
        reencode_every: as for every Koopman model.
        validation_steps: length of those windows, for the ridge and for the period.
        margin: as for every Koopman model.
    """

    def __init__(
        self,
        spec: EnvSpec,
        dictionaries: Sequence[Callable[[EnvSpec], Dictionary]] | None = None,
        bilinear: bool = True,
        ridges: Sequence[float] = RIDGES,
        reencode_every: int | Literal["auto"] = "auto",
        validation_steps: int = 25,
        margin: float = 0.05,
    ) -> None:
        super().__init__(spec, reencode_every, validation_steps, margin)
        if not ridges or not all(0.0 < ridge < math.inf for ridge in ridges):
            raise UserError("ridges", list(ridges), "give at least one finite number above 0")
        self.window, self.bilinear, self.ridges = validation_steps, bilinear, tuple(sorted(ridges))
        self.scale = RangeScale(spec.obs_size)
        self.dictionary = Combined([make(spec) for make in ([GaussianRBF] if dictionaries is None else dictionaries)])
        self.size = 1 + spec.obs_size + self.dictionary.size
        """N, width of the lifted state"""
        self.inputs = spec.action.size - 1 if spec.action.discrete else spec.action.size
        """Columns of the action that say something of their own"""
        rows = self.size * (1 + self.inputs) if bilinear else self.size + self.inputs
        self._add("transition", rows, self.size)
        self.transition[: self.size] = torch.eye(self.size, dtype=torch.float64)
        if self.learns_reward:
            powers = 1 if spec.action.discrete else 2
            self._add("reward_weights", self.size + powers * self.inputs + spec.obs_size, 1)
            self._add("reward_range", 2)
        if self.learns_end:
            self._add("end_weights", self.size)
            self.end_weights[0] = -10.0

    transition: Tensor
    """``[(1 + inputs) N or N + inputs, N]``: next lifted state from the products (or the pair) of ``[1, u]`` and z"""
    reward_weights: Tensor
    reward_range: Tensor
    end_weights: Tensor

    def _add(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    # -- what a Koopman model says ---------------------------------------------------------------------------------

    def lift(self, obs: Tensor) -> Tensor:
        scaled = self.scale(obs)
        return torch.cat([torch.ones_like(scaled[..., :1]), scaled, self.dictionary(scaled)], -1)

    def read(self, latent: Tensor) -> Tensor:
        return self.scale.inverse(self._scaled_obs(latent))

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        return self._regressors(latent, action) @ self.transition.to(latent.dtype)

    def rollout_latent(self, latent: Tensor, actions: Tensor) -> Tensor:
        """As in the base class: a matrix product a step."""
        path, move = [], self.transition.to(latent.dtype)
        for action in actions:
            latent = self._regressors(latent, action) @ move
            path.append(latent)
        return torch.stack(path)

    def learned_reward(self, latent: Tensor, action: Tensor, next_latent: Tensor) -> Tensor:
        features = self._reward_features(latent, action, self._scaled_obs(next_latent))
        low, high = self.reward_range.to(latent.dtype)
        return (features @ self.reward_weights.to(latent.dtype))[..., 0].clamp(low, high)

    def end_logit(self, next_latent: Tensor) -> Tensor:
        return next_latent @ self.end_weights.to(next_latent.dtype)

    def linear_parts(self) -> LinearParts:
        n, size, action = self.size, self.spec.obs_size, self.spec.action.size
        parts = self.transition.new_zeros(action, n, n)
        b = self.transition.new_zeros(n, action)
        if self.bilinear:
            parts[: self.inputs] = self.transition[n:].view(self.inputs, n, n).transpose(1, 2)
            b[:, :] = parts[:, :, 0].T  # what multiplies the constant
            parts[:, :, 0] = 0.0
        else:
            b[:, : self.inputs] = self.transition[n:].T
        c = self.transition.new_zeros(size, n)
        c[:, 1 : 1 + size] = torch.diag(self.scale.get_buffer("half_range"))
        offset = self.scale.get_buffer("middle").clone()
        return LinearParts(self.transition[:n].T.clone(), b, c, offset, parts if self.bilinear else None)

    def _scaled_obs(self, latent: Tensor) -> Tensor:
        return latent[..., 1 : 1 + self.spec.obs_size]

    def _regressors(self, latent: Tensor, action: Tensor) -> Tensor:
        u = action[..., : self.inputs].to(latent.dtype)
        if not self.bilinear:
            return torch.cat([latent, u], -1)
        return torch.cat([latent, (u.unsqueeze(-1) * latent.unsqueeze(-2)).flatten(-2)], -1)

    def _reward_features(self, latent: Tensor, action: Tensor, next_scaled: Tensor) -> Tensor:
        u = action[..., : self.inputs].to(latent.dtype)
        powers = [u] if self.spec.action.discrete else [u, u.square()]
        return torch.cat([latent, *powers, next_scaled], -1)

    # -- fitting ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_lift(self, rows: Transitions, generator: Generator) -> None:
        """Settle the lift on ``rows [N]``: scales, centres, the range that re-encoding clips to."""
        self.fit_range(rows)
        self.scale.fit(torch.cat([rows.obs, rows.next_obs]))
        self.dictionary.fit(self.scale(rows.obs.double()), generator)

    @torch.no_grad()
    def statistics(self, rows: Transitions) -> EDMDStatistics:
        """Of ``rows [N]``, under the lift as it is now; float64, lifted a chunk at a time.

        Raises:
            UserError: there are no rows.
        """
        if not len(rows):
            raise UserError("rows", "none", "statistics are of at least one row")
        return functools.reduce(EDMDStatistics.__add__, map(self._statistics, _chunks(rows)))

    def _statistics(self, rows: Transitions) -> EDMDStatistics:
        z, next_z = self.lift(rows.obs.double()), self.lift(rows.next_obs.double())
        dynamics = Gram.of(self._regressors(z, rows.action), next_z)
        if not self.learns_reward:
            return EDMDStatistics(dynamics, None, None)
        rest = (rows.reward - self.spec.known_reward(rows.obs, rows.action, rows.next_obs)).double()
        reward = Gram.of(self._reward_features(z, rows.action, self._scaled_obs(next_z)), rest[:, None])
        return EDMDStatistics(dynamics, reward, torch.stack([rest.amin(), rest.amax()]))

    @torch.no_grad()
    def solve(self, stats: EDMDStatistics, ridge: float) -> dict[str, float]:
        """Take the weights that ``stats`` and ``ridge`` imply; what to log."""
        factors = stats.dynamics.ridge()
        self._take_transition(factors.solve(ridge))
        if stats.reward is not None and stats.reward_range is not None:
            self.reward_weights.copy_(stats.reward.ridge().solve(ridge))
            self.reward_range.copy_(stats.reward_range)
        error = stats.dynamics.error(self.transition)[1 : 1 + self.spec.obs_size].mean()
        return {"ridge": ridge, "condition": factors.condition(ridge), "one_step_error": float(error)}

    def _take_transition(self, weights: Tensor) -> None:
        self.transition.copy_(weights)
        self.transition[:, 0] = 0.0  # the constant stays what it is
        self.transition[0, 0] = 1.0

    @torch.no_grad()
    def fit_end(self, rows: Transitions) -> None:
        """Learn the end from ``rows [N]``; nothing where the spec knows it."""
        if not self.learns_end:
            return

        def pieces() -> Iterator[tuple[Tensor, Tensor]]:
            for part in _chunks(rows):
                yield self.lift(part.next_obs.double()).cpu(), part.terminated.double().cpu()

        self.end_weights.copy_(logistic(pieces, self.size, END_RIDGE))

    @torch.no_grad()
    def fit_closed_form(self, train: Transitions, held: Transitions, generator: Generator) -> dict[str, float]:
        """Settle the lift and solve on ``train [N]``, with the ridge that predicts ``held [M]`` best.

        Held rows are judged in windows of ``validation_steps``, or as long as there are. The report's
        ``one_step_error`` is on training rows, mean square of scaled entries.
        """
        self.fit_lift(train, generator)
        stats = self.statistics(train)
        report: dict[str, float] = {}
        ridge = self.ridges[(len(self.ridges) - 1) // 2]
        if len(held) and len(self.ridges) > 1:
            ridge, report = self._choose_ridge(stats.dynamics, held, generator)
        report |= self.solve(stats, ridge)
        self.fit_end(train)
        return report

    def _choose_ridge(self, dynamics: Gram, held: Transitions, generator: Generator) -> tuple[float, dict[str, float]]:
        lived = held_windows(held, self.validation_steps, 256, generator)
        periods = JUDGED_WITH if self.chooses_period else (min(self.reencode_every, lived.obs.shape[1]),)
        factors, errors = dynamics.ridge(), dict[float, tuple[float, float]]()
        for ridge in reversed(self.ridges):  # of equal ones (all windows diverged) the largest is taken
            self._take_transition(factors.solve(ridge))
            errors[ridge] = min(period_errors(self, lived, periods).values())
        best = min(errors, key=lambda ridge: errors[ridge])
        return best, {"held_error": errors[best][0], "held_diverged": errors[best][1]}


def _chunks(rows: Transitions) -> Iterator[Transitions]:
    return (rows[i : i + CHUNK_ROWS] for i in range(0, len(rows), CHUNK_ROWS))


def _wider(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return None
    return torch.stack([torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])])
