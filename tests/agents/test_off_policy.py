"""The model-free agent: when it learns, what it draws from, that it learns, and that it resumes exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from agents.off_policy import OffPolicyAgent
from envs.errors import UserError
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from experiments.config import find_recipe, overlay_of, resolve
from experiments.tree import read_yaml
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.played import to_transitions

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"warmup_steps": 12, "updates_per_step": 3, "batch_size": 8, "log_every": 8}


class Run:
    """An agent in environments, without records and checkpoints.

    ``shuffle`` hides the task: noise for reward, and no end is told (where ends are rare, living on is worth something
    by the entropy alone).
    """

    def __init__(
        self, env: str, learner: dict[str, Any], num_envs: int = 1, shuffle: bool = False, **options: Any
    ) -> None:
        self.agent = OffPolicyAgent(env_spec(env), lambda spec: ActorCritic(spec, **learner), **options)
        self.agent.seed(0)
        self.pool = EnvPool(partial(make_env, env), num_envs, lambda slot, n: seeding.derive_seed(0, "env", slot, n))
        self.pool.reset()
        self.clock, self.shuffle = Clock(), shuffle
        self.generator = Generator().manual_seed(0)
        self.returns: list[float] = []
        self._now = torch.zeros(num_envs)

    def tick(self) -> dict[str, dict[str, Any]]:
        obs, first = torch.from_numpy(self.pool.obs), torch.from_numpy(self.pool.is_first)
        state = self.agent.initial_actor_state(len(obs))
        action, _, extra = self.agent.act(obs, state, first, "explore", self.generator)
        rows = to_transitions(self.pool.step(action.numpy()), action, extra, version=0)
        self._now += rows.reward
        for slot in (rows.terminated | rows.truncated).nonzero()[:, 0].tolist():
            self.returns.append(float(self._now[slot]))
            self._now[slot] = 0.0
        if self.shuffle:
            rows.reward = torch.randn(rows.reward.shape, generator=self.generator)
            rows.terminated = torch.zeros_like(rows.terminated)
        self.agent.observe(rows)
        self.clock.tick(len(obs))
        found = self.agent.update(self.clock)
        self.pool.reset_ended()
        return found

    def until(self, env_steps: int) -> list[float]:
        """Returns of the episodes that ended."""
        while self.clock.env_steps < env_steps:
            self.tick()
        self.pool.close()
        return self.returns


@pytest.mark.parametrize("num_envs", [1, 5])
def test_updates_follow_env_steps(num_envs: int) -> None:
    run = Run("Pendulum-v1", {"hidden": 8}, num_envs, **SMALL)
    while run.clock.env_steps < 40:
        run.tick()
        assert run.clock.updates == run.agent.learner.updates == 3 * max(0, run.clock.env_steps - 12)
    run.pool.close()


def test_random_then_sampled_then_the_mode() -> None:
    run = Run("Pendulum-v1", {"hidden": 8}, **SMALL)
    agent, obs, first = run.agent, torch.zeros(500, 3), torch.ones(500, dtype=torch.bool)
    state = agent.initial_actor_state(500)

    def act(mode: Any) -> Tensor:
        return agent.act(obs, state, first, mode, Generator().manual_seed(1))[0]

    assert float(act("explore").std()) == pytest.approx(3**-0.5, abs=0.03)  # uniform
    run.until(12)
    torch.testing.assert_close(act("explore"), agent.learner.act(obs, Generator().manual_seed(1)))
    assert float(act("explore").std()) > 0.1
    assert torch.equal(act("evaluate"), agent.learner.act(obs, None))
    assert float(act("evaluate").std()) == 0.0


def test_metrics_are_means_since_the_last_record() -> None:
    run = Run("Pendulum-v1", {"hidden": 8, "policy_delay": 5}, **SMALL)
    records = [found["update"] for _ in range(32) if (found := run.tick())]
    run.pool.close()
    assert len(records) == 3  # at 16, 24 and 32 env steps; at 8 nothing was learned yet
    assert set(records[0]) == {"q", "critic_loss", "actor_loss", "alpha", "entropy"}
    assert 0.9 < records[1]["alpha"] < 1.1  # not thinned by the updates without the actor


def test_resume_is_exact() -> None:
    runs = [Run("Pendulum-v1", {"hidden": 8}, **SMALL) for _ in range(2)]
    for _ in range(20):
        runs[0].tick()
    state, rows = runs[0].agent.state_dict(), runs[0].agent.buffers["real"].all()
    runs[1].agent.load_state_dict(state)
    runs[1].agent.buffers["real"].extend(rows)
    for run in runs:
        run.clock = Clock(env_steps=20)
        run.clock.tick(1)
    found = [run.agent.update(run.clock) for run in runs]
    vectors = [run.agent.learner.vectors for run in runs]
    assert found[0] == found[1]
    assert all(torch.equal(vectors[0][name], vectors[1][name]) for name in vectors[0])
    assert runs[0].agent.state_dict()["metrics"] == runs[1].agent.state_dict()["metrics"]
    for run in runs:
        run.pool.close()


PENDULUM: dict[str, Any] = {"updates_per_step": 2, "batch_size": 128, "warmup_steps": 400}
CARTPOLE: dict[str, Any] = {"updates_per_step": 1, "batch_size": 64, "warmup_steps": 300}


@pytest.fixture
def flush() -> Iterator[None]:
    """As in a run: numbers too small to matter do not slow matrix products."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("flush")
@pytest.mark.parametrize("shuffle", [False, True], ids=["reward", "control: task hidden"])
def test_pendulum_is_learned_from_its_reward(shuffle: bool) -> None:
    returns = Run("Pendulum-v1", {"hidden": 64, "lr": 1e-3}, shuffle=shuffle, **PENDULUM).until(2600)
    last = sum(returns[-3:]) / 3
    assert (last > -300.0) != shuffle, returns
    assert sum(returns[:2]) / 2 < -600.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("flush")
@pytest.mark.parametrize("shuffle", [False, True], ids=["reward", "control: task hidden"])
def test_cartpole_is_learned_from_its_reward(shuffle: bool) -> None:
    learner = {"hidden": 64, "lr": 1e-3, "target_entropy": 0.2}
    returns = Run("CartPole-v1", learner, shuffle=shuffle, **CARTPOLE).until(4000)
    assert (max(returns) > 150.0) != shuffle, returns


RECIPES = ["sac", "td3", "redq", "droq", "crossq"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_learn_on_small_networks(recipe: str) -> None:
    part = "agent.init_args.learner.init_args."
    small = [(f"{part}hidden", 8), ("agent.init_args.warmup_steps", 10), ("agent.init_args.batch_size", 8)]
    small += [(f"{part}critic_hidden", 16)] if recipe == "crossq" else []
    config = resolve(recipe, small, env="Pendulum-v1").config
    agent = config.agent(env_spec("Pendulum-v1"))
    assert isinstance(agent, OffPolicyAgent)
    agent.seed(0)
    run = Run("Pendulum-v1", {"hidden": 8})
    run.agent = agent
    before = agent.learner.vectors["policy"].clone()
    run.until(14)
    assert agent.learner.updates == 4 * agent.updates_per_step
    assert not torch.equal(agent.learner.vectors["policy"], before)
    assert bool(agent.learner.q_values(torch.zeros(2, 3), torch.zeros(2, 1)).isfinite().all())


PUBLISHED = {"Hopper-v5": -1.0, "HalfCheetah-v5": -3.0, "Walker2d-v5": -3.0, "Ant-v5": -4.0, "Humanoid-v5": -2.0}


@pytest.mark.parametrize("recipe", ["sac", "redq", "droq"])
def test_published_target_entropies(recipe: str) -> None:
    for env, entropy in PUBLISHED.items():
        overlay = read_yaml(overlay_of(find_recipe(recipe), env))
        assert overlay["agent"]["init_args"]["learner"]["init_args"]["target_entropy"] == entropy
    assert "target_entropy: -1.0" in resolve(recipe, [("agent.learner.hidden", 8)], env="Hopper-v5").text


def train(recipe: str) -> list[str]:
    settings = ["steps=200", "num_envs=2", "seed=3", "env.max_episode_steps=25", "checkpoint.every=60"]
    settings += ["evaluation={every: 70, episodes: 2}", "agent.log_every=40", "agent.warmup_steps=30"]
    settings += ["agent.batch_size=8", "agent.capacity=90", "agent.learner.hidden=8", "agent.learner.critic_hidden=8"]
    return ["train", recipe, "--env", "Pendulum-v1", "--quiet", *(f"--{word}" for word in settings)]


@pytest.mark.parametrize("recipes", [["sac"], pytest.param(RECIPES[1:], marks=pytest.mark.slow)], ids=["sac", "others"])
@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_uninterrupted(recipes: list[str], resume_is_exact: Callable[..., None]) -> None:
    """Killed past the checkpoint at 120 env steps; the buffer has wrapped by then."""
    resume_is_exact({name: train(name) for name in recipes}, 133)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"updates_per_step": 0}, "updates_per_step"),
        ({"capacity": 0}, "capacity"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        OffPolicyAgent(env_spec("Pendulum-v1"), lambda spec: ActorCritic(spec, hidden=8), **options)
