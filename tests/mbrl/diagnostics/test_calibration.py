"""A calibrated mixture is told from one that is too sure or not sure enough, and the numbers are the textbook's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from envs.registry import env_spec
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.calibration import DATA_NLL, calibrate, inside, ks_distance
from mbrl.diagnostics.predictive import Predictive, predictive, uncertainties
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble


def mixture(generator: Generator, rows: int = 4000, members: int = 3, outputs: int = 2) -> Predictive:
    """Outcomes drawn from the mixture that is stated: one member a row, and its Gaussian."""
    shape = (members, rows, outputs)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    std = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    member, row = torch.randint(members, (rows,), generator=generator), torch.arange(rows)
    noise = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    target = mean[member, row] + std[member, row] * noise
    return Predictive(mean, std, target, ["a", "b"][:outputs], torch.ones(outputs, dtype=torch.float64))


def scaled(said: Predictive, factor: float) -> Predictive:
    """The same predictions with every interval that many times as wide."""
    centre = said.mean.mean(0)
    return replace(said, mean=centre + factor * (said.mean - centre), std=factor * said.std)


@pytest.mark.parametrize(
    ("factor", "confidence"), [(1.0, "calibrated"), (0.5, "overconfident"), (2.0, "underconfident")]
)
def test_scaled_intervals_are_noticed(generator: Generator, factor: float, confidence: str) -> None:
    found = calibrate(scaled(mixture(generator), factor))
    assert found.confidence == confidence
    off = [abs(found.overall(level) - level) for level in (0.5, 0.9, 0.95)]
    assert max(off) < 0.02 if factor == 1.0 else off[0] > 0.15
    assert (float(found.ks.max()) < 0.05) == (factor == 1.0)
    assert (float(found.error.max()) < 0.02) == (factor == 1.0)
    assert float(found.spread.mean()) == pytest.approx(1 / factor, rel=0.05)


def test_the_likelihood_is_best_where_it_is_true(generator: Generator) -> None:
    said = mixture(generator)
    nll = {factor: calibrate(scaled(said, factor)).nll for factor in (0.5, 1.0, 2.0)}
    assert nll[1.0] < min(nll[0.5], nll[2.0])


def test_a_standard_normal_gets_the_likelihood_of_the_data(generator: Generator) -> None:
    target = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(1, 20_000, 1, dtype=torch.float64)
    said = Predictive(zeros, zeros + 1, target, ["a"], torch.tensor([7.0], dtype=torch.float64))
    assert calibrate(said).nll_per_output == pytest.approx(DATA_NLL, abs=0.02)
    assert calibrate(said).nll == pytest.approx(DATA_NLL + math.log(7.0), abs=0.02)


def test_a_mixture_is_not_its_moments(generator: Generator) -> None:
    """Two far members: the moment-matched Gaussian would put half of what comes near the middle, the mixture none."""
    said = mixture(generator, members=2, outputs=1)
    apart = torch.tensor([-5.0, 5.0], dtype=torch.float64)[:, None, None].expand(2, 4000, 1)
    side = torch.randint(2, (4000,), generator=generator)
    target = apart[side, torch.arange(4000)] + 0.1 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    found = calibrate(replace(said, mean=apart, std=torch.full_like(said.std, 0.1), target=target))
    assert float(found.ks[0]) < 0.05
    mean, std = torch.zeros_like(target)[None], torch.full_like(target, 5.0)[None]
    assert float(calibrate(replace(said, mean=mean, std=std, target=target)).ks[0]) > 0.1  # the control


def test_ks_is_scipys(generator: Generator) -> None:
    pit = torch.rand(100, 2, generator=generator, dtype=torch.float64).square()
    for column, found in zip(pit.T, ks_distance(pit), strict=True):
        assert float(found) == pytest.approx(stats.kstest(column.numpy(), "uniform").statistic)
    assert inside(torch.tensor([[0.04], [0.06], [0.5], [0.96]]), 0.9).tolist() == [0.5]


def pendulum_rows(generator: Generator, rows: int = 60) -> Transitions:
    angle, speed = torch.randn(2, rows, generator=generator)
    obs = torch.stack([angle.cos(), angle.sin(), speed], -1)
    action = torch.rand(rows, 1, generator=generator) * 2 - 1
    turned, faster = angle + 0.05 * speed, speed + 0.3 * action[:, 0] + 0.5 * angle.sin()
    next_obs = torch.stack([turned.cos(), turned.sin(), faster], -1)
    no, ids = torch.zeros(rows, dtype=torch.bool), torch.arange(rows)
    return Transitions(obs, action, no.float(), next_obs, no, no, ids * 0, ids, ids * 0)


def test_an_ensembles_likelihood_is_its_elites_own(generator: Generator) -> None:
    rows = pendulum_rows(generator)
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(env_spec("Pendulum-v1"), members=4, hidden=8, elites=2)
    model.prepare(rows)
    model.set_elites(torch.tensor([3.0, 1.0, 2.0, 4.0]))  # members 1 and 2
    said = predictive(model, rows)
    assert said is not None
    assert said.names == ["velocity", "angle(cos, sin)"]
    each = model.predict(State(rows.obs), rows.action).log_prob(rows.next_obs, rows.reward)
    mixed = each[[1, 2]].logsumexp(0) - math.log(2)
    assert torch.allclose(said.log_prob().float(), mixed, atol=1e-3)
    assert not torch.allclose(said.log_prob().float(), each.logsumexp(0) - math.log(4), atol=1e-3)  # the control


def test_a_deterministic_ensemble_states_no_distribution(generator: Generator) -> None:
    model = ProbabilisticEnsemble(env_spec("Pendulum-v1"), members=3, hidden=8, probabilistic=False)
    rows = pendulum_rows(generator)
    model.prepare(rows)
    assert predictive(model, rows) is None
    assert set(uncertainties(model, rows)) == {"std_of_means", "std_of_samples"}  # but its members disagree


LINE = EnvSpec("Line-v0", "0", "0", 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)


class Says:
    """One Gaussian of the next observation, by draws alone."""

    def __init__(self, mean: Tensor, std: float) -> None:
        self.now, self.std = mean, std

    def sample(self, k: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        noise = torch.randn(1, k, *self.now.shape, generator=generator)
        return self.now + self.std * noise, torch.zeros(1, k, len(self.now))


class Walk(DynamicsModel):
    """A random walk that believes in steps of size ``std``."""

    def __init__(self, std: float) -> None:
        super().__init__(LINE)
        self.std = std

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        zeros = torch.zeros(len(action))
        return Step(State(state.obs), zeros, zeros > 0, zeros > 0)

    def predict(self, state: State, action: Tensor) -> Says:
        return Says(state.obs, self.std)

    def uncertainty(self, state: State, action: Tensor, kind: str) -> Tensor:
        return torch.zeros(len(action))


@pytest.mark.parametrize(("std", "confidence"), [(1.0, "calibrated"), (0.5, "overconfident"), (2.0, "underconfident")])
def test_a_model_that_only_draws_is_judged_by_its_draws(generator: Generator, std: float, confidence: str) -> None:
    obs = torch.randn(2000, 1, generator=generator)
    no, ids = torch.zeros(2000, dtype=torch.bool), torch.arange(2000)
    next_obs = obs + torch.randn(2000, 1, generator=generator)
    rows = Transitions(obs, obs * 0, no.float(), next_obs, no, no, ids, ids * 0, ids * 0)
    said = predictive(Walk(std), rows)
    assert said is not None
    assert calibrate(said).confidence == confidence
    assert uncertainties(Walk(std), rows) == {}  # the same everywhere: it orders nothing
