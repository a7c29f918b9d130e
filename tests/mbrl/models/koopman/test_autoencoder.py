"""The dense model: the observation stays readable, the action steers by the state, untrained it stands still."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.koopman.autoencoder import KoopmanAutoencoder

PENDULUM = env_spec("Pendulum-v1")


def small(**options: object) -> KoopmanAutoencoder:
    torch.manual_seed(0)
    kind = {"learned": 6, "window": 5, "hidden": 8, "layers": 1}
    return KoopmanAutoencoder(PENDULUM, **(kind | options))  # type: ignore[arg-type]


def steered(generator: Generator, episodes: int = 12, length: int = 30) -> Transitions:
    """``v' = 0.95 v + 0.3 u x`` on a slowly turning circle: the action's push depends on the state."""
    angle = torch.rand(episodes, generator=generator) * 6
    v, columns = torch.zeros(episodes), []
    for _ in range(length):
        action = torch.rand(episodes, 1, generator=generator) * 2 - 1
        obs = torch.stack([angle.cos(), angle.sin(), v], -1)
        v, angle = 0.95 * v + 0.3 * action[:, 0] * angle.cos(), angle + 0.1
        columns.append((obs, action, torch.stack([angle.cos(), angle.sin(), v], -1)))
    obs, action, next_obs = (torch.stack(c, 1).flatten(0, 1) for c in zip(*columns, strict=True))
    episode, step = torch.arange(episodes).repeat_interleave(length), torch.arange(length).repeat(episodes)
    never, nothing = torch.zeros(len(obs), dtype=torch.bool), torch.zeros(len(obs))
    return Transitions(obs, action, nothing, next_obs, never, never, episode, step, 0 * step)


def one_step_error(model: KoopmanAutoencoder, data: Transitions) -> float:
    said = model.step(model.encode(data.obs), data.action, None).state.obs
    return float((said - data.next_obs)[:, 2].square().mean() / data.next_obs[:, 2].var())


def test_untrained_it_stands_still_and_reads_what_it_saw(generator: Generator) -> None:
    model, data = small(), steered(generator)
    model.prepare(data)
    step = model.step(model.encode(data.obs), data.action, None)
    torch.testing.assert_close(step.state.obs, data.obs, atol=1e-5, rtol=1e-5)
    blind = small(obs_in_latent=False)
    blind.prepare(data)
    assert not torch.allclose(blind.read(blind.lift(data.obs)), data.obs, atol=0.1)


@pytest.mark.parametrize("options", [{}, {"bilinear": False}, {"obs_in_latent": False}])
def test_linear_parts_are_the_model(options: dict[str, bool], generator: Generator) -> None:
    model, data = small(reencode_every=0, **options), steered(generator)
    Fitter(batch_size=16, max_updates=40, lr=5e-3).fit(model, data, generator)
    parts, now = model.linear_parts(), model.encode(data.obs[:9])
    assert (parts.bilinear is None) is ("bilinear" in options)
    z = now.latent.double()
    for k in range(6):
        u = data.action[k : k + 9].double()
        turn = torch.zeros_like(z) if parts.bilinear is None else torch.einsum("ba,aij,bj->bi", u, parts.bilinear, z)
        z = z @ parts.a.T + u @ parts.b.T + turn
        now = model.step(now, data.action[k : k + 9], None).state  # type: ignore[assignment]
    torch.testing.assert_close(z.float(), now.latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((z @ parts.c.T + parts.offset).float(), now.obs, atol=1e-4, rtol=1e-4)
    assert bool((z[:, -1] == 1.0).all())
    assert float((model.eigenvalues() - 1.0).abs().min()) < 1e-6


def test_a_decoder_network_is_replaced_by_a_regression(generator: Generator) -> None:
    model, data = small(obs_in_latent=False, decoder="mlp"), steered(generator)
    with pytest.raises(UserError, match="fit the model first"):
        model.linear_parts()
    Fitter(batch_size=16, max_updates=40).fit(model, data, generator)
    parts = model.linear_parts()
    seen = model.lift(data.obs).double() @ parts.c.T + parts.offset
    assert float((seen - data.obs).square().mean().detach()) < 0.2 * float(data.obs.var())


def test_only_the_bilinear_model_learns_a_push_that_depends_on_the_state(generator: Generator) -> None:
    data, unseen = steered(generator, 20), steered(generator)
    errors = []
    for bilinear in (True, False):
        model = small(bilinear=bilinear, learned=2)
        Fitter(batch_size=32, max_updates=250, lr=1e-2).fit(model, data, torch.Generator().manual_seed(0))
        errors.append(one_step_error(model, unseen))
    assert errors[0] < 0.03
    assert errors[1] > 5 * errors[0]


def test_rows_are_moved_alike_whoever_travels_beside_them(generator: Generator) -> None:
    model = small()
    for p in model.dynamics_parameters():
        torch.nn.init.normal_(p, std=0.1)
    z, u = torch.randn(7, 10, generator=generator), torch.randn(4, 7, 1, generator=generator)
    together = model.rollout_latent(z, u)
    alone = torch.cat([model.rollout_latent(z[i : i + 1], u[:, i : i + 1]) for i in range(7)], 1)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model.advance(z, u[0]), together[0])


def test_bad_options_are_named() -> None:
    for name, bad in {"decoder": {"decoder": "tree"}, "latent_size": {"learned": -4}, "window": {"window": 0}}.items():
        with pytest.raises(UserError, match=name):
            small(**bad)


def test_sparsity_is_a_loss_of_its_own(generator: Generator) -> None:
    from mbrl.models.koopman.deep import Losses

    data = steered(generator, 2, 5)
    model, plain = small(losses=Losses(sparsity=0.5)), small()
    found: list[Tensor] = []
    for each in (model, plain):
        batch = each.prepare(data).map(lambda x: x.unflatten(0, (2, 5))[None])
        found.append(each.loss(batch)[0])
    _, parts = model.loss(batch)
    assert float((found[0] - found[1]).detach()) == pytest.approx(0.5 * float(parts["sparsity"]), rel=1e-4)
