"""The diagonal model: its spectrum at the start and bounds on it, its linear parts, its step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import LinearParts
from mbrl.models.koopman.diagonal import DiagonalKoopman

PENDULUM = env_spec("Pendulum-v1")


def small(**options: object) -> DiagonalKoopman:
    torch.manual_seed(0)
    return DiagonalKoopman(PENDULUM, **({"modes": 6, "window": 8, "hidden": 8, "layers": 1} | options))  # type: ignore[arg-type]


def rows(generator: Generator, episodes: int = 6, length: int = 30) -> Transitions:
    """An angle that turns at a rate which the action changes."""
    n = episodes * length
    episode, step = torch.arange(episodes).repeat_interleave(length), torch.arange(length).repeat(episodes)
    action = torch.rand(n, 1, generator=generator) * 2 - 1
    turned = (0.1 * action[:, 0]).view(episodes, length).cumsum(1)
    angle = torch.cat([torch.zeros(episodes, 1), turned], 1)

    def show(x: Tensor) -> Tensor:
        return torch.stack([x.cos(), x.sin(), x.sin() * 2], -1).flatten(0, 1)

    never = torch.zeros(n, dtype=torch.bool)
    return Transitions(
        show(angle[:, :-1]), action, torch.zeros(n), show(angle[:, 1:]), never, never, episode, step, 0 * step
    )


def moved(parts: LinearParts, z: Tensor, u: Tensor) -> Tensor:
    found = z @ parts.a.T + u @ parts.b.T
    if parts.bilinear is not None:
        found = found + torch.einsum("ba,aij,bj->bi", u, parts.bilinear, z)
    return found


def test_the_spectrum_starts_as_published() -> None:
    model = small(modes=64, window=50)
    continuous = model.eigenvalues(discrete=False)
    torch.testing.assert_close(continuous.real, torch.full((64,), -0.2).double())
    torch.testing.assert_close(continuous.imag, (math.pi * torch.arange(64)).double(), rtol=1e-6, atol=1e-6)
    turns = model.eigenvalues().angle().remainder(2 * math.pi)
    assert bool((turns.diff() > 0).all())
    assert float(turns[-1]) < math.pi
    assert float((model.eigenvalues().abs() ** 50).min()) > 0.1


def test_a_step_that_folds_modes_is_refused() -> None:
    assert small(modes=64, step=0.01).log_step.exp()[0].item() == pytest.approx(0.01)
    for bad in (1.0, 0.0, 1 / 63):
        with pytest.raises(UserError, match="step"):
            small(modes=64, step=bad)


def test_strong_decay_shortens_the_step() -> None:
    assert float((small(mu=-5.0, window=50).eigenvalues().abs() ** 50).min()) == pytest.approx(0.1, rel=1e-3)
    forgotten = small(mu=-5.0, window=50, step=0.05)
    assert float((forgotten.eigenvalues().abs() ** 50).max()) < 1e-4


@pytest.mark.parametrize(("decay", "low", "high"), [("interval", -0.3, -0.1), ("negative", -math.inf, 0.0)])
def test_real_parts_stay_where_they_may(decay: str, low: float, high: float) -> None:
    model, free = small(decay=decay), small()
    assert model.mu().detach()[0].item() == pytest.approx(-0.2, abs=1e-6)
    for p in (5.0, -5.0):
        torch.nn.init.constant_(model.mu_raw, p)
        torch.nn.init.constant_(free.mu_raw, p)
        assert low < float(model.mu()[0].detach()) < high
    torch.nn.init.constant_(free.mu_raw, 5.0)
    assert float(free.eigenvalues().abs().min()) > 1.0


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_linear_parts_are_the_model(bilinear: bool, decoder: str, generator: Generator) -> None:
    model = small(action_net="linear", decoder=decoder, bilinear=bilinear, reencode_every=0)
    if model.nu is not None:
        torch.nn.init.normal_(model.nu, std=0.1)
    data = rows(generator)
    if decoder == "mlp":
        with pytest.raises(UserError, match="fit the model first"):
            model.linear_parts()
    Fitter(batch_size=16, max_updates=60, lr=5e-3).fit(model, data, generator)
    parts, state = model.linear_parts(), model.encode(data.obs[:9])
    assert (parts.bilinear is None) is (not bilinear)
    z, now = state.latent.double(), state
    for k in range(5):
        z = moved(parts, z, data.action[k : k + 9].double())
        now = model.step(now, data.action[k : k + 9], None).state  # type: ignore[assignment]
    torch.testing.assert_close(z.float(), now.latent, atol=1e-5, rtol=1e-4)
    read = (z @ parts.c.T + parts.offset).float()
    if decoder == "linear":
        torch.testing.assert_close(read, now.obs, atol=1e-5, rtol=1e-4)
    else:
        seen = (model.lift(data.obs).double() @ parts.c.T + parts.offset).float()
        spread = float((data.obs - data.obs.mean(0)).square().mean())
        assert float((seen - data.obs).square().mean().detach()) < 0.05 * spread


def test_an_encoded_action_is_not_linear() -> None:
    with pytest.raises(UserError, match="action_net"):
        small().linear_parts()


def test_paths_give_the_same_rollout_and_gradient(generator: Generator) -> None:
    latent, actions = torch.randn(4, 12, generator=generator), torch.randn(20, 4, 1, generator=generator)
    said, slopes = [], []
    for path in ("loop", "scan", "fft"):
        model = small(path=path)
        found = model.rollout_latent(latent, actions)
        found.square().sum().backward()  # type: ignore[no-untyped-call]
        assert model.mu_raw.grad is not None
        said.append(found.detach())
        slopes.append(model.mu_raw.grad)
    for other, slope in zip(said[1:], slopes[1:], strict=True):
        torch.testing.assert_close(other, said[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(slope, slopes[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("action_net", ["linear", "mlp"])
@pytest.mark.parametrize("bilinear", [False, True])
def test_the_last_latent_alone_is_the_last_of_all(action_net: str, bilinear: bool, generator: Generator) -> None:
    latent, actions = torch.randn(4, 12, generator=generator), torch.randn(20, 4, 1, generator=generator)
    model = small(action_net=action_net, bilinear=bilinear)
    if model.nu is not None:
        torch.nn.init.normal_(model.nu, std=0.1)
    path = model.rollout_latent(latent, actions)
    torch.testing.assert_close(model.latent_after(latent, actions), path[-1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.latent_after(latent, actions), path[-2], atol=1e-3)


def test_bad_options_are_named() -> None:
    for name, options in {"decay": {"decay": "up"}, "mu": {"mu": 0.1, "decay": "negative"}}.items():
        with pytest.raises(UserError, match=name):
            small(**options)
    with pytest.raises(UserError, match="mu"):
        small(mu=-0.5, decay="interval")
    with pytest.raises(UserError, match="action_net"):
        small(action_net="tree")


def test_it_learns_on_discrete_actions(generator: Generator) -> None:
    spec = replace(env_spec("Acrobot-v1"))
    model = DiagonalKoopman(spec, modes=4, window=4, hidden=8, layers=1)
    obs = torch.rand(40, 6, generator=generator)
    action = torch.nn.functional.one_hot(torch.randint(3, (40,), generator=generator), 3).float()
    never = torch.zeros(40, dtype=torch.bool)
    step = torch.arange(40)
    data = Transitions(obs, action, -torch.ones(40), obs, never, never, 0 * step, step, 0 * step)
    report = Fitter(batch_size=8, max_updates=5, holdout=0.0).fit(model, data, generator)
    assert math.isfinite(report["loss"])
