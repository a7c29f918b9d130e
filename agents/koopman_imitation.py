"""Imitation by a Koopman rollout: lift at the start, roll the reference out, track it.

KODex, and the state form of KOROL (Chen et al., "KOROL: Learning Visualizable Object Feature with Koopman Operator
Rollout for Manipulation", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Agent, Mode
from agents.common import RunningMean
from agents.tracking import Tracker
from envs.errors import UserError
from envs.spec import EnvSpec
from envs.two_link_arm import seek_goal
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.demonstrations import Demonstrations, Entries
from mbrl.models.koopman.kodex import CUT_OFF, KoopmanReference, RobotLift


@dataclass
class ImitationState(ActorState):
    """The rollout of each environment slot."""

    latent: Tensor
    """``[N, p]``; its first entries are where the robot should be now"""
    held: Tensor
    """``[N]`` bool: the rollout diverged, its last good reference is held"""
    age: Tensor
    """``[N]`` int64: steps since the last lift"""
    before: Tensor
    """``[N, n]``: the robot a step ago"""
    expert: ActorState | None
    """What the expert carries, while it shows how"""


class KoopmanImitation(Agent):
    """Does what an expert was seen to do; learns from demonstrations without actions, in closed form.

    At an episode's start the robot's and the object's state are lifted and rolled out in lifted space; a tracker
    follows the robot's part. A rollout that leaves the range of the demonstrations has diverged: its last reference
    is held until the next lift, and the share of such steps is logged (``diverged``).

    Args:
        spec: the environment.
        robot: entries of the observation that are the robot's, by their names in the layout.
        object: entries that tell of the task: objects and goals. What is not among them the rollout cannot know.
        tracker: what follows the reference.
        demonstrations: a folder written by ``ReplayBuffer.save``. The run needs it whenever it is opened.
        expert: instead: an agent that acts in the first ``expert_steps`` env steps of training, and is watched.
        expert_steps: env steps of the expert.
        lift: coordinates (default: ``PolynomialLift``).
        relift_every: steps after which what is seen now is lifted anew; 0 is never, the published way. Anew means a
            closed loop: the rollout hears that a goal has moved.
        cut_off, ridge, bound: see :class:`mbrl.models.koopman.kodex.KoopmanReference`.
        report_every: env steps between two records of the share of diverged steps.
        device: where it is computed.

    Raises:
        UserError: neither or both of ``demonstrations`` and ``expert``; unknown names; demonstrations that are too
            few, damaged, or of another environment; a tracker that does not fit.
    """

    def __init__(
        self,
        spec: EnvSpec,
        robot: Sequence[str],
        object: Sequence[str],
        tracker: Tracker,
        demonstrations: str | None = None,
        expert: Callable[[EnvSpec], Agent] | None = None,
        expert_steps: int = 2500,
        lift: RobotLift | None = None,
        relift_every: int = 0,
        cut_off: float = CUT_OFF,
        ridge: float = 0.0,
        bound: float = 1.0,
        report_every: int = 500,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, device)
        if (demonstrations is None) == (expert is None):
            seen = (demonstrations, expert)
            raise UserError("demonstrations, expert", seen, "give one: a folder of demonstrations, or who shows how")
        if relift_every < 0 or min(expert_steps, report_every) < 1:
            seen_numbers = (relift_every, expert_steps, report_every)
            fix = "relift_every is at least 0 (never), the others at least 1"
            raise UserError("relift_every, expert_steps, report_every", seen_numbers, fix)
        self.entries = Entries.named(spec, robot, object)
        sizes = len(self.entries.robot), len(self.entries.object)
        self.reference = KoopmanReference(*sizes, lift, cut_off, ridge, bound).to(self.device)
        tracker.set_up(spec, self.entries)
        self.tracker = tracker.to(self.device)
        self.relift_every, self.report_every, self.expert_steps = relift_every, report_every, expert_steps
        self.generator = torch.Generator(self.device)
        self.fitted, self.shares = False, RunningMean()
        self.expert = expert(spec) if expert else None
        self.wants_sim_state = self.expert is not None and self.expert.wants_sim_state
        if self.expert:
            self.buffers["demonstrations"] = ReplayBuffer(expert_steps)
        self.shown = load_demonstrations(demonstrations, spec) if demonstrations else None

    def seed(self, run_seed: int) -> None:
        self.generator.manual_seed(seeding.derive_seed(run_seed, "agent"))
        if self.expert:
            self.expert.seed(run_seed)
        if self.shown is not None:
            self.fit(self.shown)

    # -- acting ----------------------------------------------------------------------------------------------------

    def initial_actor_state(self, slots: int) -> ImitationState:
        latent = torch.zeros(slots, len(self.reference.operator), dtype=torch.float64, device=self.device)
        nothing = torch.zeros(slots, dtype=torch.long, device=self.device)
        expert = self.expert.initial_actor_state(slots) if self.expert else None
        return ImitationState(latent, nothing.bool(), nothing, self.reference.read(latent), expert)

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
        assert isinstance(actor_state, ImitationState)
        now = self._lifted(obs, actor_state, is_first)
        if mode == "explore" and self._watching():
            assert self.expert is not None
            assert actor_state.expert is not None
            action, expert, _ = self.expert.act(obs, actor_state.expert, is_first, "evaluate", generator, sim_state)
            return action, ImitationState(now.latent, now.held, torch.zeros_like(now.age), now.before, expert), {}
        return self._follow(obs, now)

    def _watching(self) -> bool:
        return self.expert is not None and not self.fitted

    def _lifted(self, obs: Tensor, past: ImitationState, is_first: Tensor) -> ImitationState:
        """The rollouts, begun anew in rows whose episode begins or whose period is over."""
        robot, object = self.entries.split(obs)
        due = is_first | (past.age == 0)
        if self.relift_every:
            due = due | (past.age % self.relift_every == 0)
        latent = torch.where(due[:, None], self.reference.lift(robot, object), past.latent)
        before = torch.where((is_first | (past.age == 0))[:, None], robot, past.before)
        return ImitationState(latent, past.held & ~due, past.age.masked_fill(due, 0), before, past.expert)

    def _follow(self, obs: Tensor, now: ImitationState) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        robot, _ = self.entries.split(obs)
        latent, held = self.reference.advance(now.latent, now.held)
        reference, target = self.reference.read(now.latent), self.reference.read(latent)
        action = self.tracker.act(robot, now.before, reference, target).float()
        state = ImitationState(latent, held, now.age + 1, robot, now.expert)
        return action, state, {"diverged": held.float()}

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, transitions: Transitions) -> None:
        """Watch the expert, or count diverged steps; nothing is learned from the agent's own deeds."""
        if self._watching():
            bare = {name: value for name, value in vars(transitions).items() if name != "extra"}
            self.buffers["demonstrations"].extend(Transitions(**bare))
        else:
            self.shares.add({"diverged": float(transitions.extra["diverged"].mean())})

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        if self._watching() and self.buffers["demonstrations"].total_added >= self.expert_steps:
            report = self.fit(self.buffers["demonstrations"].all())
            clock.updates += int(report.get("gradient_steps", 0))
            return {"fit": report}
        shares = self.shares.pop() if clock.due(self.report_every) else {}
        return {"update": shares} if shares else {}

    def fit(self, rows: Transitions) -> dict[str, float]:
        """Fit the reference and the tracker to demonstrations ``rows [N]``; what to log."""
        rows = rows.to(self.device)
        report = self.reference.fit(Demonstrations.of_transitions(rows, self.entries))
        report |= self.tracker.fit(rows, self.entries, self.generator)
        self.fitted = True
        return report

    def state_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference.state_dict(),
            "tracker": self.tracker.state_dict(),
            "generator": self.generator.get_state(),
            "fitted": self.fitted,
            "shares": self.shares.state_dict(),
            "expert": self.expert.state_dict() if self.expert else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
        self.tracker.load_state_dict(state["tracker"])
        self.generator.set_state(state["generator"])
        self.fitted = state["fitted"]
        self.shares.load_state_dict(state["shares"])
        if self.expert:
            self.expert.load_state_dict(state["expert"])


def load_demonstrations(path: str, spec: EnvSpec) -> Transitions:
    """The rows of a folder written by ``ReplayBuffer.save``.

    Raises:
        UserError: there is none, it is damaged or empty, or its observations and actions are not those of ``spec``.
    """
    buffer = ReplayBuffer.load(path)
    if not len(buffer):
        raise UserError("demonstrations", path, "there are no rows in it")
    rows = buffer.all()
    seen, wanted = (rows.obs.shape[-1], rows.action.shape[-1]), (spec.obs_size, spec.action.size)
    if seen != wanted:
        fix = f"observations and actions of {spec.id} have {wanted[0]} and {wanted[1]} entries"
        raise UserError("demonstrations", f"{path} with {seen[0]} and {seen[1]} entries", fix)
    return rows


class ReachExpert(Agent):
    """Shows how to reach in ``mbrl/TwoLinkReach-v0``: both joints go straight to the pose at the goal.

    Args:
        spec: that environment.
        gain: share of the way a step, above 0 and at most 1.
    """

    def __init__(self, spec: EnvSpec, gain: float = 0.2) -> None:
        super().__init__(spec)
        if list(spec.layout) != ["q1", "q2", "goal_x", "goal_y"] or "speed" not in spec.params:
            raise UserError("expert", spec.id, "ReachExpert knows mbrl/TwoLinkReach-v0 only; name another agent")
        if not 0.0 < gain <= 1.0 or math.isnan(gain):
            raise UserError("gain", gain, "give a share of the way, above 0 and at most 1")
        self.gain = gain

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """Joint velocities ``[N, 2]`` for ``obs [N, 4]``."""
        return seek_goal(obs, self.spec.params["speed"], self.gain), actor_state, {}
