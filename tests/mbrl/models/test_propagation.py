"""Which member moves a particle, under which luck, and when the model says that it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from envs.errors import UserError
from mbrl.models.base import PROPAGATIONS, State

DRIFTS = [1.0, 10.0, 100.0]


def start(rows: int = 4) -> State:
    return State(torch.arange(rows * 2.0).view(rows, 2))


def moves(
    model: Any, generator: Generator | None, horizon: int = 5, particles: int = 6, **options: Any
) -> torch.Tensor:
    """How far every particle moved in every step, ``[H, P, B, 2]``."""
    path = model.rollout(start(), torch.zeros(horizon, 4, 1), generator, particles=particles, **options)
    assert path.states.obs.shape[0] == horizon + 1
    assert path.reward.shape == path.terminated.shape == (horizon, *path.states.obs.shape[1:-1])
    difference: torch.Tensor = path.states.obs.diff(dim=0)
    return difference


def drifts_of(moved: torch.Tensor) -> torch.Tensor:
    """``[H, P]``: the one drift with which all rows and entries of a particle moved."""
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-3, rtol=0)
    return moved[:, :, 0, 0].round()


# -- members -------------------------------------------------------------------------------------------------------


def test_a_step_tells_which_member_moved_a_row(drifting: Any, generator: Generator) -> None:
    model = drifting(DRIFTS, elites=2)
    model.set_elites(torch.tensor([2.0, 9.0, 1.0]))
    obs = torch.arange(14.0).view(7, 2)
    step = model.step(State(obs), torch.zeros(7, 1), generator)
    moved = (step.state.obs - obs)[:, 0].round()
    assert torch.equal(moved, torch.tensor(DRIFTS)[step.member])
    assert set(step.member.tolist()) == {0, 2}


def test_learned_ends_are_sampled_in_steps_and_likely_ones_in_plans(
    system: Any, make_ready: Any, generator: Generator
) -> None:
    model, data = make_ready(system("pair", "known", "learned"), members=1), system("pair").data(1)
    state, action = State(data.obs.expand(4000, -1)), data.action.expand(4000, -1)
    with torch.no_grad():
        logit = model.predict(State(data.obs), data.action).end_logit[0, 0, 0]
        model.biases[-1][..., -1] += torch.tensor(0.3 / 0.7).log() - logit
    share = model.step(state, action, generator).terminated.float().mean()
    assert abs(share - 0.3) < 0.03
    assert not model.step(state, action, None).terminated.any()
    assert not model.rollout(state, action[None], generator, particles=1).terminated.any()


def test_trajectory_keeps_the_member(drifting: Any, generator: Generator) -> None:
    drifts = drifts_of(moves(drifting(DRIFTS), generator, propagation="trajectory"))
    assert (drifts == drifts[0]).all()
    assert sorted(drifts[0].tolist()) == [1, 1, 10, 10, 100, 100]


def test_step_mixes_the_members_evenly(drifting: Any, generator: Generator) -> None:
    drifts = drifts_of(moves(drifting(DRIFTS), generator, horizon=60, propagation="step"))
    for now in drifts:
        assert sorted(now.tolist()) == [1, 1, 10, 10, 100, 100]
    for particle in drifts.T:
        counts = [(particle == drift).sum().item() for drift in DRIFTS]
        assert min(counts) > 8  # of an expected 20


def test_step_without_luck_takes_turns_and_touches_no_global_state(drifting: Any) -> None:
    model, before = drifting(DRIFTS), torch.get_rng_state()
    drifts = drifts_of(moves(model, None, horizon=6, propagation="step"))
    assert torch.equal(torch.get_rng_state(), before)
    for particle in drifts.T:
        assert sorted(particle.tolist()) == [1, 1, 10, 10, 100, 100]


def test_mean_is_the_mean_of_the_members(drifting: Any, generator: Generator) -> None:
    moved = moves(drifting(DRIFTS), generator, propagation="mean")
    assert moved.shape[1] == 1
    torch.testing.assert_close(moved, torch.full_like(moved, 37.0), atol=1e-3, rtol=0)


def test_all_gives_every_member_one_particle(drifting: Any, generator: Generator) -> None:
    drifts = drifts_of(moves(drifting(DRIFTS), generator, particles=7, propagation="all"))
    assert drifts.shape == (5, 3)
    assert (drifts == torch.tensor(DRIFTS)).all()


def test_all_and_mean_take_no_noise(system: Any, make_ready: Any) -> None:
    small = system("pair", "learned", "learned")
    model, data = make_ready(small), small.data(8)
    actions = data.action.expand(3, -1, -1)
    for propagation in PROPAGATIONS:
        one, other = (
            model.rollout(
                State(data.obs), actions, torch.Generator().manual_seed(i), particles=3, propagation=propagation
            )
            for i in (0, 1)
        )
        assert torch.equal(one.states.obs, other.states.obs) == (propagation in ("mean", "all"))


def test_mean_of_one_step_is_that_of_the_prediction(system: Any, make_ready: Any) -> None:
    small = system("plain", "learned")
    model, data = make_ready(small), small.data(30)
    path = model.rollout(State(data.obs), data.action[None], None, propagation="mean")
    expected = model.predict(State(data.obs), data.action).mean.mean(0)
    torch.testing.assert_close(path.states.obs[1, 0], expected[:, :-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path.reward[0, 0], expected[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("propagation", ["trajectory", "step"])
def test_particles_are_shared_out_evenly_or_not_at_all(propagation: str, drifting: Any, generator: Generator) -> None:
    with pytest.raises(UserError, match="multiple of the 3 elites"):
        moves(drifting(DRIFTS), generator, particles=4, propagation=propagation)


def test_only_elites_move_anything(drifting: Any, generator: Generator) -> None:
    model = drifting(DRIFTS, elites=2)
    model.set_elites(torch.tensor([0.3, 0.9, 0.1]))
    assert model.get_buffer("elites").tolist() == [0, 2]
    for propagation in ("trajectory", "step", "all"):
        assert set(drifts_of(moves(model, generator, propagation=propagation)).flatten().tolist()) == {1, 100}
    torch.testing.assert_close(moves(model, generator, propagation="mean").mean(), torch.tensor(50.5))
    state = State(torch.zeros(200, 2))
    assert set(model.step(state, torch.zeros(200, 1), generator).state.obs.flatten().tolist()) == {1, 100}
    found = model.uncertainty(state, torch.zeros(200, 1), "std_of_means")
    torch.testing.assert_close(found, torch.full((200,), 49.5 * 2**0.5))  # all three would give 44.6 * sqrt 2


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_a_step_of_few_rows_is_fair_to_every_elite(rows: int, drifting: Any, generator: Generator) -> None:
    model, seen = drifting(DRIFTS).bind(), []
    for _ in range(300):
        moved = model.step(start(rows), torch.zeros(rows, 1), generator).state.obs - start(rows).obs
        seen.append(moved[:, 0].round())
    drifts = torch.stack(seen)
    for drift in DRIFTS:
        share = (drifts == drift).float().mean(0)  # of each row; standard error 0.027
        assert (share - 1 / 3).abs().max() < 0.11


def test_a_step_keeps_the_order_of_rows(drifting: Any, generator: Generator) -> None:
    model = drifting([0.0, 0.0, 0.0])
    for luck in (None, generator):
        assert torch.equal(model.step(start(10), torch.zeros(10, 1), luck).state.obs, start(10).obs)


# -- luck ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("share", [1, 2])
def test_a_row_does_not_depend_on_its_company(propagation: Any, share: int, system: Any, make_ready: Any) -> None:
    """16 and more rows a call: bit for bit; fewer: up to rounding."""
    small = system("mixed", "learned", "learned")
    model, data = make_ready(small).bind(), small.data(64)
    actions = torch.stack([data.action, data.action.flip(0), -data.action])

    def path(rows: slice) -> Any:
        luck = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {"particles": 3 * share, "propagation": propagation}
        return model.rollout(State(data.obs[rows]), actions[:, rows], luck, **options)

    whole = path(slice(0, 64))
    for rows, exact in ((slice(16, 32), True), (slice(30, 64), True), (slice(5, 7), False), (slice(63, 64), False)):
        part = path(rows)
        for mine, theirs in ((part.states.obs, whole.states.obs), (part.reward, whole.reward)):
            if exact:
                assert torch.equal(mine, theirs[:, :, rows])
            else:
                torch.testing.assert_close(mine, theirs[:, :, rows], atol=1e-4, rtol=1e-4)
        assert torch.equal(part.terminated, whole.terminated[:, :, rows])


def test_luck_is_common_to_rows_and_differs_between_particles(system: Any, make_ready: Any) -> None:
    small = system("plain")
    model, data = make_ready(small, members=1), small.data(1)
    state, actions = State(data.obs.expand(5, -1)), data.action.expand(4, 5, -1)
    obs = model.rollout(state, actions, torch.Generator().manual_seed(0), particles=6).states.obs[1:]
    torch.testing.assert_close(obs, obs[:, :, :1].expand_as(obs), atol=1e-6, rtol=0)
    assert len(obs[0, :, 0, 0].unique()) == 6
    step = model.step(state, actions[0], torch.Generator().manual_seed(0)).state.obs
    assert len(step[:, 0].unique()) == 5  # the control: single steps draw luck for each row


# -- the validity box ----------------------------------------------------------------------------------------------


def test_leaving_the_data_truncates(drifting: Any, system: Any) -> None:
    model = drifting([0.0, 0.0, 0.0], validity=0.5)
    data = system("plain").data(300)
    data.next_obs, data.reward = data.obs.clone(), data.reward * 0  # nothing moves: data range only
    model.prepare(data)
    low, high = data.obs.amin(0), data.obs.amax(0)
    inside, outside = high + 0.45 * (high - low), high + 0.55 * (high - low)
    rows = torch.stack([inside, torch.stack([outside[0], high[1]]), torch.stack([high[0], outside[1]]), -outside, low])
    step = model.step(State(rows), torch.zeros(5, 1), None)
    assert step.truncated.tolist() == [False, True, True, True, False]
    assert torch.equal(step.terminated, rows[:, 0] > 0.8)  # what is known ends, the box does not
    path = model.rollout(State(rows), torch.zeros(2, 5, 1), None, particles=3)
    assert torch.equal(path.truncated, step.truncated.expand(2, 3, 5))


def test_no_box_unless_asked(drifting: Any, system: Any) -> None:
    model = drifting([0.0, 0.0])
    model.prepare(system("plain").data(50))
    assert not model.step(State(torch.full((3, 2), 1e6)), torch.zeros(3, 1), None).truncated.any()


def test_going_round_and_round_stays_in_the_box(system: Any, make_ready: Any) -> None:
    """An angle that has been seen all round is valid after any number of turns; a raw unfolded one is not."""
    for layout, leaves in (("pair", False), ("wrapped", False), ("raw", True)):
        small = system(layout)
        model, data = make_ready(small, validity=0.1, probabilistic=False), small.data(300)
        angle = model.coordinates.plain
        with model_turning(model, angle):
            path = model.rollout(State(data.obs[:5]), torch.zeros(60, 5, 1), None, particles=3)
        assert bool(path.truncated.any()) == leaves


class model_turning:
    """The model's networks replaced by: the angle at that coordinate turns by 0.3 a step, all else stays."""

    def __init__(self, model: Any, angle: int) -> None:
        self.model, self.angle = model, angle

    def __enter__(self) -> None:
        with torch.no_grad():
            for parameter in [*self.model.weights, *self.model.biases]:
                parameter.zero_()
            norm = self.model.target_norm
            wanted = torch.zeros(norm.mean.shape[0], dtype=torch.float64)
            wanted[self.angle] = 0.3
            self.model.biases[-1][..., : len(wanted)] = ((wanted - norm.mean) / norm.std).float()

    def __exit__(self, *_: object) -> None:
        return None
