"""Planning over a sequence of tasks: what is learned of each, and what is left of the old ones."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import pytest
import torch

from agents.continual import ContinualMPCAgent
from envs import UserError, env_spec
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.window_errors import window_errors
from mbrl.fitting import Fitter
from mbrl.fitting.continual import ContinualFitter
from mbrl.models.continual.baselines import SharedTrunk
from mbrl.models.continual.hypernet import HyperNetwork
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from mbrl.planning.cem import ICEM

GRAVITIES = (10.0, 2.0)
SPECS = [env_spec("Pendulum-v1", params={"gravity": gravity}) for gravity in GRAVITIES]


def make(model: object = HyperNetwork, updates: int = 400, **more: int) -> ContinualMPCAgent:
    torch.manual_seed(0)
    planner = partial(ICEM, horizon=3, candidates=8, iterations=1, particles=1)
    agent = ContinualMPCAgent(SPECS[0], model, planner, ContinualFitter(updates=updates), **{"fit_every": 150, **more})
    agent.seed(0)
    return agent


def rows(task: int, count: int = 300) -> Transitions:
    """Random transitions of a pendulum under the task's gravity."""
    draw = torch.Generator().manual_seed(task)
    angle, speed = 6.3 * torch.rand(count, generator=draw), 8 * torch.rand(count, generator=draw) - 4
    obs, action = torch.stack([angle.cos(), angle.sin(), speed], -1), 2 * torch.rand(count, 1, generator=draw) - 1
    world = Simulator(SPECS[task])
    step = world.step(world.encode(obs), action, None)
    number, no = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    extra, of = {"plan_value": torch.full((count,), torch.nan)}, torch.full((count,), task)
    return Transitions(
        obs, action, step.reward, step.state.obs, no, no, 0 * number, number, 0 * number, of, extra=extra
    )


def learn(agent: ContinualMPCAgent, task: int) -> list[dict[str, dict[str, float]]]:
    agent.start_task(task, SPECS[task])
    found, clock, data = [], Clock(), rows(task)
    for start in range(0, len(data), 50):
        agent.observe(data[start : start + 50])
        clock.tick(50)
        found.append(agent.update(clock))
    found.append(agent.end_task(task, clock))
    return found


def error(agent: ContinualMPCAgent, task: int) -> float:
    data = rows(task)
    columns = (field.name for field in fields(data) if field.name not in ("task", "sim_state", "extra"))
    windows = Transitions(**{name: getattr(data, name)[:, None] for name in columns})
    return window_errors(agent.model_of(task), windows, (1,)).errors[1]


def test_an_old_task_is_kept_by_a_hypernetwork_and_lost_by_a_network_that_goes_on_learning() -> None:
    lost = {}
    for name, model in (("kept", HyperNetwork), ("lost", partial(SharedTrunk, heads=False))):
        agent = make(model, updates=300, warmup_steps=300)
        learn(agent, 0)
        before = error(agent, 0)
        learn(agent, 1)
        lost[name] = error(agent, 0) / before
    assert lost["kept"] < 1.5 < 3.0 < lost["lost"]


def test_a_task_ends_with_a_fit_of_what_came_last_and_nothing_of_it_stays() -> None:
    agent = make(updates=5, warmup_steps=100)
    found = learn(agent, 0)
    fits = [i for i, events in enumerate(found) if "fit" in events]
    assert fits == [1, 4, 6]  # at 100 and 250 env steps, and at the end at 300
    assert found[-1]["fit"]["rows"] == 300
    assert len(agent.buffers["real"]) == 0
    agent.start_task(1, SPECS[1])
    assert agent._warming_up()
    agent.observe(rows(1)[:10])
    assert agent.buffers["real"].all().task.unique().tolist() == [1]  # type: ignore[union-attr]


def test_a_fit_at_the_end_is_not_repeated() -> None:
    agent = make(updates=5, warmup_steps=150)
    assert "fit" not in learn(agent, 0)[-1]


def test_acting_on_an_old_task_plans_with_its_model_and_comes_back() -> None:
    agent = make(updates=5)
    learn(agent, 0), learn(agent, 1)
    newest = agent._bound_model()
    with agent.acting_on(0):
        assert agent._bound_model().spec.params["gravity"] == 10.0
    assert agent._bound_model() is newest
    assert newest.spec.params["gravity"] == 2.0
    with pytest.raises(UserError, match="no task of this id"), agent.acting_on(5):
        agent._bound_model()


def test_costs_name_what_is_kept() -> None:
    agent = make(updates=5)
    learn(agent, 0)
    costs = agent.costs(0)
    assert costs["stored_rows"] == 0
    assert 0 < costs["kept_bytes"] < costs["task_memory_bytes"] < costs["shared_bytes"]


def test_other_models_and_fitters_are_refused() -> None:
    with pytest.raises(UserError, match="ContinualFitter trains"):
        make(partial(ProbabilisticEnsemble, members=1))
    with pytest.raises(UserError, match="task sequences"):
        ContinualMPCAgent(SPECS[0], partial(ProbabilisticEnsemble, members=1), partial(ICEM, particles=1), Fitter())
    with pytest.raises(UserError, match="warmup_steps"):
        make(warmup_steps=0)
    agent = make()
    agent.start_task(0, SPECS[0])
    with pytest.raises(UserError, match="task 0 is open"):
        agent.start_task(1, SPECS[1])
    with pytest.raises(UserError, match="add transitions"):
        agent.end_task(0, Clock())
