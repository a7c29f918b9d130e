"""RLlib under the platform's loop: what is counted, recorded and saved, and that a run goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.rllib.agent import RLlibAgent
from agents.rllib.policy import RecurrentState
from experiments.config import resolve
from experiments.metrics import read_records
from experiments.run import RunDirectory
from experiments.session import Session, reopen
from mbrl.distributed.cluster import connect

KWARGS = "agent.init_args.kwargs"
SMALL: dict[str, list[tuple[str, Any]]] = {
    "rllib-ppo": [("train_batch_size_per_learner", 64), ("minibatch_size", 32), ("num_epochs", 2)],
    "rllib-sac": [
        ("train_batch_size_per_learner", 8),
        ("num_steps_sampled_before_learning_starts", 40),
        ("min_sample_timesteps_per_iteration", 20),
        ("replay_buffer_config", {"capacity": 500}),
    ],
    "rllib-dreamerv3": [("batch_size_B", 2), ("batch_length_T", 8), ("replay_buffer_config", {"capacity": 500})],
}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One for all runs; each would start its own."""
    with connect("local", num_cpus=2, object_store_bytes=100 * 2**20):
        yield


def session_of(recipe: str, env: str, *more: tuple[str, Any]) -> Session:
    small = [(f"{KWARGS}.{name}", value) for name, value in SMALL[recipe]]
    settings: list[tuple[str, Any]] = [("env.max_episode_steps", 30), ("evaluation.episodes", 2), ("seed", 3), *small]
    return Session(resolve(recipe, [*settings, ("agent.init_args.log_every", 20), *more], env))


def play(agent: RLlibAgent, rows: int = 3, steps: int = 4) -> list[Tensor]:
    """Greedy actions on fixed observations, of which the second is the first of another episode."""
    obs = torch.randn(steps, rows, agent.spec.obs_size, generator=torch.Generator().manual_seed(1))
    state, actions = agent.initial_actor_state(rows), []
    for t in range(steps):
        is_first, luck = torch.full((rows,), t < 2), torch.Generator().manual_seed(t)
        action, state, _ = agent.act(obs[t], state, is_first, "evaluate", luck)
        actions.append(action)
    return actions


def weights(agent: RLlibAgent) -> Tensor:
    """All of the policy's numbers: greedy choices may be the same by chance."""
    return torch.cat([part.flatten() for part in agent.policy.weights().values() if isinstance(part, Tensor)])


CASES = [
    ("rllib-ppo", "CartPole-v1", 130),
    ("rllib-ppo", "Pendulum-v1", 130),
    ("rllib-sac", "Pendulum-v1", 80),
    ("rllib-sac", "CartPole-v1", 80),
    ("rllib-dreamerv3", "CartPole-v1", 24),
    ("rllib-dreamerv3", "Pendulum-v1", 24),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("recipe", "env", "steps"), CASES, ids=[f"{recipe}-{env}" for recipe, env, _ in CASES])
def test_a_run_is_recorded_saved_and_goes_on(recipe: str, env: str, steps: int, tmp_path: Path) -> None:
    session = session_of(recipe, env, ("steps", 2 * steps), ("checkpoint.every", 20))
    run = session.create(str(tmp_path / "run"), [])
    agent = session.agent
    assert isinstance(agent, RLlibAgent)
    untrained = weights(agent)
    with session.loop(run, quiet=True) as loop:
        loop.started = True
        loop.begin()
        while loop.steps < steps:
            loop.advance()
        loop.save()
        trained, learned, updates, done = play(agent), weights(agent), loop.clock.updates, loop.steps
        rows = {name: buffer.total_added for name, buffer in agent.buffers.items()}
    session.close()
    assert agent.algorithm is None
    assert updates > 0
    assert not torch.equal(learned, untrained)
    assert set(rows.values()) <= {done}

    session = reopen(RunDirectory.open(run.path), [])
    agent = session.agent
    assert isinstance(agent, RLlibAgent)
    assert torch.equal(weights(agent), untrained)  # the control: nothing has been loaded yet
    with session.loop(RunDirectory.open(run.path), quiet=True) as loop:
        assert torch.equal(weights(agent), learned)
        assert all(map(torch.equal, trained, play(agent)))
        assert loop.steps == done
        result = loop.run()
        assert loop.steps >= 2 * steps
        assert loop.clock.updates > updates
        assert not torch.equal(weights(agent), learned)
        assert {name: buffer.total_added for name, buffer in agent.buffers.items()} == dict.fromkeys(rows, loop.steps)
        _replay_holds_all(agent, loop.steps)
    session.close()
    assert len(result["returns"]) == 2
    check_records(run.path, env)


def _replay_holds_all(agent: RLlibAgent, steps: int) -> None:
    if agent.buffers:
        assert agent.replay.get_num_timesteps() == steps


def check_records(run: Path, env: str) -> None:
    records = list(read_records(run / "metrics.jsonl"))
    ended = [record for record in records if record["event"] == "episode"]
    assert [record["episode"] for record in ended] == list(range(len(ended)))
    assert all(0 < record["length"] <= 30 for record in ended)
    if env == "CartPole-v1":  # a reward of 1 a step
        assert all(record["length"] == record["return"] for record in ended)
    assert sum(record["length"] for record in ended) <= records[-1]["env_steps"]
    (*_, update) = [record for record in records if record["event"] == "update"]
    assert any("loss" in name for name in update)


def test_dreamer_carries_a_state_that_an_episodes_start_clears() -> None:
    session = session_of("rllib-dreamerv3", "CartPole-v1")
    agent = session.agent
    begin, obs = agent.initial_actor_state(2), torch.ones(2, 4)
    assert isinstance(begin, RecurrentState)
    later = RecurrentState(begin.h + 1.0, begin.z, begin.a + 1.0)
    first = torch.tensor([True, False])
    _, fresh, _ = agent.act(obs, begin, first, "evaluate", torch.Generator().manual_seed(0))
    _, mixed, _ = agent.act(obs, later, first, "evaluate", torch.Generator().manual_seed(0))
    session.close()
    assert isinstance(fresh, RecurrentState)
    assert isinstance(mixed, RecurrentState)
    assert torch.equal(fresh.h[0], mixed.h[0])
    assert not torch.allclose(fresh.h[1], mixed.h[1])


def test_exploring_samples_and_evaluating_does_not() -> None:
    for recipe in ("rllib-ppo", "rllib-sac"):
        session = session_of(recipe, "Pendulum-v1")
        agent, obs = session.agent, torch.ones(64, 3)
        first, luck = torch.ones(64, dtype=torch.bool), torch.Generator().manual_seed(0)
        sampled, _, _ = agent.act(obs, agent.initial_actor_state(64), first, "explore", luck)
        mode, _, _ = agent.act(obs, agent.initial_actor_state(64), first, "evaluate", luck)
        session.close()
        assert sampled.std() > 0.1
        assert mode.std() < 1e-6
        assert sampled.abs().max() <= 1.0
