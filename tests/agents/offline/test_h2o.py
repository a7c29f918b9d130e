"""H2O: the hybrid agent's simulator, batches, weights and regulariser, and its exact state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.actor_critic import ActorCritic
from agents.actor_critic.terms import CriticContext
from agents.offline.h2o import HybridAgent, SimulatedValues
from envs.errors import UserError
from experiments.config import resolve
from mbrl.clock import Clock
from mbrl.models.dynamics_ratio import SMALLEST_GAP, DynamicsRatio
from tests.agents.offline.pendulum_data import SPEC, filled, noisy_swing_up, play

ROUND, BATCH = 4, 16
LEARNER = partial(ActorCritic, hidden=8, layers=1, sample_weights="raw", terms=[SimulatedValues(0.01)])


def made(**changes: Any) -> HybridAgent:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "learner": LEARNER,
        "ratio": partial(DynamicsRatio, hidden=8),
        "simulator": {"gravity": 15.0},
        "simulators": 2,
        "first_steps": 20,
        "capacity": 1000,
        "batch_size": BATCH,
        "round_updates": ROUND,
        "log_every": ROUND,
    }
    agent = HybridAgent(SPEC, **(options | changes))
    agent.seed(0)
    draw = Generator().manual_seed(0)
    agent.load(filled(play(noisy_swing_up(draw), 1, draw)))
    return agent


def test_the_simulator_has_the_other_physics() -> None:
    agent, clock = made(), Clock()
    agent.update(clock)
    rows = agent.buffers["simulated"].all()
    assert len(rows) == 20
    assert (clock.updates, clock.env_steps) == (ROUND, 0)
    assert agent.pool.spec.params["gravity"] == 15.0
    assert SPEC.params["gravity"] == 10.0
    # the change of speed by gravity: 3 g / (2 l) sin(angle) dt, and that by the torque
    pull = (rows.next_obs[:, 2] - rows.obs[:, 2] - 0.3 * rows.action[:, 0]) / (0.075 * rows.obs[:, 1])
    assert torch.allclose(pull.median(), torch.tensor(15.0), atol=0.05)
    agent.update(clock)
    assert len(agent.buffers["simulated"]) == 20 + ROUND


def test_a_simulator_that_cannot_be_or_is_the_real_system_is_refused_with_the_data() -> None:
    with pytest.raises(UserError, match="Did you mean gravity"):
        made(simulator={"gravty": 15.0})
    with pytest.raises(UserError, match="in which parameters the simulator differs"):
        made(simulator={})
    assert made(simulator={}, use_data=False).real == 0


def test_batches_are_half_real_and_only_simulated_rows_are_weighed() -> None:
    agent = made()
    agent.update(Clock())
    with torch.no_grad():
        agent.ratio.sas.net[-1].bias[1] += 3.0  # the simulator is likelier: no weight stands at its bound of 1
    batches = agent.draw(3)
    weighed, _ = agent._weighed(batches)
    weight, half = weighed.extra["sample_weight"], BATCH // 2
    assert bool(weighed.extra["is_real"][:, :half].all())
    assert not bool(weighed.extra["is_real"][:, half:].any())
    # raw weights averaged over the batch: mean over the real rows + mean of w over the simulated ones
    assert torch.allclose(weight[:, :half], torch.full((3, half), 2.0))
    assert torch.allclose(weight[:, half:], 2.0 * agent.ratio.weight(batches[:, half:]))
    assert weight[:, half:].max() < 2.0


def test_the_regulariser_is_told_the_gap_of_simulated_rows() -> None:
    agent, half = made(), BATCH // 2
    agent.update(Clock())
    batches = agent.draw(3)
    agent.generator.manual_seed(1)
    told = agent._weighed(batches)[0].extra["log_gap"]
    gap = agent.ratio.gap(batches[:, half:], Generator().manual_seed(1))
    assert torch.equal(told[:, half:], gap.log())
    assert not bool(told[:, :half].any())
    assert not torch.allclose(gap, agent.ratio.weight(batches[:, half:]))


def test_the_discriminators_are_shown_which_rows_are_real() -> None:
    agent, shown = made(), []
    agent.update(Clock())
    agent.ratio.update = lambda *rows: shown.append(rows) or {}  # type: ignore[assignment, func-returns-value]
    agent.learn(agent.draw(ROUND))
    known = {tuple(row) for row in agent.data.all().next_obs.tolist()}
    assert len(shown) == ROUND
    for real, simulated, _ in shown:
        assert len(real) == len(simulated) == BATCH // 2
        assert all(tuple(row) in known for row in real.next_obs.tolist())
        assert not any(tuple(row) in known for row in simulated.next_obs.tolist())


def test_the_controls_count_simulated_rows_in_full() -> None:
    agent = made(weigh=False)
    agent.update(Clock())
    weighed, seen = agent._weighed(agent.draw(3))
    assert torch.equal(weighed.extra["sample_weight"], torch.full((3, BATCH), 2.0))
    assert 0.0 < seen["simulated_weight"] <= 1.0  # what they would weigh is still told
    assert bool(weighed.extra["log_gap"][:, BATCH // 2 :].any())


def test_without_data_the_simulator_is_all_there_is() -> None:
    """The control learns the same from any data, which the hybrid does not."""
    learner = partial(LEARNER, terms=[SimulatedValues(0.0)])
    for use_data in (False, True):
        agents = [made(learner=learner, use_data=use_data) for _ in range(2)]
        agents[1].data.columns["reward"] += 100.0
        for agent in agents:
            agent.update(Clock())
        same = torch.equal(*(agent.learner.vectors["critic"] for agent in agents))
        assert same is not use_data
    weighed, seen = made_and_updated(use_data=False)
    assert not bool(weighed.extra["is_real"].any())
    assert torch.equal(weighed.extra["sample_weight"], torch.ones(3, BATCH))
    assert seen == {}


def made_and_updated(**changes: Any) -> tuple[Any, dict[str, float]]:
    agent = made(**changes)
    agent.update(Clock())
    return agent._weighed(agent.draw(3))


def regularizer(q: Tensor, real: Tensor, gap: Tensor, temperature: float = 1.0) -> Tensor:
    def nothing(obs: Tensor, action: Tensor) -> Tensor:
        raise AssertionError

    empty = torch.zeros(len(real), 1)
    extra = {"log_gap": gap.log()}
    return SimulatedValues(1.0, temperature)(CriticContext(nothing, empty, empty, q, q[0], real=real, extra=extra))


def test_values_are_pushed_down_where_the_gap_is_and_lifted_on_real_rows() -> None:
    q = torch.zeros(2, 4, requires_grad=True)
    loss = regularizer(q, torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 9.0, 1.0]))
    (push,) = torch.autograd.grad(loss, q)
    assert torch.allclose(push, torch.tensor([-0.5, -0.5, 0.9, 0.1]).expand(2, 4), atol=1e-6)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_temperature_reaches_rows_whose_value_is_not_the_highest() -> None:
    """The second simulated row has the gap and is worth 50 less."""
    values, real, gap = (
        torch.tensor([0.0, 0.0, 0.0, -50.0]),
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        torch.tensor([1, 1, 1, 9]),
    )
    pushes = []
    for temperature in (1.0, 1000.0):
        q = values.expand(2, 4).clone().requires_grad_()
        pushes.append(torch.autograd.grad(regularizer(q, real, gap, temperature), q)[0][0])
    assert torch.allclose(pushes[0], torch.tensor([-0.5, -0.5, 1.0, 0.0]), atol=1e-6)
    assert torch.allclose(pushes[1], torch.tensor([-0.5, -0.5, 0.1, 0.9]), atol=0.01)


def test_no_gap_anywhere_is_finite() -> None:
    q = torch.zeros(2, 4, requires_grad=True)
    torch.set_flush_denormal(True)  # as in a run
    try:
        smallest = torch.zeros(4).clamp(min=SMALLEST_GAP)
        (push,) = torch.autograd.grad(regularizer(q, torch.tensor([1.0, 0.0, 0.0, 0.0]), smallest), q)
    finally:
        torch.set_flush_denormal(False)
    assert bool(push.isfinite().all())


def test_the_learner_hears_the_discriminators() -> None:
    """The same batches with and without the regulariser teach different critics."""
    agents = [made(learner=partial(LEARNER, terms=[SimulatedValues(beta)])) for beta in (0.0, 5.0)]
    for agent in agents:
        agent.update(Clock())
    assert not torch.equal(*(agent.learner.vectors["critic"] for agent in agents))


def test_state_comes_back_to_the_bit() -> None:
    agent, other = made(), made()
    clock = Clock()
    agent.update(clock)
    saved, rows = agent.state_dict(), agent.buffers["simulated"].all().clone()
    other.buffers["simulated"].extend(rows)
    other.load_state_dict(saved)
    logged = [each.update(Clock(updates=clock.updates)) for each in (agent, other)]
    assert logged[0] == logged[1]
    assert torch.equal(*(each.learner.vectors["critic"] for each in (agent, other)))
    assert torch.equal(*(each.buffers["simulated"].all().obs for each in (agent, other)))


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="sample_weights"):
        made(learner=partial(LEARNER, sample_weights="ignore"))
    with pytest.raises(UserError, match="gravty"):
        made(simulator={"gravty": 15.0}).update(Clock())
    with pytest.raises(UserError, match="beta"):
        SimulatedValues(-1.0)
    with pytest.raises(UserError, match="temperature"):
        SimulatedValues(temperature=0.0)


def test_the_recipe_builds_it() -> None:
    overrides = [("data", "some.hdf5"), ("agent.init_args.simulator", {"gravity": 15.0})]
    agent = resolve("h2o", overrides, env="Pendulum-v1").config.agent(SPEC)
    assert isinstance(agent, HybridAgent)
    assert agent.simulator == {"gravity": 15.0}
