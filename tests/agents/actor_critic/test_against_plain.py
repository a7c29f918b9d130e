"""The learner beside soft actor-critic written out plainly: modules, a loop over critics, torch's own optimiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Generator, Tensor, nn

from agents.actor_critic import ActorCritic, BehaviourCloning
from agents.actor_critic.networks import Network, Regularization
from mbrl.data.transitions import Transitions

Make = Callable[..., ActorCritic]
Rows = Callable[..., Transitions]


def module(network: Network, params: Sequence[Tensor], copy_of: int | None = None) -> nn.Sequential:
    """One copy of a plain network as a module with the same weights."""
    parts: list[nn.Module] = []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        weight, bias = (weight, bias) if copy_of is None else (weight[copy_of], bias[copy_of, 0])
        linear = nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": weight.detach().T.clone(), "bias": bias.detach().clone()})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class PlainSAC:
    """Begins with the weights of ``learner``; all gradients are taken before any step, as there."""

    def __init__(self, learner: ActorCritic, lr: float, target_entropy: float) -> None:
        policy = learner.networks.policy_views(learner.vectors["policy"])
        critics = learner.networks.critic.views(learner.vectors["critic"])
        self.actor = module(learner.networks.actor, policy[:-1])
        self.critics = [module(learner.networks.critic, critics, i) for i in range(learner.critics)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = policy[-1].detach().clone().requires_grad_()
        self.target_entropy = target_entropy
        networks = [self.actor, *self.critics]
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=lr) for network in networks]
        self.optimizers.append(torch.optim.Adam([self.log_alpha], lr=lr))

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        before = mean + normal.stddev * noise
        action = torch.tanh(before)
        return action, (normal.log_prob(before) - torch.log(1 - action**2)).sum(-1)

    def update(self, rows: Transitions, noise: Tensor, gamma: float = 0.99, tau: float = 0.005) -> None:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            action, log_prob = self.sample(rows.next_obs, noise[1])
            both = torch.cat([rows.next_obs, action], -1)
            value = torch.stack([target(both)[:, 0] for target in self.targets]).min(0).values - alpha * log_prob
            y = rows.reward + gamma * torch.where(rows.terminated, 0.0, 1.0) * value
        loss = torch.zeros(())
        for critic in self.critics:
            loss = loss + (critic(torch.cat([rows.obs, rows.action], -1))[:, 0] - y).pow(2).mean()
        action, log_prob = self.sample(rows.obs, noise[0])
        values = [critic(torch.cat([rows.obs, action], -1))[:, 0] for critic in self.critics]
        actor_loss = (alpha * log_prob - torch.stack(values).min(0).values).mean()
        alpha_loss = -(self.log_alpha * (log_prob + self.target_entropy).detach()).mean()
        self.step(loss, actor_loss, alpha_loss)
        for critic, target in zip(self.critics, self.targets, strict=True):
            for p, q in zip(critic.parameters(), target.parameters(), strict=True):
                q.data.mul_(1 - tau).add_(p.data, alpha=tau)

    def step(self, loss: Tensor, actor_loss: Tensor, alpha_loss: Tensor) -> None:
        groups = [list(self.actor.parameters()), [p for c in self.critics for p in c.parameters()], [self.log_alpha]]
        for group, own in zip(groups, (actor_loss, loss, alpha_loss), strict=True):
            for p, grad in zip(group, torch.autograd.grad(own, group, retain_graph=True), strict=True):
                p.grad = grad
        for optimizer in self.optimizers:
            optimizer.step()

    def difference(self, learner: ActorCritic) -> float:
        """The largest difference of any parameter."""
        policy = learner.networks.policy_views(learner.vectors["policy"])
        pairs = [(self.actor, policy[:-1], None)]
        for name, critics in (("critic", self.critics), ("target_critic", self.targets)):
            views = learner.networks.critic.views(learner.vectors[name])
            pairs += [(critic, views, i) for i, critic in enumerate(critics)]
        found = [float((self.log_alpha - policy[-1]).detach().abs())]
        for mine, views, i in pairs:
            theirs = module(learner.networks.actor, views, i)
            both = zip(mine.parameters(), theirs.parameters(), strict=True)
            found.append(max(float((p - q).detach().abs().max()) for p, q in both))
        return max(found)


def run(learner: ActorCritic, batches: Transitions, seed: int = 5) -> dict[str, float]:
    return learner.update(batches, Generator().manual_seed(seed))


def test_twenty_updates_equal_the_plain_ones(make: Make, rows: Rows) -> None:
    learner = make(lr=3e-3)
    plain = PlainSAC(learner, 3e-3, target_entropy=-2.0)
    batches = rows(20, 32)
    noise = torch.randn(20, 2, 32, 2, generator=Generator().manual_seed(5))
    for u in range(20):
        plain.update(batches[u], noise[u])
    assert plain.difference(learner) > 1e-3
    run(learner, batches)
    assert plain.difference(learner) < 1e-5


def test_a_hundred_updates_of_ten_critics_equal_the_loop_over_critics(make: Make, rows: Rows) -> None:
    learner = make(critics=10, lr=1e-3)
    plain, batches = PlainSAC(learner, 1e-3, target_entropy=-2.0), rows(100, 16)
    noise = torch.randn(100, 2, 16, 2, generator=Generator().manual_seed(5))
    for u in range(100):
        plain.update(batches[u], noise[u])
    run(learner, batches)
    assert plain.difference(learner) < 1e-4


COMPILED = {
    "sac": {},
    "td3": {"policy": "deterministic", "actor_reducer": "first", "policy_delay": 2, "target_delay": 2},
    "td3bc": {"policy": "deterministic", "actor_reducer": "first", "actor_terms": [BehaviourCloning()]},
    "redq": {"critics": 5, "target": "random_subset_min", "actor_reducer": "mean", "policy_delay": 4},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_a_hundred_compiled_updates_equal_the_eager_ones(make: Make, rows: Rows, options: dict[str, object]) -> None:
    eager, compiled = make(lr=1e-3, **options), make(lr=1e-3, compile=True, **options)
    reports = [run(learner, rows(100, 16)) for learner in (eager, compiled)]
    assert reports[0] == pytest.approx(reports[1], rel=1e-3)
    for name, vector in eager.vectors.items():
        assert float((vector - compiled.vectors[name]).abs().max()) < 1e-4, name


def test_the_order_of_updates_matters(make: Make, rows: Rows) -> None:
    """Were the updates not made one after the other, this would not be noticed above."""
    learners, batches = (make(), make()), rows(2, 16)
    noise = Generator().manual_seed(5)
    learners[0].update(batches, noise)
    learners[1].update(batches.map(lambda x: x.flip(0)), Generator().manual_seed(5))
    assert not torch.allclose(learners[0].vectors["critic"], learners[1].vectors["critic"], atol=1e-5)
    assert learners[0].updates == 2
    assert math.isclose(float(learners[0].vectors["critic.powers"][0]), 0.9**2)


# -- CrossQ ------------------------------------------------------------------------------------------------------------


class PlainNormalized(nn.Module):
    """Linear, ReLU, BatchNorm after a BatchNorm of the input, by torch's own batch normalisation."""

    def __init__(self, params: Sequence[Tensor], running: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = nn.ParameterList([p.detach().clone() for p in params])
        self.running, self.seen = [x.flatten().clone() for x in running], list[Tensor]()

    def forward(self, x: Tensor, train: bool) -> Tensor:
        norm, linear = [self.params[:2]], []
        for i in range(2, len(self.params) - 2, 4):
            linear.append(self.params[i : i + 2])
            norm.append(self.params[i + 2 : i + 4])
        if train:
            self.seen = []
        for place, scale_and_shift in enumerate(norm):
            if place:
                weight, bias = linear[place - 1]
                x = torch.relu(x @ weight + bias)
            x = self.normalized(x, place, scale_and_shift, train)
        return x @ self.params[-2] + self.params[-1]

    def normalized(self, x: Tensor, place: int, scale_and_shift: Sequence[Tensor], train: bool) -> Tensor:
        scale, shift = (p.flatten() for p in scale_and_shift)
        if train:
            self.seen += [x.detach().mean(0), x.detach().var(0, correction=0)]
            return nn.functional.batch_norm(x, None, None, scale, shift, training=True, eps=1e-3)
        return nn.functional.batch_norm(x, *self.running[2 * place : 2 * place + 2], scale, shift, eps=1e-3)

    def follow(self) -> None:
        for running, seen in zip(self.running, self.seen, strict=True):
            running.mul_(0.99).add_(seen, alpha=0.01)


class PlainCrossQ:
    """Bhatt et al., 2024: no target networks; (s, a) and (s', a') in one batch, the second half without gradient; the
    critics judge the actor by their running statistics.
    """

    def __init__(self, learner: ActorCritic, lr: float) -> None:
        networks, vectors = learner.networks, learner.vectors
        policy, critics = networks.policy_views(vectors["policy"]), networks.critic.views(vectors["critic"])
        running = [networks.critic.statistics_views(vectors["critic.statistics"])]
        self.actor = PlainNormalized(policy[:-1], networks.actor.statistics_views(vectors["policy.statistics"]))
        self.critics = [
            PlainNormalized([p[i] for p in critics], [x[i] for x in running[0]]) for i in range(learner.critics)
        ]
        self.log_alpha = policy[-1].detach().clone().requires_grad_()
        critic_params = [p for critic in self.critics for p in critic.parameters()]
        self.groups = [critic_params, list(self.actor.parameters()), [self.log_alpha]]
        self.optimizers = [torch.optim.Adam(group, lr=lr, betas=(0.5, 0.999)) for group in self.groups]

    def sample(self, obs: Tensor, noise: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs, train).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        before = mean + normal.stddev * noise
        return torch.tanh(before), (normal.log_prob(before) - torch.log(1 - torch.tanh(before) ** 2)).sum(-1)

    def update(self, rows: Transitions, noise: Tensor) -> None:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            action, log_prob = self.sample(rows.next_obs, noise[1], train=False)
        both = torch.cat([torch.cat([rows.obs, rows.action], -1), torch.cat([rows.next_obs, action], -1)])
        q, q_next = torch.stack([critic(both, train=True)[:, 0] for critic in self.critics]).chunk(2, 1)
        value = q_next.detach().min(0).values - alpha * log_prob
        y = rows.reward + 0.99 * torch.where(rows.terminated, 0.0, 1.0) * value
        critic_loss = (q - y).pow(2).mean(1).sum()
        action, log_prob = self.sample(rows.obs, noise[0], train=True)
        judged = torch.stack([critic(torch.cat([rows.obs, action], -1), train=False)[:, 0] for critic in self.critics])
        actor_loss = (alpha * log_prob - judged.min(0).values).mean()
        alpha_loss = -(self.log_alpha * (log_prob - 2.0).detach()).mean()
        for group, loss in zip(self.groups, (critic_loss, actor_loss, alpha_loss), strict=True):
            for p, grad in zip(group, torch.autograd.grad(loss, group, retain_graph=True), strict=True):
                p.grad = grad
        for optimizer in self.optimizers:
            optimizer.step()
        for network in (self.actor, *self.critics):
            network.follow()

    def differences(self, learner: ActorCritic) -> dict[str, float]:
        """The largest difference of any number of actor and critics, and of their running statistics."""
        networks, vectors = learner.networks, learner.vectors
        policy = networks.policy_views(vectors["policy"])
        pairs = {"actor": [*zip([*self.actor.params, self.log_alpha], policy, strict=True)], "critic": []}
        pairs["actor running"] = [
            *zip(self.actor.running, networks.actor.statistics_views(vectors["policy.statistics"]), strict=True)
        ]
        pairs["critic running"] = []
        for i, critic in enumerate(self.critics):
            theirs = [p[i] for p in networks.critic.views(vectors["critic"])]
            running = [x[i] for x in networks.critic.statistics_views(vectors["critic.statistics"])]
            pairs["critic"] += zip(critic.params, theirs, strict=True)
            pairs["critic running"] += zip(critic.running, running, strict=True)
        return {
            name: max(float((a.detach().flatten() - b.flatten()).abs().max()) for a, b in both)
            for name, both in pairs.items()
        }


def test_crossq_updates_equal_the_plain_ones(make: Make, rows: Rows) -> None:
    normal = Regularization(batch_norm="batch")
    learner = make(lr=3e-3, beta1=0.5, target_networks=False, regularization=normal)
    plain, batches = PlainCrossQ(learner, 3e-3), rows(10, 32)
    noise = torch.randn(10, 2, 32, 2, generator=Generator().manual_seed(5))
    for u in range(10):
        plain.update(batches[u], noise[u])
    assert min(plain.differences(learner).values()) > 1e-3
    run(learner, batches)
    assert max(plain.differences(learner).values()) < 1e-5
