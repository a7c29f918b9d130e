"""Each way to remember does what its name says, and forgets less than no way at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.models.continual.baselines import ElasticWeights, ProgressiveHeads, Replay, SharedTrunk, SynapticIntelligence
from mbrl.models.ensemble import Regression
from tests.mbrl.models.conftest import System
from tests.mbrl.models.continual.tasks import error, fitter, learn, make, rows

PLAIN = System("plain")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def forgotten(kind: str, updates: int = 200, **options: Any) -> float:
    """Error on the first of three tasks at the end, by the error right after it was learned."""
    model, draw = make(kind, PLAIN, hidden=16, **options), seeded()
    trainer = learn(model, range(1), draw, fitter(updates))
    just = error(model, 0, rows(0, seed=1))
    learn(model, range(1, 3), draw, trainer)
    return error(model, 0, rows(0, seed=1)) / just


def test_who_forgets() -> None:
    finetune = forgotten("finetune")
    assert finetune > 3
    assert forgotten("one head") > 3
    for kind in ("single", "progressive"):
        assert forgotten(kind) == pytest.approx(1.0)
    for kind, options in {"oracle": {}, "coreset": {"rows": 40}, "ewc": {}, "si": {"strength": 1.0}}.items():
        assert forgotten(kind, **options) < 0.6 * finetune, kind


def test_a_penalty_of_weight_zero_is_none() -> None:
    plain = forgotten("finetune", 10)
    assert forgotten("ewc", 10, strength=0.0) == pytest.approx(plain)
    assert forgotten("si", 10, strength=0.0) == pytest.approx(plain)


def test_a_head_each_and_a_trunk_for_all() -> None:
    model = make("finetune", PLAIN)
    learn(model, range(2), seeded())
    for layer in (0, 1):
        assert torch.equal(model.layers(0)[layer][0], model.layers(1)[layer][0])
    assert not torch.equal(model.layers(0)[2][0], model.layers(1)[2][0])
    one = make("one head", PLAIN)
    learn(one, range(2), seeded())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one.layers(0), one.layers(1), strict=True))


def test_fisher_by_hand() -> None:
    """Mean over rows of the squared gradient of one row's loss."""
    model, draw = make("ewc", PLAIN, members=2, probabilistic=True), seeded()
    assert isinstance(model, ElasticWeights)
    model.start_task(0, draw)
    fitter().fit(model, rows(0), draw)
    prepared = model.prepare(rows(0)[torch.arange(70)], fit_statistics=False)
    expected = torch.zeros_like(model.shared)
    for i in range(70):
        row: Regression = prepared[i : i + 1].map(lambda x: x.expand(2, *x.shape))
        (gradient,) = torch.autograd.grad(model.loss(row)[0], model.shared)
        expected += gradient.square() / 70
    model.end_task(0, rows(0)[torch.arange(70)], draw)
    torch.testing.assert_close(model.slot(0).kept["fisher"], expected, atol=1e-5, rtol=1e-3)
    model.start_task(1, draw)
    with torch.no_grad():
        model.shared.add_(0.1)
    found = model.penalty(None, 20, draw)
    assert found is not None
    torch.testing.assert_close(found, 1e4 / 2 * (expected * 0.01).sum(), atol=1e-3, rtol=1e-3)


def test_synaptic_importance_by_hand() -> None:
    model, draw = make("si", PLAIN), seeded()
    assert isinstance(model, SynapticIntelligence)
    model.start_task(0, draw)
    steps: list[tuple[Tensor, Tensor]] = []
    watch = model.watch_step
    model.watch_step = lambda g, d: steps.append((g.clone(), d.clone())) or watch(g, d)  # type: ignore[method-assign,func-returns-value]
    before = model.shared.detach().clone()
    fitter(5).fit(model, rows(0), draw)
    model.end_task(0, rows(0), draw)
    omega = -sum(gradient * change for gradient, change in steps)
    change = model.shared.detach() - before
    torch.testing.assert_close(sum(change for _, change in steps), change, atol=1e-5, rtol=1e-4)
    expected = (omega / (change.square() + 1e-3)).clamp(min=0)
    torch.testing.assert_close(model.importance, expected, atol=1e-4, rtol=1e-3)
    assert float(expected.max()) > 0


def test_coreset_is_scaled_up_to_a_batch() -> None:
    model, draw = make("coreset", PLAIN), seeded()
    assert isinstance(model, Replay)
    learn(model, range(1), draw)
    model.start_task(1, draw)
    batch = model.prepare(rows(1))[:20].map(lambda x: x[None])
    own = model.task_loss(1, model.layers(1), batch)
    kept = {name: model.slot(0).kept[f"rows_{name}"][None] for name in ("inputs", "targets", "ends")}
    old = model.task_loss(0, model.layers(0), Regression(**kept))
    torch.testing.assert_close(model.objective(batch, draw), own + 20 / 7 * old)
    with pytest.raises(UserError, match="rows"):
        Replay(PLAIN.spec, rows=0)


def test_columns_read_the_frozen_ones_before_them() -> None:
    model, draw = make("progressive", PLAIN), seeded()
    assert isinstance(model, ProgressiveHeads)
    learn(model, range(2), draw)
    first, wide = model.layers(0), model.layers(1)
    torch.testing.assert_close(wide[1][0][:, :8, :8], first[1][0])
    assert not bool(wide[1][0][:, 8:, :8].any())  # an old column does not read a new one
    assert bool(wide[1][0][:, :8, 8:].any())
    before = model.slot(0).own.detach().clone()
    model.start_task(2, draw)
    fitter().fit(model, rows(2), draw)
    assert torch.equal(before, model.slot(0).own)


def test_memory_of_a_further_task() -> None:
    """It grows with progressive columns and with all rows, and does not with the others."""
    sizes = {}
    for kind in ("finetune", "si", "ewc", "coreset", "hypernet", "single", "progressive"):
        model = make(kind, PLAIN)
        learn(model, range(4), seeded())
        sizes[kind] = [sum(model.memory_bytes(task).values()) for task in model.tasks]
    grown = sizes.pop("progressive")
    assert all(len(set(size)) == 1 for size in sizes.values())
    assert grown == sorted(set(grown))
    assert isinstance(make("finetune", PLAIN), SharedTrunk)
