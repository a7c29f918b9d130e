"""The recipes hold the published numbers, environment by environment; controls act in the same task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator

from agents.actor_critic.learner import ActorCritic
from agents.dyna import DynaAgent
from experiments.config import RECIPES, list_recipes, make_one_env, overlay_of, resolve
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination.model_buffer import ModelBuffer
from mbrl.models.ensemble import ProbabilisticEnsemble


@dataclass(frozen=True)
class Published:
    """A row of the settings of MBPO (Janner et al., 2019, and its authors' code), whose epochs have ``epoch`` steps."""

    utd: int
    schedule: tuple[int, int, int, int]
    entropy: float
    every: int = 250
    retain: int = 1
    width: int = 200
    explore: int = 5000
    epoch: int = 1000

    def horizon(self, env_steps: int) -> int:
        """At ``env_steps``, of which the first ``explore`` lie outside the count of epochs."""
        e0, e1, k0, k1 = self.schedule
        share = min(max(((env_steps - self.explore) // self.epoch - e0) / (e1 - e0), 0.0), 1.0)
        return math.floor(k0 + share * (k1 - k0) + 1e-9)

    def capacity(self, horizon: int) -> int:
        return self.retain * horizon * (STARTS * self.epoch // self.every)


STARTS = 100_000
SMALL = {"explore": 500, "epoch": 250}
TABLE = {
    "InvertedPendulum-v5": Published(10, (1, 15, 1, 1), -0.05, **SMALL),
    "InvertedDoublePendulum-v5": Published(20, (1, 15, 1, 1), -0.5, **SMALL),
    "Hopper-v5": Published(20, (20, 150, 1, 15), -1.0),
    "Walker2d-v5": Published(20, (20, 150, 1, 1), -3.0),
    "HalfCheetah-v5": Published(40, (20, 150, 1, 1), -3.0),
    "Ant-v5": Published(20, (20, 100, 1, 25), -4.0),
    "Humanoid-v5": Published(20, (20, 300, 1, 25), -2.0, every=1000, retain=5, width=400),
}
STEPS = {
    "InvertedPendulum-v5": 20_000,
    "InvertedDoublePendulum-v5": 20_000,
    "Hopper-v5": 125_000,
    "Walker2d-v5": 300_000,
    "HalfCheetah-v5": 400_000,
    "Ant-v5": 300_000,
    "Humanoid-v5": 300_000,
}
DECAYS = [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
TRUNCATED = {"Ant-v5": 27, "Humanoid-v5": 45}
CONTROLS = {"sac", "redq", "droq", *(f"sb3-{name}" for name in ("sac", "td3", "ddpg", "ppo", "tqc", "crossq"))}


class Counted(ModelBuffer):
    """A model buffer of which only the capacity matters: rows are not kept."""

    def extend(self, rows: Transitions) -> None:
        pass


def made(env: str, *overrides: tuple[str, Any]) -> DynaAgent:
    """The recipe's agent, with a few real rows."""
    config = resolve("mbpo", overrides, env=env).config
    agent = config.agent(make_one_env(config.env)().env_spec)
    assert isinstance(agent, DynaAgent)
    agent.seed(0)
    agent.buffers["real"] = ReplayBuffer(8)
    agent.observe(rows(agent, 0.0))
    return agent


def rows(agent: DynaAgent, reward: float) -> Transitions:
    obs, ids = torch.zeros(4, agent.spec.obs_size), torch.zeros(4, dtype=torch.long)
    action, ended = torch.zeros(4, agent.spec.action.size), ids > 0
    return Transitions(obs, action, torch.full((4,), reward), obs, ended, ended, ids, ids, ids)


def fitted(agent: DynaAgent, env_steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Start states, horizon and capacity of the fit at ``env_steps``; nothing is trained, four rows are imagined."""
    asked: list[int] = []

    def four(buffer: ReplayBuffer, n: int, generator: Generator) -> Transitions:
        asked.append(n)
        return buffer.all()

    monkeypatch.setattr(agent, "starts", four)
    monkeypatch.setattr(agent, "imagined", Counted())
    monkeypatch.setattr(agent.fitter, "fit", lambda *arguments: {})
    report = agent.fit_model(Clock(env_steps=env_steps))
    return asked[0], report["horizon"], agent.imagined.capacity


def check_fits(agent: DynaAgent, row: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """k(e) at every fit; start states and the buffer's capacity at the first and the last horizon."""
    e1 = row.schedule[1]
    times = range(row.explore, row.explore + (e1 + 2) * row.epoch, row.every)
    assert [agent.horizon(t) for t in times] == [row.horizon(t) for t in times]
    for env_steps, k in ((row.explore, row.schedule[2]), (times[-1], row.schedule[3])):
        assert fitted(agent, env_steps, monkeypatch) == (STARTS, k, row.capacity(k))


def check_shares(agent: DynaAgent) -> None:
    """12 rows of every 256 are real, int(0.05 * 256) as in the published code."""
    agent.imagined = ModelBuffer(8)
    agent.imagined.extend(rows(agent, 1.0))
    drawn = agent.draw(3)
    assert drawn.reward.shape == (3, 256)
    assert (drawn.reward == 0.0).sum(1).tolist() == [12, 12, 12]


def check_model(model: ProbabilisticEnsemble, fitter: Fitter, row: Published) -> None:
    assert (model.members, len(model.get_buffer("elites")), model.score) == (7, 5, "mean")
    assert [weight.shape[1] for weight in model.weights][1:] == [row.width] * 4
    decays = {id(p): group["weight_decay"] for group in fitter_groups(model, fitter) for p in group["params"]}
    assert [decays[id(weight)] for weight in model.weights] == DECAYS
    assert {decays[id(bias)] for bias in model.biases} == {0.0}
    assert (fitter.lr, fitter.batch_size, fitter.holdout, fitter.max_holdout) == (1e-3, 256, 0.2, 5000)
    assert (fitter.fresh_holdout, fitter.improvement, fitter.patience) == (True, 0.01, 6)  # more than 5 epochs


def fitter_groups(model: ProbabilisticEnsemble, fitter: Fitter) -> list[dict[str, Any]]:
    return fitter._optimizer(model).param_groups


def check_learner(learner: ActorCritic, row: Published) -> None:
    rule, actor = learner.networks.rule, learner.networks.actor
    assert rule.target_entropy == row.entropy
    assert (rule.reducers, rule.lr, rule.tau, learner.gamma) == (
        ("min", "min"),
        {"critic": 3e-4, "policy": 3e-4},
        0.005,
        0.99,
    )
    assert (learner.critics, actor.hidden, actor.layers, learner.networks.critic.hidden) == (2, 256, 2, 256)


def check(agent: DynaAgent, row: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (agent.warmup_steps, agent.fit_every, agent.updates_per_step) == (row.explore, row.every, row.utd)
    assert agent.model_from == 0
    check_fits(agent, row, monkeypatch)
    check_shares(agent)
    assert isinstance(agent.model, ProbabilisticEnsemble)
    check_model(agent.model, agent.fitter, row)
    check_learner(agent.learner, row)


@pytest.mark.parametrize("env", TABLE)
def test_mbpo_has_the_published_numbers(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("mbpo", env=env).config.steps == STEPS[env]
    check(made(env), TABLE[env], monkeypatch)


WRONG: dict[str, tuple[str, Any]] = {
    "starts of a fit": ("agent.rollouts_per_step", 400),
    "fit interval": ("agent.fit_every", 250),
    "retain window": ("agent.retain_steps", 1000),
    "UTD": ("agent.updates_per_step", 10),
    "epochs from the first step on": ("agent.horizon.start_step", 20_000),
    "growth within an epoch": ("agent.horizon.every", 1),
    "last horizon": ("agent.horizon.end_horizon", 24),
    "exploration": ("agent.warmup_steps", 1000),
    "width": ("agent.model.hidden", 200),
    "score": ("agent.model.score", "geometric"),
    "entropy": ("agent.learner.target_entropy", -17.0),
    "real share": ("agent.real_ratio", 0.06),
    "weight decay": ("agent.fitter.weight_decay", 5e-5),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_number_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = "Hopper-v5" if "epoch" in name else "Humanoid-v5"  # Humanoid is fitted at the starts of epochs only
    agent = made(env, WRONG[name])
    with pytest.raises(AssertionError):
        check(agent, TABLE[env], monkeypatch)


@pytest.mark.parametrize("env", TRUNCATED)
def test_every_recipe_for_it_acts_in_the_same_truncated_task(env: str) -> None:
    recipes = [name for name in list_recipes() if overlay_of(RECIPES / f"{name}.yaml", env).is_file()]
    assert {"mbpo"} | CONTROLS <= set(recipes)
    tasks = {name: resolve(name, env=env).config.env for name in recipes}
    assert {name: make_one_env(task)().env_spec.obs_size for name, task in tasks.items()} == dict.fromkeys(
        recipes, TRUNCATED[env]
    )
    assert make_one_env(resolve("random", env=env).config.env)().env_spec.obs_size > TRUNCATED[env]  # untouched
