"""What the ensemble predicts: the fast view of it, densities, uncertainty, numbers."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.models.base import HasDistribution, State, require
from mbrl.models.ensemble import ProbabilisticEnsemble, Regression

COMBINATIONS = [
    {"layout": layout, "reward": reward, "end": end, "probabilistic": probabilistic}
    for layout in ("plain", "pair", "mixed")
    for reward in ("known", "learned", "partly")
    for end in ("known", "learned")
    for probabilistic in (True, False)
]
SIZES = [{"members": 1}, {"members": 4, "elites": 2}, {"members": 3, "layers": 1}, {"members": 3, "layers": 3}]


def choose_elites(model: ProbabilisticEnsemble, *elites: int) -> None:
    model.set_elites(torch.tensor([0.0 if member in elites else 1.0 for member in range(model.members)]))


# -- the bound model -----------------------------------------------------------------------------------------------


def assert_bound_agrees(model: ProbabilisticEnsemble, data: Any) -> None:
    """One step of every elite, without and with the same noise, against `predict`."""
    elites, rows = model.get_buffer("elites"), len(data)
    prediction = model.predict(State(data.obs), data.action)
    shape = (1, len(elites), 1, 1, model.target_size)
    luck = torch.randn(shape, generator=torch.Generator().manual_seed(5))[0, :, 0]
    noisy = prediction.target_mean[elites] + prediction.variance()[elites].sqrt() * luck
    ended = None if prediction.end_logit is None else prediction.end_logit[elites, :, 0] > 0
    for generator, target in ((None, prediction.target_mean[elites]), (torch.Generator().manual_seed(5), noisy)):
        path = model.bind().rollout(State(data.obs), data.action[None], generator, particles=len(elites))
        next_obs, reward = prediction._decode(target)
        torch.testing.assert_close(path.states.obs[1], next_obs, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(path.reward[0], reward, atol=2e-5, rtol=1e-4)
        if ended is None:
            obs = data.obs.expand_as(next_obs)
            action = data.action.expand(len(elites), rows, -1)
            ended_here = model.spec.known_termination(obs, action, path.states.obs[1])
        else:
            ended_here = ended
        assert torch.equal(path.terminated[0], ended_here)
        assert path.terminated.any()
        assert not path.terminated.all()


@pytest.mark.parametrize("case", COMBINATIONS, ids=lambda case: "-".join(map(str, case.values())))
def test_the_bound_model_predicts_what_the_ensemble_does(case: dict[str, Any], system: Any, make_ready: Any) -> None:
    probabilistic = case["probabilistic"]
    small = system(case["layout"], case["reward"], case["end"])
    model = make_ready(small, probabilistic=probabilistic)
    assert_bound_agrees(model, small.data(64, seed=1))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("discrete", [False, True])
def test_the_bound_model_at_other_sizes(sizes: dict[str, int], discrete: bool, system: Any, make_ready: Any) -> None:
    small = system("pair", "learned", "learned", discrete)
    model = make_ready(small, **sizes)
    if "elites" in sizes:
        choose_elites(model, 1, 3)
    assert_bound_agrees(model, small.data(64, seed=1))


def test_the_first_state_is_the_one_given(system: Any, make_ready: Any, layout: str) -> None:
    small = system(layout)
    data = small.data(20)
    path = make_ready(small).rollout(State(data.obs), data.action[None], None, particles=3)
    assert torch.equal(path.states.obs[0], data.obs.expand(3, 20, -1))


def test_later_training_does_not_reach_a_bound_model(system: Any, make_ready: Any) -> None:
    model, data = make_ready(system()), system().data(20)
    bound = model.bind()
    before = bound.step(State(data.obs), data.action, None).state.obs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.prepare(system().data(50, seed=9, spread=3.0))
    assert torch.equal(bound.step(State(data.obs), data.action, None).state.obs, before)
    assert not torch.allclose(model.step(State(data.obs), data.action, None).state.obs, before, atol=1e-3)


def test_the_state_dict_holds_everything(system: Any, make_ready: Any) -> None:
    small = system("mixed", "learned", "learned")
    source, target = (make_ready(small, seed=seed, members=4, elites=2, validity=0.01) for seed in (0, 1))
    choose_elites(source, 0, 2)
    data, file = small.data(30, seed=3), io.BytesIO()

    def outcome(model: ProbabilisticEnsemble) -> list[Tensor]:
        prediction = model.predict(State(data.obs), data.action)
        path = model.rollout(State(data.obs), data.action[None], torch.Generator().manual_seed(0), particles=4)
        return [prediction.mean, prediction.log_var, path.states.obs, path.reward, path.terminated, path.truncated]

    assert not torch.equal(outcome(source)[0], outcome(target)[0])
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(one, other) for one, other in zip(outcome(source), outcome(target), strict=True))
    assert outcome(source)[-1].any()


# -- the shape of a prediction -------------------------------------------------------------------------------------


def test_predicted_angles_stay_on_the_circle(system: Any, make_ready: Any) -> None:
    small = system("mixed")
    data = small.data(40)
    path = make_ready(small).rollout(
        State(data.obs), data.action.expand(30, -1, -1), torch.Generator().manual_seed(0), particles=3
    )
    sin, cos, phi = (path.states.obs[..., small.names.index(name)] for name in ("sin", "cos", "phi"))
    torch.testing.assert_close(sin.square() + cos.square(), torch.ones_like(sin), atol=1e-5, rtol=0)
    assert phi.abs().max() <= math.pi + 1e-5
    theta = path.states.obs[..., small.names.index("theta")]
    assert theta.abs().max() > math.pi  # the raw angle that is not folded goes on


def test_outputs_that_never_change_are_exact(system: Any, make_ready: Any) -> None:
    small = system("plain", "partly")
    data = small.data(200)
    data.next_obs[:, 0] = data.obs[:, 0]
    data.reward = small.spec.known_reward(data.obs, data.action, data.next_obs) + 0.25
    model = make_ready(small)
    model.prepare(data)
    generator = torch.Generator().manual_seed(0)
    for noise in (None, generator):
        step = model.step(State(data.obs), data.action, noise)
        assert torch.equal(step.state.obs[:, 0], data.obs[:, 0])
        assert not torch.allclose(step.state.obs[:, 1], data.obs[:, 1], atol=1e-3)
        rest = step.reward - small.spec.known_reward(data.obs, data.action, step.state.obs)
        torch.testing.assert_close(rest, torch.full_like(rest, 0.25), atol=1e-5, rtol=0)
    prediction = model.predict(State(data.obs), data.action)
    assert torch.equal(prediction.mean[..., 0], data.obs[:, 0].expand(3, -1))
    assert torch.equal(prediction.sample(2, generator)[0][..., 0], data.obs[:, 0].expand(3, 2, -1))


def test_a_nearly_constant_output_counts_as_constant(system: Any) -> None:
    """Rounding noise in an output that is known must not become an error of the network's own size."""
    small = system("plain", "partly")
    data = small.data(400)
    known = small.spec.known_reward(data.obs, data.action, data.next_obs)
    data.reward = known + 3e-7 * (torch.arange(400) % 3 - 1)
    model = ProbabilisticEnsemble(small.spec, members=2, hidden=8)
    model.prepare(data)
    with torch.no_grad():
        model.biases[-1].fill_(1.0)
    prediction = model.predict(State(data.obs), data.action)
    reward = small.spec.known_reward(
        data.obs.expand(2, -1, -1), data.action.expand(2, -1, -1), prediction.mean[..., :-1]
    )
    assert (prediction.mean[..., -1] - reward).abs().max() < 1e-5


def test_gradients_flow_through_a_prediction(system: Any, make_ready: Any) -> None:
    small = system("mixed", "learned")
    model, data = make_ready(small), small.data(10)
    obs, action = data.obs.clone().requires_grad_(), data.action.clone().requires_grad_()
    prediction = model.predict(State(obs), action)
    (prediction.mean.sum() + prediction.log_prob(data.next_obs, data.reward).sum()).backward()  # type: ignore[no-untyped-call]
    assert obs.grad is not None
    assert action.grad is not None
    assert (obs.grad.abs().sum(0) > 0).all()
    assert (action.grad.abs().sum(0) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.weights)


# -- densities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["known", "learned"])
def test_log_prob_is_the_density_of_what_happened(reward: str, system: Any, make_ready: Any) -> None:
    """In physical units: the same number comes from a Normal of the physical change, written by hand."""
    small = system("plain", reward)
    model, data = make_ready(small), small.data(25, seed=4)
    prediction = model.predict(State(data.obs), data.action)
    mean = prediction.mean[..., :2] if reward == "known" else prediction.mean
    std = (prediction.log_var.exp() * model.target_norm.std.float() ** 2).sqrt()
    target = data.next_obs if reward == "known" else torch.cat([data.next_obs, data.reward[:, None]], -1)
    expected = Normal(mean, std).log_prob(target).sum(-1)
    torch.testing.assert_close(prediction.log_prob(data.next_obs, data.reward), expected, atol=1e-3, rtol=1e-4)
    in_standard_units = expected + model.target_norm.std.log().sum().float()  # the control
    assert (prediction.log_prob(data.next_obs, data.reward) - in_standard_units).abs().min() > 0.5


def test_log_prob_sees_angles_the_short_way(system: Any, make_ready: Any) -> None:
    small = system("pair")
    model, data = make_ready(small), small.data(300, seed=4)
    prediction = model.predict(State(data.obs), data.action)
    crossing = (
        torch.atan2(data.obs[:, 3], data.obs[:, 1]) * torch.atan2(data.next_obs[:, 3], data.next_obs[:, 1])
    ) < -1
    assert crossing.any()
    log_prob = prediction.log_prob(data.next_obs, data.reward)
    assert log_prob[:, crossing].mean() > log_prob[:, ~crossing].mean() - 10


def test_samples_have_the_predicted_moments(system: Any, make_ready: Any, generator: Generator) -> None:
    small = system("plain", "learned")
    model, data = make_ready(small), small.data(3, seed=4)
    prediction = model.predict(State(data.obs), data.action)
    next_obs, reward = prediction.sample(20_000, generator)
    assert next_obs.shape == (3, 20_000, 3, 2)
    assert reward.shape == (3, 20_000, 3)
    sample = torch.cat([next_obs, reward[..., None]], -1)
    std = (prediction.log_var.exp() * model.target_norm.std.float() ** 2).sqrt()
    assert ((sample.mean(1) - prediction.mean).abs() / std).max() < 0.04
    torch.testing.assert_close(sample.std(1) / std, torch.ones_like(std), atol=0.03, rtol=0)


def test_a_deterministic_ensemble_has_no_density(system: Any, make_ready: Any) -> None:
    model, data = make_ready(system(), probabilistic=False), system().data(5)
    prediction = model.predict(State(data.obs), data.action)
    with pytest.raises(UserError, match="no variance"):
        prediction.log_prob(data.next_obs, data.reward)
    for kind in ("largest_std", "one_vs_rest_kl"):
        with pytest.raises(UserError, match="std_of_means"):
            model.uncertainty(State(data.obs), data.action, kind)
    same = [model.uncertainty(State(data.obs), data.action, kind) for kind in ("std_of_means", "std_of_samples")]
    assert torch.equal(*same)


# -- uncertainty ---------------------------------------------------------------------------------------------------


def test_uncertainty_by_hand(system: Any, make_ready: Any) -> None:
    """Two elites of three, against the formulas written out with torch.distributions."""
    small = system("pair", "learned")
    model, data = make_ready(small, elites=2), small.data(12, seed=2)
    choose_elites(model, 0, 2)
    state = State(data.obs)
    prediction = model.predict(state, data.action)
    (m0, m2), (v0, v2) = prediction.target_mean[[0, 2]], prediction.log_var.exp()[[0, 2]]
    middle = (m0 + m2) / 2
    spread = ((m0 - middle) ** 2 + (m2 - middle) ** 2) / 2
    expected = {
        "std_of_means": spread.sum(-1).sqrt(),
        "std_of_samples": (spread + (v0 + v2) / 2).sum(-1).sqrt(),
        "largest_std": torch.maximum(v0.sum(-1), v2.sum(-1)).sqrt(),
        "one_vs_rest_kl": (
            kl_divergence(Normal(m0, v0.sqrt()), Normal(m2, v2.sqrt())).sum(-1)
            + kl_divergence(Normal(m2, v2.sqrt()), Normal(m0, v0.sqrt())).sum(-1)
        )
        / 2,
    }
    for kind, value in expected.items():
        torch.testing.assert_close(model.uncertainty(state, data.action, kind), value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.bind().uncertainty(state, data.action, kind), value, atol=1e-5, rtol=1e-4)
    choose_elites(model, 0, 1)
    assert not torch.allclose(model.uncertainty(state, data.action, "std_of_means"), expected["std_of_means"])


def test_the_rest_of_three_is_a_matched_gaussian(system: Any, make_ready: Any) -> None:
    small = system("plain")
    model, data = make_ready(small), small.data(6, seed=2)
    prediction = model.predict(State(data.obs), data.action)
    mean, var = prediction.target_mean, prediction.log_var.exp()
    total = torch.zeros(6)
    for member in range(3):
        rest = [other for other in range(3) if other != member]
        centre = mean[rest].mean(0)
        matched = (var[rest] + mean[rest] ** 2).mean(0) - centre**2
        total += kl_divergence(Normal(mean[member], var[member].sqrt()), Normal(centre, matched.sqrt())).sum(-1)
    found = model.uncertainty(State(data.obs), data.action, "one_vs_rest_kl")
    torch.testing.assert_close(found, total / 3, atol=1e-5, rtol=1e-4)


def test_outputs_that_never_change_add_no_uncertainty(system: Any, make_ready: Any) -> None:
    small = system("plain")
    data = small.data(200)
    data.next_obs[:] = data.obs
    model = make_ready(small)
    model.prepare(data)
    for kind in ("std_of_means", "std_of_samples", "largest_std", "one_vs_rest_kl"):
        assert model.uncertainty(State(data.obs), data.action, kind).abs().max() == 0


def test_unknown_estimators_and_single_members(system: Any, make_ready: Any) -> None:
    model, data = make_ready(system(), members=1), system().data(5)
    with pytest.raises(UserError, match="std_of_means"):
        model.uncertainty(State(data.obs), data.action, "std_of_mean")
    with pytest.raises(UserError, match="two elites"):
        model.uncertainty(State(data.obs), data.action, "one_vs_rest_kl")
    assert require(model, HasDistribution) is model


# -- other number formats, other code ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_bfloat16_stays_close(offset: float, system: Any, make_ready: Any) -> None:
    """Also far from zero, where bfloat16 itself has steps of a half."""
    small = system("plain", "learned")
    data = small.data(200)
    shift = torch.tensor([offset, 0.0])
    data.obs, data.next_obs = data.obs + shift, data.next_obs + shift
    states = []
    for dtype in ("float32", "bfloat16"):
        model = make_ready(small, inference_dtype=dtype, probabilistic=False)
        model.prepare(data)
        step = model.step(State(data.obs), data.action, None)
        states.append(torch.cat([step.state.obs - data.obs, step.reward[:, None]], -1) / model.target_norm.std)
    error = (states[0] - states[1]).abs()
    assert error.max() > 1e-5  # it is another format
    assert error.mean() < 0.01
    assert error.max() < 0.05


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones(system: Any, make_ready: Any) -> None:
    small = system("pair", "learned", "learned")
    data = small.data(32)
    eager, compiled = (make_ready(small, compile=flag) for flag in (False, True))
    for _ in range(2):
        paths = [
            model.rollout(State(data.obs), data.action.expand(4, -1, -1), torch.Generator().manual_seed(1), particles=6)
            for model in (eager, compiled)
        ]
        torch.testing.assert_close(paths[0].states.obs, paths[1].states.obs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(paths[0].reward, paths[1].reward, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"members": 0}, {"layers": 0}, {"hidden": 0}, {"members": 3, "elites": 4}, {"elites": 0}], ids=str
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, int], system: Any) -> None:
    with pytest.raises(UserError):
        ProbabilisticEnsemble(system().spec, **options)


def test_members_start_from_weights_of_their_own() -> None:
    spec = EnvSpec("Line-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)
    torch.manual_seed(0)
    for weight in ProbabilisticEnsemble(spec, members=3, hidden=4).weights:
        assert bool((weight[1:] != weight[0]).any((1, 2)).all())
        assert not torch.equal(weight[1], weight[2])


# -- elites --------------------------------------------------------------------------------------------------------


def test_the_score_decides_who_is_elite() -> None:
    """Squared errors of the first member (1e-4, 1e-4, 4), of the second (1, 1, 1), of the third (9, 9, 9).

    Published with MBPO is the mean: 1.33, 1, 9. The geometric mean is 0.0034, 1, 9.
    """
    spec = EnvSpec("Line-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)
    errors = torch.tensor([[0.01, 0.01, 2.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    chosen = {}
    for score in ("geometric", "mean"):
        model = ProbabilisticEnsemble(spec, members=3, elites=1, hidden=4, probabilistic=False, score=score)  # type: ignore[arg-type]
        with torch.no_grad():
            model.weights[-1].zero_()
            model.biases[-1][:, 0] = errors
        found, _ = model.holdout_score(Regression(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(5, 0)))
        model.set_elites(found)
        chosen[score] = model.get_buffer("elites").tolist()
        if score == "mean":
            torch.testing.assert_close(found, errors.square().mean(1))
    assert chosen == {"geometric": [0], "mean": [1]}
    assert ProbabilisticEnsemble(spec).score == "geometric"
    with pytest.raises(UserError, match=r"score.*mean"):
        ProbabilisticEnsemble(spec, score="maen")  # type: ignore[arg-type]
