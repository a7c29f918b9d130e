"""The representation predicts its own future, actor and critics read it, and without it nothing is different."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from agents.actor_critic.representation import SelfPrediction, draw_windows
from agents.off_policy import OffPolicyAgent
from envs import env_spec, make_physics
from envs.errors import UserError
from experiments.config import resolve
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from tests.agents.test_off_policy import SMALL, Run, train

Make = Callable[..., ActorCritic]
Rows = Callable[..., Transitions]
PENDULUM = env_spec("Pendulum-v1")
SIZES: dict[str, Any] = {"modes": 4, "hidden": 16, "batch_size": 8}


def generator(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def pendulum(windows: int, length: int = 5, seed: int = 0) -> Transitions:
    """Windows ``[windows, length, ...]`` of the true pendulum under random torques."""
    physics, luck = make_physics("Pendulum-v1"), generator(seed)
    start = (2 * torch.rand(windows, 2, generator=luck, dtype=torch.float64) - 1) * torch.tensor([torch.pi, 1.0])
    action = 2 * torch.rand(length, windows, 1, generator=luck) - 1
    path = physics.rollout(start, PENDULUM.action.to_env(action.double()))
    obs = physics.observe(path).float()
    step = torch.arange(length)[:, None].expand(-1, windows)
    never, episode = step < 0, torch.arange(windows).expand(length, -1)
    reward = torch.zeros(length, windows)
    rows = Transitions(obs[:-1], action, reward, obs[1:], never, never, episode, step, step * 0)
    return rows.map(lambda x: x.transpose(0, 1))


def trained(rows: Transitions, updates: int = 150, **options: Any) -> SelfPrediction:
    part = SelfPrediction(PENDULUM, **{"modes": 8, "hidden": 32, "lr": 3e-3, "tau": 0.05} | options)
    luck = generator()
    for _ in range(updates):
        part.update(rows[torch.randint(len(rows), (1, 64), generator=luck)])
    return part


def test_the_future_is_predicted() -> None:
    """Losses in shares of what a constant gets: on the truth, with answers exchanged between windows, and with the
    truth's actions exchanged.
    """
    rows, test = pendulum(2000), pendulum(500, seed=1)
    shuffled = rows.clone()
    shuffled.next_obs = rows.next_obs[torch.randperm(2000, generator=generator())]
    part, control = trained(rows), trained(shuffled)
    with torch.no_grad():
        own = [float(loss) for loss in part.losses(test)]
        other = test.clone()
        other.action = test.action.flip(0)
        without_actions = [float(loss) for loss in part.losses(other)]
        theirs = [float(loss) for loss in control.losses(shuffled[:500])]
    assert own[0] < 0.15
    assert own[1] < 0.1
    assert theirs[0] > 0.6
    assert theirs[1] > 0.6
    assert without_actions[1] > 1.5 * own[1]


def test_latents_do_not_collapse() -> None:
    """They are read with about unit spread; the control: before they are normalised it is far less."""
    rows = pendulum(1000)
    part = trained(rows, 100)
    with torch.no_grad():
        raw = part.average[0](part._standardised(rows.obs.flatten(0, 1))).std(0)
    read = part.extend(rows.obs, rows.obs)[..., 3:].flatten(0, 1).std(0)
    assert 0.7 < float(read.square().mean().sqrt()) < 1.4
    assert float(raw.mean()) < 0.3


def test_the_target_is_a_slow_average() -> None:
    part = SelfPrediction(PENDULUM, **SIZES, tau=0.25)
    before = [p.clone() for p in part.average.parameters()]
    part.update(pendulum(8)[None])
    for old, slow, fast in zip(before, part.average.parameters(), part.encoder.parameters(), strict=True):
        torch.testing.assert_close(slow, old + 0.25 * (fast - old))
        assert not torch.equal(fast, old)
    frozen = SelfPrediction(PENDULUM, **SIZES)
    consistency, _ = frozen.losses(pendulum(8))
    consistency.backward()
    assert all(p.grad is None for p in frozen.average.parameters())
    assert all(p.grad is not None for p in [*frozen.model.encoder.parameters(), frozen.model.mu_raw])


def test_latents_move_by_their_eigenvalues() -> None:
    """The closed form by hand: powers of the factors, and every action's push."""
    part, rows = SelfPrediction(PENDULUM, **SIZES), pendulum(6)
    part.update(rows[None])
    with torch.no_grad():
        factor, gain = part.model.discretised()
        start = part.encoder(part._standardised(rows.obs[:, 0]))
        pushes = part.model.action_encoder(rows.action)
        z, push = (torch.complex(*x.chunk(2, -1)) for x in (start, pushes))
        by_hand = factor**5 * z + sum(factor ** (4 - i) * gain * push[:, i] for i in range(5))
        said = part.predict(rows.obs[:, 0], rows.action)[:, -1]
    torch.testing.assert_close(said, torch.cat([by_hand.real, by_hand.imag], -1), atol=1e-5, rtol=1e-4)


# -- beside the actor-critic -------------------------------------------------------------------------------------------


def windows_for(batches: Transitions, count: int = 2) -> Transitions:
    """Windows ``[count, 8, 5, ...]`` of the toy task's shape."""
    flat = batches.map(lambda x: x.flatten(0, 1)[: count * 40])
    return flat.map(lambda x: x.view(count, 8, 5, *x.shape[1:]))


def predicting(make: Make, kind: str = "continuous", reads: Any = "both", **options: Any) -> ActorCritic:
    return make(kind, representation=partial(SelfPrediction, **SIZES, reads=reads), **options)


def test_without_it_nothing_is_different(make: Make) -> None:
    """Nothing more is kept, and an agent draws no random number for it; the control is one that has it."""
    assert "representation" not in make().state_dict()
    for representation in (None, partial(SelfPrediction, **SIZES)):
        run = Run("Pendulum-v1", {"hidden": 8, "representation": representation}, **SMALL)
        run.until(20)
        before = run.agent.generator.get_state()
        assert bool(run.agent.learn_representation(30)) == (representation is not None)
        assert torch.equal(before, run.agent.generator.get_state()) == (representation is None)


def updated(learner: ActorCritic, batches: Transitions, draw: Generator, windows: Transitions) -> dict[str, float]:
    """As an agent does."""
    assert learner.representation is not None
    return learner.representation.update(windows) | learner.update(batches, draw)


@pytest.mark.parametrize(("reads", "size"), [("both", 3 + 8), ("latent", 8)])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_actor_and_critics_read_the_latent(make: Make, rows: Rows, reads: Any, size: int, kind: str) -> None:
    learner, batches = predicting(make, kind, reads, normalize_obs=True), rows(2, 16, kind)
    assert learner.networks.actor.widths[0] == size
    assert learner.networks.critic.widths[0] == size + (0 if kind == "discrete" else 2)
    report = updated(learner, batches, generator(), windows_for(rows(4, 20, kind)))
    assert {"self_prediction", "latent_prediction", "q"} <= set(report)
    obs = batches.obs[0]
    before = learner.q_values(obs, batches.action[0]), learner.value(obs, None), learner.networks.actor.widths[0]
    assert learner.representation is not None
    with torch.no_grad():
        for parameter in learner.representation.average.parameters():
            parameter.mul_(2.0)
    assert not torch.allclose(learner.q_values(obs, batches.action[0]), before[0])
    assert not torch.allclose(learner.value(obs, None), before[1])
    if kind == "continuous":
        alike = learner.seen(obs)[:, :3] if reads == "both" else None
        assert alike is None or torch.equal(alike, learner.normalizer.normalize(obs))  # type: ignore[union-attr]


def test_the_actor_critic_does_not_train_it(make: Make, rows: Rows) -> None:
    windows, encoders = windows_for(rows(4, 20)), []
    for batches in (rows(3, 16), rows(3, 16, seed=1)):
        learner = predicting(make)
        updated(learner, batches, generator(), windows)
        learner.update(batches, generator())
        assert learner.representation is not None
        encoders.append(list(learner.representation.model.parameters()))
    fresh = predicting(make).representation
    assert fresh is not None
    assert all(torch.equal(a, b) for a, b in zip(*encoders, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(encoders[0], fresh.model.parameters(), strict=True))


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in tensors(value)]


def test_resume_is_exact(make: Make, rows: Rows, tmp_path: Any) -> None:
    batches, windows, draw = rows(6, 20), windows_for(rows(4, 20)), generator()
    first = predicting(make)
    updated(first, batches[:3], draw, windows)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    drawn = draw.get_state()
    report = updated(first, batches[3:], draw, windows)
    second = predicting(make, seed=9)
    updated(second, batches[:1], generator(1), windows)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    draw.set_state(drawn)
    assert updated(second, batches[3:], draw, windows) == report
    ends = [tensors(learner.state_dict()) for learner in (first, second)]
    assert len(ends[0]) == len(ends[1]) > 40
    assert all(
        torch.equal(
            a,
            b,
        )
        or bool((a.isnan() & b.isnan()).all())
        for a, b in zip(*ends, strict=True)
    )
    assert torch.equal(first.act(batches.obs[0], None), second.act(batches.obs[0], None))


def test_seed_decides_the_encoder(make: Make) -> None:
    weights = [predicting(make, seed=seed).representation.average[0][0].weight for seed in (1, 1, 2)]  # type: ignore[union-attr, index]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- windows -----------------------------------------------------------------------------------------------------------


def interleaved(slots: int, rounds: int, length: int, capacity: int) -> ReplayBuffer:
    """Slots that take turns, with episodes of ``length + slot`` steps; the observation is (episode, step)."""
    buffer = ReplayBuffer(capacity)
    step, episode = torch.zeros(slots, dtype=torch.long), torch.arange(slots)
    for _ in range(rounds):
        obs, never = torch.stack([episode, step], -1).float(), torch.zeros(slots, dtype=torch.bool)
        buffer.extend(
            Transitions(obs, obs[:, :1], obs[:, 0], obs, never, never, episode.clone(), step.clone(), step * 0)
        )
        step += 1
        over = step >= length + torch.arange(slots)
        episode, step = torch.where(over, episode + slots, episode), torch.where(over, torch.zeros_like(step), step)
    return buffer


@pytest.mark.parametrize("slots", [1, 3])
def test_windows_never_cross_an_end(slots: int) -> None:
    buffer = interleaved(slots, 50, 9, 80)  # the ring has wrapped
    found = draw_windows(buffer, slots, (2, 200), 5, generator())
    assert found is not None
    assert found.obs.shape == (2, 200, 5, 2)
    assert bool((found.obs[..., 0] == found.obs[..., :1, 0]).all())
    assert bool((found.obs[..., 1].diff(dim=-1) == 1).all())
    whole = buffer.windows(4000, 5, generator())
    seen, there = ({tuple(row) for row in rows.obs[..., 0, :].reshape(-1, 2).tolist()} for rows in (found, whole))
    assert seen == there  # every window that there is
    assert draw_windows(buffer, slots, (1, 20), 30, generator()) is None  # no episode is so long
    wrong = draw_windows(buffer, slots + 1, (1, 50), 5, generator())  # rows that do not follow are never taken
    assert wrong is None or bool((wrong.obs[..., 1].diff(dim=-1) == 1).all())


def test_updates_come_in_their_turn() -> None:
    part = SelfPrediction(PENDULUM, **SIZES, every=4)
    counts = [part.owed(before, 3) for before in range(0, 12, 3)]
    assert counts == [0, 1, 1, 1]
    assert part.owed(0, 12) == 3
    run = Run("Pendulum-v1", {"hidden": 8, "representation": partial(SelfPrediction, **SIZES, every=3)}, **SMALL)
    seen: list[int] = []
    assert run.agent.learner.representation is not None
    run.agent.learner.representation.update = lambda windows: seen.append(len(windows.obs)) or {}  # type: ignore[method-assign, func-returns-value]
    run.until(20)
    assert seen == [1] * 8  # three updates a step, from step 13 on


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_agent_resumes_exactly(env: str, num_envs: int) -> None:
    learner = {"hidden": 8, "representation": partial(SelfPrediction, **SIZES, every=2)}
    runs = [Run(env, learner, num_envs, **SMALL) for _ in range(2)]
    for _ in range(12):
        runs[0].tick()
    state, rows = runs[0].agent.state_dict(), runs[0].agent.buffers["real"].all()
    runs[1].agent.load_state_dict(state)
    runs[1].agent.buffers["real"].extend(rows)
    more = rows[-num_envs:]
    for run in runs:
        run.agent.observe(more)
        run.clock.env_steps = 12 * num_envs
        run.clock.tick(num_envs)
        run.agent.update(run.clock)
        run.pool.close()
    ends = [tensors(run.agent.state_dict()) for run in runs]
    assert all(torch.equal(a, b) or bool((a.isnan() & b.isnan()).all()) for a, b in zip(*ends, strict=True))
    metrics = [run.agent.state_dict()["metrics"] for run in runs]
    assert metrics[0] == metrics[1]


def test_the_recipe_is_sac_fast_and_its_representation() -> None:
    texts = {name: resolve(name, [("agent.learner.compile", False)], env="Pendulum-v1") for name in RECIPES}
    agents = {name: found.config.agent(PENDULUM) for name, found in texts.items()}
    assert all(isinstance(agent, OffPolicyAgent) for agent in agents.values())
    with_it, without = (agents[name].learner for name in RECIPES)  # type: ignore[attr-defined]
    assert without.representation is None
    assert with_it.representation.horizon == 5
    assert (with_it.networks.actor.hidden, with_it.networks.rule.lr) == (
        without.networks.actor.hidden,
        without.networks.rule.lr,
    )


RECIPES = ("sac-koopman", "sac-fast")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_uninterrupted(resume_is_exact: Callable[..., None]) -> None:
    command = [*train("sac-koopman"), "--agent.learner.compile=false", "--agent.learner.representation.batch_size=8"]
    resume_is_exact({"sac-koopman": command}, 133)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pendulum_is_learned_with_it_as_without() -> None:
    """The last episodes lie within 100 of those of the same learner without it."""
    torch.set_flush_denormal(True)
    returns = []
    for representation in (None, partial(SelfPrediction)):
        learner = {"hidden": 64, "lr": 1e-3, "representation": representation}
        run = Run("Pendulum-v1", learner, updates_per_step=2, batch_size=128, warmup_steps=400)
        returns.append(sum(run.until(2600)[-3:]) / 3)
    torch.set_flush_denormal(False)
    assert returns[1] > returns[0] - 100.0, returns


@pytest.mark.parametrize(
    ("options", "named"),
    [({"modes": 0}, "modes"), ({"horizon": 1}, "horizon"), ({"tau": 0.0}, "tau"), ({"reads": "obs"}, "reads")],
)
def test_bad_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SelfPrediction(PENDULUM, **options)
