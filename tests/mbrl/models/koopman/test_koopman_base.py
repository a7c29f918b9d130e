"""What all Koopman models share: stepping is rolling out, lifting anew on time, projection, and the learned end."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, Angle, EnvSpec, never
from mbrl.data.transitions import Transitions
from mbrl.models.base import ParallelRollout as Parallel
from mbrl.models.base import State, require
from mbrl.models.koopman.base import KoopmanModel, KoopmanState


def speed_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[:, 2] - 0.1 * obs[:, 2] ** 2 - action[:, 0]


SPEC = EnvSpec(
    "Wheel-v0",
    "0",
    "0",
    3,
    ActionSpec("continuous", 1, (-2.0,), (2.0,)),
    angles=(Angle(cos=0, sin=1),),
    reward_terms={"reward": speed_reward},
    reward_complete=True,
    termination=never,
)


class Wheel(KoopmanModel):
    """Latent: cos, sin, speed, speed squared; the square drifts from what the speed lifts to."""

    def __init__(self, spec: EnvSpec = SPEC, **options: Any) -> None:
        super().__init__(spec, **options)
        move = torch.eye(4)
        move[0, 1], move[1, 0], move[2, 3], move[2, 2] = 0.3, -0.3, 0.2, 0.9
        self.register_buffer("move", move)

    def lift(self, obs: Tensor) -> Tensor:
        return torch.cat([obs, obs[..., 2:].square()], -1)

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent @ self.get_buffer("move").T + action * latent.new_tensor([0.0, 0.0, 0.1, 0.0])

    def read(self, latent: Tensor) -> Tensor:
        return latent[..., :3]

    def end_logit(self, next_latent: Tensor) -> Tensor:
        return next_latent[..., 2] - 1.0


def start(rows: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(rows, generator=generator)
    return torch.stack([angle.cos(), angle.sin(), torch.randn(rows, generator=generator)], -1)


def transitions(obs: Tensor) -> Transitions:
    ids = torch.arange(len(obs))
    return Transitions(obs, torch.zeros(len(obs), 1), obs[:, 0], obs, ids < 0, ids < 0, ids * 0, ids, ids * 0)


def ranged(**options: Any) -> Wheel:
    model = Wheel(**options)
    model.fit_range(transitions(start(200)))
    return model


@pytest.mark.parametrize("period", [0, 1, 3, 10, 50])
def test_stepping_is_rolling_out(period: int, generator: Generator) -> None:
    model = ranged(reencode_every=period)
    actions = torch.rand(10, 6, 1, generator=generator) * 2 - 1
    path = model.rollout(model.encode(start()), actions, None)
    state: State = model.encode(start())
    for h, action in enumerate(actions):
        step = model.step(state, action, None)
        state = step.state
        assert isinstance(state, KoopmanState)
        torch.testing.assert_close(state.latent, path.states.latent[h + 1, 0], atol=1e-6, rtol=1e-6)  # type: ignore[attr-defined]
        torch.testing.assert_close(state.obs, path.states.obs[h + 1, 0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(step.reward, path.reward[h, 0], atol=1e-6, rtol=1e-6)
        assert state.age.eq(h + 1).all()


def test_a_latent_is_lifted_anew_exactly_after_each_period(generator: Generator) -> None:
    """By hand; and the control: another period gives other numbers."""
    model, actions = ranged(reencode_every=3), torch.rand(8, 6, 1, generator=generator) * 2 - 1
    latent, wanted = model.lift(start()), []
    for h, action in enumerate(actions):
        if h in (3, 6):
            latent = model.lift(model.project(model.read(latent)))
        latent = model.advance(latent, action)
        wanted.append(model.read(latent))
    said = {
        period: model.rollout(model.encode(start()), actions, None, reencode_every=period).states.obs[1:, 0]
        for period in (None, 3, 2, 0)
    }
    torch.testing.assert_close(said[None], torch.stack(wanted))
    torch.testing.assert_close(said[3], torch.stack(wanted))
    for other in (2, 0):
        torch.testing.assert_close(said[other][:2], torch.stack(wanted)[:2])
        assert (said[other][-1] - wanted[-1]).abs().max() > 1e-3


def test_never_is_the_latent_alone(generator: Generator) -> None:
    model, actions = ranged(reencode_every=0), torch.rand(8, 6, 1, generator=generator) * 2 - 1
    path = model.rollout(model.encode(start()), actions, None)
    alone = require(model, Parallel).rollout_latent(model.lift(start()), actions)
    torch.testing.assert_close(path.states.obs[1:, 0], model.read(alone))


def test_projection_is_onto_circle_and_box() -> None:
    model, data = ranged(reencode_every=1), start(200)
    out = torch.tensor([[3.0, 4.0, 50.0], [-0.1, 0.0, -50.0], [0.6, 0.8, 0.5]])
    low, high = float(data[:, 2].min()), float(data[:, 2].max())
    margin = 0.05 * (high - low)
    wanted = torch.tensor([[0.6, 0.8, high + margin], [-1.0, 0.0, low - margin], [0.6, 0.8, 0.5]])
    torch.testing.assert_close(model.project(out), wanted)
    wider = ranged(margin=0.5)
    assert wider.project(out)[0, 2] > high + 5 * margin
    torch.testing.assert_close(Wheel().project(out)[:, 2], out[:, 2])  # no data seen: no box yet


def test_projection_bounds_what_runs_away(generator: Generator) -> None:
    model = ranged(reencode_every=1)
    model.get_buffer("move")[2, 2] = 3.0
    actions = torch.rand(40, 6, 1, generator=generator) * 2 - 1
    tame, wild = (
        model.rollout(model.encode(start()), actions, None, reencode_every=k).states.obs[1:, 0] for k in (1, 0)
    )
    assert tame.abs().max() < 60.0
    assert wild.abs().max() > 1e9


def test_particles_are_alike_and_shapes_are_those_of_the_base() -> None:
    model = ranged(reencode_every=2)
    path = model.rollout(model.encode(start()), torch.zeros(5, 6, 1), None, particles=4)
    assert path.states.obs.shape == (6, 4, 6, 3)
    assert path.reward.shape == path.terminated.shape == (5, 4, 6)
    assert torch.equal(path.reward[:, 0], path.reward[:, 3])
    torch.testing.assert_close(path.reward[0, 0], SPEC.known_reward(start(), torch.zeros(6, 1), path.states.obs[1, 0]))


def test_a_learned_end_is_likely_or_sampled() -> None:
    spec = EnvSpec("Wheel-v0", "0", "0", 3, SPEC.action, angles=SPEC.angles)
    model, action = Wheel(spec, reencode_every=0), torch.zeros(20_000, 1)
    state = model.encode(torch.tensor([[1.0, 0.0, 0.5]]).expand(20_000, 3))
    model.learned_reward = lambda *parts: parts[0][..., 0] * 0.0  # type: ignore[method-assign]
    sure = model.step(state, action, None)
    share = model.step(state, action, torch.Generator().manual_seed(0)).terminated.float().mean()
    logit = model.end_logit(sure.state.latent[0])  # type: ignore[attr-defined]
    assert logit < 0
    assert not sure.terminated.any()
    assert float(share) == pytest.approx(float(logit.sigmoid()), abs=0.015)


def test_the_period_travels_with_the_weights() -> None:
    model, other = ranged(reencode_every="auto"), Wheel(reencode_every="auto")
    model.reencode_every = 7
    other.load_state_dict(model.state_dict())
    assert other.reencode_every == 7
    assert torch.equal(other.get_buffer("box"), model.get_buffer("box"))


def test_bad_options_are_named(generator: Generator) -> None:
    for options, field in (
        ({"reencode_every": -1}, "reencode_every"),
        ({"validation_steps": 0}, "validation_steps"),
        ({"margin": -0.1}, "margin"),
    ):
        with pytest.raises(UserError, match=field):
            Wheel(**options)
    with pytest.raises(UserError, match="encode"):
        Wheel().step(State(start()), torch.zeros(6, 1), generator)


def test_a_learned_reward_is_of_the_latent_that_moved() -> None:
    spec = dataclasses.replace(SPEC, reward_terms={}, reward_complete=False)
    model = Wheel(spec, reencode_every=2)
    model.learned_reward = lambda latent, action, after: latent[..., 3] + after[..., 3]  # type: ignore[method-assign]
    actions = torch.rand(7, 6, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    state, stepped = model.encode(start()), []
    path = model.rollout(state, actions, None)
    for action in actions:
        step = model.step(state, action, None)
        stepped.append(step.reward)
        state = step.state
    torch.testing.assert_close(path.reward[:, 0], torch.stack(stepped))
    latents = path.states.latent[:, 0, :, 3]
    stale = latents[:-1] + latents[1:]  # what a move after a lift would get from the latent before it
    assert (path.reward[:, 0] - stale).abs().max() > 0.01
