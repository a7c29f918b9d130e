"""An ensemble split over workers is fitted as in one process: weights, optimiser, elites, report, random state."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from torch import Tensor

from envs.errors import UserError
from mbrl.distributed import fitting
from mbrl.distributed.cluster import connect
from mbrl.distributed.fitting import FitWorkers, SplitTraining, members_of
from mbrl.fitting import Fitter
from mbrl.fitting.gradient import splits
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.mbrl.fitting.test_gradient import line, luck, net, through_disk

TOLERANCE = 1e-4
"""Where the last bits may differ: a hundred steps of Adam at 3e-3 carried 1e-7 to 1e-5."""
OPTIONS: dict[str, Any] = {"batch_size": 64, "max_epochs": 100, "patience": 2, "lr": 1e-2, "improvement": 0.05}


@pytest.fixture(scope="module")
def started() -> Iterator[FitWorkers]:
    with connect("local", num_cpus=2, object_store_bytes=100_000_000):
        workers = FitWorkers(3, num_cpus=0.25)
        workers.start(3)
        yield workers
        workers.close()


@pytest.fixture
def workers(started: FitWorkers) -> FitWorkers:
    started.size = 2
    return started


def ensemble(seed: int = 0, **options: Any) -> ProbabilisticEnsemble:
    return net(seed, **{"members": 5, "elites": 2, **options})


class Fits:
    """Two fits in a row, and all that they leave."""

    def __init__(
        self,
        workers: FitWorkers | None,
        model: ProbabilisticEnsemble | None = None,
        *,
        seed: int = 3,
        forget: bool = False,
        weights: bool = False,
        **options: Any,
    ) -> None:
        self.model, self.fitter, self.generator = model or ensemble(), Fitter(**OPTIONS | options), luck(seed)
        self.fitter.workers = workers
        self.reports = []
        for rows in (500, 600):
            if forget:
                self.fitter.load_state_dict(self.fitter.state_dict() | {"optimizer": None})
            drawn = torch.arange(rows) % 3.0 if weights else None
            self.reports.append(self.fitter.fit(self.model, line(rows), self.generator, drawn))

    def left(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "fitter": self.fitter.state_dict()}
        return state | {"generator": self.generator.get_state(), "reports": self.reports}


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def here() -> Fits:
    return Fits(None)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_split_members_are_fitted_as_together(workers: FitWorkers, here: Fits, size: int) -> None:
    """Five members."""
    workers.size = size
    there = Fits(workers)
    assert [report["epochs"] for report in there.reports] == [report["epochs"] for report in here.reports]
    assert all(report["epochs"] < 100 for report in there.reports)  # stopped early
    assert there.reports[0]["epochs"] > 3  # not at once
    assert same(there.left(), here.left())


def test_no_more_workers_are_started_than_there_are_members(workers: FitWorkers) -> None:
    workers.size = 9
    there, alone = (Fits(who, ensemble(members=3)) for who in (workers, None))
    assert same(there.left(), alone.left())
    assert len({place.pid for place in workers.placements()}) == 3


def test_what_equality_would_notice(here: Fits) -> None:
    """The controls: other draws, one member's weights moved a little, an optimiser that forgets."""
    moved = ensemble()
    with torch.no_grad():
        moved.weights[0][3] += 1e-3
    for other in (Fits(None, seed=4), Fits(None, moved), Fits(None, forget=True)):
        assert not same(other.left(), here.left())
        assert not close(other.model, here.model)


def close(one: ProbabilisticEnsemble, other: ProbabilisticEnsemble) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(p, q, rtol=0.0, atol=TOLERANCE) for p, q in pairs)


@pytest.mark.parametrize(
    "options",
    [{"holdout": 0.0, "max_updates": 20}, {"weights": True, "weight_decay": [0.1, 0.2, 0.3]}, {"bootstrap": False}],
    ids=["no holdout", "weights", "no bootstrap"],
)
def test_ways_to_fit(workers: FitWorkers, options: dict[str, Any]) -> None:
    deterministic = "holdout" in options  # its bounds on the variance have no gradient
    there, alone = (Fits(who, ensemble(probabilistic=not deterministic), **options) for who in (workers, None))
    assert same(there.left(), alone.left())


def test_odd_batches_are_equal_within_rounding(workers: FitWorkers) -> None:
    there, alone = Fits(workers, batch_size=37, max_epochs=5), Fits(None, batch_size=37, max_epochs=5)
    assert close(there.model, alone.model)
    assert same(there.left()["generator"], alone.left()["generator"])
    for one, other in zip(there.reports, alone.reports, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_checkpoint_goes_on_with_or_without_workers(workers: FitWorkers) -> None:
    there, alone = Fits(workers), Fits(None)
    expected = alone.fitter.fit(alone.model, line(700), alone.generator)
    for who in (None, workers):
        saved = through_disk(there.left() | {"reports": []})
        model, fitter, generator = ensemble(seed=7), Fitter(**OPTIONS), luck(99)
        fitter.workers = who
        model.load_state_dict(saved["model"])
        fitter.load_state_dict(saved["fitter"])
        generator.set_state(saved["generator"])
        assert fitter.fit(model, line(700), generator) == expected
        assert same(model.state_dict(), alone.model.state_dict())
        assert same(fitter.state_dict(), alone.fitter.state_dict())


# -- faults --------------------------------------------------------------------------------------------------------


def test_a_killed_worker_changes_nothing(workers: FitWorkers, here: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    workers.size, epochs, run = 1, [0], SplitTraining.epoch

    def epoch(split: SplitTraining, order: Tensor) -> tuple[Tensor, bool]:
        epochs[0] += 1
        if epochs[0] == 2:
            os.kill(victim, signal.SIGKILL)
        return run(split, order)

    Fits(workers, max_epochs=1)
    victim = workers.placements()[0].pid
    monkeypatch.setattr(SplitTraining, "epoch", epoch)
    there = Fits(workers)
    assert victim not in [place.pid for place in workers.placements()]
    assert epochs[0] > sum(report["epochs"] for report in here.reports)  # some were done again
    assert same(there.left(), here.left())


def test_losing_workers_again_and_again_is_an_error(workers: FitWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = ensemble(), []

    def epoch(split: SplitTraining, order: Tensor) -> tuple[Tensor, bool]:
        tried.append(order)
        raise RayActorError

    before = [p.clone() for p in model.parameters()]
    monkeypatch.setattr(SplitTraining, "epoch", epoch)
    with pytest.raises(UserError, match="lost 3 times in one fit"):
        Fits(workers, model)
    assert len(tried) == 3
    assert same(tried[0], tried[1])  # the same random numbers every time
    assert same(before, list(model.parameters()))


def test_what_a_model_raises_is_shown(workers: FitWorkers) -> None:
    class Broken(ProbabilisticEnsemble):
        def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            raise ZeroDivisionError("a loss of one's own")

    model = Broken(ensemble().spec, members=3, hidden=16)
    with pytest.raises(ZeroDivisionError, match=r"(?s)in loss.*a loss of one's own"):
        Fits(workers, model)
    Fits(workers)  # and the workers go on


def test_models_that_cannot_be_split_are_fitted_here(workers: FitWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("not asked")

    monkeypatch.setattr(workers, "train", train)
    there, alone = (Fits(who, ensemble(members=1, elites=1)) for who in (workers, None))
    assert same(there.left(), alone.left())
    shared = ensemble()
    shared.register_parameter("shared", torch.nn.Parameter(torch.zeros(3)))
    assert splits(ensemble())
    assert not splits(shared)


def test_members_of_a_model() -> None:
    whole = ensemble()
    part = members_of(whole, slice(1, 3))
    assert (part.members, whole.members) == (2, 5)
    for mine, full in zip(part.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, full[1:3])
        mine.data.zero_()
        assert isinstance(full, torch.nn.Parameter)
    assert all(float(weight.detach().abs().sum()) > 0 for weight in whole.weights)
    assert all(mine is full for mine, full in zip(part.buffers(), whole.buffers(), strict=True))


def test_more_workers_than_there_is_room_for_are_refused(workers: FitWorkers) -> None:
    with pytest.raises(UserError, match="fit workers"):
        FitWorkers(3, num_cpus=1.0)
    with pytest.raises(UserError, match="0 GPUs"):
        FitWorkers(1, num_gpus=0.5)


def test_workers_that_find_no_room_are_an_error(workers: FitWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is large enough, but others hold a part of it."""
    monkeypatch.setattr(fitting, "START_SECONDS", 1.0)
    too_late = FitWorkers(1, num_cpus=2.0)
    with pytest.raises(UserError, match=r"1 workers, free now.*not all could be started"):
        Fits(too_late)
    assert too_late.actors == []
