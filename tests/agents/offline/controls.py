"""The model-free controls as small learners, an agent around them, and random rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic, BehaviourCloning, Conservative, GradientDiversity
from agents.offline.base import Learner, OfflineAgent
from agents.offline.cloning import Cloning
from agents.offline.implicit_q import ImplicitQ
from envs.spec import ActionSpec, EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions

OBS, ACTIONS = 3, 2
TD3: dict[str, Any] = {
    "policy": "deterministic",
    "actor_reducer": "first",
    "policy_delay": 2,
    "target_delay": 2,
    "normalize_obs": True,
}


def spec_of(kind: str = "continuous") -> EnvSpec:
    discrete = ActionSpec("discrete", ACTIONS)
    action = discrete if kind == "discrete" else ActionSpec("continuous", ACTIONS, (-1, -1), (1, 1))
    return EnvSpec("toy", "0", "", OBS, action)


CONTROLS: dict[str, Callable[..., Any]] = {
    "bc": Cloning,
    "iql": ImplicitQ,
    "td3": lambda spec, **options: ActorCritic(spec, **TD3, **options),
    "td3bc": lambda spec, **options: ActorCritic(spec, **TD3, actor_terms=[BehaviourCloning(2.5)], **options),
    "cql": lambda spec, **options: ActorCritic(spec, terms=[Conservative(weight=5.0, samples=3)], **options),
    "edac": lambda spec, **options: ActorCritic(spec, critics=4, terms=[GradientDiversity(1.0)], **options),
}
"""``(spec, **options) -> learner``"""


def random_rows(*lead: int, kind: str = "continuous", seed: int = 0) -> Transitions:
    """Rows ``[*lead, ...]``; three in ten are terminated, the others truncated."""
    generator = Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, *lead, OBS, generator=generator)
    action = torch.rand(*lead, ACTIONS, generator=generator) * 2.0 - 1.0
    if kind == "discrete":
        action = torch.nn.functional.one_hot(action.argmax(-1), ACTIONS).float()
    reward, ended = torch.randn(lead, generator=generator), torch.rand(lead, generator=generator) < 0.3
    ids = torch.zeros(lead, dtype=torch.int64)
    return Transitions(obs, action, reward, next_obs, ended, ~ended, ids, ids, ids)


def agent_of(
    learner: Callable[[EnvSpec], Learner], data: ReplayBuffer, spec: EnvSpec, seed: int = 0, **options: Any
) -> OfflineAgent:
    agent = OfflineAgent(spec, learner, **options)
    agent.seed(seed)
    agent.load(data)
    return agent


def learn(agent: OfflineAgent, clock: Clock, updates: int) -> list[dict[str, Any]]:
    """Rounds until the clock shows ``updates``; what they logged."""
    logged = []
    while clock.updates < updates:
        logged.append(agent.update(clock))
    return logged


def tensors(state: Any) -> list[Tensor]:
    """Every tensor inside a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in tensors(value)]
