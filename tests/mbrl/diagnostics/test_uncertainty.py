"""Orders of uncertainty, shifts of the data, and Jacobians, on data where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from envs.registry import env_spec
from envs.spec import ActionSpec, Angle, EnvSpec, never
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.ranking import rank
from mbrl.diagnostics.shift import auroc, shift_tests, shifted_rows
from mbrl.diagnostics.spectra import spectra
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel, LinearParts, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble

PLANE = EnvSpec("Plane-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)
MATRIX = torch.tensor([[0.5, 0.4], [-0.4, 0.5]])


def plane(generator: Generator, rows: int = 400, action: float = 0.2) -> Transitions:
    """A rotation that shrinks; actions stay small."""
    obs, push = torch.randn(rows, 2, generator=generator), action * torch.randn(rows, 1, generator=generator)
    no, ids = torch.zeros(rows, dtype=torch.bool), torch.arange(rows)
    return Transitions(obs, push, no.float(), obs @ MATRIX.T + push, no, no, ids, ids * 0, ids * 0)


def test_an_order_is_judged_between_chance_and_oracle(generator: Generator) -> None:
    error = torch.rand(500, generator=generator, dtype=torch.float64)
    knows, lies = rank("knows", error.exp(), error), rank("lies", -error, error)
    guesses = rank("guesses", torch.rand(500, generator=generator, dtype=torch.float64), error)
    assert knows.spearman == pytest.approx(1.0)
    assert knows.gain == pytest.approx(1.0)
    assert knows.area < guesses.area < lies.area
    assert guesses.random_area == pytest.approx(float(error.mean()))
    assert abs(guesses.spearman) < 0.15
    assert abs(guesses.gain) < 0.2
    assert lies.gain < -0.8


def test_auroc_is_the_share_of_pairs() -> None:
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
    assert auroc(low, high) == (1 + 1 + 0.5 + 1) / 4
    assert auroc(high, low) == 0.5 / 4


def test_shifts_change_what_they_say_and_nothing_else(generator: Generator) -> None:
    rows = plane(generator)
    shifts = shifted_rows(PLANE, rows, rows.obs.std(0), generator)
    swapped = shifts["shuffled actions"].action
    assert torch.equal(swapped.sort(0).values, rows.action.sort(0).values)
    assert not (swapped == rows.action).any()
    assert shifts["random actions"].action.abs().max() > 0.95
    pushed = shifts["states 2 std further out"].obs - rows.obs.mean(0)
    further = pushed.abs() - (rows.obs - rows.obs.mean(0)).abs()
    assert torch.allclose(further, 2 * rows.obs.std(0).expand_as(further), atol=1e-5)
    assert torch.equal(shifts["states 2 std further out"].action, rows.action)


def test_an_angle_has_no_outside(generator: Generator) -> None:
    spec = EnvSpec("C-v0", "0", "0", 2, PLANE.action, angles=(Angle(cos=0, sin=1),))
    assert set(shifted_rows(spec, plane(generator), torch.ones(2), generator)) == {
        "random actions",
        "shuffled actions",
    }


class Gauge(DynamicsModel):
    """Unsure by the distance from the origin, or by the action, or by nothing that matters."""

    def __init__(self, by: str) -> None:
        super().__init__(PLANE)
        self.by = by

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        zeros = torch.zeros(len(action))
        return Step(state, zeros, zeros > 0, zeros > 0)

    def predict(self, state: State, action: Tensor) -> object:
        raise NotImplementedError

    def uncertainty(self, state: State, action: Tensor, kind: str) -> Tensor:
        luck = torch.rand(len(action), generator=torch.Generator().manual_seed(int(1e4 * state.obs.abs().sum())))
        return {"obs": state.obs.norm(dim=-1), "action": action[:, 0].abs(), "luck": luck}[self.by]


@pytest.mark.parametrize("by", ["obs", "action", "luck"])
def test_a_shift_is_noticed_by_who_looks_at_it(generator: Generator, by: str) -> None:
    rows = plane(generator)
    areas = {t.shift: t.auroc for t in shift_tests(Gauge(by), rows, rows.obs.std(0), generator)}
    assert (areas["states 4 std further out"] > 0.99) == (by == "obs")
    assert (areas["random actions"] > 0.8) == (by == "action")
    assert abs(areas["shuffled actions"] - 0.5) < 0.1


def test_an_ensembles_jacobian_is_that_of_its_elites_mean(generator: Generator) -> None:
    """Against central differences, and against the members that do not predict."""
    rows = plane(generator, rows=20)
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(PLANE, members=3, elites=1, hidden=8)
    model.prepare(rows)
    model.set_elites(torch.tensor([2.0, 1.0, 3.0]))
    with torch.no_grad():
        for weight in model.weights:
            weight.mul_(5.0)  # as initialised, nothing moves
    found = spectra(model, rows, torch.ones(2))
    assert found is not None
    columns, tiny = [], 1e-2
    for place in range(2):
        shift = tiny * torch.eye(2)[place]
        up, down = (model.predict(State(rows.obs + s * shift), rows.action).mean[:, :, :2] for s in (1, -1))
        columns.append((up - down) / (2 * tiny))
    jacobian = torch.stack(columns, -1)
    radius = torch.linalg.eigvals(jacobian).abs().amax(-1)
    assert torch.allclose(found.radius.float(), radius[1], atol=5e-3)
    assert not torch.allclose(found.radius.float(), radius.mean(0), atol=5e-3)


def test_the_spectrum_of_what_was_learned_is_the_systems(generator: Generator) -> None:
    rows = plane(generator, rows=1000)
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(PLANE, members=2, hidden=32)
    Fitter(holdout=0.0, max_updates=300, lr=3e-3).fit(model, rows, generator)
    found = spectra(model, rows[:100], rows.obs.double().std(0))
    assert found is not None
    true = float(torch.linalg.eigvals(MATRIX).abs().max())
    assert float(found.radius.median()) == pytest.approx(true, rel=0.1)
    assert "Jacobian of the mean" in found.source


class Known(Gauge):
    """A model that knows its linearisation."""

    def linearize(self, state: State, action: Tensor) -> tuple[Tensor, Tensor]:
        return MATRIX.expand(len(action), 2, 2), torch.ones(len(action), 2, 1)


class Latent(Gauge):
    """A model that is linear in a state of three numbers."""

    def linear_parts(self) -> LinearParts:
        a = torch.diag(torch.tensor([0.9, 0.5, 0.1])).double()
        return LinearParts(a, torch.zeros(3, 1), torch.eye(2, 3), torch.zeros(2))


def test_who_knows_is_asked(generator: Generator) -> None:
    rows = plane(generator, rows=7)
    known, latent = (spectra(kind("obs"), rows, torch.tensor([1.0, 10.0])) for kind in (Known, Latent))
    assert known is not None
    assert latent is not None
    assert torch.allclose(known.radius, torch.tensor(0.41).sqrt().double().expand(7), atol=1e-6)
    assert float(known.stretch[0]) > 3.9  # of a deviation of 1 in the second, whose unit is 10
    assert latent.radius.tolist() == pytest.approx([0.9] * 7)


def test_what_cannot_be_differentiated_has_no_spectrum(generator: Generator) -> None:
    class Plain(DynamicsModel):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            raise NotImplementedError

    assert spectra(Plain(env_spec("Pendulum-v1")), plane(generator, rows=3), torch.ones(3)) is None
