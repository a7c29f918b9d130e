"""A dynamics reward ranks transitions by their error when its generator was adversarial, and else it does not."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import make_physics
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination.filters import ChooseBest, Move, ScoreStop
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.dynamics_reward import Adversary, DynamicsReward
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.mbrl.models.swings import pendulum, swings

SPREAD = 0.5
"""Of candidates around the truth, in standard deviations of a step's change"""


class Scattered(DynamicsModel):
    """The truth and noise."""

    def __init__(self, scale: Tensor, spread: float) -> None:
        super().__init__(pendulum())
        self.physics, self.scale = make_physics("Pendulum-v1"), spread * scale

    def true(self, obs: Tensor, action: Tensor) -> Tensor:
        control = self.spec.action.to_env(action.double())
        path = self.physics.rollout(self.physics.state_from_obs(obs), control[None])
        return self.physics.observe(path[1]).float()

    def next(self, obs: Tensor, action: Tensor, generator: Generator) -> Tensor:
        return self.true(obs, action) + self.scale * torch.randn(obs.shape, generator=generator)

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        assert generator is not None
        never = torch.zeros(len(action), dtype=torch.bool)
        return Step(State(self.next(state.obs, action, generator)), torch.zeros(len(action)), never, never)


def fitted(data: Transitions, generator: Generator) -> Adversary:
    """A model that was fitted to the data by likelihood beforehand."""
    ensemble = ProbabilisticEnsemble(pendulum(), members=3, hidden=64)
    Fitter(max_epochs=40).fit(ensemble, data, generator)
    model = ensemble.bind()

    def made(obs: Tensor, action: Tensor, generator: Generator) -> Tensor:
        return model.step(State(obs), action, generator).state.obs

    return made


class Trial:
    """Data, held-out rows, a fitted model and a dynamics reward trained on the data."""

    def __init__(self, steps: int, naive: bool = False, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        data, self.held = swings(10, self.generator), swings(5, self.generator)
        self.scale = (data.next_obs - data.obs).std(0)
        self.model = Scattered(self.scale, SPREAD)
        speed = 3000 // steps
        self.reward = DynamicsReward(
            pendulum(), steps=steps, snapshot_every=steps // 30, lr=3e-4 * speed**0.5, generator_lr=1e-4 * speed**0.75
        )
        self.report = self.reward.fit(data, self.generator, fitted(data, self.generator) if naive else None)

    def ranking(self) -> float:
        """Spearman's correlation of the reward with minus the error of perturbed transitions."""
        size = torch.rand(len(self.held), 1, generator=self.generator) * self.scale
        noise = size * torch.randn(self.held.next_obs.shape, generator=self.generator)
        found = self.reward.reward(self.held.obs, self.held.action, self.held.next_obs + noise)
        return float(spearmanr(found.numpy(), -(noise / self.scale).norm(dim=1).numpy()).statistic)

    def error(self, k: int, temperature: float) -> float:
        """Mean error of the candidate chosen out of ``k``."""
        state, action = State(self.held.obs), self.held.action
        step = self.model.step(state, action, self.generator)
        move = Move(state, action, step, torch.ones(len(action), dtype=torch.bool), {})
        chosen = ChooseBest(k, self.reward, temperature)(self.model, move, self.generator).step.state.obs
        return float(((chosen - self.held.next_obs) / self.scale).norm(dim=1).mean())


@pytest.fixture(scope="module")
def adversarial() -> Trial:
    return Trial(steps=300)


def test_an_adversarial_generator_makes_the_reward_rank(adversarial: Trial) -> None:
    assert adversarial.ranking() > 0.5


def test_a_fitted_rival_does_not() -> None:
    assert Trial(steps=300, naive=True).ranking() < 0.3


def test_soft_choice_is_not_worse_than_chance(adversarial: Trial) -> None:
    assert adversarial.error(10, temperature=0.1) <= adversarial.error(1, temperature=0.0)


def test_absurd_steps_are_stopped(adversarial: Trial) -> None:
    held = adversarial.held
    far = held.next_obs + 10.0 * adversarial.scale
    never = torch.zeros(len(held), dtype=torch.bool)
    ended = []
    for next_obs in (held.next_obs, far):
        step = Step(State(next_obs), torch.zeros(len(held)), never, never)
        move = Move(State(held.obs), held.action, step, ~never, {})
        stopped = ScoreStop(0.6, "terminal", adversarial.reward)(adversarial.model, move, adversarial.generator)
        ended.append(float(stopped.step.terminated.float().mean()))
    assert ended[0] < 0.5 < 0.95 < ended[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ranking_by_the_full_recipe(seed: int) -> None:
    trial = Trial(steps=3000, seed=seed)
    assert trial.ranking() > 0.5
    assert trial.error(10, 0.1) <= trial.error(1, 0.0)
    assert Trial(steps=3000, naive=True, seed=seed).ranking() < 0.3


def quick(keep: int = 3) -> DynamicsReward:
    torch.manual_seed(0)
    return DynamicsReward(
        pendulum(), hidden=8, generator_hidden=8, steps=10, snapshot_every=2, keep=keep, batch_size=16
    )


def judged(reward: DynamicsReward, rows: Transitions) -> Tensor:
    return reward.reward(rows.obs, rows.action, rows.next_obs)


def test_the_newest_snapshots_are_retained(generator: Generator) -> None:
    rows, reward = swings(1, generator), quick()
    reward.fit(rows, generator)
    assert len(reward.history) == 3
    before = judged(reward, rows)
    with torch.no_grad():
        reward.discriminator.net[-1].weight.add_(1.0)
    assert torch.equal(judged(reward, rows), before)  # the history does not follow the network


def test_state_comes_back(generator: Generator) -> None:
    rows, reward, other = swings(1, generator), quick(), quick()
    reward.fit(rows, generator)
    with pytest.raises(UserError, match="snapshots"):
        judged(other, rows)
    other.load_learned_state(reward.learned_state())
    assert torch.equal(judged(other, rows), judged(reward, rows))


def test_training_is_a_function_of_the_generator() -> None:
    found = []
    for seed in (0, 0, 1):
        reward, rows = quick(), swings(1, torch.Generator().manual_seed(5))
        torch.manual_seed(seed + 10)  # the global state must not matter
        reward.fit(rows, torch.Generator().manual_seed(seed))
        found.append(judged(reward, rows))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="snapshot"):
        DynamicsReward(pendulum(), steps=10, snapshot_every=20)
