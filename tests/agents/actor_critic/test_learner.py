"""State, callbacks, weights, options and policy heads of the learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic, GradientDiversity, PolicyAverage, Reset, ShrinkPerturb
from agents.actor_critic.networks import Network, Regularization
from agents.actor_critic.policies import ActionNoise, Categorical, SquashedGaussian
from agents.actor_critic.running import RunningNormalizer
from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec
from mbrl.data.transitions import Transitions

Make = Callable[..., ActorCritic]
Rows = Callable[..., Transitions]

KINDS: dict[str, dict[str, Any]] = {
    "sac": {},
    "discrete": {"kind": "discrete"},
    "td3": {"policy": "deterministic", "actor_reducer": "first", "policy_delay": 2, "target_delay": 2},
    "redq": {"critics": 4, "target": "random_subset_min", "actor_reducer": "mean", "policy_delay": 3},
    "droq": {"regularization": Regularization(layer_norm=True, dropout=0.1), "actor_reducer": "mean"},
    "crossq": {
        "regularization": Regularization(batch_norm="renorm", renorm_warmup=4),
        "target_networks": False,
        "beta1": 0.5,
    },
    "edac": {"critics": 3, "terms": [GradientDiversity()]},
    "spectral": {"regularization": Regularization(spectral_norm=True)},
    "normalised observations": {"normalize_obs": True},
}


def callbacks() -> list[Any]:
    return [Reset([4], "critic", last_layers=1), ShrinkPerturb(5), PolicyAverage(0.9)]


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in tensors(value)]


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_resume_is_exact(make: Make, rows: Rows, options: dict[str, Any]) -> None:
    kind = options.get("kind", "continuous")
    batches, draw = rows(8, 16, kind), generator()
    first = make(**options, callbacks=callbacks())
    first.update(batches[:3], draw)
    saved, drawn = first.state_dict(), draw.get_state()
    report = first.update(batches[3:], draw)
    second = make(**options, seed=9, callbacks=callbacks())
    second.update(batches[:1], generator(1))
    second.load_state_dict(saved)
    draw.set_state(drawn)
    assert second.update(batches[3:], draw) == report
    ends = [tensors(learner.state_dict()) for learner in (first, second)]
    assert len(ends[0]) == len(ends[1]) > 8
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(saved), ends[0], strict=True))
    obs = batches[0].obs
    assert torch.equal(first.act(obs, None), second.act(obs, None))
    assert second.updates == 8


def test_seed_decides_the_networks(make: Make) -> None:
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(one.vectors["policy"], same.vectors["policy"])
    assert not torch.equal(one.vectors["policy"], other.vectors["policy"])
    assert torch.equal(one.vectors["critic"], one.vectors["target_critic"])
    views = one.networks.critic.views(one.vectors["critic"])
    assert not torch.equal(views[0][0], views[0][1])  # critics differ


def test_state_holds_tensors_and_plain_values(make: Make, rows: Rows, tmp_path: Any) -> None:
    learner = make(callbacks=callbacks(), normalize_obs=True)
    learner.update(rows(2, 8), generator())
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    make(callbacks=callbacks(), normalize_obs=True).load_state_dict(loaded)


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_reset_draws_networks_anew_and_restarts_their_optimiser(make: Make, rows: Rows) -> None:
    learner, plain = make(callbacks=[Reset([3], "critic")]), make()
    for each in (learner, plain):
        each.update(rows(3, 16), generator())
    vectors = learner.vectors
    assert torch.equal(vectors["policy"], plain.vectors["policy"])
    assert not torch.allclose(vectors["critic"], plain.vectors["critic"], atol=0.05)
    assert torch.equal(vectors["critic"], vectors["target_critic"])
    assert float(vectors["critic.mean"].abs().sum() + vectors["critic.square"].sum()) == 0.0
    assert vectors["critic.powers"].tolist() == [1.0, 1.0]
    assert vectors["policy.powers"].tolist() == pytest.approx([0.9**3, 0.999**3])


def test_partial_reset_leaves_the_first_layers(make: Make, rows: Rows) -> None:
    learner, plain = make(callbacks=[Reset([3], "all", last_layers=1)]), make()
    for each in (learner, plain):
        each.update(rows(3, 16), generator())
    network = learner.networks.critic
    changed = [
        not torch.equal(mine, theirs)
        for mine, theirs in zip(
            network.views(learner.vectors["critic"]), network.views(plain.vectors["critic"]), strict=True
        )
    ]
    assert changed == [False, False, False, False, True, True]
    assert learner.vectors["policy"][-1] == plain.vectors["policy"][-1]  # the temperature stays


def test_full_reset_restores_the_temperature(make: Make, rows: Rows) -> None:
    learner = make(callbacks=[Reset([3])], alpha=0.5)
    learner.update(rows(3, 16), generator())
    assert float(learner.vectors["policy"][-1]) == pytest.approx(math.log(0.5))


def test_shrink_perturb_moves_targets_by_the_same_weights(make: Make, rows: Rows) -> None:
    learner, plain = make(callbacks=[ShrinkPerturb(3, keep=0.8)], tau=0.5), make(tau=0.5)
    for each in (learner, plain):
        each.update(rows(3, 16), generator())
    fresh = {name: (learner.vectors[name] - 0.8 * plain.vectors[name]) / 0.2 for name in ("critic", "target_critic")}
    torch.testing.assert_close(fresh["critic"], fresh["target_critic"], atol=1e-5, rtol=0)
    assert float(fresh["critic"].abs().max()) <= 1 / math.sqrt(5) + 1e-4
    assert not torch.equal(plain.vectors["critic"], plain.vectors["target_critic"])


def test_policy_average_weighs_without_bias_and_acts_in_evaluation(make: Make, rows: Rows) -> None:
    learner, seen = make(callbacks=[PolicyAverage(0.5)], lr=0.1), []
    obs = rows(1, 4)[0].obs
    for u in range(3):
        learner.update(rows(1, 16, seed=u), generator())
        seen.append(learner.vectors["policy"].clone())
    expected = (0.25 * seen[0] + 0.5 * seen[1] + seen[2]) / 1.75
    torch.testing.assert_close(learner.callbacks[0].policy_vector(), expected)
    mode = learner.act(obs, None)
    explored = learner.act(obs, generator())
    learner.vectors["policy"].copy_(expected)
    learner.callbacks = []
    torch.testing.assert_close(mode, learner.act(obs, None))
    assert not torch.allclose(explored, learner.act(obs, generator()), atol=1e-4)


def test_a_reset_of_the_policy_starts_its_average_anew(make: Make, rows: Rows) -> None:
    averages = {}
    for parts in ("all", "policy", "critic"):
        learner = make(callbacks=[PolicyAverage(0.9), Reset([3], parts)], lr=0.1)
        learner.update(rows(3, 16), generator())
        averages[parts] = learner.callbacks[0].policy_vector()
        learner.update(rows(1, 16, seed=1), generator())
        only = torch.equal(learner.callbacks[0].policy_vector(), learner.vectors["policy"])
        assert only == (parts != "critic")
    assert averages["all"] is averages["policy"] is None
    assert averages["critic"] is not None
    after = make(callbacks=[Reset([3]), PolicyAverage(0.9)], lr=0.1)
    after.update(rows(3, 16), generator())
    assert torch.equal(after.callbacks[1].policy_vector(), after.vectors["policy"])


# -- weights -----------------------------------------------------------------------------------------------------------


def loss(make: Make, batches: Transitions, **options: Any) -> float:
    return make(**options).update(batches, generator())["critic_loss"]


def test_normalised_weights_are_relative(make: Make, rows: Rows) -> None:
    weight = torch.rand(1, 16, generator=generator()) + 0.1
    found = {
        scale: [
            loss(make, rows(1, 16, sample_weight=weight * scale), sample_weights=kind) for kind in ("normalized", "raw")
        ]
        for scale in (1.0, 3.0)
    }
    assert found[3.0][0] == pytest.approx(found[1.0][0], rel=1e-5)
    assert found[3.0][1] == pytest.approx(3.0 * found[1.0][1], rel=1e-5)
    assert found[1.0][0] != pytest.approx(loss(make, rows(1, 16)), rel=1e-3)


def test_rows_of_weight_zero_do_not_count(make: Make, rows: Rows) -> None:
    weight = torch.ones(1, 16)
    weight[:, 8:] = 0.0
    batches = rows(1, 16, sample_weight=weight)
    other = batches.clone()
    other.reward[:, 8:] += 100.0
    options = {"sample_weights": "normalized"}
    assert loss(make, batches, **options) == loss(make, other, **options)
    assert loss(make, batches) != loss(make, other)


def test_weights_reach_the_actor_only_when_asked(make: Make, rows: Rows) -> None:
    batches = rows(1, 16, sample_weight=torch.rand(1, 16, generator=generator()))
    options = ({}, {"sample_weights": "normalized"}, {"sample_weights": "normalized", "weigh_actor": True})
    losses = [make(**each).update(batches, generator())["actor_loss"] for each in options]
    assert losses[0] == losses[1]
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_a_missing_weight_column_is_named(make: Make, rows: Rows) -> None:
    with pytest.raises(UserError, match="sample_weight"):
        make(sample_weights="raw").update(rows(1, 8), generator())


def test_the_actor_has_a_step_size_of_its_own(make: Make, rows: Rows) -> None:
    for options, size in (({"actor_lr": 1e-3}, 1e-3), ({}, 1e-2)):
        learner = make(lr=1e-2, **options)
        before = {name: learner.vectors[name].clone() for name in ("policy", "critic")}
        learner.update(rows(1, 16), generator())
        moved = {name: float((learner.vectors[name] - old).abs().max()) for name, old in before.items()}
        assert moved == pytest.approx({"policy": size, "critic": 1e-2}, rel=0.01)  # Adam's first step


def test_the_usual_target_entropy(make: Make) -> None:
    for actions in (2, 5):
        spec = EnvSpec("toy", "0", "", 3, ActionSpec("discrete", actions))
        assert ActorCritic(spec, hidden=4).networks.rule.target_entropy == pytest.approx(0.98 * math.log(actions))
    assert make().networks.rule.target_entropy == -2.0


def test_log_prob_weights_weigh_each_dimension(make: Make, rows: Rows) -> None:
    batches = rows(1, 64)
    found = [
        make(log_prob_weights=weights).update(batches, generator())["entropy"]
        for weights in (None, [1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0])
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[2] + found[3] == pytest.approx(found[0], rel=1e-4)
    assert found[4] == pytest.approx(found[0] + found[2], rel=1e-4)
    learner = make()
    learner.set_log_prob_weights(torch.tensor([1.0, 0.0]))
    assert learner.update(batches, generator())["entropy"] == pytest.approx(found[2], rel=1e-6)


def test_running_statistics_are_those_of_all_rows(generator: Generator) -> None:
    rows = 5.0 + 3.0 * torch.randn(1000, 2, generator=generator)
    rows[:, 1] = 7.0
    normalizer = RunningNormalizer(2, torch.device("cpu"))
    for part in rows.split([100, 1, 899]):
        normalizer.see(part.view(1, *part.shape))
    torch.testing.assert_close(normalizer.mean, rows.double().mean(0))
    unit = normalizer.normalize(rows)
    torch.testing.assert_close(unit[:, 0].std(correction=0), torch.tensor(1.0))
    assert float(unit[:, 1].abs().max()) == 0.0  # what never varies is only centred
    assert float(normalizer.normalize(torch.full((1, 2), 1e6)).max()) == 10.0


def test_observations_are_standardised_when_asked(make: Make, rows: Rows) -> None:
    obs = rows(1, 64)[0].obs
    scaled = rows(1, 64).map(lambda x: x.clone())
    scaled.obs, scaled.next_obs = 100.0 * scaled.obs + 5.0, 100.0 * scaled.next_obs + 5.0
    learners = [make(normalize_obs=True), make(normalize_obs=True)]
    reports = learners[0].update(rows(1, 64), generator()), learners[1].update(scaled, generator())
    assert reports[0] == pytest.approx(reports[1], rel=1e-4)  # next observations too
    actions = [learner.act(o, None) for learner, o in zip(learners, (obs, 100.0 * obs + 5.0), strict=True)]
    torch.testing.assert_close(*actions, atol=1e-4, rtol=0)


# -- networks and heads ------------------------------------------------------------------------------------------------


def test_spectral_norm_brings_hidden_matrices_to_one() -> None:
    network = Network(4, 1, 16, 3, 2, Regularization(spectral_norm=True))
    params = network.views(3.0 * network.draw(generator()))
    left = network.draw_left(generator())
    for _ in range(100):
        scaled, left = network.normalized(params, left)
    norms = [torch.linalg.matrix_norm(param, 2) for param in scaled[::2]]
    torch.testing.assert_close(torch.stack(norms[1:3]), torch.ones(2, 2), atol=1e-2, rtol=0)
    assert torch.equal(scaled[0], params[0])
    assert torch.equal(scaled[-1], params[-1])


def test_squashed_gaussian_has_the_density_of_its_samples() -> None:
    head = SquashedGaussian(EnvSpec("toy", "0", "", 1, ActionSpec("continuous", 2, (-1, -1), (1, 1))))
    out, noise = torch.randn(50, 4, generator=generator()), torch.randn(50, 2, generator=generator(1))
    choice = head.choose(out, noise, None)
    normal = torch.distributions.Normal(out[:, :2].double(), out[:, 2:].clamp(-20, 2).exp().double())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    before = normal.mean + normal.stddev * noise
    expected = normal.log_prob(before) - squashed.transforms[0].log_abs_det_jacobian(before, before.tanh())
    torch.testing.assert_close(choice.log_prob, expected.sum(-1).float(), atol=1e-4, rtol=1e-4)
    far = head.choose(torch.tensor([[30.0, -30.0, 0.0, 0.0]]), torch.zeros(1, 2), None)
    assert far.log_prob is not None
    assert bool(far.log_prob.isfinite())


def test_discrete_exploration_draws_from_the_softmax() -> None:
    head = Categorical(EnvSpec("toy", "0", "", 1, ActionSpec("discrete", 3)))
    logits = torch.tensor([0.2, 0.5, 0.3]).log() + 4.0
    share = head.explore(logits.expand(20_000, 3), generator()).mean(0)
    torch.testing.assert_close(share, torch.tensor([0.2, 0.5, 0.3]), atol=0.015, rtol=0)
    assert head.mode(logits[None]).tolist() == [[0.0, 1.0, 0.0]]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no critics": ({"critics": 0}, "critics"),
    "lr": ({"lr": 0.0}, "lr"),
    "gamma": ({"gamma": 1.5}, "gamma"),
    "temperature": ({"alpha": 0.0}, "alpha"),
    "subset": ({"critics": 2, "target": "random_subset_min", "subset": 3}, "subset"),
    "weights": ({"log_prob_weights": [1.0]}, "log_prob_weights"),
    "dropout": ({"regularization": Regularization(dropout=1.0)}, "dropout"),
    "batch norm with targets": ({"regularization": Regularization(batch_norm="batch")}, "target_networks: false"),
    "deterministic choice": ({"kind": "discrete", "policy": "deterministic"}, "policy"),
    "diversity of choices": ({"kind": "discrete", "terms": [GradientDiversity()]}, "GradientDiversity"),
    "no hidden matrix": ({"layers": 1, "regularization": Regularization(spectral_norm=True)}, "spectral_norm"),
    "device": ({"device": "toaster"}, "device"),
    "noise of a sampled policy": ({"noise": ActionNoise(exploration=0.3)}, "noise.*policy is gaussian"),
    "noise of choices": ({"kind": "discrete", "noise": ActionNoise(clip=0.1)}, "noise"),
    "weights of the actor alone": ({"weigh_actor": True}, "weigh_actor.*sample_weights is ignore"),
    "subset of all": ({"critics": 5, "subset": 3}, "subset.*target is min"),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD)
def test_options_that_cannot_work_are_refused(make: Make, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"noise": ActionNoise(), "subset": 2},  # as a configuration with every default written out has it
        {"noise": ActionNoise(exploration=0.3), "policy": "deterministic"},
        {"weigh_actor": True, "sample_weights": "raw"},
        {"critics": 5, "subset": 3, "target": "random_subset_min"},
        {"critics": 1},
    ],
)
def test_options_that_go_together_pass(make: Make, options: dict[str, Any]) -> None:
    make(**options)


@pytest.mark.parametrize("name", ["exploration", "target", "clip"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_noise_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"noise\.{name}: .*at least 0"):
        ActionNoise(**{name: value})
    ActionNoise(**{name: 0.0})


def test_bad_callbacks_are_refused() -> None:
    for build in (
        lambda: Reset([0]),
        lambda: ShrinkPerturb(0),
        lambda: PolicyAverage(1.0),
        lambda: GradientDiversity(-1),
    ):
        with pytest.raises(UserError):
            build()
