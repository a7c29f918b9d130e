"""RLlib's networks as far as acting needs them: no Ray, no learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.base import ActorState
from agents.rllib.plain import from_plain, to_plain
from envs.spec import EnvSpec


@dataclass
class RecurrentState(ActorState):
    """What DreamerV3 carries: its deterministic and categorical state, and the last action (one-hot if discrete)."""

    h: Tensor
    """``[N, G]``"""
    z: Tensor
    """``[N, K, C]``"""
    a: Tensor
    """``[N, A]``"""


class Policy(ABC):
    """An inference-only RLModule of an algorithm's configuration, freshly initialised by torch's global generator."""

    def __init__(self, config: Any, spec: EnvSpec) -> None:
        self.spec = spec
        self.module: Any = config.get_rl_module_spec(inference_only=True).build()

    def initial_state(self, slots: int) -> ActorState:
        """Before the first decision of ``slots`` environment slots."""
        return ActorState()

    @abstractmethod
    def act(self, obs: Tensor, state: ActorState, is_first: Tensor, explore: bool) -> tuple[Tensor, ActorState]:
        """Platform actions ``[N, A]``: the policy's mode, or a sample by torch's global generator to explore."""

    def weights(self) -> dict[str, Any]:
        """Tensors and numbers by name."""
        weights: dict[str, Any] = to_plain(self.module.get_state(inference_only=True))
        return weights

    def load(self, weights: dict[str, Any]) -> None:
        """Take the weights of a module of this kind."""
        self.module.set_state(from_plain(weights))

    def _platform(self, action: Tensor) -> Tensor:
        """What RLlib's connectors do to actions on the way to the environment."""
        return self.spec.action.from_env(action) if self.spec.action.discrete else action.clamp(-1.0, 1.0)


class FeedForward(Policy):
    """PPO's and SAC's: parameters of a distribution from an observation."""

    def act(self, obs: Tensor, state: ActorState, is_first: Tensor, explore: bool) -> tuple[Tensor, ActorState]:
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        parameters = forward({"obs": obs})["action_dist_inputs"]
        if explore:
            return self._platform(self.module.get_exploration_action_dist_cls().from_logits(parameters).sample()), state
        mode = self.module.get_inference_action_dist_cls().from_logits(parameters).to_deterministic()
        return self._platform(mode.sample()), state


class Recurrent(Policy):
    """DreamerV3's: the actor sees a posterior state that is filtered from observations and actions."""

    def initial_state(self, slots: int) -> ActorState:
        first = self.module.get_initial_state()
        rows = {name: part.detach().float().expand(slots, *part.shape).clone() for name, part in first.items()}
        return RecurrentState(**rows)

    def act(self, obs: Tensor, state: ActorState, is_first: Tensor, explore: bool) -> tuple[Tensor, ActorState]:
        assert isinstance(state, RecurrentState)
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        before = {"h": state.h, "z": state.z, "a": state.a}
        out = forward({"obs": obs[:, None], "is_first": is_first.float(), "state_in": before})
        after = {name: out["state_out"][name].float() for name in ("h", "z", "a")}
        after["a"] = after["a"].reshape(len(obs), -1)
        return self._platform(out["actions"][:, 0]), RecurrentState(**after)


def make_policy(algorithm: str, config: Any, spec: EnvSpec) -> Policy:
    """Networks with new weights. Draws from torch's global generator."""
    with torch.no_grad():
        return (Recurrent if algorithm == "dreamerv3" else FeedForward)(config, spec)
