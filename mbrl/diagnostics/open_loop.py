"""Open-loop error by depth and by entry of the observation, against predicting no change and a linear model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.baselines import LinearBaseline, persistence
from mbrl.diagnostics.rows import (
    Units,
    device_of,
    mean_path,
    miss,
    obs_names,
    predict_next,
    start_of,
    steps_ahead,
)
from mbrl.models.base import DynamicsModel


@dataclass(frozen=True)
class OpenLoop:
    """Root mean square errors after 1 to ``H`` executed actions, over ``windows`` windows that all have ``H`` steps.

    Errors by entry are ``[H, D]``, in standard deviations of that entry over the reference rows.
    """

    names: list[str]
    varies: Tensor
    """``[D]`` bool: entries that count in :meth:`overall`"""
    model: Tensor
    persistence: Tensor
    linear: Tensor
    reward: Tensor
    """``[H]`` error of the predicted reward along the model's own path, in its standard deviations"""
    learns_reward: bool
    windows: int
    """drawn with replacement"""
    available: int
    """different windows that there are"""

    @property
    def depths(self) -> list[int]:
        return list(range(1, len(self.model) + 1))

    def overall(self, errors: Tensor) -> Tensor:
        """``[H]``: root mean square over the entries that vary."""
        return errors[:, self.varies].square().mean(-1).sqrt()

    def useful_depth(self, below: Tensor | float) -> int:
        """The deepest step up to which the model's overall error stays below that ``[H]``; 0 when it never does."""
        own = self.overall(self.model)
        worse = ~(own < torch.as_tensor(below, dtype=own.dtype))
        return int(worse.nonzero()[0, 0]) if bool(worse.any()) else len(worse)


@dataclass(frozen=True)
class Growth:
    """How an error grows with depth ``h``: least squares of its logarithm on ``h`` and on ``log h``."""

    factor: float
    """``error ~ factor^h``: multiplied by this with every step"""
    factor_r2: float
    power: float
    """``error ~ h^power``: 1 is a constant drift, 1/2 a random walk"""
    power_r2: float

    @property
    def exponential(self) -> bool:
        """Whether the exponential describes it better than the power."""
        return self.factor_r2 > self.power_r2


@dataclass(frozen=True)
class Ends:
    """Predicted against true ends of episodes, one step ahead."""

    rows: int
    true: int
    missed: int
    invented: int
    learned: bool


def pick_depth(rows: Transitions, most: int, windows: int = 50) -> int:
    """The largest depth up to ``most`` of which there are that many windows; else of which there is any."""
    ahead = steps_ahead(rows)
    deep = [depth for depth in range(1, most + 1) if int((ahead >= depth).sum()) >= windows]
    return max(deep) if deep else min(most, int(ahead.max()))


@torch.no_grad()
def open_loop(
    model: DynamicsModel,
    buffer: ReplayBuffer,
    linear: LinearBaseline,
    units: Units,
    depth: int,
    generator: Generator,
    windows: int = 512,
) -> OpenLoop:
    """Errors on windows of ``depth`` steps drawn from ``buffer``; they never cross an episode's end.

    The model predicts without sampled noise, an ensemble by the mean of its elites at every step.
    Raises ``UserError`` when no stored episode is that long.
    """
    lived = buffer.windows(windows, depth, generator).to("cpu")
    first, actions, truth = lived[:, 0], lived.action.transpose(0, 1), lived.next_obs.transpose(0, 1)
    path = mean_path(model, first, actions)
    reward = (path.reward[:, 0].cpu() - lived.reward.T).double().square().mean(1).sqrt() / units.reward
    said = model.decode(path.states[1:])[:, 0].cpu()
    stay, line = persistence(first.obs, actions), linear.rollout(first.obs, actions)
    own, stay, line = (_by_entry(model, there, truth, units) for there in (said, stay, line))
    learned, available = not model.spec.reward_complete, int((steps_ahead(buffer.all()) >= depth).sum())
    return OpenLoop(obs_names(model.spec), units.varies, own, stay, line, reward, learned, windows, available)


def _by_entry(model: DynamicsModel, said: Tensor, truth: Tensor, units: Units) -> Tensor:
    """``[H, D]`` root mean square error over windows ``[H, B, D]``, in standard deviations."""
    gap = miss(model.spec, said.double(), truth.double()) / units.obs
    return gap.square().mean(1).sqrt()


def growth(errors: Tensor) -> Growth | None:
    """Growth of ``errors [H]``; None with fewer than three depths or where an error is zero or not finite."""
    if len(errors) < 3 or not bool((errors.isfinite() & (errors > 0)).all()):
        return None
    depth = torch.arange(1, len(errors) + 1, dtype=torch.float64)
    log = errors.double().log().cpu()
    slope, r2 = _line(depth, log)
    power, power_r2 = _line(depth.log(), log)
    return Growth(float(torch.tensor(slope).exp()), r2, power, power_r2)


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and share of variance explained of the least-squares line."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / x.square().sum()
    total = y.square().sum()
    left = (y - slope * x).square().sum()
    return float(slope), float(1 - left / total) if float(total) > 1e-12 else 1.0


def ends(model: DynamicsModel, rows: Transitions) -> Ends:
    """Ends that the model misses and invents on ``rows [B]``, one step ahead without sampled noise."""
    said, true = predict_next(model, rows)[2], rows.terminated
    learned = model.spec.termination is None
    return Ends(len(rows), int(true.sum()), int((true & ~said).sum()), int((said & ~true).sum()), learned)


@dataclass(frozen=True)
class Paths:
    """What happened in ``N`` windows and what the model says of them, observations ``[H + 1, N, D]``."""

    true: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    """5 % and 95 % quantiles over the particles"""
    error: Tensor
    """``[N]`` of the mean path: root mean square over steps and entries, in standard deviations"""


@torch.no_grad()
def sample_paths(
    model: DynamicsModel,
    buffer: ReplayBuffer,
    units: Units,
    depth: int,
    generator: Generator,
    windows: int = 64,
    particles: int = 40,
) -> Paths:
    """Windows of ``depth`` steps, each with at least that many particles (one member a trajectory, TS-inf)."""
    lived = buffer.windows(windows, depth, generator).to("cpu")
    first, actions, bound = lived[:, 0], lived.action.transpose(0, 1), model.bind()
    true = torch.cat([first.obs[None], lived.next_obs.transpose(0, 1)])
    mean = model.decode(mean_path(model, first, actions).states)[:, 0].cpu()
    noise = torch.Generator(device_of(model)).manual_seed(generator.initial_seed())
    start, count = start_of(model, first), _accepted(bound, particles)
    cloud = bound.rollout(start, actions.to(start.obs.device), noise, particles=count).states
    low, high = (model.decode(cloud).float().quantile(share, dim=1).cpu() for share in (0.05, 0.95))
    gap = miss(model.spec, mean.double(), true.double())[1:] / units.obs
    return Paths(true, mean, low, high, gap[..., units.varies].square().mean((0, 2)).sqrt())


def _accepted(bound: DynamicsModel, least: int) -> int:
    """The first number of particles from ``least`` on that the model takes (a multiple of its members, say)."""
    for particles in range(least, 2 * least):
        try:
            bound.check_particles(particles, "trajectory")
        except UserError:
            continue
        return particles
    raise UserError("particles", least, "this model takes no number of particles near this one")
