"""Open-loop errors are exact for models that are wrong by a known amount; baselines and windows are what they claim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from envs.spec import ActionSpec, Angle, EnvSpec, never
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.baselines import LinearBaseline, persistence
from mbrl.diagnostics.open_loop import ends, growth, open_loop, pick_depth, sample_paths
from mbrl.diagnostics.rows import Units, miss, obs_names, row_errors, steps_ahead
from mbrl.models.base import DynamicsModel, State, Step

MATRIX = torch.tensor([[1.0, 0.1], [-0.2, 0.95]])
PUSH = torch.tensor([[0.0], [0.3]])
SPEC = EnvSpec("Spring-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), layout={"x": slice(0, 2)})


class Spring(DynamicsModel):
    """The true linear system, off by ``wrong [D]`` every step; ends where the first entry exceeds ``limit``."""

    def __init__(self, wrong: float = 0.0, limit: float = math.inf, spec: EnvSpec = SPEC) -> None:
        super().__init__(spec)
        self.wrong, self.limit = torch.tensor([wrong, 0.0]), limit

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        obs = state.obs @ MATRIX.T + action @ PUSH.T + self.wrong
        if generator is not None:
            obs = obs + 0.1 * torch.randn(obs.shape, generator=generator)
        zeros = torch.zeros(len(action))
        return Step(State(obs), zeros, obs[:, 0] > self.limit, zeros > 0)


def springs(lengths: list[int], seed: int = 0, mixed: bool = False) -> ReplayBuffer:
    """Episodes of the linear system; ``mixed`` hands the next observations to other rows."""
    buffer, luck = ReplayBuffer(sum(lengths)), torch.Generator().manual_seed(seed)
    for episode, length in enumerate(lengths):
        obs, action = [torch.randn(2, generator=luck)], torch.rand(length, 1, generator=luck) * 2 - 1
        for push in action:
            obs.append(MATRIX @ obs[-1] + PUSH @ push)
        path, step = torch.stack(obs), torch.arange(length)
        no, after = torch.zeros(length, dtype=torch.bool), path[1:]
        after = after[torch.randperm(length, generator=luck)] if mixed else after
        buffer.extend(Transitions(path[:-1], action, no.float(), after, no, no, step * 0 + episode, step, step * 0))
    return buffer


def test_errors_by_entry_are_the_drift_of_the_true_system(generator: Generator) -> None:
    buffer = springs([30] * 10)
    rows = buffer.all()
    units, linear = Units.of(SPEC, rows), LinearBaseline.fit(SPEC, rows)
    found = open_loop(Spring(0.1), buffer, linear, units, 5, generator)
    drift = torch.zeros(2)
    for depth in range(5):
        drift = MATRIX @ drift + torch.tensor([0.1, 0.0])
        assert torch.allclose(found.model[depth], drift.abs() / units.obs, atol=1e-4)
    exact = open_loop(Spring(), buffer, linear, units, 5, generator)
    assert float(exact.model.max()) < 1e-5  # the control, and no window goes across an episode's end
    assert float(exact.linear.max()) < 1e-3  # least squares finds a linear system
    assert float(exact.persistence.min()) > 0.05
    assert found.names == ["x[0]", "x[1]"]
    assert found.available == 10 * 26


def test_what_is_no_system_is_not_predicted(generator: Generator) -> None:
    buffer = springs([30] * 10, mixed=True)
    rows = buffer.all()
    found = open_loop(Spring(), buffer, LinearBaseline.fit(SPEC, rows), Units.of(SPEC, rows), 3, generator)
    assert float(found.model.min()) > 0.2
    assert float(found.linear.min()) > 0.2


def test_useful_depth_is_the_first_stretch_below(generator: Generator) -> None:
    buffer = springs([30] * 10)
    rows = buffer.all()
    found = open_loop(Spring(0.1), buffer, LinearBaseline.fit(SPEC, rows), Units.of(SPEC, rows), 6, generator)
    overall = found.overall(found.model)
    assert found.useful_depth(float(overall[2]) + 1e-9) == 3
    assert found.useful_depth(0.0) == 0
    assert found.useful_depth(9.0) == 6
    assert found.useful_depth(torch.tensor([9.0, 9.0, 0.0, 9.0, 9.0, 9.0])) == 2  # a later dip does not count


def test_an_episode_that_is_too_short_has_no_windows(generator: Generator) -> None:
    buffer = springs([3, 4, 12])
    assert pick_depth(buffer.all(), 25, windows=1) == 12
    assert pick_depth(buffer.all(), 25, windows=12) == 3
    assert pick_depth(buffer.all(), 25) == 12  # too few windows at any depth: all that there is
    ahead = steps_ahead(buffer.all())
    assert ahead.tolist() == [3, 2, 1, 4, 3, 2, 1, *range(12, 0, -1)]
    order = torch.randperm(len(ahead), generator=generator)
    assert torch.equal(steps_ahead(buffer.all()[order]), ahead[order])


def test_the_baseline_knows_the_matrix() -> None:
    linear = LinearBaseline.fit(SPEC, springs([40] * 5).all())
    assert torch.allclose(linear.state_matrix().float(), MATRIX, atol=1e-4)
    obs, actions = torch.tensor([[1.0, -1.0]]), torch.tensor([[[0.5]], [[-1.0]]])
    path = linear.rollout(obs, actions)
    assert torch.allclose(path[1].float(), (obs @ MATRIX.T + 0.5 * PUSH.T) @ MATRIX.T - PUSH.T, atol=1e-4)
    assert torch.equal(persistence(obs, actions)[1], obs)


@pytest.mark.parametrize(("power", "factor"), [(1.0, None), (0.5, None), (None, 1.3)])
def test_growth_is_found(power: float | None, factor: float | None) -> None:
    depth = torch.arange(1, 21, dtype=torch.float64)
    found = growth(0.1 * depth**power if power is not None else 0.1 * float(factor or 0) ** depth)
    assert found is not None
    assert found.exponential == (factor is not None)
    assert (found.factor if factor is not None else found.power) == pytest.approx(factor or power)


def test_no_growth_of_what_is_not_finite() -> None:
    assert growth(torch.tensor([0.1, math.nan, 0.3])) is None
    assert growth(torch.tensor([0.1, 0.2])) is None


def test_folded_angles_are_missed_the_short_way_round() -> None:
    spec = EnvSpec("A-v0", "0", "0", 2, SPEC.action, angles=(Angle(raw=1, wrapped=True),), termination=never)
    gap = miss(spec, torch.tensor([[3.1, 3.1]]), torch.tensor([[-3.1, -3.1]]))
    assert gap[0].tolist() == pytest.approx([6.2, 6.2 - 2 * math.pi], abs=1e-5)


def test_constant_entries_do_not_count() -> None:
    rows = springs([20]).all()
    rows.obs[:, 1], rows.next_obs[:, 1] = 4.0, 4.0
    units = Units.of(SPEC, rows)
    assert units.varies.tolist() == [True, False]
    assert row_errors(Spring(), rows, units).isfinite().all()
    assert obs_names(EnvSpec("B-v0", "0", "0", 3, SPEC.action, layout={"y": slice(2, 3)})) == ["obs[0]", "obs[1]", "y"]


def test_ends_are_counted_both_ways() -> None:
    rows = springs([50] * 4).all()
    true = rows.next_obs[:, 0] > 0.5
    rows.terminated = true
    right, late = ends(Spring(limit=0.5), rows), ends(Spring(limit=1.0), rows)
    assert (right.true, right.missed, right.invented) == (int(true.sum()), 0, 0)
    assert late.missed == int((true & (rows.next_obs[:, 0] <= 1.0)).sum()) > 0
    assert ends(Spring(limit=0.0), rows).invented > 0
    assert right.learned


def test_sampled_paths_hold_the_noise_and_the_truth(generator: Generator) -> None:
    buffer = springs([20] * 6)
    paths = sample_paths(Spring(), buffer, Units.of(SPEC, buffer.all()), 5, generator, windows=8, particles=200)
    assert paths.true.shape == (6, 8, 2)
    assert torch.allclose(paths.mean, paths.true, atol=1e-5)
    assert float(paths.error.max()) < 1e-5
    width = paths.high - paths.low
    assert torch.equal(width[0], torch.zeros(8, 2))
    assert torch.allclose(width[1], torch.tensor(2 * 1.645 * 0.1), rtol=0.25)  # one step of the model's noise
    assert float(width[5].mean()) > float(width[1].mean())
