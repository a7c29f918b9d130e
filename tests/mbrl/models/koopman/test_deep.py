"""What both deep Koopman models do alike: learn over windows, judge heads, come back bit for bit, serve agents."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from agents.mpc import MPCAgent
from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.buffer import consecutive
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination.rollout import PolicyChooser, imagine
from mbrl.models.base import LatentLinear, ParallelRollout
from mbrl.models.koopman.autoencoder import KoopmanAutoencoder
from mbrl.models.koopman.deep import DeepKoopman, Losses
from mbrl.models.koopman.diagonal import DiagonalKoopman
from mbrl.planning.cem import ICEM

MOVE = torch.tensor([[0.98, 0.15], [-0.15, 0.98]])
PUSH = torch.tensor([0.0, 0.2])
WINDOW, HORIZON = 8, 20


def effort(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return -(next_obs[:, 0].square() + 0.01 * action[:, 0].square())


def make_spec(known: bool = True) -> EnvSpec:
    return EnvSpec(
        id="Rotor-v0",
        version="0",
        fingerprint="0",
        obs_size=2,
        action=ActionSpec("continuous", 1, (-1.0,), (1.0,)),
        reward_terms={"effort": effort} if known else {},
        reward_complete=known,
        termination=never if known else None,
    )


def lived(episodes: int, length: int, generator: Generator) -> Transitions:
    """``[episodes * length]`` rows of a damped rotation that is pushed; it ends where the first entry is large."""
    obs, rows = 2.0 * torch.rand(episodes, 2, generator=generator) - 1.0, []
    for _ in range(length):
        action = 2.0 * torch.rand(episodes, 1, generator=generator) - 1.0
        next_obs = obs @ MOVE.T + action * PUSH
        rows.append((obs, action, next_obs))
        obs = next_obs
    obs, action, next_obs = (torch.stack(column, 1).flatten(0, 1) for column in zip(*rows, strict=True))
    episode, step = torch.arange(episodes).repeat_interleave(length), torch.arange(length).repeat(episodes)
    reward, ends = effort(obs, action, next_obs), next_obs[:, 0] > 0.8
    return Transitions(obs, action, reward, next_obs, ends, ~ends & (step == length - 1), episode, step, 0 * step)


Make = Callable[..., DeepKoopman]


def diagonal(spec: EnvSpec, **options: Any) -> DeepKoopman:
    return DiagonalKoopman(spec, **{"modes": 4, "window": WINDOW, "hidden": 16, "layers": 1} | options)


def autoencoder(spec: EnvSpec, **options: Any) -> DeepKoopman:
    return KoopmanAutoencoder(spec, **{"learned": 4, "window": WINDOW, "hidden": 16, "layers": 1} | options)


MODELS = pytest.mark.parametrize("make", [diagonal, autoencoder])


def fitted(make: Make, rows: Transitions, known: bool = True, updates: int = 250, **options: Any) -> DeepKoopman:
    torch.manual_seed(0)
    model = make(make_spec(known), **options)
    Fitter(lr=5e-3, batch_size=32, max_updates=updates).fit(model, rows, torch.Generator().manual_seed(1))
    return model


def open_loop(model: DeepKoopman, rows: Transitions) -> float:
    """Mean squared error of the last of ``HORIZON`` steps."""
    paths = rows[consecutive(rows.episode, rows.step, HORIZON)]
    said = model.rollout(model.encode(paths.obs[0]), paths.action, None, reencode_every=0).states.obs[-1, 0]
    return float((said - paths.next_obs[-1]).square().mean())


@MODELS
def test_learns_what_shuffled_rows_do_not_tell(make: Make, generator: Generator) -> None:
    rows, unseen = lived(20, 40, generator), lived(5, 30, generator)
    shuffled = rows.clone()
    shuffled.next_obs = rows.next_obs[torch.randperm(len(rows), generator=generator)]
    real, control = open_loop(fitted(make, rows), unseen), open_loop(fitted(make, shuffled), unseen)
    assert real < 0.02
    assert control > 10 * real


@MODELS
def test_a_window_is_lifted_once(make: Make, generator: Generator) -> None:
    """Later observations are targets: nothing of a prediction depends on them."""
    model = make(make_spec())
    batch = model.prepare(lived(2, WINDOW, generator)).map(lambda x: x.unflatten(0, (2, WINDOW))[None])
    _, before = model.loss(batch)
    batch.features[0, :, 1:] += 1.0  # the observation that a step leaves is the one that the last step reached
    _, same = model.loss(batch)
    batch.features[0, :, 0] += 1.0
    _, other = model.loss(batch)
    assert before["prediction"] == same["prediction"]
    assert before["consistency"] == same["consistency"]
    assert before["consistency"] != other["consistency"]


@MODELS
def test_the_target_of_consistency_can_be_held_still(make: Make, generator: Generator) -> None:
    """With it, what the encoder learns from later observations is cut: at a step of 0 only the first one counts."""

    def slope(detach: bool) -> Tensor:
        torch.manual_seed(0)
        model = make(make_spec(), losses=Losses(prediction=0.0, reconstruction=0.0, detach_target=detach))
        rows = model.prepare(lived(2, WINDOW, torch.Generator().manual_seed(0)))
        features = rows.next_features.clone().requires_grad_()
        rows.next_features = features
        loss, _ = model.loss(rows.map(lambda x: x.unflatten(0, (2, WINDOW))[None]))
        (found,) = torch.autograd.grad(loss, features, allow_unused=True)
        return torch.zeros(1) if found is None else found

    assert float(slope(True).abs().max()) == 0.0
    assert float(slope(False).abs().max()) > 0.0


@MODELS
def test_losses_of_a_perfect_latent_are_zero(make: Make, generator: Generator) -> None:
    model = make(make_spec())
    still = lived(2, WINDOW, generator)
    still.obs[:], still.next_obs[:], still.action[:] = 0.5, 0.5, 0.0
    batch = model.prepare(still).map(lambda x: x.unflatten(0, (2, WINDOW))[None])
    _, parts = model.loss(batch)
    assert (float(parts["consistency"]) < 1e-10) is isinstance(model, KoopmanAutoencoder)  # which starts standing still


@MODELS
def test_unknown_rewards_and_ends_are_learned(make: Make, generator: Generator) -> None:
    rows, unseen = lived(30, 40, generator), lived(10, 40, generator)
    model = fitted(make, rows, known=False, updates=300)
    step = model.step(model.encode(unseen.obs), unseen.action, None)
    assert float((step.reward - unseen.reward).square().mean()) < 0.2 * float(unseen.reward.var())
    assert 0.05 < float(unseen.terminated.double().mean()) < 0.95
    assert float((step.terminated == unseen.terminated).double().mean()) > 0.93
    sampled = torch.stack([model.step(model.encode(unseen.obs), unseen.action, generator).terminated for _ in range(9)])
    assert bool((sampled != sampled[0]).any())


@MODELS
def test_rollout_is_step_after_step(make: Make, generator: Generator) -> None:
    rows = lived(6, 30, generator)
    model = fitted(make, rows, updates=20)
    state, actions = model.encode(rows.obs[:5]), torch.randn(12, 5, 1, generator=generator).clamp(-1, 1)
    for period in (0, 5):
        model.reencode_every = period
        path, now = model.rollout(state, actions, None), state
        for action in actions:
            now = model.step(now, action, None).state
        torch.testing.assert_close(path.states.obs[-1, 0], now.obs, atol=1e-5, rtol=1e-4)
    once = model.rollout(state, actions, None, reencode_every=0).states.obs[-1, 0]
    assert not torch.allclose(once, now.obs, atol=1e-5, rtol=1e-4)


@MODELS
def test_it_comes_back_bit_for_bit(make: Make, generator: Generator) -> None:
    rows = lived(10, 30, generator)
    first, spec = fitted(make, rows, updates=20), make_spec()
    blob = io.BytesIO()
    torch.save(first.state_dict(), blob)
    blob.seek(0)
    second = make(spec)
    state, actions = first.encode(rows.obs[:3]), rows.action[:30].view(10, 3, 1)
    expected = first.rollout(state, actions, None).states.obs
    assert not torch.equal(second.rollout(second.encode(rows.obs[:3]), actions, None).states.obs, expected)
    second.load_state_dict(torch.load(blob, weights_only=True))
    assert torch.equal(second.rollout(second.encode(rows.obs[:3]), actions, None).states.obs, expected)
    assert second.reencode_every == first.reencode_every


@MODELS
def test_the_dynamics_are_a_group_of_their_own(make: Make) -> None:
    model = make(make_spec(), dynamics_lr=1e-5)
    groups = model.parameter_groups(0.1)
    slow = {id(p) for group in groups if group.get("lr") == 1e-5 for p in group["params"]}
    assert slow == {id(p) for p in model.dynamics_parameters()}
    every = [id(p) for group in groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
    assert all((group["weight_decay"] == 0.1) is (group["params"][0].dim() > 1) for group in groups)
    assert not any("lr" in group for group in make(make_spec()).parameter_groups(0.1))
    with pytest.raises(UserError, match="weight_decay"):
        model.parameter_groups([0.1, 0.1])


@MODELS
def test_capabilities_and_bad_options(make: Make) -> None:
    assert isinstance(make(make_spec()), ParallelRollout)
    assert isinstance(make(make_spec()), LatentLinear)
    for bad in ({"window": 1}, {"hidden": 0}, {"layers": -1}, {"dynamics_lr": 0.0}, {"decoder": "tree"}):
        with pytest.raises(UserError, match=next(iter(bad))):
            make(make_spec(), **bad)
    with pytest.raises(UserError, match=r"losses\.prediction"):
        Losses(prediction=-1.0)


@MODELS
def test_it_can_be_planned_and_imagined_with(make: Make, generator: Generator) -> None:
    rows, spec = lived(6, 40, generator), make_spec()
    model = fitted(make, rows, updates=30)
    agent = MPCAgent(spec, lambda _: model, partial(ICEM, horizon=5, candidates=8, iterations=2), fitter=Fitter())
    first = torch.ones(3, dtype=torch.bool)
    action, _, said = agent.act(rows.obs[:3], agent.initial_actor_state(3), first, "evaluate", generator)
    assert action.shape == (3, 1)
    assert bool(said["plan_value"].isfinite().all())
    policy = PolicyChooser(lambda obs, luck: -obs[:, :1].clamp(-1, 1))
    made = imagine(model, policy, model.encode(rows.obs[:20]), 3, seed=0)
    assert len(made) == 60
    torch.testing.assert_close(made.reward, effort(made.obs, made.action, made.next_obs))
