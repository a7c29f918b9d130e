"""What is said of RLlib before RLlib runs: settings by name and kind, its environments, its rows in our memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

from agents.rllib.agent import RLlibAgent
from agents.rllib.environment import FlatEnv, _make
from agents.rllib.plain import from_plain, learner_metrics, to_plain
from agents.rllib.replay import Recorder, episodes_of
from agents.rllib.settings import make_config
from envs.errors import UserError
from envs.registry import Surroundings, env_spec, make_env
from mbrl.data.buffer import ReplayBuffer

PENDULUM, CARTPOLE = env_spec("Pendulum-v1"), env_spec("CartPole-v1")


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_reach_the_methods_of_rllib_that_take_them() -> None:
    given = {"gamma": 0.9, "lr": [[0, 1e-3], [100, 0.0]], "rollout_fragment_length": 7, "clip_param": 0.1}
    config = make_config(PENDULUM, "ppo", given | {"model": {"fcnet_hiddens": [8]}})
    assert (config.gamma, config.clip_param, config.rollout_fragment_length) == (0.9, 0.1, 7)
    assert config.lr == [[0, 1e-3], [100, 0.0]]
    assert config.model_config["fcnet_hiddens"] == [8]
    assert config.observation_space.shape == (3,)
    assert (config.action_space.low, config.action_space.high) == (-1.0, 1.0)  # Pendulum's own are 2


WRONG: list[tuple[str, Mapping[str, Any], str, str]] = [
    ("ppo", {"clip_parm": 0.1}, "kwargs.clip_parm", "clip_param"),
    ("sac", {"clip_param": 0.1}, "kwargs.clip_param", "no setting of this name"),
    ("sac", {"lr": 1e-3}, "kwargs.lr", "actor_lr"),
    ("dreamerv3", {"model": {}}, "kwargs.model", "model_size"),
    ("ppo", {"train_batch_size": 10}, "kwargs.train_batch_size", "train_batch_size_per_learner"),
    ("ppo", {"learner_class": "os.system"}, "kwargs.learner_class", "plain values"),
    ("ppo", {"gamma": "high"}, "kwargs.gamma", "give a number"),
    ("ppo", {"use_gae": 1}, "kwargs.use_gae", "true or false"),
    ("ppo", {"model": {"fcnet_hidens": [8]}}, "kwargs.model.fcnet_hidens", "fcnet_hiddens"),
    ("sac", {"replay_buffer_config": {"capasity": 5}}, "replay_buffer_config.capasity", "capacity"),
    ("ppo", {"minibatch_size": 5000}, "kwargs", "minibatch_size"),
    ("dreamerv3", {"train_critic": False}, "kwargs", "train_critic"),
    ("dreamerv3", {"model_size": "tiny"}, "kwargs.model_size", "nano"),
    ("ppo", {"model": {"fcnet_activation": "sine"}}, "kwargs", "cannot build networks"),
    ("impala", {}, "algorithm", "dreamerv3"),
]


@pytest.mark.parametrize(("algorithm", "kwargs", "field", "said"), WRONG)
def test_wrong_settings_are_named(algorithm: Any, kwargs: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(UserError, match=field) as error:
        RLlibAgent(CARTPOLE, algorithm, kwargs).setup(1, 100)
    assert said in str(error.value)


def test_environments_are_divided_among_runners() -> None:
    agent = RLlibAgent(CARTPOLE, "ppo", num_env_runners=2)
    agent.setup(4, 100)
    assert agent.config.num_envs_per_env_runner == 2
    for wrong in (1, 3):
        with pytest.raises(UserError, match=f"num_envs: {wrong}.*multiple"):
            RLlibAgent(CARTPOLE, "ppo", num_env_runners=2).setup(wrong, 100)


# -- environments ----------------------------------------------------------------------------------------------------


def test_an_environment_speaks_the_platforms_units() -> None:
    env, own = (
        _make(Surroundings({}, ()), {"id": "Pendulum-v1", "max_episode_steps": 3}),
        make_env("Pendulum-v1", max_episode_steps=3),
    )
    assert isinstance(env, FlatEnv)
    assert env.action_space.high == 1.0
    assert env.reset(seed=3)[0].dtype == np.float32
    own.reset(seed=3)
    for _ in range(3):
        (obs, reward, *ends, _), (want, value, *over, _) = env.step(np.ones(1)), own.step(np.ones(1))
        assert np.allclose(obs, want)
        assert (reward, ends) == (value, over)
        assert obs.dtype == np.float32
    assert ends == [False, True]


def test_an_environment_needs_a_name() -> None:
    with pytest.raises(UserError, match=r"env_config\.id"):
        _make(Surroundings({}, ()), {})


# -- state -----------------------------------------------------------------------------------------------------------


def test_state_becomes_plain_and_comes_back() -> None:
    state = {"w": np.arange(3.0, dtype=np.float32), "deep": {0: [np.float64(0.5), (1, None)]}, "name": "adam"}
    plain = to_plain(state)
    assert type(plain["deep"][0][0]) is float
    assert plain["w"].dtype == torch.float32
    state["w"] += 1.0  # what was saved stays as it was
    assert from_plain(plain)["w"].tolist() == [0.0, 1.0, 2.0]
    assert from_plain(plain)["deep"] == {0: [0.5, (1, None)]}


def test_metrics_are_numbers_that_tell_of_learning() -> None:
    told = {"ACTOR_L": np.float64(2.0), "num_steps": 3, "weights_seq_no": 5.0, "nothing": float("nan"), "timers": {}}
    assert learner_metrics(told) == {"actor_l": 2.0}


# -- rows ------------------------------------------------------------------------------------------------------------


def piece(name: str, first: int, length: int, discrete: bool, end: str = "") -> SingleAgentEpisode:
    """Steps ``first`` and after of an episode whose observations count up from 10 times its name."""
    base = 10 * int(name)
    actions: Any = [np.int64((first + i) % 2) for i in range(length)]
    if not discrete:
        actions = [np.array([0.1 * (first + i)], dtype=np.float32) for i in range(length)]
    return SingleAgentEpisode(
        id_=name,
        observations=[np.full(3 + discrete, base + first + i, dtype=np.float32) for i in range(length + 1)],
        actions=actions,
        rewards=[float(base + first + i) for i in range(length)],
        terminated=end == "terminated",
        truncated=end == "truncated",
        t_started=first,
        len_lookback_buffer=0,
    ).to_numpy()


@pytest.mark.parametrize("discrete", [False, True])
def test_rows_of_interleaved_episodes_come_back_as_episodes(discrete: bool) -> None:
    spec = CARTPOLE if discrete else PENDULUM
    ring, library = ReplayBuffer(100), EpisodeReplayBuffer(capacity=100)
    recorder = Recorder(ring, spec)
    recorder.attach(library)
    library.add([piece("1", 0, 2, discrete), piece("2", 0, 3, discrete)])
    recorder.version = 4
    library.add([piece("1", 2, 2, discrete, "terminated"), piece("2", 3, 1, discrete, "truncated")])
    library.add(piece("3", 0, 2, discrete))
    rows = ring.all()
    assert rows.episode.tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 2, 2]
    assert rows.step.tolist() == [0, 1, 0, 1, 2, 2, 3, 3, 0, 1]
    assert rows.policy_version.tolist() == [0] * 5 + [4] * 5
    assert rows.terminated.nonzero().flatten().tolist() == [6]
    assert rows.truncated.nonzero().flatten().tolist() == [7]
    assert torch.equal(rows.next_obs, rows.obs + 1.0)
    back = list(episodes_of(ring, spec))
    assert [len(episode) for episode in back] == [4, 4, 2]
    for was, now in zip(library.episodes, back, strict=True):
        for part in ("observations", "actions", "rewards"):
            assert np.allclose(getattr(was, f"get_{part}")(), getattr(now, f"get_{part}")()), part
        assert (was.is_terminated, was.is_truncated) == (now.is_terminated, now.is_truncated)
    assert Recorder(ring, spec)._next == 3


def test_a_buffer_that_is_not_watched_writes_nothing() -> None:
    ring, library = ReplayBuffer(10), SimpleNamespace(add=lambda episodes: None)
    library.add([piece("1", 0, 2, False)])
    assert len(ring) == 0
