"""The fitter: who trains on what, when it stops, which weights stay, and going on where it was."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble

SPEC = EnvSpec("Line-v0", "0", "0", 2, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)


def line(rows: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(rows, 2, generator=generator), torch.rand(rows, 1, generator=generator) * 2 - 1
    next_obs = obs + torch.cat([obs[:, 1:].sin(), action], -1) * 0.3
    ids = torch.arange(rows)
    return Transitions(obs, action, next_obs[:, 0], next_obs, ids % 7 == 0, ids < 0, ids, ids * 0, ids * 0)


def net(seed: int = 0, **options: Any) -> ProbabilisticEnsemble:
    torch.manual_seed(seed)
    return ProbabilisticEnsemble(SPEC, **{"members": 3, "hidden": 16, **options})


def luck(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Rows(Record):
    number: Tensor


class Scripted(DynamicsModel):
    """Each member has one weight, which every update raises by lr (its gradient is -1): weight = lr * updates.

    Holdout scores follow a script: ``scores[epoch][member]``. It notes which rows every member was shown.
    """

    def __init__(self, scores: Any, members: int = 3) -> None:
        super().__init__(SPEC)
        self.members, self.scores, self.asked = members, scores, 0
        self.weight = nn.Parameter(torch.zeros(members, 1))
        self.shown: list[Tensor] = []
        self.elite_score: Tensor | None = None

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        raise AssertionError("not asked here")

    def prepare(self, data: Transitions) -> Rows:
        return Rows(torch.arange(len(data)))

    def loss(self, batch: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        self.shown.append(batch.number)
        return -self.weight.sum(), {}

    def holdout_score(self, batch: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        score = torch.tensor(self.scores[min(self.asked, len(self.scores) - 1)])
        self.asked += 1
        return score, {}

    def set_elites(self, score: Tensor) -> None:
        self.elite_score = score

    def all_shown(self) -> Tensor:
        """``[E, updates * batch]``"""
        return torch.cat(self.shown, 1)


def flat(members: int = 3) -> Any:
    return [[1.0] * members]


# -- rows ----------------------------------------------------------------------------------------------------------


def test_bootstrap_gives_every_member_rows_of_its_own() -> None:
    model = Scripted(flat())
    Fitter(batch_size=50, holdout=0.0, max_updates=2).fit(model, line(100), luck())
    seen = [set(rows.tolist()) for rows in model.all_shown()]  # one epoch: every member's whole set
    assert seen[0] != seen[1] != seen[2] != seen[0]
    for rows in seen:
        assert 50 < len(rows) < 76  # with replacement about 63 of 100 appear


def test_without_bootstrap_all_members_see_all_rows_in_their_own_order() -> None:
    model = Scripted(flat())
    Fitter(batch_size=50, holdout=0.0, max_updates=2, bootstrap=False).fit(model, line(100), luck())
    shown = model.all_shown()
    assert all(sorted(rows.tolist()) == list(range(100)) for rows in shown)
    assert not torch.equal(shown[0], shown[1])


def test_one_member_sees_every_row() -> None:
    model = Scripted(flat(1), members=1)
    Fitter(batch_size=50, holdout=0.0, max_updates=2).fit(model, line(100), luck())
    assert sorted(model.all_shown()[0].tolist()) == list(range(100))


def test_weighted_rows_are_shown_by_weight() -> None:
    weights = torch.cat([torch.zeros(50), torch.ones(25), torch.full((25,), 3.0)])
    model = Scripted(flat())
    Fitter(batch_size=100, holdout=0.0, max_updates=1).fit(model, line(100), luck(), weights)
    counts = torch.bincount(model.all_shown().flatten(), minlength=100)
    assert counts[:50].sum() == 0
    assert 2 < counts[75:].sum() / counts[50:75].sum() < 4.5
    plain = Scripted(flat())  # the control
    Fitter(batch_size=100, holdout=0.0, max_updates=1).fit(plain, line(100), luck())
    assert torch.bincount(plain.all_shown().flatten(), minlength=100)[:50].sum() > 100


def test_held_out_rows_are_never_trained_on() -> None:
    model, held = Scripted(flat()), []

    def note(batch: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        held.append(batch.number)
        return torch.ones(3), {}

    model.holdout_score = note  # type: ignore[method-assign]
    Fitter(batch_size=20, holdout=0.25, patience=3).fit(model, line(100), luck())
    assert all(15 <= len(rows) <= 35 for rows in held)
    assert all(torch.equal(rows, held[0]) for rows in held)
    assert not set(held[0].tolist()) & set(model.all_shown().flatten().tolist())


@pytest.mark.parametrize("fresh", [False, True])
def test_a_row_is_held_or_trained_on_for_ever(fresh: bool) -> None:
    """Unless held rows are drawn anew, as published: then a later fit is judged on rows that were trained on."""
    fitter, trained, leaked = Fitter(holdout=0.25, fresh_holdout=fresh), set[int](), 0
    for rows in (100, 150, 220, 300):
        train, held = fitter.split(line(rows), luck(rows))
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(rows))
        leaked += len(trained & set(held.tolist()))
        trained |= set(train.tolist())
        assert abs(held.float().mean() / rows - 0.5) < 0.1  # early and late rows alike
    assert leaked > 60 if fresh else leaked == 0


def test_the_holdout_is_bounded() -> None:
    fitter = Fitter(holdout=0.5, max_holdout=7)
    train, held = fitter.split(line(100), luck())
    assert (len(train), len(held)) == (93, 7)


# -- stopping ------------------------------------------------------------------------------------------------------


def test_every_member_returns_to_its_own_best() -> None:
    """Members peak after epochs 1, 3 and 5 of one update each; member 2 never beats the untrained start by 1 %."""
    scores = [
        [1.0, 1.0, 1.0, 1.0],  # before training
        [0.5, 0.9, 0.99, 0.995],
        [0.7, 0.8, 0.9, 0.999],
        [0.7, 0.3, 0.8, 1.2],
        [0.7, 0.6, 0.7, 1.2],
        [0.7, 0.6, 0.2, 1.2],
        [0.7, 0.6, 0.6, 1.2],
    ]
    model = Scripted(scores, members=4)
    fitter = Fitter(lr=1.0, weight_decay=0.0, batch_size=1000, patience=3)
    report = fitter.fit(model, line(100), luck())
    torch.testing.assert_close(model.weight[:, 0], torch.tensor([1.0, 3.0, 5.0, 0.0]))
    assert report["epochs"] == 8  # three epochs after the last improvement of any member
    whole = Scripted(scores, members=4)  # the control: a snapshot of everybody when anybody improves
    take_whole_snapshots(whole)
    Fitter(lr=1.0, weight_decay=0.0, batch_size=1000, patience=3).fit(whole, line(100), luck())
    torch.testing.assert_close(whole.weight[:, 0], torch.full((4,), 5.0))


def take_whole_snapshots(model: Scripted) -> None:
    """Scores as whole-ensemble snapshots see them: everybody improves when one does."""
    best: list[Tensor] = []
    told, single = [1.0], model.holdout_score

    def score(batch: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        now, extra = single(batch)
        if not best:
            best.append(now)
        elif bool((now < best[0] * 0.99).any()):
            best[0] = torch.minimum(best[0], now)
            told[0] *= 0.5
        else:
            return torch.full_like(now, 2.0), extra
        return torch.full_like(now, told[0]), extra

    model.holdout_score = score  # type: ignore[method-assign]


def test_an_improvement_must_be_large_enough() -> None:
    scores = [[1.0 - 0.004 * epoch] for epoch in range(100)]  # 0.4 % an epoch: counts every third epoch at 1 %
    for improvement, epochs in ((0.01, 10), (0.1, 2)):
        model = Scripted(scores, members=1)
        fitter = Fitter(
            batch_size=1000, patience=2 if improvement == 0.1 else 3, max_epochs=10, improvement=improvement
        )
        assert fitter.fit(model, line(10), luck())["epochs"] == epochs


def test_negative_scores_improve_downwards() -> None:
    """A likelihood's score: -100 is better than -1, and -0.995 is no improvement on -1."""
    model = Scripted([[-1.0], [-0.995], [-100.0], [-99.5]], members=1)
    Fitter(lr=1.0, weight_decay=0.0, batch_size=1000, patience=2).fit(model, line(10), luck())
    assert model.weight.item() == pytest.approx(2.0)


def test_patience_counts_epochs_without_improvement() -> None:
    for patience in (1, 4):
        model = Scripted(flat())
        report = Fitter(batch_size=10, patience=patience).fit(model, line(100), luck())
        assert report["epochs"] == patience
        assert report["gradient_steps"] == patience * 8  # 80 rows to train on


def test_updates_are_bounded_and_the_first_fit_may_take_more() -> None:
    model, fitter = Scripted(flat()), Fitter(batch_size=10, holdout=0.0, max_updates=7, first_updates=25)
    counts = [fitter.fit(model, line(100), luck())["gradient_steps"] for _ in range(3)]
    assert counts == [25, 7, 7]
    assert len(model.shown) == 39


def test_the_reported_loss_is_the_mean_of_the_last_epoch() -> None:
    """Also where the bound on updates cuts that epoch short."""
    model = Scripted(flat())
    model.loss = lambda batch: (3 * (2.0 + 0 * model.weight.sum()), {})  # type: ignore[method-assign]
    report = Fitter(batch_size=10, holdout=0.0, max_updates=13).fit(model, line(100), luck())
    assert report["gradient_steps"] == 13
    assert report["loss"] == pytest.approx(2.0)


def test_few_rows_make_a_small_batch() -> None:
    model = Scripted(flat())
    Fitter(batch_size=256, holdout=0.0, max_updates=3).fit(model, line(5), luck())
    assert [batch.shape for batch in model.shown] == [(3, 5)] * 3
    assert Fitter(holdout=0.2, max_epochs=2).fit(net(), line(1), luck())["gradient_steps"] == 2


# -- elites --------------------------------------------------------------------------------------------------------


def test_elites_are_the_members_of_lowest_score() -> None:
    model = net(members=5, elites=2)
    model.set_elites(torch.tensor([0.5, 0.1, 0.9, 0.05, 0.3]))
    assert model.get_buffer("elites").tolist() == [1, 3]
    model.set_elites(torch.tensor([0.01, 0.1, 0.9, 0.05, 0.02]))
    assert model.get_buffer("elites").tolist() == [0, 4]


def test_a_fit_chooses_the_elites_by_their_restored_weights() -> None:
    model = Scripted([[1.0, 1.0, 1.0], [0.1, 0.2, 0.3], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [0.3, 0.1, 0.2]])
    Fitter(batch_size=1000, patience=2).fit(model, line(10), luck())
    assert model.elite_score is not None
    torch.testing.assert_close(model.elite_score, torch.tensor([0.3, 0.1, 0.2]))
    spoiled = net(members=3, elites=2)
    with torch.no_grad():
        spoiled.biases[-1][1] += 50.0
    Fitter(max_epochs=1, lr=1e-5).fit(spoiled, line(300), luck())
    assert spoiled.get_buffer("elites").tolist() == [0, 2]


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["obs", "action", "reward", "next_obs"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_is_named_and_nothing_is_trained(field: str, value: float) -> None:
    data, model = line(50), net()
    before = [p.clone() for p in model.parameters()]
    getattr(data, field)[17] = value
    with pytest.raises(UserError, match="row 17"):
        Fitter(holdout=0.0, max_updates=1).fit(model, data, luck())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert model.target_norm.mean.abs().sum() == 0


def test_no_rows_and_no_end_are_refused() -> None:
    with pytest.raises(UserError, match="collect transitions"):
        Fitter().fit(net(), line(0), luck())
    with pytest.raises(UserError, match="max_updates"):
        Fitter(holdout=0.0)
    with pytest.raises(UserError, match="share"):
        Fitter(holdout=1.0)


def test_a_fitter_serves_one_model() -> None:
    fitter = Fitter(holdout=0.0, max_updates=1)
    fitter.fit(net(), line(10), luck())
    with pytest.raises(UserError, match="one model"):
        fitter.fit(net(), line(10), luck())


# -- going on ------------------------------------------------------------------------------------------------------


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


@pytest.mark.parametrize("holdout", [0.0, 0.2])
@pytest.mark.parametrize("forget", [None, "optimizer", "fits", "generator"])
def test_fit_save_fit_is_fit_load_fit(holdout: float, forget: str | None) -> None:
    """Bit for bit; the controls leave out one part of what is saved."""
    options: dict[str, Any] = {"holdout": holdout, "max_updates": 8, "first_updates": 20, "batch_size": 32}
    model, fitter, generator = net(elites=2), Fitter(**options), luck(3)
    fitter.fit(model, line(100), generator)
    saved = through_disk(
        {"model": model.state_dict(), "fitter": fitter.state_dict(), "generator": generator.get_state()}
    )
    report = fitter.fit(model, line(150), generator)

    again, loaded, luck_again = net(seed=7, elites=2), Fitter(**options), luck(99)
    again.load_state_dict(saved["model"])
    fresh = {"optimizer": None, "fits": 0}
    loaded.load_state_dict(saved["fitter"] | ({forget: fresh[forget]} if forget in fresh else {}))
    if forget != "generator":
        luck_again.set_state(saved["generator"])
    assert again.state_dict().keys() == model.state_dict().keys()
    if forget is None:  # what was loaded and not yet used is saved again as it was
        assert str(loaded.state_dict()) == str(saved["fitter"])
    same_report = loaded.fit(again, line(150), luck_again) == report
    same = all(
        torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert (same and same_report) == (forget is None)


def test_warm_start_goes_on_from_the_last_weights() -> None:
    model, fitter = net(probabilistic=False), Fitter(holdout=0.0, max_updates=150, batch_size=64, lr=3e-3)
    first = fitter.fit(model, line(300), luck())["loss"]
    second = fitter.fit(model, line(300), luck(1))["loss"]
    assert second < 0.7 * first


def test_weight_decay_pulls_on_weights_only() -> None:
    groups = net().parameter_groups(0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    model = net()
    for strength, smaller in ((0.0, False), (10.0, True)):
        model = net()
        Fitter(holdout=0.0, max_updates=30, weight_decay=strength, lr=1e-2).fit(model, line(200), luck())
        size = sum(float(w.detach().square().sum()) for w in model.weights)
        assert (size < 0.5 * sum(float(w.detach().square().sum()) for w in net().weights)) == smaller
    assert len(decayed) == len(model.weights)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_each_layer_may_have_a_weight_decay_of_its_own() -> None:
    decays = [0.0, 1.0, 2.0]
    groups = net().parameter_groups(decays)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups[:-1]] == [(1, decay) for decay in decays]
    assert groups[-1]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in groups) == len(list(net().parameters()))
    before, shrunk = net(), net()
    fitter = Fitter(holdout=0.0, max_updates=30, weight_decay=[0.0, 0.0, 10.0], lr=1e-2)
    fitter.fit(shrunk, line(200), luck())
    fitter.fit(shrunk, line(200), luck())  # it knows its model again
    sizes = [[float(w.detach().square().sum()) for w in model.weights] for model in (before, shrunk)]
    assert [after < 0.5 * first for first, after in zip(*sizes, strict=True)] == [False, False, True]


def test_one_decay_for_all_layers_equals_as_many_alike() -> None:
    models = net(), net()
    for model, decay in zip(models, (1e-2, [1e-2] * 3), strict=True):
        Fitter(max_epochs=3, weight_decay=decay, batch_size=32).fit(model, line(200), luck())
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


@pytest.mark.parametrize("decay", [[1e-4], [1e-4] * 4, []])
def test_decays_of_another_number_of_layers_are_refused_before_there_is_data(decay: list[float]) -> None:
    with pytest.raises(UserError, match=r"weight_decay.*3: one a hidden layer and one for the output"):
        Fitter(weight_decay=decay).check(net())
    Fitter(weight_decay=[1e-4] * 3).check(net())
    with pytest.raises(UserError, match=r"weight_decay.*has no layers"):
        Fitter(weight_decay=[1e-4]).check(Scripted(flat()))


@pytest.mark.parametrize("decay", [-1e-4, [1e-4, -1e-4], [float("nan")], float("inf")])
def test_decays_that_are_none_are_refused(decay: float | list[float]) -> None:
    with pytest.raises(UserError, match="weight_decay"):
        Fitter(weight_decay=decay)


@pytest.mark.slow
def test_compiled_training_equals_eager_training() -> None:
    models = []
    for compile in (False, True):
        model = net()
        fitter = Fitter(holdout=0.0, max_updates=10, batch_size=32, compile=compile)
        for _ in range(2):
            fitter.fit(model, line(100), luck())
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_no_updates_does_not_mean_without_bound() -> None:
    assert Fitter(max_updates=None).max_updates > 10**9
    for name in ("max_updates", "first_updates"):
        with pytest.raises(UserError, match=f"{name}: 0: give a whole number of at least 1"):
            Fitter(**{name: 0})


def test_rows_without_ids_of_their_own_are_parted_anew() -> None:
    data = line(200)
    data.episode = data.episode * 0
    fitter = Fitter(holdout=0.25)
    assert not torch.equal(fitter.split(data, luck(0))[1].sort().values, fitter.split(data, luck(1))[1].sort().values)


@pytest.mark.parametrize(
    "weights",
    [torch.ones(99), torch.zeros(100), -torch.ones(100), torch.full((100,), torch.nan)],
    ids=["short", "zero", "negative", "nan"],
)
def test_bad_weights_are_refused(weights: Tensor) -> None:
    with pytest.raises(UserError, match="weights"):
        Fitter(holdout=0.0, max_updates=1).fit(net(), line(100), luck(), weights)
