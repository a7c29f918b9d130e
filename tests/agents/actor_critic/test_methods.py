"""What makes each published method: its target, its counters, its losses, computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from agents.actor_critic import ActorCritic, GradientDiversity
from agents.actor_critic.networks import BatchStatistics, Network, Regularization
from agents.actor_critic.policies import ActionNoise
from agents.actor_critic.terms import CriticContext
from mbrl.data.transitions import Transitions

Make = Callable[..., ActorCritic]
Rows = Callable[..., Transitions]
GAMMA = 0.99


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def noise(batch: int, seed: int = 5) -> Tensor:
    """What one update of ``batch`` rows draws first when it has no subsets to draw: ``[2, B, A]``."""
    return torch.randn(1, 2, batch, 2, generator=generator(seed))[0]


def mlp(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """A network without any regularisation; critics' parameters give ``[N, B, outputs]``."""
    for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
        x = torch.relu(x @ weight + bias)
    return x @ params[-2] + params[-1]


def critics(learner: ActorCritic, name: str) -> list[Tensor]:
    return learner.networks.critic.views(learner.vectors[name].clone())


def actor(learner: ActorCritic, name: str = "policy") -> list[Tensor]:
    return learner.networks.policy_views(learner.vectors[name].clone())[:-1]


def mean_error(q: Tensor, target: Tensor) -> float:
    return float((q - target).square().mean())


# -- TD3 ---------------------------------------------------------------------------------------------------------------

TD3 = {"policy": "deterministic", "actor_reducer": "first", "policy_delay": 2, "target_delay": 2}


def smoothed_target(learner: ActorCritic, batch: Transitions, clip: float) -> Tensor:
    smoothing = (0.2 * noise(len(batch))[1]).clamp(-clip, clip)
    action = (torch.tanh(mlp(actor(learner, "target_policy"), batch.next_obs)) + smoothing).clamp(-1, 1)
    q = mlp(critics(learner, "target_critic"), torch.cat([batch.next_obs, action], -1))[..., 0]
    return batch.reward + GAMMA * (~batch.terminated) * q.min(0).values


def test_td3_target_has_clipped_noise(make: Make, rows: Rows) -> None:
    learner, batches = make(noise=ActionNoise(target=0.2, clip=0.1), **TD3), rows(1, 64)
    with torch.no_grad():  # target networks that differ from the others
        for name in ("target_policy", "target_critic"):
            learner.vectors[name].mul_(1.5)
    batch = batches[0]
    q = mlp(critics(learner, "critic"), torch.cat([batch.obs, batch.action], -1))[..., 0]
    clipped, free = (mean_error(q, smoothed_target(learner, batch, clip)) for clip in (0.1, 10.0))
    assert learner.update(batches, generator())["critic_loss"] == pytest.approx(clipped, rel=1e-5)
    assert clipped != pytest.approx(free, rel=1e-4)


def test_td3_moves_actor_and_targets_every_second_update(make: Make, rows: Rows) -> None:
    learner, batches = make(**TD3), rows(4, 16)
    followers = ("policy", "target_policy", "target_critic")
    for u in range(4):
        before = {name: learner.vectors[name].clone() for name in (*followers, "critic")}
        report = learner.update(batches[u : u + 1], generator())
        moved = {name: not torch.equal(old, learner.vectors[name]) for name, old in before.items()}
        assert moved == dict.fromkeys(followers, u % 2 == 1) | {"critic": True}
        assert ("actor_loss" in report) == (u % 2 == 1)


def test_td3_actor_climbs_the_first_critic(make: Make, rows: Rows) -> None:
    learner, batches = make(seed=2, **TD3 | {"policy_delay": 1}), rows(1, 32)
    obs = batches[0].obs
    q = mlp(critics(learner, "critic"), torch.cat([obs, torch.tanh(mlp(actor(learner), obs))], -1))[..., 0]
    assert learner.update(batches, generator())["actor_loss"] == pytest.approx(-float(q[0].mean()), rel=1e-5)
    assert float(q[0].mean()) != pytest.approx(float(q.min(0).values.mean()), rel=1e-3)


# -- REDQ --------------------------------------------------------------------------------------------------------------


def soft_choice(learner: ActorCritic, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = mlp(actor(learner), obs).chunk(2, -1)
    before = mean + log_std.exp() * noise
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(before)
    return torch.tanh(before), (log_prob - torch.log(1 - torch.tanh(before) ** 2)).sum(-1)


def test_redq_target_is_the_min_of_a_random_subset(make: Make, rows: Rows) -> None:
    learner, batches = make(critics=6, target="random_subset_min", subset=2, actor_reducer="mean"), rows(1, 32)
    batch, draw = batches[0], generator()
    subset = torch.rand(1, 6, generator=draw).argsort(-1)[0, :2]
    noises = torch.randn(1, 2, 32, 2, generator=draw)[0]
    action, log_prob = soft_choice(learner, batch.next_obs, noises[1])
    q_next = mlp(critics(learner, "target_critic"), torch.cat([batch.next_obs, action], -1))[..., 0]
    q = mlp(critics(learner, "critic"), torch.cat([batch.obs, batch.action], -1))[..., 0]
    by_hand = {
        name: mean_error(q, batch.reward + GAMMA * (~batch.terminated) * (chosen.min(0).values - log_prob))
        for name, chosen in (("subset", q_next[subset]), ("all", q_next))
    }
    mine, theirs = soft_choice(learner, batch.obs, noises[0])
    actor_loss = theirs - mlp(critics(learner, "critic"), torch.cat([batch.obs, mine], -1))[..., 0].mean(0)
    report = learner.update(batches, generator())
    assert report["critic_loss"] == pytest.approx(by_hand["subset"], rel=1e-5)
    assert by_hand["subset"] != pytest.approx(by_hand["all"], rel=1e-4)
    assert report["actor_loss"] == pytest.approx(float(actor_loss.mean()), rel=1e-4)


def test_redq_moves_the_actor_once_in_twenty_updates(make: Make, rows: Rows) -> None:
    learner = make(critics=4, target="random_subset_min", policy_delay=20)
    begin = learner.vectors["policy"].clone()
    learner.update(rows(19, 8), generator())
    assert torch.equal(learner.vectors["policy"], begin)
    learner.update(rows(1, 8, seed=1), generator())
    assert float((learner.vectors["policy"] - begin).abs().max()) == pytest.approx(1e-2, rel=0.01)  # Adam's first step
    assert learner.updates == 20


def test_every_subset_is_drawn(make: Make) -> None:
    drawn = torch.stack(list(make(critics=5, target="random_subset_min", subset=2)._subsets(2000, generator())))  # type: ignore[arg-type]
    assert bool((drawn[:, 0] != drawn[:, 1]).all())
    share = torch.bincount(drawn.flatten(), minlength=5) / 4000
    assert share.sub(0.2).abs().max() < 0.02


# -- DroQ --------------------------------------------------------------------------------------------------------------


def test_droq_layer_is_linear_dropout_norm_relu() -> None:
    network = Network(4, 1, 8, 1, 2, Regularization(layer_norm=True, dropout=0.5))
    weight, bias, scale, shift, last, end = network.views(network.draw(generator()))
    x, keep = torch.randn(5, 4, generator=generator()), (torch.rand(1, 2, 5, 8, generator=generator()) < 0.5) * 2.0
    hidden = torch.relu(F.layer_norm((x @ weight + bias) * keep[0], (8,)) * scale + shift)
    torch.testing.assert_close(network([weight, bias, scale, shift, last, end], x, keep=keep), hidden @ last + end)


def test_droq_drops_in_learning_only(make: Make, rows: Rows) -> None:
    learner, batch = make(regularization=Regularization(dropout=0.25, layer_norm=True)), rows(1, 64)
    keep = learner._dropout(1000, generator())
    assert keep is not None
    assert keep[1].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(keep[1].mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(*(learner.q_values(batch[0].obs, batch[0].action) for _ in range(2)))
    losses = [make(regularization=Regularization(dropout=rate)).update(batch, generator()) for rate in (0.0, 0.25)]
    assert losses[0]["critic_loss"] != pytest.approx(losses[1]["critic_loss"], rel=1e-4)


@pytest.mark.parametrize(("place", "reported"), [(0, "critic_loss"), (1, "critic_loss"), (2, "actor_loss")])
def test_droq_drops_in_the_target_in_the_critics_loss_and_in_the_actors(
    make: Make, rows: Rows, monkeypatch: pytest.MonkeyPatch, place: int, reported: str
) -> None:
    learners = [make(regularization=Regularization(dropout=0.25, layer_norm=True)) for _ in range(2)]
    drop, found = learners[0]._dropout, []
    for learner, share in zip(learners, (1.0, 0.0), strict=True):

        def factors(size: int, generator: Generator, share: float = share) -> list[Tensor]:
            drawn = drop(size, generator)
            assert drawn is not None
            return [share * keep if i == place else keep for i, keep in enumerate(drawn)]

        monkeypatch.setattr(learner, "_dropout", factors)
        found.append(learner.update(rows(1, 64), generator())[reported])
    assert found[0] != pytest.approx(found[1], rel=1e-4)


# -- CrossQ ------------------------------------------------------------------------------------------------------------


def batch_normalized(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """Values ``[N, B]`` with statistics of the rows of ``x`` themselves."""
    todo = list(params)

    def norm(x: Tensor) -> Tensor:
        unit = (x - x.mean(-2, keepdim=True)) / (x.var(-2, correction=0, keepdim=True) + 1e-3).sqrt()
        return unit * todo.pop(0) + todo.pop(0)

    x = norm(x.expand(2, *x.shape))
    for _ in range(2):
        x = norm(torch.relu(x @ todo.pop(0) + todo.pop(0)))
    return (x @ todo.pop(0) + todo.pop(0))[..., 0]


def crossq(make: Make, **options: Any) -> ActorCritic:
    normal = Regularization(batch_norm="renorm", **options)
    return make(target_networks=False, regularization=normal, policy_delay=3, beta1=0.5)


def test_crossq_normalizes_both_halves_together(make: Make, rows: Rows) -> None:
    learner, batches = crossq(make), rows(1, 32)
    batch, params = batches[0], critics(learner, "critic")
    with torch.no_grad():
        out = learner.behaviour().outputs(batch.next_obs)  # by running statistics
        choice = learner.networks.head.choose_next(out, noise(32)[1], None)
    assert choice.action is not None
    halves = torch.cat([batch.obs, batch.action], -1), torch.cat([batch.next_obs, choice.action], -1)
    joint = batch_normalized(params, torch.cat(halves)).chunk(2, 1)
    apart = [batch_normalized(params, half) for half in halves]
    by_hand = {
        name: mean_error(q, batch.reward + GAMMA * (~batch.terminated) * (after.min(0).values - choice.log_prob))
        for name, (q, after) in (("joint", joint), ("apart", apart))
    }
    assert learner.update(batches, generator())["critic_loss"] == pytest.approx(by_hand["joint"], rel=1e-4)
    assert by_hand["joint"] != pytest.approx(by_hand["apart"], rel=1e-2)
    assert "target_critic" not in learner.vectors


def test_crossq_statistics_follow_each_network_in_its_own_loss(make: Make, rows: Rows) -> None:
    learner = crossq(make)
    before = {name: learner.vectors[f"{name}.statistics"].clone() for name in ("policy", "critic")}
    learner.update(rows(2, 32), generator())
    assert torch.equal(learner.vectors["policy.statistics"], before["policy"])  # its update is the third
    assert not torch.equal(learner.vectors["critic.statistics"], before["critic"])
    learner.update(batches := rows(1, 32, seed=1), generator())
    moved = learner.networks.actor.statistics_views(learner.vectors["policy.statistics"])
    torch.testing.assert_close(moved[0][0], 0.01 * batches[0].obs.mean(0))


def test_batch_renormalization_begins_after_its_warm_up(generator: Generator) -> None:
    x = 3.0 + 2.0 * torch.randn(1000, 1, generator=generator)
    running = [torch.full((1, 1), 2.5), torch.full((1, 1), 1.0)]
    plain = BatchStatistics(running, train=True, renorm=torch.tensor(0.0)).normalize(x, 0)
    assert float(plain.mean()) == pytest.approx(0.0, abs=1e-3)
    begun = BatchStatistics(running, train=True, renorm=torch.tensor(1.0)).normalize(x, 0)
    # within the bounds it is the running statistics that normalise
    torch.testing.assert_close(begun, BatchStatistics(running, train=False).normalize(x, 0), atol=1e-3, rtol=1e-3)


# -- EDAC --------------------------------------------------------------------------------------------------------------


def cosine(learner: ActorCritic, batch: Transitions) -> float:
    """Mean over the batch and over pairs of critics of the cosine of their gradients by the action, one by one."""
    params, gradients = critics(learner, "critic"), []
    for i in range(learner.critics):
        action = batch.action.clone().requires_grad_()
        q = mlp([p[i] for p in params], torch.cat([batch.obs, action], -1))
        gradients.append(torch.autograd.grad(q.sum(), action)[0])
    pairs = [
        F.cosine_similarity(gradients[i], gradients[j], dim=-1).mean()
        for i in range(learner.critics)
        for j in range(learner.critics)
        if i != j
    ]
    return float(torch.stack(pairs).mean())


def diversity(learner: ActorCritic, batch: Transitions) -> float:
    params = critics(learner, "critic")
    q = learner.networks.values(params, batch.obs, batch.action)
    context = CriticContext(
        lambda obs, action: learner.networks.values(params, obs, action), batch.obs, batch.action, q, batch.reward
    )
    return float(GradientDiversity(eta=3.0)(context))


def test_edac_term_is_the_mean_cosine_of_all_pairs(make: Make, rows: Rows) -> None:
    learner, batch = make(critics=4), rows(1, 32)[0]
    # the sum over the 12 ordered pairs over N - 1
    assert diversity(learner, batch) == pytest.approx(3.0 * 12 / 3 * cosine(learner, batch), rel=1e-4)
    assert diversity(make(critics=1), batch) == 0.0


def test_edac_term_turns_the_gradients_apart(make: Make, rows: Rows) -> None:
    batches = rows(60, 32)
    found = {}
    for eta in (0.0, 5.0):
        learner = make(critics=4, terms=[GradientDiversity(eta)])
        learner.update(batches, generator())
        found[eta] = cosine(learner, batches[0])
    assert found[5.0] < found[0.0] - 0.2


# -- what is common to all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_only_termination_cuts_the_bootstrap(make: Make, rows: Rows, kind: str) -> None:
    batches = rows(1, 32, kind)
    losses = {}
    for name in ("", "terminated", "truncated"):
        changed = batches.clone()
        if name:
            setattr(changed, name, ~getattr(changed, name))
        losses[name] = make(kind).update(changed, generator())["critic_loss"]
    assert losses["truncated"] == losses[""]
    assert losses["terminated"] != pytest.approx(losses[""], rel=1e-4)


def test_discrete_losses_are_expectations(make: Make, rows: Rows) -> None:
    learner, batches = make("discrete", alpha=0.5, target_entropy=0.3), rows(1, 32, "discrete")
    batch = batches[0]
    log_prob, next_log_prob = (mlp(actor(learner), obs).log_softmax(-1) for obs in (batch.obs, batch.next_obs))
    q_next = mlp(critics(learner, "target_critic"), batch.next_obs).min(0).values
    value = (next_log_prob.exp() * (q_next - 0.5 * next_log_prob)).sum(-1)
    q_all = mlp(critics(learner, "critic"), batch.obs)
    q = (q_all * batch.action).sum(-1)
    gain = (log_prob.exp() * (q_all.min(0).values - 0.5 * log_prob)).sum(-1)
    report = learner.update(batches, generator())
    assert report["critic_loss"] == pytest.approx(
        mean_error(q, batch.reward + GAMMA * (~batch.terminated) * value), rel=1e-5
    )
    assert report["actor_loss"] == pytest.approx(-float(gain.mean()), rel=1e-5)
    entropy = -float((log_prob.exp() * log_prob).sum(-1).mean())
    assert report["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert float(learner.networks.policy_views(learner.vectors["policy"])[-1].exp()) < 0.5  # entropy 0.69 is above 0.3


def test_value_is_what_the_policy_expects(make: Make, rows: Rows) -> None:
    obs = rows(1, 16)[0].obs
    learner = make()
    action, log_prob = soft_choice(learner, obs, torch.randn(16, 2, generator=generator()))
    params = critics(learner, "critic")
    q = mlp(params, torch.cat([obs, action], -1))[..., 0].min(0).values
    torch.testing.assert_close(learner.value(obs, generator()), q - log_prob)
    mode = learner.q_values(obs, learner.act(obs, None)).min(0).values
    torch.testing.assert_close(learner.value(obs, None), mode)
