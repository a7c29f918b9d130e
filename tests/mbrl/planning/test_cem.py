"""What CEM, iCEM and MPPI do as their papers say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from envs import env_spec, make_env
from mbrl.models.base import State
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import CEM, ICEM, coloured_noise
from mbrl.planning.mppi import MPPI, low_pass
from mbrl.planning.objective import Objective
from mbrl.planning.search import Belief, SamplingPlanner


def seed(number: int = 0) -> Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("length", [24, 25])
def test_noise_spectrum(beta: float, length: int) -> None:
    noise = coloured_noise((length, 1, 20000, 1), beta, seed(), "cpu").double()
    torch.testing.assert_close(noise.var(2).flatten(), torch.ones(length).double(), rtol=0.06, atol=0.0)
    torch.testing.assert_close(noise.mean(2).flatten(), torch.zeros(length).double(), rtol=0.0, atol=0.05)
    power = torch.fft.rfft(noise[:, 0, :, 0], dim=0).abs().square().mean(1)
    frequency = torch.fft.rfftfreq(length)[1:].double()
    slope = torch.stack([frequency.log(), torch.ones_like(frequency)], 1).pinverse() @ power[1:].log()
    assert slope[0] == pytest.approx(-beta, abs=0.03)


def test_noise_of_one_step_is_white() -> None:
    assert coloured_noise((1, 1, 5000, 1), 2.0, seed(), "cpu").std() == pytest.approx(1.0, abs=0.05)


def test_icem_draws_fewer_each_time_and_tries_the_mean_last(linear: type[Any]) -> None:
    planner = ICEM(linear().spec, candidates=100, elites=10, decay=2.0, iterations=5, keep=0.3)
    belief = planner.initial(2)
    counts = [planner._sample(belief, j, seed()).shape[2] for j in range(5)]
    assert counts == [103, 53, 28, 23, 23]  # max(2 e, P / decay^j) and three kept
    tried = [planner._sample(belief, j, seed())[:, 0, 0].abs().max().item() for j in range(5)]
    assert tried[-1] == 0.0
    assert min(tried[:-1]) > 0.0


def test_icem_keeps_the_best_elites(linear: type[Any]) -> None:
    model = linear()
    planner = ICEM(model.spec, particles=1)
    belief = planner.initial(1)
    candidates = planner._sample(belief, 0, seed())
    values = torch.randn(1, candidates.shape[2], generator=seed(1))
    belief = planner._improve(belief, candidates, values)
    kept = planner._sample(belief, 1, seed(2))[:, 0, -3:]
    torch.testing.assert_close(kept, candidates[:, 0, values[0].argsort(descending=True)[:3]])


def test_cem_variance_is_bounded_by_the_distance_to_the_bounds(linear: type[Any]) -> None:
    planner = CEM(linear().spec, candidates=2000)
    belief = planner.initial(1)
    assert belief.std.square().unique().item() == pytest.approx((1 - -1) ** 2 / 16)
    belief.mean[:, 0], belief.mean[:, 1] = 0.9, 1.0
    drawn = planner._sample(belief, 0, seed())[:, 0, :, 0]
    # a standard normal truncated at +-2 has std 0.8796
    expected = torch.tensor([0.05, 0.0, 0.5]) * 0.8796
    torch.testing.assert_close(drawn[:3].std(1), expected, rtol=0.05, atol=1e-6)
    assert drawn.abs().max() <= 1.0


def test_cem_refit_is_smoothed(linear: type[Any]) -> None:
    planner = CEM(linear().spec, horizon=2, candidates=20, elite_ratio=0.1, alpha=0.25)
    candidates = torch.arange(40.0).view(2, 1, 20, 1) / 40
    belief = planner._improve(planner.initial(1), candidates, torch.arange(20.0).view(1, 20))
    best = candidates[:, 0, 18:, 0]
    torch.testing.assert_close(belief.mean[0, :, 0], 0.75 * best.mean(1))
    torch.testing.assert_close(belief.std[0, :, 0].square(), 0.25 * 0.25 + 0.75 * best.var(1, correction=0))


def test_cem_stops_each_environment_on_its_own(linear: type[Any]) -> None:
    model, state = linear(), State(torch.randn(4, 2, generator=seed()))
    planner = CEM(model.spec, horizon=3, iterations=50, particles=1, candidates=60, elite_ratio=0.05)
    plan = planner.plan(model, Objective(), state, None, generator=seed())
    done = [planner.plan(model, Objective(), state[[i]], None, generator=seed()).stats["iterations"] for i in range(4)]
    assert max(done) == plan.stats["iterations"] < 50
    endless = CEM(model.spec, horizon=3, iterations=50, particles=1, candidates=60, elite_ratio=0.05, epsilon=0.0)
    assert endless.plan(model, Objective(), state, None, generator=seed()).stats["iterations"] == 50


def test_mppi_noise_is_scaled_and_filtered(linear: type[Any]) -> None:
    spec = linear().spec
    draws = {s: MPPI(spec, horizon=5, candidates=5000, sigma=s, beta=0.6)._sample for s in (0.05, 0.1)}
    small, large = (draw(MPPI(spec, horizon=5).initial(1), 0, seed())[:, 0, :, 0] for draw in draws.values())
    torch.testing.assert_close(large, 2 * small)
    assert small[0].std() == pytest.approx(0.6 * 0.05, rel=0.05)
    n, u = torch.zeros(5), torch.randn(5, generator=seed())
    for t in range(5):
        n[t] = 0.6 * u[t] + 0.4 * (n[t - 1] if t else 0.0)
    torch.testing.assert_close(low_pass(5, 0.6) @ u, n)


def test_mppi_weights(linear: type[Any]) -> None:
    planner = MPPI(linear().spec, horizon=1, gamma=2.0)
    values = torch.tensor([[1e6, 1e6 - 1, -torch.inf], [-torch.inf] * 3])
    candidates = torch.tensor([0.5, -0.5, 1.0]).view(1, 1, 3, 1).expand(1, 2, 3, 1)
    before = Belief(torch.full((2, 1, 1), 0.3), torch.ones(2, 1, 1), torch.zeros(2, 0, 1, 1), torch.zeros(2, 0))
    weight = torch.tensor([0.0, -2.0]).softmax(0)
    mean = planner._improve(before, candidates, values).mean.flatten()
    torch.testing.assert_close(mean, torch.stack([0.5 * weight[0] - 0.5 * weight[1], torch.tensor(0.3)]))


def swing_up_returns(planner: SamplingPlanner, model: Simulator, seeds: range, steps: int) -> torch.Tensor:
    """Return ``[B]`` of episodes started by these seeds and planned side by side."""
    envs = [make_env("mbrl/CartPoleSwingUp-v0") for _ in seeds]
    obs = torch.stack([torch.as_tensor(env.reset(seed=s)[0]) for env, s in zip(envs, seeds, strict=True)]).float()
    start = torch.stack([torch.as_tensor(env.sim_state()) for env in envs])
    state, memory, generator = model.encode(obs, sim_state=start), planner.initial(len(obs)), seed(seeds[0])
    total = torch.zeros(len(obs))
    for _ in range(steps):
        plan = planner.plan(model, Objective(), state, memory, generator=generator)
        memory = plan.warm_start
        step = model.step(state, plan.actions[0], None)
        state, total = step.state, total + step.reward
    return total


def icem_and_cem(model: Simulator, candidates: int, iterations: int) -> tuple[ICEM, CEM]:
    icem = ICEM(model.spec, horizon=30, candidates=20, iterations=3, particles=1)
    return icem, CEM(model.spec, horizon=30, candidates=candidates, iterations=iterations, particles=1)


def test_icem_swings_up_with_few_samples() -> None:
    model = Simulator(env_spec("mbrl/CartPoleSwingUp-v0"))
    icem, cem = icem_and_cem(model, 20, 3)
    few = swing_up_returns(icem, model, range(2), 60).mean()  # 60 steps: up, and balancing (CEM 400 x 5 gets 10.1)
    assert few > 9.5
    assert few > swing_up_returns(cem, model, range(2), 60).mean() + 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_icem_20_x_3_is_as_good_as_cem_400_x_5() -> None:
    model = Simulator(env_spec("mbrl/CartPoleSwingUp-v0"))
    few, many = (swing_up_returns(planner, model, range(6), 150).mean() for planner in icem_and_cem(model, 400, 5))
    assert many > 95.0
    assert few >= 0.97 * many
