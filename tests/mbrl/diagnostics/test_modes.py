"""Modes of lifted models whose truth is known: a linear plant, seen through features that belong and that do not."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.modes import drift, modes
from mbrl.models.base import DynamicsModel, LinearParts, State, Step
from mbrl.models.koopman.base import KoopmanModel

SPEC = EnvSpec("Plane-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)
A = torch.tensor([[0.9, -0.3], [0.3, 0.9]], dtype=torch.float64)
B, N = torch.tensor([[0.1], [0.2]]), torch.tensor([[[0.2, 0.0], [0.1, -0.2]]])


def plant(obs: Tensor, action: Tensor, bilinear: bool = False) -> Tensor:
    pushed = torch.einsum("ma,aij,mj->mi", action, N, obs) if bilinear else torch.zeros_like(obs)
    return obs @ A.float().T + action @ B.T + pushed


def lived(generator: Generator, rows: int = 400, bilinear: bool = False) -> Transitions:
    obs = 2 * torch.rand(rows, 2, generator=generator) - 1
    action = 2 * torch.rand(rows, 1, generator=generator) - 1
    no, ids = torch.zeros(rows, dtype=torch.bool), torch.arange(rows)
    return Transitions(obs, action, no.float(), plant(obs, action, bilinear), no, no, ids, ids * 0, ids * 0)


class Lifted(KoopmanModel):
    """The plant as it is, beside the constant and a sine that does not evolve linearly (said to shrink by half)."""

    def __init__(self, acts: float = 1.0, bilinear: bool = False) -> None:
        super().__init__(SPEC, reencode_every=0)
        self.acts, self.bilinear = acts, bilinear

    def lift(self, obs: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(obs[..., :1]), obs, (4 * obs[..., :1]).sin()], -1)

    def linear_parts(self) -> LinearParts:
        a, b, c = torch.zeros(4, 4).double(), torch.zeros(4, 1).double(), torch.zeros(2, 4).double()
        a[0, 0], a[1:3, 1:3], a[3, 3] = 1.0, A, 0.5
        b[1:3], c[:, 1:3] = self.acts * B, torch.eye(2)
        bilinear = torch.zeros(1, 4, 4).double()
        bilinear[:, 1:3, 1:3] = N
        return LinearParts(a, b, c, torch.zeros(2).double(), bilinear if self.bilinear else None)

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        parts = self.linear_parts().map(torch.Tensor.float)
        return latent @ parts.a.T + action @ parts.b.T

    def read(self, latent: Tensor) -> Tensor:
        return latent[..., 1:3]

    def learned_reward(self, latent: Tensor, action: Tensor, next_latent: Tensor) -> Tensor:
        return latent[..., 0] * 0


def test_what_belongs_is_trusted_and_what_does_not_is_spurious(generator: Generator) -> None:
    found = modes(Lifted(), lived(generator))
    assert found is not None
    assert found.trust() == ["constant", "trust", "trust", "spurious"]
    assert sorted(found.values[1:3].imag.tolist()) == pytest.approx([-0.3, 0.3])
    assert float(found.residual[:3].max()) < 1e-6
    assert found.values[3].real == pytest.approx(0.5)
    assert found.radius == pytest.approx(1.0)
    assert 0.0 < found.closure < 1.0
    assert found.enough_rows
    assert found.rows == 400


@pytest.mark.parametrize("bilinear", [False, True])
def test_what_the_action_does_is_not_held_against_a_mode(bilinear: bool, generator: Generator) -> None:
    rows = lived(generator, bilinear=bilinear)
    right, wrong = modes(Lifted(bilinear=bilinear), rows), modes(Lifted(acts=-1.0, bilinear=bilinear), rows)
    assert right is not None
    assert wrong is not None
    assert int((right.residual < 1e-6).sum()) == 3
    assert int((wrong.residual < 1e-6).sum()) == 1  # the constant
    if bilinear:
        deaf = modes(Lifted(), rows)
        assert deaf is not None
        assert int((deaf.residual < 1e-6).sum()) == 1


def test_a_function_that_hardly_moves_is_not_trusted_for_it(generator: Generator) -> None:
    """With a tiny time step every function looks like a mode of eigenvalue 1."""
    rows = lived(generator)
    rows.next_obs = rows.obs + 0.05 * (rows.next_obs - rows.obs)

    class Still(Lifted):
        def linear_parts(self) -> LinearParts:
            return LinearParts(torch.eye(4), torch.zeros(4, 1), torch.zeros(2, 4), torch.zeros(2))

    found = modes(Still(), rows)
    assert found is not None
    assert float(found.residual.max()) < 0.1
    assert "trust" not in found.trust()
    assert found.closure == pytest.approx(1.0)


def test_few_rows_are_said_to_be_few(generator: Generator) -> None:
    found = modes(Lifted(), lived(generator, rows=10))
    assert found is not None
    assert not found.enough_rows


def test_a_model_without_modes_is_refused(generator: Generator) -> None:
    class Plain(DynamicsModel):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            raise NotImplementedError

    with pytest.raises(UserError, match="LatentLinear"):
        modes(Plain(SPEC), lived(generator))


def test_matrices_that_are_not_finite_have_no_modes(generator: Generator) -> None:
    assert modes(Lifted(acts=float("nan")), lived(generator)) is None


def windows(generator: Generator, count: int = 30, length: int = 8) -> Transitions:
    """``[count, length]`` of the plant."""
    rows, steps = lived(generator, count), list[Transitions]()
    for _ in range(length):
        steps.append(rows)
        again = lived(generator, count)
        again.obs, again.next_obs = rows.next_obs, plant(rows.next_obs, again.action)
        rows = again
    return Transitions.stack(steps, 1)


def test_re_encoding_mends_what_drifts(generator: Generator) -> None:
    rows, model = windows(generator), Lifted()
    model.fit_range(Transitions.cat([rows[:, i] for i in range(8)]))
    found = drift(model, rows, (0, 1))
    assert list(found.closure) == [0, 1]
    assert found.closure[0][0] == pytest.approx(float(found.closure[1][0]))
    assert float(found.closure[1][-1]) < 0.7 * float(found.closure[0][-1])
    assert found.diverged == {0: 0.0, 1: 0.0}


def test_windows_that_diverge_are_counted(generator: Generator) -> None:
    class Wild(Lifted):
        def advance(self, latent: Tensor, action: Tensor) -> Tensor:
            return 100 * latent

    found = drift(Wild(), windows(generator), (0,))
    assert found.diverged[0] == 1.0
    assert float(found.closure[0][-1]) == 10.0
