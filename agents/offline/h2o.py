"""A dataset of the real system and a simulator that is not quite it: learn from both, doubt the simulator's rows.

Niu, Sharma, Qiu, Li, Zhou, Hu, Zhan, "When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online
Reinforcement Learning", 2022 (H2O).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.actor_critic.learner import ActorCritic
from agents.actor_critic.terms import CriticContext, CriticTerm
from agents.common import RunningMean
from agents.offline.base import OfflineAgent
from envs.errors import UserError
from envs.pool import EnvPool
from envs.registry import make_env
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_buffer import mixed_batches
from mbrl.models.dynamics_ratio import DynamicsRatio

LOG_GAP = "log_gap"
"""The column that says how far the simulator's dynamics are from the real ones, as ``log u(s, a)``"""
LARGEST_REGULARIZER = 1000.0


class SimulatedValues(CriticTerm):
    """Pushes values of simulated rows down where the dynamics differ, and values of real rows up.

    ``beta * clip(T log sum_sim exp(Q / T + log w) - mean_real Q, +-1000)`` for every critic, ``w`` the gaps ``u`` of
    the batch's simulated rows divided by their sum.

    Args:
        beta: the weight, 0.01 as published.
        temperature: ``T``, 1 as published: where values of a batch differ by much more than it, only the highest of
            its simulated rows is pushed down, however large the gap of others. A large one pushes each by its ``w``.
    """

    tells_real, columns = True, (LOG_GAP,)

    def __init__(self, beta: float = 0.01, temperature: float = 1.0) -> None:
        if not 0.0 <= beta < math.inf:
            raise UserError("beta", beta, "give a finite number of at least 0")
        if not 0.0 < temperature < math.inf:
            raise UserError("temperature", temperature, "give a finite number above 0")
        self.beta, self.temperature = beta, temperature

    def __call__(self, context: CriticContext) -> Tensor:
        real, q = context.real, context.predicted
        assert real is not None  # tells_real
        log_gap = torch.where(real > 0.5, -torch.inf, context.extra[LOG_GAP])
        pushed = self.temperature * torch.logsumexp(q / self.temperature + torch.log_softmax(log_gap, -1), -1)
        lifted = (q * real).sum(-1) / real.sum().clamp(min=1.0)
        return self.beta * (pushed - lifted).clamp(-LARGEST_REGULARIZER, LARGEST_REGULARIZER).sum()


class HybridAgent(OfflineAgent):
    """Acts in a simulator of its own while it learns, from batches of which half is the dataset's.

    Before each round of updates the policy acts in the simulator. The discriminators then take a step on each of the
    round's batches, and say for every simulated row how much it counts in the critics' loss (``p_real / p_sim``, at
    most 1) and how far the dynamics are apart there. (The released code lets discriminators and critics take turns
    inside a round.) The learner has ``sample_weights: raw``, and the term :class:`SimulatedValues` where wanted.

    Args:
        spec: the real system, which the data is from.
        learner: factory of the actor-critic.
        ratio: factory of the discriminators.
        simulator: physics parameters in which the simulator differs, see :mod:`envs.variants`; the others are the
            real system's.
        env_kwargs: further arguments with which the environment is made, if any.
        simulators: copies of the simulator that are stepped side by side.
        steps_per_update: simulator steps for each gradient step.
        first_steps: simulator steps before the first round.
        capacity: simulated transitions kept.
        weigh: False counts every simulated row in full: a control. The regulariser's is its ``beta`` of 0.
        use_data: False learns from the simulator alone, whose rows all count in full and have no gap: the control
            without data, for which the same learner makes as many updates.
        options: the arguments of :class:`OfflineAgent`.
    """

    learner: ActorCritic

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], ActorCritic],
        ratio: Callable[[EnvSpec], DynamicsRatio] = DynamicsRatio,
        simulator: dict[str, float] | None = None,
        env_kwargs: dict[str, Any] | None = None,
        simulators: int = 5,
        steps_per_update: int = 1,
        first_steps: int = 1000,
        capacity: int = 1_000_000,
        weigh: bool = True,
        use_data: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(spec, learner, **options)
        if min(simulators, steps_per_update, first_steps) < 1 or self.batch_size < 2:
            seen = (simulators, steps_per_update, first_steps, self.batch_size)
            raise UserError("simulators, steps_per_update, first_steps, batch_size", seen, "at least 1 each, batches 2")
        if self.learner.sample_weights != "raw":
            fix = "simulated rows are weighed by how real they are: set sample_weights: raw"
            raise UserError("sample_weights", self.learner.sample_weights, fix)
        self.make_ratio, self.ratio = ratio, ratio(spec).to(self.device)
        self.simulator, self.env_kwargs, self.simulators = dict(simulator or {}), dict(env_kwargs or {}), simulators
        self.steps_per_update, self.first_steps = steps_per_update, first_steps
        self.weigh, self.use_data = weigh, use_data
        self.real = self.batch_size // 2 if use_data else 0
        self.buffers["simulated"] = ReplayBuffer(capacity, device=self.device)
        self.standardised = False
        self._pool: EnvPool | None = None

    def check(self, data: ReplayBuffer) -> None:
        """As in the base class; and the simulator can be made, and is not the real system itself."""
        super().check(data)
        if self.use_data and not self.simulator and not self.env_kwargs:
            fix = (
                "name in which parameters the simulator differs from the real system: --agent.simulator.gravity=15, say"
            )
            raise UserError("agent.simulator", self.simulator, fix)
        _ = self.pool

    def seed(self, run_seed: int) -> None:
        super().seed(run_seed)
        with seeding.seeded(seeding.generator(run_seed, "ratio")):
            self.ratio = self.make_ratio(self.spec).to(self.device)

    @property
    def pool(self) -> EnvPool:
        """The simulators; made when they are first acted in."""
        if self._pool is None:
            params = {**self.spec.params, **self.simulator}
            repeat = self.spec.action_repeat
            make = functools.partial(make_env, self.spec.id, params=params, action_repeat=repeat, **self.env_kwargs)
            self._pool = EnvPool(make, self.simulators, self._episode_seed)
            if self._pool.spec.obs_size != self.spec.obs_size:
                fix = f"the simulator's observations differ from the data's, which have {self.spec.obs_size} entries"
                raise UserError("env_kwargs", self._pool.spec.obs_size, fix)
        return self._pool

    def _episode_seed(self, slot: int, episode: int) -> int:
        return seeding.derive_seed(self.run_seed, "simulator", slot, episode)

    # -- learning ----------------------------------------------------------------------------------------------------

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """Act in the simulator, then one round."""
        if not self.standardised and self.use_data:
            self.ratio.fit_statistics(self.data.all().to(self.device))
            self.standardised = True
        simulated = self.buffers["simulated"]
        self.simulate(self.round_updates * self.steps_per_update if len(simulated) else self.first_steps)
        return super().update(clock)

    def simulate(self, steps: int) -> None:
        """The policy acts for ``steps`` steps in all simulators together, rounded up to whole rounds of them."""
        if not len(self.buffers["simulated"]):
            self.pool.reset()
        for _ in range(math.ceil(steps / self.simulators)):
            obs = torch.from_numpy(self.pool.reset_ended()).to(self.device)
            action = self.learner.act(obs, self.generator).cpu()
            step = to_transitions(self.pool.step(action.numpy()), action, {}, version=0)
            self.buffers["simulated"].extend(replace(step, sim_state=None))

    def draw(self, count: int) -> Transitions:
        """Batches whose first half is real and whose second half is simulated; the column ``is_real`` tells which."""
        sources, share = (self.data, self.buffers["simulated"]), self.real / self.batch_size
        batches = mixed_batches(*sources, share, count, self.batch_size, self.generator)
        is_real = torch.arange(self.batch_size, device=batches.obs.device) < self.real
        return replace(batches, extra=batches.extra | {"is_real": is_real.expand(count, -1)})

    def learn(self, batches: Transitions) -> dict[str, float]:
        """A step of the discriminators on each batch, then the learner's updates on all of them."""
        batches, found, real = batches.to(self.device), RunningMean(), self.real
        for i in range(len(batches) if self.use_data else 0):
            found.add(self.ratio.update(batches[i, :real], batches[i, real:], self.generator))
        weighed, seen = self._weighed(batches)
        return found.pop() | seen | super().learn(weighed)

    def _weighed(self, batches: Transitions) -> tuple[Transitions, dict[str, float]]:
        """The batches with what the discriminators say of their simulated rows; and means of it, to be logged."""
        simulated, seen = batches[:, self.real :], {}
        weight, log_gap = torch.ones_like(simulated.reward), torch.zeros_like(simulated.reward)
        if self.use_data:
            found, gap = self.ratio.weight(simulated), self.ratio.gap(simulated, self.generator)
            seen = {"simulated_weight": float(found.mean()), "gap": float(gap.mean())}
            weight, log_gap = found if self.weigh else weight, gap.log()
        ones = torch.ones_like(batches.reward[:, : self.real])
        # the loss is mean_real + mean_sim of halves, while raw weights are averaged over the whole batch
        sources = (ones, self.real), (weight, self.batch_size - self.real)
        halves = torch.cat([each / max(1, rows) for each, rows in sources], -1) * self.batch_size
        columns = {"sample_weight": halves, LOG_GAP: torch.cat([torch.zeros_like(ones), log_gap], -1)}
        return replace(batches, extra=batches.extra | columns), seen

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        own = {"ratio": self.ratio.learning_state(), "standardised": self.standardised}
        return super().state_dict() | own | {"pool": None if self._pool is None else self._pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ratio.load_learning_state(state["ratio"])
        self.standardised = state["standardised"]
        if state["pool"] is not None:
            self.pool.load_state_dict(state["pool"])
