"""The log-ratio of two dynamics, where it is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.dynamics_ratio import DynamicsRatio

SPEC = EnvSpec(
    id="Shift-v0", version="0", fingerprint="0", obs_size=2, action=ActionSpec("continuous", 1, (-1.0,), (1.0,))
)
NOISE, SHIFT = 0.3, 0.6


def rows(n: int, generator: Generator, simulated: bool) -> Transitions:
    """Real: ``s' = s + 0.1 a + noise``; the simulator adds ``0.6 relu(s_0)`` to the first entry."""
    obs = torch.randn(n, 2, generator=generator)
    action = 2.0 * torch.rand(n, 1, generator=generator) - 1.0
    next_obs = obs + 0.1 * action + NOISE * torch.randn(n, 2, generator=generator)
    next_obs[:, 0] += SHIFT * obs[:, 0].relu() * simulated
    never, number = torch.zeros(n, dtype=torch.bool), torch.arange(n)
    return Transitions(obs, action, torch.zeros(n), next_obs, never, never, number, number * 0, number * 0)


def truth(data: Transitions) -> Tensor:
    """``log p_sim - log p_real``."""
    error = (data.next_obs - data.obs - 0.1 * data.action)[:, 0]
    return (error.square() - (error - SHIFT * data.obs[:, 0].relu()).square()) / (2.0 * NOISE**2)


@dataclass
class Measured:
    """What the learned ratio says of fresh simulated rows."""

    pearson: float
    scale: float
    """mean of the learned over mean of the true ratio"""
    high: float
    """where ``s_0 > 1`` and the true mean is about 5"""
    no_gap: float
    """where ``s_0 < 0`` and both dynamics are one"""


def measured(steps: int, swapped: bool = False, **options: float) -> Measured:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    real, simulated, fresh = (
        rows(100_000, generator, False),
        rows(100_000, generator, True),
        rows(5000, generator, True),
    )
    ratio = DynamicsRatio(SPEC, hidden=64, **options)  # type: ignore[arg-type]
    ratio.fit_statistics(real)
    if swapped:  # a control: two samples of the same dynamics
        simulated = rows(100_000, generator, False)
    for step in range(steps):
        ratio.optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / steps)
        pick = torch.randint(len(real), (2, 256), generator=generator)
        ratio.update(real[pick[0]], simulated[pick[1]], generator)
    found, true, s = ratio.log_ratio(fresh.obs, fresh.action, fresh.next_obs), truth(fresh), fresh.obs[:, 0]
    pearson = float(torch.corrcoef(torch.stack([found, true]))[0, 1])
    return Measured(pearson, float(found.mean() / true.mean()), float(found[s > 1].mean()), float(found[s < 0].mean()))


def is_calibrated(found: Measured) -> bool:
    return found.pearson > 0.95 and abs(found.scale - 1.0) < 0.15 and found.high > 4.5 and abs(found.no_gap) < 0.1


def test_log_ratio_is_the_known_one() -> None:
    found = measured(1000)
    assert is_calibrated(found), found


def test_bounded_scores_lose_large_gaps() -> None:
    found = measured(400, squash=2.0, noise=0.1)
    assert found.high < 3.2  # of 5
    assert not is_calibrated(found)


def test_equal_dynamics_have_no_ratio() -> None:
    found = measured(200, swapped=True)
    assert abs(found.high) < 0.5
    assert not is_calibrated(found)


def test_a_gap_that_is_small_beside_the_states_is_learned_as_fast(generator: Generator) -> None:
    """States thirty times as wide and the same shift: shown next states instead of differences, it stays unseen."""
    real, simulated = (wide(rows(20_000, generator, is_simulated)) for is_simulated in (False, True))
    torch.manual_seed(0)
    ratio = DynamicsRatio(SPEC, hidden=32, lr=3e-3)
    ratio.fit_statistics(real)
    for _ in range(150):
        pick = torch.randint(len(real), (2, 256), generator=generator)
        ratio.update(real[pick[0]], simulated[pick[1]], generator)
    found = ratio.log_ratio(simulated.obs, simulated.action, simulated.next_obs)
    assert found[simulated.obs[:, 0] > 30.0].mean() > 2.0  # of about 5


def wide(data: Transitions) -> Transitions:
    return replace(data, obs=30.0 * data.obs, next_obs=30.0 * data.obs + (data.next_obs - data.obs))


@pytest.mark.slow
def test_released_variant_stays_low_however_long_it_learns() -> None:
    found = measured(3000, squash=2.0, noise=0.1)
    assert 2.0 < found.high < 3.2
    assert found.pearson < 0.95


def trained(generator: Generator) -> tuple[DynamicsRatio, Transitions, Transitions]:
    torch.manual_seed(0)
    real, simulated = rows(256, generator, False), rows(256, generator, True)
    ratio = DynamicsRatio(SPEC, hidden=8)
    ratio.fit_statistics(real)
    ratio.update(real, simulated, generator)
    return ratio, real, simulated


def test_weights_and_gaps_keep_their_bounds(generator: Generator) -> None:
    ratio, _, simulated = trained(generator)
    with torch.no_grad():
        ratio.sas.net[-1].weight.mul_(1e3)
    weight, gap = ratio.weight(simulated), ratio.gap(simulated, generator)
    assert weight.min() >= 1e-5
    assert weight.max() == 1.0
    assert gap.min() >= 0.0
    assert gap.max() <= 10.0
    assert gap.shape == (256,)


def test_weight_is_the_ratio_of_real_to_simulated(generator: Generator) -> None:
    ratio, _, simulated = trained(generator)
    found = ratio.log_ratio(simulated.obs, simulated.action, simulated.next_obs)
    assert torch.allclose(ratio.weight(simulated), (-found).exp().clamp(1e-5, 1.0))


def test_smoothing_is_in_the_spread_of_next_states(generator: Generator) -> None:
    ratio, real, simulated = trained(generator)
    assert torch.allclose(ratio.spread, real.next_obs.std(0, correction=0))
    ratio.smoothing = 0.0
    with torch.no_grad():
        ratio.sas.net[-1].bias[1] += 3.0  # every row likelier in the simulator, by about 3
    exact = ratio.log_ratio(simulated.obs, simulated.action, simulated.next_obs)
    assert torch.allclose(ratio.gap(simulated, generator), exact)
    ratio.smoothing = 1.0
    assert not torch.allclose(ratio.gap(simulated, generator), exact)
    ratio.spread.zero_()  # next states that never differ are not moved
    assert torch.allclose(ratio.gap(simulated, generator), exact)


def test_learning_goes_on_after_loading(generator: Generator) -> None:
    ratio, real, simulated = trained(generator)
    state, luck = ratio.learning_state(), generator.get_state()
    other = DynamicsRatio(SPEC, hidden=8)
    other.load_learning_state({name: dict(part) for name, part in state.items()})
    before = ratio.log_ratio(real.obs, real.action, real.next_obs)
    assert torch.equal(other.log_ratio(real.obs, real.action, real.next_obs), before)
    for each in (ratio, other):
        generator.set_state(luck)
        each.update(real, simulated, generator)
    after = [each.log_ratio(real.obs, real.action, real.next_obs) for each in (ratio, other)]
    assert torch.equal(*after)
    assert not torch.equal(after[0], before)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="squash"):
        DynamicsRatio(SPEC, squash=0.0)
    with pytest.raises(UserError, match="lr"):
        DynamicsRatio(SPEC, lr=-1.0)
