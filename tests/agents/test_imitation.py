"""Imitation: reaching as the expert did, controls that cannot, slots on their own, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.koopman_imitation import ImitationState, KoopmanImitation, ReachExpert
from agents.tracking import InverseDynamics, PDTracker
from envs import UserError, env_spec
from envs.two_link_arm import TwoLinkReach, seek_goal
from experiments.benchmarks.koopman_imitation import Case, Sizes, demonstrate, judge, make_agent, play, starts
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.demonstrations import Entries

SPEC = env_spec("mbrl/TwoLinkReach-v0")
SIZES = Sizes()
Arguments = dict[str, Any]


@pytest.fixture(scope="module")
def shown() -> Transitions:
    return demonstrate(50, SIZES.steps, seed=0)


def arguments(**changed: Any) -> Arguments:
    usual = {"robot": ["q1", "q2"], "object": ["goal_x", "goal_y"], "tracker": PDTracker(2.0), "expert": ReachExpert}
    return usual | changed


def saved(rows: Transitions, folder: Path) -> str:
    buffer = ReplayBuffer(max(1, len(rows)))
    if len(rows):
        buffer.extend(rows)
    buffer.save(folder)
    return str(folder)


# -- imitation -------------------------------------------------------------------------------------------------------


def test_the_lift_reaches_unseen_goals_and_without_it_they_are_missed(shown: Transitions) -> None:
    assert judge(Case("polynomial", 50), shown, SIZES, seed=0)["success"] >= 0.9
    assert judge(Case("linear", 50), shown, SIZES, seed=0)["success"] <= 0.5


def test_a_goal_that_moves_is_reached_only_by_lifting_anew(shown: Transitions) -> None:
    moved = Case("polynomial", 50, moves=True)
    assert judge(moved, shown, SIZES, seed=0)["success"] <= 0.2
    assert judge(replace(moved, relift_every=10), shown, SIZES, seed=0)["success"] >= 0.8


def test_demonstrations_of_other_goals_teach_nothing(shown: Transitions, generator: Generator) -> None:
    """The control: every path keeps its motion and gets the goal of another."""
    goals = shown.obs.view(50, -1, 4)[:, :1, 2:][torch.randperm(50, generator=generator)]
    wrong = goals.expand(-1, SIZES.steps, -1).reshape(-1, 2)
    obs, after = shown.obs.clone(), shown.next_obs.clone()
    obs[:, 2:], after[:, 2:] = wrong, wrong
    assert judge(Case("polynomial", 50), replace(shown, obs=obs, next_obs=after), SIZES, seed=0)["success"] < 0.3


def test_actions_are_not_needed(shown: Transitions) -> None:
    blind = replace(shown, action=torch.full_like(shown.action, torch.nan))
    found = [judge(Case("polynomial", 50), rows, SIZES, seed=0) for rows in (shown, blind)]
    assert found[0] == found[1]


# -- acting ----------------------------------------------------------------------------------------------------------


def fitted(shown: Transitions, **changed: Any) -> KoopmanImitation:
    agent = KoopmanImitation(SPEC, **arguments(**changed))
    agent.seed(0)
    agent.fit(shown)
    return agent


def act(agent: KoopmanImitation, obs: Tensor, state: Any, first: Tensor, mode: Any = "evaluate") -> tuple[Tensor, Any]:
    action, state, _ = agent.act(obs, state, first, mode, torch.Generator())
    return action, state


def test_slots_do_not_hear_of_each_other(shown: Transitions, generator: Generator) -> None:
    agent = fitted(shown, relift_every=3)
    together, alone = agent.initial_actor_state(3), agent.initial_actor_state(1)
    for step in range(12):
        obs = shown.obs[torch.randint(len(shown), (3,), generator=generator)]
        first = torch.tensor([step == 0, step in (0, 5), step in (0, 4)])
        actions, together = act(agent, obs, together, first)
        action, alone = act(agent, obs[1:2], alone, first[1:2])
        torch.testing.assert_close(actions[1:2], action)
        assert actions.dtype == torch.float32
        assert actions.shape == (3, 2)


@pytest.mark.parametrize(("every", "lifts"), [(0, [0]), (4, [0, 4, 8]), (1, list(range(10)))])
def test_lifts_happen_when_they_are_due(every: int, lifts: list[int], shown: Transitions) -> None:
    agent, lifted = fitted(shown, relift_every=every), list[int]()
    state: Any = agent.initial_actor_state(1)
    for step in range(10):
        _, state = act(agent, shown.obs[step : step + 1], state, torch.tensor([step == 0]))
        lifted += [step] if int(state.age) == 1 else []
    assert lifted == lifts


def test_what_diverges_is_held_counted_and_finite(shown: Transitions) -> None:
    agent = fitted(shown, report_every=1)
    agent.reference.operator.mul_(3.0)
    played = play(agent, starts(20, seed=1), steps=50)
    assert played.diverged.all()
    assert played.rows.action.isfinite().all()
    assert played.rows.obs.isfinite().all()
    assert played.largest <= float(agent.reference.box.abs().max())
    counted = replace(shown[:4], extra={"diverged": torch.tensor([1.0, 0.0, 1.0, 1.0])})
    agent.observe(counted)
    assert agent.update(Clock(env_steps=1)) == {"update": {"diverged": 0.75}}
    assert agent.update(Clock(env_steps=2)) == {}


def test_without_a_fit_it_stays_where_it_is() -> None:
    agent = make_agent(Case("polynomial", 50))
    played = play(agent, starts(20, seed=1), steps=10)
    assert float(played.rows.action.abs().max()) < 1e-5
    assert not played.success.all()


# -- an expert that shows how ----------------------------------------------------------------------------------------


def lived(agent: KoopmanImitation, steps: int, mode: Any, seed: int = 2, slots: int = 4) -> Transitions:
    rows, states, actor = [], starts(slots, seed), agent.initial_actor_state(slots)
    physics, no = TwoLinkReach.physics(), torch.zeros(slots, dtype=torch.bool)
    for step in range(steps):
        obs = physics.observe(states).float()
        action, state, extra = agent.act(obs, actor, torch.full((slots,), step == 0), mode, torch.Generator())
        assert isinstance(state, ImitationState)
        actor, states = state, physics.rollout(states, action[None])[-1]
        after, ids = physics.observe(states).float(), torch.arange(slots)
        row = Transitions(obs, action, no.float(), after, no, no, ids, torch.full_like(ids, step), 0 * ids, extra=extra)
        if mode == "explore":
            agent.observe(row)
            agent.update(Clock(env_steps=(step + 1) * slots))
        rows.append(replace(row, extra={}))
    return Transitions.cat(rows)


def as_the_expert(rows: Transitions) -> bool:
    expert = seek_goal(rows.obs, SPEC.params["speed"])
    return float((rows.action - expert).abs().max()) < 1e-4


def test_it_watches_the_expert_fits_and_then_acts_itself() -> None:
    agent = KoopmanImitation(SPEC, **arguments(expert_steps=160))
    agent.seed(0)
    assert as_the_expert(lived(agent, 40, "explore"))
    assert not as_the_expert(lived(agent, 40, "explore", seed=3))
    assert agent.fitted
    assert agent.buffers["demonstrations"].total_added == 160
    lived(agent, 5, "evaluate")
    assert agent.buffers["demonstrations"].total_added == 160


def test_evaluating_while_it_watches_changes_nothing() -> None:
    agent = KoopmanImitation(SPEC, **arguments(expert_steps=160))
    agent.seed(0)
    rows = lived(agent, 5, "evaluate")
    assert len(agent.buffers["demonstrations"]) == 0
    assert float(rows.action.abs().max()) < 1e-5  # not the expert's


def test_its_state_comes_back(shown: Transitions) -> None:
    agent, other = fitted(shown), KoopmanImitation(SPEC, **arguments())
    other.load_state_dict(agent.state_dict())
    begun = starts(5, seed=3)
    pair = [play(one, begun, steps=20).rows.action for one in (agent, other)]
    assert torch.equal(*pair)
    assert other.fitted


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_run_goes_on_to_the_bit(resume_is_exact: Callable[..., None]) -> None:
    small = ["--evaluation.episodes=2", "--evaluation.every=300", "--checkpoint.every=100", "--quiet"]
    short = ["--steps=500", "--agent.expert_steps=250", "--agent.report_every=100", "--agent.relift_every=7"]
    command = ["train", "kodex", *short, *small]
    resume_is_exact({"watching": command}, 130)
    resume_is_exact({"acting": command}, 410)


# -- trackers --------------------------------------------------------------------------------------------------------


def test_pd_is_what_it_says() -> None:
    tracker, x = PDTracker([0.5, 0.1], kd=0.2), torch.tensor
    robot, before = x([[0.0, 1.0]]), x([[-0.1, 1.0]])
    reference, target = x([[0.1, 1.0]]), x([[0.3, 0.0]])
    action = tracker.act(robot, before, reference, target)
    torch.testing.assert_close(action, x([[0.5 * 0.3 + 0.2 * (0.2 - 0.1), -0.1 + 0.2 * -1.0]]))
    assert PDTracker(100.0).act(robot, before, reference, target).tolist() == [[1.0, -1.0]]


def test_inverse_dynamics_learn_which_action_it_was(shown: Transitions) -> None:
    tracker, entries = InverseDynamics(updates=600), Entries((0, 1), (2, 3))
    tracker.set_up(SPEC, entries)
    learned = [error_of(tracker, shown)]
    report = tracker.fit(shown, entries, torch.Generator().manual_seed(0))
    learned.append(error_of(tracker, shown))
    assert learned[1] < 0.02 < learned[0]
    assert report["gradient_steps"] == 600


def error_of(tracker: InverseDynamics, rows: Transitions) -> float:
    robot, target = rows.obs[:, :2], rows.next_obs[:, :2]
    return float((tracker.act(robot, robot, robot, target) - rows.action).abs().mean())


def test_a_learned_tracker_serves_the_agent(shown: Transitions) -> None:
    agent = fitted(shown, tracker=InverseDynamics(updates=1500))
    assert float(play(agent, starts(100, seed=4), steps=50).success.double().mean()) > 0.7


# -- what is refused -------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Arguments, str]] = {
    "nobody shows": ({"expert": None}, "demonstrations, expert"),
    "two show": ({"demonstrations": "x"}, "demonstrations, expert"),
    "no folder": ({"expert": None, "demonstrations": "gone"}, "gone.*ReplayBuffer.save"),
    "period": ({"relift_every": -1}, "relift_every"),
    "unknown entry": ({"robot": ["q1", "q7"]}, "robot: 'q7'.*Did you mean"),
    "too many entries": ({"robot": ["q1", "q2", "goal_x"], "object": []}, "has 2: name others"),
    "gains": ({"tracker": PDTracker([1.0, 2.0, 3.0])}, "kp.*one an action"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_cannot_be_used_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        KoopmanImitation(SPEC, **arguments(**changed))


def test_demonstrations_are_read_from_a_folder(shown: Transitions, tmp_path: Path) -> None:
    agent = KoopmanImitation(SPEC, **arguments(expert=None, demonstrations=saved(shown, tmp_path / "shown")))
    agent.seed(0)
    torch.testing.assert_close(agent.reference.operator, fitted(shown).reference.operator)
    assert agent.buffers == {}


def spoiled(rows: Transitions) -> Transitions:
    obs = rows.obs.clone()
    obs[60, 1] = torch.nan
    return replace(rows, obs=obs)


BAD: dict[str, tuple[Callable[[Transitions], Transitions], str]] = {
    "empty": (lambda rows: rows[:0], "no rows"),
    "too few": (lambda rows: rows[:10], "10 steps in 1 paths"),
    "NaN": (spoiled, "demonstration 1, state 10: 'NaN or infinity'"),
    "other task": (lambda rows: replace(rows, obs=rows.obs[:, :3], next_obs=rows.next_obs[:, :3]), "have 4 and 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_demonstrations_that_cannot_be_used_are_refused(name: str, shown: Transitions, tmp_path: Path) -> None:
    spoil, said = BAD[name]
    folder = saved(spoil(shown), tmp_path / "shown")
    with pytest.raises(UserError, match=said):
        KoopmanImitation(SPEC, **arguments(expert=None, demonstrations=folder)).seed(0)


def test_inverse_dynamics_need_actions(shown: Transitions) -> None:
    blind = replace(shown, action=torch.full_like(shown.action, torch.nan))
    with pytest.raises(UserError, match="NaN among the actions"):
        fitted(blind, tracker=InverseDynamics(updates=1))


def test_the_arms_expert_knows_the_arm_only() -> None:
    with pytest.raises(UserError, match="TwoLinkReach"):
        ReachExpert(env_spec("Pendulum-v1"))
    with pytest.raises(UserError, match="gain"):
        ReachExpert(SPEC, gain=0.0)
