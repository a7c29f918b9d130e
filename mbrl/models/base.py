"""The contract of a dynamics model, and the capabilities that some models add to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions

Propagation = Literal["trajectory", "step", "mean", "all"]
"""Which ensemble member moves a particle: one for the whole trajectory (TS-inf), a new one each step (TS1), the mean
of all, or every member its own particle without sampled noise."""
PROPAGATIONS: tuple[str, ...] = get_args(Propagation)

Estimator = Literal["std_of_means", "std_of_samples", "largest_std", "one_vs_rest_kl"]
"""Named uncertainty estimators: std over members of their means; of their samples (adds aleatoric noise); the largest
member's own std (MOPO); mean KL of one member against the rest (COPlanner's references)."""


@dataclass
class State(Record):
    """What a model carries from step to step. The memoryless state is the raw observation ``[B, D]``."""

    obs: Tensor


@dataclass
class Step(Record):
    """One imagined step of ``B`` rows."""

    state: State
    reward: Tensor
    """``[B]``"""
    terminated: Tensor
    """``[B]`` bool"""
    truncated: Tensor
    """``[B]`` bool: the state left the model's validity box"""
    member: Tensor | None = None
    """``[B]`` int64: the network that moved the row, where the model has several"""


@dataclass
class Trajectory(Record):
    """``H`` imagined steps of ``P`` particles for each of ``B`` rows; decoded only where somebody asks."""

    states: State
    """``[H + 1, P, B, ...]``, the first is where it started"""
    reward: Tensor
    """``[H, P, B]``, not yet masked by ``terminated``"""
    terminated: Tensor
    """``[H, P, B]`` bool: this step ended the episode"""
    truncated: Tensor
    """``[H, P, B]`` bool"""

    def alive(self) -> Tensor:
        """``[H, P, B]`` float: 1 while no *earlier* step has ended the episode (the ending step still counts)."""
        ended = self.terminated.to(self.reward.dtype).cumsum(0)
        return (torch.cat([torch.zeros_like(ended[:1]), ended[:-1]]) < 0.5).to(self.reward.dtype)


class Prediction(Protocol):
    """What all ``E`` members say of one step, before one of them is chosen. Differentiable."""

    @property
    def mean(self) -> Tensor:
        """``[E, B, D + 1]``: next observation, then reward."""

    @property
    def log_var(self) -> Tensor:
        """``[E, B, ·]``: log-variance of the model's own target, in the target's units."""

    def sample(self, k: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """``k`` draws of (next_obs ``[E, k, B, D]``, reward ``[E, k, B]``)."""

    def log_prob(self, next_obs: Tensor, reward: Tensor) -> Tensor:
        """``[E, B]``."""


class DynamicsModel(nn.Module, ABC):
    """``p(state', reward, end | state, action)``. Observations are raw; actions are platform actions.

    A memoryless model implements :meth:`step`; the rest follows. One that is trained by gradient adds :meth:`loss`.
    """

    members: int = 1
    """Networks that are trained side by side. With more than one, the first dimension of every parameter is theirs."""
    window: int = 1
    """Consecutive steps of one training example; its batches are ``[members, B, window, ...]`` when above 1."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.spec = spec

    def encode(self, obs: Tensor, task: Tensor | None = None, sim_state: Tensor | None = None) -> State:
        """The state after seeing ``obs [B, D]`` at an episode's start. ``sim_state`` is for simulators only."""
        return State(obs)

    def observe(
        self,
        state: State | None,
        prev_action: Tensor | None,
        obs: Tensor,
        is_first: Tensor,
        task: Tensor | None = None,
        sim_state: Tensor | None = None,
    ) -> State:
        """Filtering: the state after acting with ``prev_action`` and seeing ``obs``; rows with ``is_first`` start anew.

        Models with memory override this; for memoryless ones it is :meth:`encode`.
        """
        return self.encode(obs, task, sim_state)

    @abstractmethod
    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        """One step of ``B`` rows. ``generator=None`` means no sampled noise, and a learned end where it is likely.

        With a generator, a learned end is sampled like everything else.
        """

    def decode(self, state: State) -> Tensor:
        """Observations ``[..., D]`` of states."""
        return state.obs

    def rollout(
        self,
        state: State,
        actions: Tensor,
        generator: Generator | None,
        *,
        particles: int = 1,
        propagation: Propagation = "trajectory",
    ) -> Trajectory:
        """Follow ``actions [H, B, A]`` from ``state [B]`` with ``particles`` particles a row.

        Stochastic models override this and draw random numbers for each particle and step, common to all rows
        (common random numbers): rows compare under the same luck, and a row's result does not depend on which other
        rows travel beside it.
        """
        rows = actions.shape[1]
        states, steps = [state.map(lambda x: x.repeat(particles, *[1] * (x.dim() - 1)))], []
        for action in actions:
            steps.append(self.step(states[-1], action.repeat(particles, 1), generator))
            states.append(steps[-1].state)

        def fold(x: Tensor) -> Tensor:
            return x.view(len(x), particles, rows, *x.shape[2:])

        stacked = Step.stack(steps).map(fold)
        return Trajectory(State.stack(states).map(fold), stacked.reward, stacked.terminated, stacked.truncated)

    def check_particles(self, particles: int, propagation: Propagation) -> None:
        """Raise ``UserError`` when :meth:`rollout` would refuse these options, so that it is known before a run."""

    def bind(self, task: int | None = None) -> DynamicsModel:
        """A model with weights, normalisers and task fixed, for many fast steps; call again after every fit."""
        return self

    # -- training by gradient, see mbrl.fitting ----------------------------------------------------------------------

    def prepare(self, data: Transitions) -> Any:
        """Training rows made of raw transitions ``[N]`` once a fit (features, targets): any record with ``N`` rows."""
        return data

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss, and what to log, on prepared rows whose tensors are ``[members, B, ...]`` (with a
        :attr:`window`, ``[members, B, window, ...]``). With several members it is the sum of their losses; these,
        ``member_losses [members]`` among what to log, make the reported loss the same bits however they are split.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient: it has no loss(batch)")

    def holdout_score(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """``[members]`` score of held-out prepared rows ``[B, ...]``, lower is better (default: the loss)."""
        with torch.no_grad():
            loss, metrics = self.loss(batch.map(lambda x: x.expand(self.members, *x.shape)))
        return loss.expand(self.members), metrics

    def set_elites(self, score: Tensor) -> None:
        """Hear the members' holdout scores after a fit; ensembles choose whom to predict with."""

    def calibrate(self, held: Transitions, generator: Generator) -> dict[str, float]:
        """Hear the rows that a fit has held out (all rows if none were), after it; what to log. Models that settle
        something on unseen data (how often to re-encode, say) do it here.
        """
        return {}

    def parameter_groups(self, weight_decay: float | Sequence[float]) -> list[dict[str, Any]]:
        """Groups for the optimiser (default: decay on everything); models with layers take a decay for each of them."""
        if isinstance(weight_decay, Sequence):
            raise UserError("weight_decay", weight_decay, f"give one number: {type(self).__name__} has no layers")
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


@runtime_checkable
class HasDistribution(Protocol):
    """Models that say how unsure they are."""

    def predict(self, state: State, action: Tensor) -> Prediction: ...

    def uncertainty(self, state: State, action: Tensor, kind: Estimator) -> Tensor:
        """``[B]``"""


@dataclass
class LinearParts(Record):
    """A lifted model, float64: ``z' = A z + B u + sum_i u_i N_i z``, ``obs = C z + offset``; ``u`` in [-1, 1]."""

    a: Tensor
    """``[N, N]``"""
    b: Tensor
    """``[N, A]``"""
    c: Tensor
    """``[D, N]``"""
    offset: Tensor
    """``[D]``"""
    bilinear: Tensor | None = None
    """``[A, N, N]``; None when the action enters linearly"""


@runtime_checkable
class LatentLinear(Protocol):
    """Models whose state moves linearly in coordinates of its own."""

    def lift(self, obs: Tensor) -> Tensor:
        """``[..., D] -> [..., N]``"""

    def linear_parts(self) -> LinearParts: ...


@runtime_checkable
class ParallelRollout(Protocol):
    """Models that can follow many actions without decoding in between."""

    def rollout_latent(self, latent: Tensor, actions: Tensor) -> Tensor:
        """``[H, B, N]``: latents after each of ``actions [H, B, A]`` from ``latent [B, N]``."""


@runtime_checkable
class TaskConditioned(Protocol):
    """Models of several tasks that come one after another, told apart by whole-number ids.

    One task is open at a time: the unbound model speaks of it and is trained on it. ``bind(task)`` gives a fixed
    model of any task that was started.
    """

    @property
    def tasks(self) -> list[int]:
        """Ids in the order in which they were started."""

    def start_task(self, task: int, generator: Generator, spec: EnvSpec | None = None) -> None:
        """Open a new task; ``spec`` is its environment. Raises ``UserError`` on an id that has been there."""

    def end_task(self, task: int, data: Transitions, generator: Generator) -> None:
        """Close the open task, whose rows ``data [N]`` are; what the model keeps of them it says."""

    def bind(self, task: int | None = None) -> DynamicsModel:
        """A model of one task (default: the open one). Raises ``UserError`` on an unknown id."""


Capability = TypeVar("Capability")


class LacksCapability(UserError):
    """A part asked a model for what it does not offer."""


def require(model: DynamicsModel, capability: type[Capability]) -> Capability:
    """``model`` as that capability, or a :class:`LacksCapability` that names the models which have it."""
    if isinstance(model, capability):
        return model
    have = sorted(kind.__name__ for kind in _subclasses(DynamicsModel) if _offers(kind, capability))
    fix = f"it does not offer {capability.__name__}; models that do: {', '.join(have) or 'none'}"
    raise LacksCapability("model", type(model).__name__, fix)


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [deep for sub in kind.__subclasses__() for deep in (sub, *_subclasses(sub))]


def _offers(kind: type[Any], capability: type[Any]) -> bool:
    wanted = [name for name in vars(capability) if not name.startswith("_")]
    return all(hasattr(kind, name) for name in wanted)
