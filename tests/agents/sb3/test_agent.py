"""The parts around the library: its view of the environments, its memory, its state, and what it refuses."""

from __future__ import annotations

import copy
import gc
import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.base import ActorState
from agents.sb3.agent import SB3Agent
from agents.sb3.loop_env import LoopEnv
from agents.sb3.replay import RingReplay
from envs.errors import UserError
from envs.registry import env_spec
from envs.spec import EnvSpec
from experiments.session import seed_everything
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions

PENDULUM, CARTPOLE = env_spec("Pendulum-v1"), env_spec("CartPole-v1")
SMALL = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8}


class Scripted:
    """``slots`` episodes of 5 steps that end in turn by termination, by truncation and by both."""

    def __init__(self, spec: EnvSpec, slots: int) -> None:
        self.size, self.slots, self.count = spec.obs_size, slots, 0
        self.obs = torch.ones(slots, self.size)

    def current(self) -> tuple[Tensor, Tensor]:
        return self.obs, torch.full((self.slots,), self.count % 5 == 0)

    def collect(self, action: Tensor, extra: dict[str, Tensor] | None = None) -> Transitions:
        episode, step = divmod(self.count, 5)
        next_obs = 0.8 * self.obs + 0.5 * action[:, :1]
        ids = torch.full((self.slots,), episode), torch.full((self.slots,), step)
        way = torch.full((self.slots,), episode % 3 if step == 4 else -1)
        rows = Transitions(
            self.obs, action, -next_obs[:, 0].abs(), next_obs, way % 2 == 0, way >= 1, *ids, torch.zeros_like(ids[0])
        )
        self.count += 1
        self.obs = torch.ones_like(next_obs) if step == 4 else next_obs
        return rows


def build(algorithm: Any, spec: EnvSpec = PENDULUM, slots: int = 1, steps: int = 200, **kwargs: Any) -> SB3Agent:
    agent = SB3Agent(spec, algorithm, SMALL | kwargs)
    torch.manual_seed(0)
    agent.setup(slots, steps)
    agent.seed(0)
    seed_everything(0)
    return agent


# -- what the library sees -----------------------------------------------------------------------------------------


def test_ends_are_told_apart_as_the_library_needs_it() -> None:
    env, scripted = LoopEnv(PENDULUM, 2), Scripted(PENDULUM, 2)
    env.environments = scripted
    cuts, ends = [], []
    for _ in range(15):
        obs, reward, done, infos = env.step(np.zeros((2, 1), dtype=np.float32))
        assert env.transitions is not None
        cuts.append(infos[0]["TimeLimit.truncated"])
        ends.append(bool(done[0]))
        assert ("terminal_observation" in infos[1]) == ends[-1]
        if ends[-1]:
            assert np.array_equal(infos[1]["terminal_observation"], env.transitions.next_obs[1].numpy())
            assert np.array_equal(obs, np.ones((2, 3)))
        reward += 1.0  # PPO does so; what the loop stores stays as it was
        assert np.array_equal(env.transitions.reward.numpy() + 1.0, reward)
    assert [i for i, end in enumerate(ends) if end] == [4, 9, 14]
    assert [i for i, cut in enumerate(cuts) if cut] == [9]  # the third end is a termination as well


def test_discrete_actions_go_out_one_hot_and_are_stored_as_the_library_stores_them() -> None:
    agent = build("dqn", CARTPOLE, slots=2, learning_starts=4, train_freq=1)
    scripted = Scripted(CARTPOLE, 2)
    for _ in range(6):
        agent.advance(scripted)
    ring = agent.buffers["real"]
    assert ring.columns["action"][:12].sum(1).eq(1).all()
    assert ring.columns["extra.choice"][:12, 0].long().equal(ring.columns["action"][:12].argmax(1))


@pytest.mark.parametrize("told_apart", [True, False])
def test_the_ring_is_what_the_library_would_have_kept(told_apart: bool) -> None:
    """Rows in order of time, slot by slot; wrapped; time limits told apart, or not when the user says so."""
    options = {"handle_timeout_termination": told_apart}
    agent = build("sac", slots=2, buffer_size=13, learning_starts=1000, replay_buffer_kwargs=options)
    scripted = Scripted(PENDULUM, 2)
    for _ in range(15):
        agent.advance(scripted)
    buffer: RingReplay = agent.model.replay_buffer  # type: ignore[attr-defined]
    assert (buffer.buffer_size, len(buffer.ring), buffer.pos, buffer.full) == (6, 12, 3, True)
    newest = buffer.ring.all()
    assert newest.step.tolist() == [i % 5 for i in range(9, 15) for _ in range(2)]
    assert np.shares_memory(buffer.observations, buffer.ring.columns["obs"].numpy())
    assert buffer.dones[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]  # rounds 12, 13, 14 and, still, 9, 10, 11
    cut = newest.truncated & ~newest.terminated & told_apart
    assert newest.extra["timeout"].equal(cut.float())
    assert newest.extra["timeout"].any() == told_apart


def test_acting_is_deterministic_and_leaves_no_trace() -> None:
    agent = build("crossq", learning_starts=4)
    scripted = Scripted(PENDULUM, 1)
    for _ in range(8):
        agent.advance(scripted)
    before, states = copy.deepcopy(agent.state_dict()), (np.random.get_state()[1], torch.get_rng_state())
    obs, none = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.bool)
    actions = [agent.act(obs, ActorState(), none, "evaluate", torch.Generator().manual_seed(i))[0] for i in range(2)]
    sampled = [agent.act(obs, ActorState(), none, "explore", torch.Generator().manual_seed(i))[0] for i in (1, 1, 2)]
    assert actions[0].shape == (5, 1)
    assert actions[0].equal(actions[1])
    assert sampled[0].equal(sampled[1])
    assert not sampled[0].equal(sampled[2])
    assert np.array_equal(states[0], np.random.get_state()[1])  # type: ignore[arg-type]
    assert states[1].equal(torch.get_rng_state())
    assert same(agent.state_dict(), before)


# -- state ---------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


NOISE = {"kind": "ornstein-uhlenbeck", "std": 0.3}
PARTS = ["counters", "parameters", "variables", "noise", "metrics", "action_space"]


@pytest.mark.parametrize("forgotten", [None, *PARTS])
def test_an_agent_goes_on_from_its_state_and_needs_all_of_it(forgotten: str | None) -> None:
    """Each part of the state is left as a new agent has it, in turn; then what follows is something else."""
    rounds = 6 if forgotten == "action_space" else 26  # warm-up actions come from the action space
    kwargs = {"learning_starts": 15, "action_noise": NOISE, "learning_rate": {"start": 1e-2, "end": 0.0}}
    first, second = build("sac", slots=2, **kwargs), build("sac", slots=2, **kwargs)
    scripted = Scripted(PENDULUM, 2)
    for _ in range(rounds):
        first.advance(scripted)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    if forgotten is not None:
        state[forgotten] = copy.deepcopy(second.state_dict()[forgotten])
    second.load_state_dict(state)
    second.buffers["real"].extend(first.buffers["real"].all())
    outcomes = []
    for agent in (first, second):
        seed_everything(7)
        environments = copy.deepcopy(scripted)
        for _ in range(7):
            agent.advance(environments)
        seen = agent.update(Clock(env_steps=1000, previous_env_steps=0))
        outcomes.append((seen, environments.obs, agent.state_dict()))
    assert same(outcomes[0], outcomes[1]) == (forgotten is None)


def test_nothing_is_kept_for_each_step() -> None:
    agent, scripted = build("dqn", CARTPOLE, slots=2, buffer_size=50, learning_starts=20), Scripted(CARTPOLE, 2)

    def objects_after(rounds: int) -> int:
        for _ in range(rounds):
            agent.advance(scripted)
        gc.collect()
        return len(gc.get_objects())

    objects_after(50)
    assert -objects_after(10) + objects_after(200) < 50
    assert agent.buffers["real"].columns["obs"].shape == (50, 4)


# -- what is refused -----------------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("sac", {"lerning_rate": 1e-3}, "lerning_rate", "learning_rate"),
    ("sac", {"learning_rate": "fast"}, "learning_rate", "a number"),
    ("sac", {"learning_rate": -1.0}, "learning_rate", "at least 0"),
    ("sac", {"learning_rate": {"start": 1e-3}}, "learning_rate.end", "missing"),
    ("sac", {"learning_rate": {"start": 1e-3, "end": 0.0, "speed": 1}}, "learning_rate.speed", "no such key"),
    ("sac", {"batch_size": 0}, "batch_size", "at least 1"),
    ("sac", {"batch_size": 2.5}, "batch_size", "a whole number"),
    ("sac", {"batch_size": True}, "batch_size", "a whole number"),
    ("sac", {"gamma": float("nan")}, "gamma", "from 0.0 to 1.0"),
    ("sac", {"ent_coef": "aut"}, "ent_coef", "auto"),
    ("sac", {"train_freq": [1, "epoch"]}, "train_freq", "episode"),
    ("sac", {"action_noise": {"kind": "norml", "std": 0.1}}, "action_noise.kind", "normal"),
    ("sac", {"action_noise": 0.1}, "action_noise", "kind, std"),
    ("sac", {"seed": 3}, "seed", "the run's seed"),
    ("sac", {"optimize_memory_usage": True}, "optimize_memory_usage", "platform's buffers"),
    ("sac", {"policy_kwargs": {"net_arch": "64"}}, "policy_kwargs.net_arch", "layer widths"),
    ("sac", {"policy_kwargs": {"net_arch": {"pi": [8], "vq": [8]}}}, "policy_kwargs.net_arch.vq", "qf"),
    ("sac", {"policy_kwargs": {"activation_fn": "Relu"}}, "policy_kwargs.activation_fn", "ReLU"),
    ("sac", {"policy_kwargs": {"use_sde": True}}, "policy_kwargs.use_sde", "beside"),
    ("sac", {"policy_kwargs": {"ortho_init": True}}, "policy_kwargs.ortho_init", "no argument of this name"),
    ("sac", {"policy_kwargs": [64]}, "policy_kwargs", "mapping"),
    ("ppo", {"action_noise": None}, "action_noise", "no argument of this name"),
    ("ppo", {"clip_range": None}, "clip_range", "a number"),
    ("ppo", {"batch_size": 1}, "kwargs", "greater than 1"),
]


@pytest.mark.parametrize(("algorithm", "kwargs", "field", "hint"), BAD, ids=[f"{b[2]}-{i}" for i, b in enumerate(BAD)])
def test_a_bad_argument_is_named(algorithm: Any, kwargs: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(UserError, match=re.escape(hint)) as caught:
        SB3Agent(PENDULUM, algorithm, kwargs).setup(1, 100)
    assert caught.value.field == ("agent.init_args.kwargs" + (f".{field}" if field != "kwargs" else ""))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="CartPole-v1 has discrete actions; for those there are dqn, ppo"):
        SB3Agent(CARTPOLE, "sac")
    with pytest.raises(UserError, match="Pendulum-v1 has continuous actions"):
        SB3Agent(PENDULUM, "dqn")
    with pytest.raises(UserError, match="num_envs: 1"):
        SB3Agent(PENDULUM, "sac", {"train_freq": [1, "episode"]}).setup(2, 100)
    with pytest.raises(UserError, match="MlpPolicy"):
        SB3Agent(PENDULUM, "sac", policy="CnnPolicy")
    with pytest.raises(UserError, match="log_every"):
        SB3Agent(PENDULUM, "sac", log_every=0)


def test_options_reach_the_library() -> None:
    network = {"net_arch": {"pi": [5], "qf": [7, 6]}, "activation_fn": "Tanh", "optimizer_class": "RMSprop"}
    agent = SB3Agent(PENDULUM, "sac", {"policy_kwargs": network, "target_entropy": -3.0, "n_steps": 2, "gamma": 0.9})
    agent.setup(2, 100)
    model: Any = agent.model
    assert [layer.out_features for layer in model.actor.latent_pi if hasattr(layer, "out_features")] == [5]
    assert isinstance(model.critic.qf0[1], torch.nn.Tanh)
    assert type(model.actor.optimizer) is torch.optim.RMSprop
    assert model.target_entropy == -3.0
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (2, 0.9)
