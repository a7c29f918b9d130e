"""What the ensemble learns from random data, each claim beside its control."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from envs import env_spec, make_physics
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import State
from mbrl.models.ensemble import ProbabilisticEnsemble

PENDULUM = env_spec("Pendulum-v1")


def pendulum(rows: int, seed: int, speed: float = 3.0) -> Transitions:
    """Random states of the true pendulum (speeds within ``speed``), random torques, true successors."""
    physics, generator = make_physics("Pendulum-v1"), torch.Generator().manual_seed(seed)
    draw = 2 * torch.rand(rows, 3, generator=generator, dtype=torch.float64) - 1
    state = draw[:, :2] * torch.tensor([torch.pi, speed])
    action = draw[:, 2:].float()
    path = physics.rollout(state, PENDULUM.action.to_env(action.double())[None])
    obs, next_obs = (physics.observe(x).float() for x in path)
    reward, ids = PENDULUM.known_reward(obs, action, next_obs), torch.arange(rows)
    return Transitions(obs, action, reward, next_obs, ids < 0, ids < 0, ids, ids * 0, ids * 0)


def fitted(data: Transitions, updates: int = 500, **options: Any) -> ProbabilisticEnsemble:
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(PENDULUM, **{"members": 4, "hidden": 64, **options})
    Fitter(holdout=0.0, max_updates=updates, max_epochs=10_000, batch_size=128, lr=3e-3).fit(
        model, data, torch.Generator().manual_seed(0)
    )
    return model


def mean_of_members(model: ProbabilisticEnsemble, data: Transitions) -> Tensor:
    return model.bind().rollout(State(data.obs), data.action[None], None, propagation="mean").states.obs[1, 0]


def one_step_error(model: ProbabilisticEnsemble, data: Transitions) -> Tensor:
    """Root mean squared error of each row."""
    return (mean_of_members(model, data) - data.next_obs).square().mean(-1).sqrt()


@pytest.fixture(scope="module")
def learned() -> ProbabilisticEnsemble:
    return fitted(pendulum(1500, seed=0))


def test_one_step_errors_are_a_tenth_of_standing_still(learned: ProbabilisticEnsemble) -> None:
    data, test = pendulum(1500, seed=0), pendulum(1000, seed=1)
    standing = (test.next_obs - test.obs).square().mean(-1).sqrt().mean()
    assert one_step_error(learned, test).mean() < 0.1 * standing
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    data.next_obs = data.next_obs[order]  # the control: the same rows, answers exchanged
    assert one_step_error(fitted(data, 100), test).mean() > 0.5 * standing


def test_uncertainty_tells_where_errors_are(learned: ProbabilisticEnsemble) -> None:
    test = pendulum(1500, seed=2, speed=8.0)  # speeds never seen in training
    error = one_step_error(learned, test).numpy()
    fast = test.obs[:, 2].abs() > 4.0
    shuffle = np.random.default_rng(0).permutation(len(error))
    for kind in ("std_of_means", "one_vs_rest_kl"):
        found = learned.uncertainty(State(test.obs), test.action, kind)
        assert spearmanr(found.numpy(), error).statistic > 0.3
        assert abs(spearmanr(found.numpy()[shuffle], error).statistic) < 0.1
        assert found[fast].median() > 2 * found[~fast].median()


def test_noise_is_learned_where_it_is() -> None:
    """Predicted standard deviations follow a noise that grows with the speed; on clean data they are tiny."""
    data, test = pendulum(3000, seed=0), pendulum(500, seed=1)
    clean = data.next_obs.clone()
    scale = 0.02 + 0.1 * data.obs[:, 2].abs()
    data.next_obs[:, 2] += scale * torch.randn(3000, generator=torch.Generator().manual_seed(4))
    model = fitted(data, 800)

    def std(model: ProbabilisticEnsemble) -> Tensor:
        variance = model.predict(State(test.obs), test.action).log_var.exp().mean(0)[:, 0]
        return variance.detach().sqrt() * model.target_norm.std[0].float()

    truth = 0.02 + 0.1 * test.obs[:, 2].abs()
    assert (std(model) / truth).log().abs().mean() < 0.35
    assert (truth / truth.median()).log().abs().mean() > 0.5  # the control: the best constant
    assert spearmanr(std(model).numpy(), truth.numpy()).statistic > 0.85
    data.next_obs = clean
    assert std(fitted(data, 300)).median() < 0.3 * truth.median()


def test_reward_and_end_are_learned_where_they_are_not_known(system: Any) -> None:
    """The end beats its base rate by far, the unknown part of the reward is found beside the known one."""
    small = system("pair", "partly", "learned")
    data, test = small.data(2000), small.data(1000, seed=1)
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(small.spec, members=3, hidden=48)
    Fitter(holdout=0.0, max_updates=600, max_epochs=1000, batch_size=128, lr=3e-3).fit(
        model, data, torch.Generator().manual_seed(0)
    )
    path = model.rollout(State(test.obs), test.action[None], None, propagation="mean")
    wrong = (path.terminated[0, 0] != test.terminated).float().mean()
    assert wrong < 0.5 * test.terminated.float().mean()  # what never predicting an end gets wrong
    unknown = test.reward - small.spec.known_reward(test.obs, test.action, test.next_obs)
    found = path.reward[0, 0] - small.spec.known_reward(test.obs, test.action, path.states.obs[1, 0])
    assert (found - unknown).abs().mean() < 0.1 * unknown.abs().mean()


def noisy_reward_run(monkeypatch: pytest.MonkeyPatch, arithmetic: bool) -> tuple[float, float]:
    """Epochs until early stopping, and relative one-step error, when the reward is a coin toss."""
    data, test = pendulum(600, seed=0), pendulum(500, seed=1)
    spec = PENDULUM.__class__(**{**vars(PENDULUM), "reward_terms": {}, "reward_complete": False})
    data.reward = torch.randn(600, generator=torch.Generator().manual_seed(3)) * 5
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(spec, members=3, hidden=48, probabilistic=False)

    @torch.no_grad()
    def mean_score(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        mean, _, _ = model._outputs(batch.inputs.expand(3, *batch.inputs.shape))
        score = (mean - batch.targets).square().mean((1, 2))
        return score, {"holdout_mse": score.mean()}

    if arithmetic:
        monkeypatch.setattr(model, "holdout_score", mean_score)
    fitter = Fitter(batch_size=64, patience=5, max_epochs=100, lr=1e-3)
    report = fitter.fit(model, data, torch.Generator().manual_seed(0))
    standing = (test.next_obs - test.obs).square().mean(-1).sqrt().mean()
    return report["epochs"], float(one_step_error(model, test).mean() / standing)


def test_one_irreducible_output_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, error = noisy_reward_run(monkeypatch, arithmetic=False)
    stopped, left = noisy_reward_run(monkeypatch, arithmetic=True)
    assert epochs > 2 * stopped
    assert error < 0.015
    assert error < 0.5 * left  # measured 0.009 and 0.030
