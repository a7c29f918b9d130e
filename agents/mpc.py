"""Model-predictive control with a learned (or the true) model: fit, plan, execute the first action, repeat.

Chua, Calandra, McAllister, Levine, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics
Models", 2018 (PETS), with any model, planner and objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from agents.common import check_exploration, check_particles, explored, random_action
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.judge import judge
from mbrl.fitting import ModelFitter
from mbrl.models.base import DynamicsModel, State
from mbrl.planning.base import Planner
from mbrl.planning.objective import Objective


@dataclass
class MPCActorState(ActorState):
    """Filtered model state, last action and planner memory of each environment slot."""

    model_state: State | None
    prev_action: Tensor
    warm_start: Record


class MPCAgent(Agent):
    """Plans every action with a dynamics model; learns the model when given a fitter.

    Args:
        spec: the environment.
        model: factory of the dynamics model.
        planner: factory of the planner.
        objective: what is planned for (default: the predicted reward).
        fitter: how the model is trained; leave out for a model that is not learned (an oracle).
        warmup_steps: env steps of uniformly random actions first.
        fit_every: env steps between fits, counted from the end of the warm-up.
        action_limit: bound on the magnitude of random warm-up actions, at most 1. The planner has its own.
        exploration_std: Gaussian noise added to planned actions while exploring.
        capacity: transitions kept.
        device: where the model and the plans are computed.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: Callable[[EnvSpec], DynamicsModel],
        planner: Callable[[EnvSpec], Planner],
        objective: Objective | None = None,
        fitter: ModelFitter | None = None,
        warmup_steps: int = 200,
        fit_every: int = 50,
        action_limit: float = 1.0,
        exploration_std: float = 0.0,
        capacity: int = 1_000_000,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, device)
        if not 0.0 < action_limit <= 1.0:
            raise UserError("action_limit", action_limit, "give a share of the action range in (0, 1]")
        if fit_every < 1 or warmup_steps < 0:
            raise UserError("fit_every, warmup_steps", (fit_every, warmup_steps), "fit_every >= 1, warmup_steps >= 0")
        check_exploration(spec, exploration_std)
        self.model = model(spec).to(self.device)
        if fitter:
            fitter.check(self.model)
        self.planner = planner(spec)
        check_particles(self.planner, self.model)
        self.objective = objective or Objective()
        self.fitter = fitter
        self.warmup_steps = warmup_steps if fitter else 0
        self.fit_every, self.action_limit, self.exploration_std = fit_every, action_limit, exploration_std
        self.wants_sim_state = getattr(self.model, "wants_sim_state", False)
        if fitter:
            self.buffers["real"] = ReplayBuffer(capacity, extra={"plan_value": ()})
        self.generator = torch.Generator(self.device)
        self.run_seed = 0
        self._bound: DynamicsModel | None = None

    def seed(self, run_seed: int) -> None:
        self.generator.manual_seed(seeding.derive_seed(run_seed, "agent"))
        self.run_seed = run_seed

    # -- acting ----------------------------------------------------------------------------------------------------

    def initial_actor_state(self, slots: int) -> MPCActorState:
        no_action = torch.zeros(slots, self.spec.action.size, device=self.device)
        return MPCActorState(None, no_action, self.planner.initial(slots, self.device))

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        assert isinstance(actor_state, MPCActorState)
        past, slots = actor_state, len(obs)
        fresh = self.planner.initial(slots, self.device)
        warm_start = fresh.where(is_first, past.warm_start)
        state = self.model.observe(past.model_state, past.prev_action, obs, is_first, sim_state=sim_state)
        if mode == "explore" and self._warming_up():
            action = random_action(self.spec.action, slots, generator, self.action_limit)
            unplanned = torch.full((slots,), torch.nan, device=self.device)
            return action, MPCActorState(state, action, fresh), {"plan_value": unplanned}
        plan = self.planner.plan(self._bound_model(), self.objective, state, warm_start, generator=generator)
        action = plan.actions[0]
        if mode == "explore" and self.exploration_std:
            action = explored(action, self.exploration_std, generator)
        return action, MPCActorState(state, action, plan.warm_start), {"plan_value": plan.value}

    def _warming_up(self) -> bool:
        return self.fitter is not None and self.buffers["real"].total_added < self.warmup_steps

    def _bound_model(self) -> DynamicsModel:
        if self._bound is None:
            self._bound = self.model.bind()
        return self._bound

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, transitions: Transitions) -> None:
        if self.fitter:
            self.buffers["real"].extend(transitions)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        if self.fitter is None or not clock.due(self.fit_every, offset=max(1, self.warmup_steps)):
            return {}
        return self.learn(self.fitter, clock)

    def learn(self, fitter: ModelFitter, clock: Clock) -> dict[str, dict[str, Any]]:
        """Judge the model on what is new, and fit it to all there is."""
        buffer = self.buffers["real"]
        report = self.judge_model(fitter)
        report |= fitter.fit(self.model, buffer.all().to(self.device), self.generator)
        clock.updates += int(report["gradient_steps"])
        self._bound = None
        slots = clock.env_steps - clock.previous_env_steps
        gap = plan_gap(buffer, self.planner.horizon, self.fit_every, slots)
        return {"fit": report} | ({"plan": {"gap": gap}} if gap is not None else {})

    def judge_model(self, fitter: ModelFitter) -> dict[str, float]:
        """Its errors by depth and its calibration on what came since the last fit.

        The random numbers are a stream of their own, so that judging changes nothing of what is learned.
        """
        if not fitter.fits:
            return {}
        luck, newest = seeding.generator(self.run_seed, "judge", fitter.fits), self.fit_every
        return judge(self.model, self.buffers["real"], newest, luck, windows=min(256, newest))

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"generator": self.generator.get_state(), "model": self.model.state_dict()}
        return state | ({"fitter": self.fitter.state_dict()} if self.fitter else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.model.load_state_dict(state["model"])
        self._bound = None
        if self.fitter:
            self.fitter.load_state_dict(state["fitter"])


def plan_gap(buffer: ReplayBuffer, horizon: int, last: int, slots: int = 1) -> float | None:
    """Planned value minus the reward achieved over the same ``horizon`` steps, mean over the ``last`` planned steps.

    The best single number to see a planner exploit its model. None while no plan has been lived through. Terms that an
    objective adds to the reward count on the planned side only. ``slots`` environments took turns in the buffer.
    """
    ids = buffer.ids[-(last + horizon * slots) :]
    rows = buffer[ids]
    episode, step, value = rows.episode.tolist(), rows.step.tolist(), rows.extra["plan_value"].tolist()
    reward, terminated = rows.reward.tolist(), rows.terminated.tolist()
    where = {key: i for i, key in enumerate(zip(episode, step, strict=True))}
    gaps = []
    for key, i in where.items():
        lived = [where.get((key[0], key[1] + h)) for h in range(horizon)]
        rows_lived = [j for j in lived if j is not None]
        ended = next((n for n, j in enumerate(rows_lived, 1) if terminated[j]), None)
        if math.isfinite(value[i]) and (ended is not None or None not in lived):
            gaps.append(value[i] - sum(reward[j] for j in rows_lived[:ended]))
    return sum(gaps) / len(gaps) if gaps else None
