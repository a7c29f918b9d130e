"""The trainer of task sequences: its preview, its clips, its optimisers, and what a step costs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from mbrl.fitting.continual import ContinualFitter, clip_members, preview_step
from mbrl.models.continual.hypernet import HyperNetwork
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.mbrl.models.conftest import System
from tests.mbrl.models.continual.tasks import fitter, learn, make, rows

PLAIN = System("plain")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# -- a step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_preview_is_the_step_and_changes_nothing(fused: bool) -> None:
    parameter = nn.Parameter(torch.randn(2, 30, generator=seeded()))
    optimizer = torch.optim.Adam([parameter], lr=0.01, fused=fused)
    for i in range(4):
        gradient = torch.randn(2, 30, generator=seeded(i))
        before = parameter.detach().clone()
        state = {name: value.clone() for name, value in optimizer.state[parameter].items()} if i else {}
        previewed = preview_step(optimizer, parameter, gradient)
        assert torch.equal(parameter, before)
        for name, value in state.items():
            assert torch.equal(optimizer.state[parameter][name], value), name
        parameter.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(previewed, parameter.detach() - before, atol=1e-7, rtol=1e-4)


def test_members_are_clipped_one_by_one() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[4.0], [0.4]])]
    norm = clip_members(gradients, 1.0)
    torch.testing.assert_close(norm, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(gradients[0], torch.tensor([[0.6, 0.0], [0.3, 0.0]]))
    torch.testing.assert_close(gradients[1], torch.tensor([[0.8], [0.4]]))


def steps_seen(look_ahead: bool) -> list[Tensor | None]:
    model, draw = make("hypernet", PLAIN, look_ahead=look_ahead), seeded()
    assert isinstance(model, HyperNetwork)
    trainer = learn(model, range(1), draw)
    model.start_task(1, draw)
    seen: list[Tensor | None] = []
    penalty = model.penalty
    model.penalty = lambda step, *args: seen.append(step) or penalty(step, *args)  # type: ignore[method-assign,func-returns-value]
    trainer.fit(model, rows(1), draw)
    return seen


def test_regulariser_looks_ahead_of_the_loss_alone() -> None:
    """The first preview of a task is Adam's first step, lr a coordinate: its moments are new."""
    ahead, here = steps_seen(True), steps_seen(False)
    assert len(ahead) == len(here) == 3
    assert here == [None] * 3
    assert ahead[0] is not None
    assert not ahead[0].requires_grad
    moved = ahead[0].abs()
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-3)


def test_own_parameters_feel_the_loss_only() -> None:
    """With a huge penalty weight the embedding's first step is the same as without."""
    own = []
    for beta in (0.0, 1e6):
        model, draw = make("hypernet", PLAIN, beta=beta), seeded()
        trainer = learn(model, range(1), draw, fitter(3))
        model.start_task(1, draw)
        trainer.updates = 1
        trainer.fit(model, rows(1), draw)
        own.append(model.slot(1).own.detach().clone())
        shared = model.shared.detach().clone()
    model, draw = make("hypernet", PLAIN, beta=0.0), seeded()
    trainer = learn(model, range(1), draw, fitter(3))
    assert torch.equal(own[0], own[1])
    assert not torch.equal(shared, model.shared)


# -- a fit -------------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    model, draw, trainer = make("hypernet", PLAIN), seeded(), fitter(50, holdout=0.25)
    model.start_task(0, draw)
    first = trainer.fit(model, rows(0), draw)
    assert first["penalty"] == 0.0
    second = trainer.fit(model, rows(0), draw)
    assert second["loss"] < first["loss"]
    assert second["holdout_mse"] < first["holdout_mse"]
    assert second["gradient_steps"] == 50
    model.end_task(0, rows(0), draw)
    model.start_task(1, draw)
    third = trainer.fit(model, rows(1), draw)
    assert third["penalty"] > 0
    assert third["gradient_norm"] > 0
    assert third["task"] == 1


def test_every_task_has_a_new_optimiser() -> None:
    model, draw = make("finetune", PLAIN), seeded()
    trainer = learn(model, range(1), draw)
    first = trainer.optimizer
    model.start_task(1, draw)
    trainer.fit(model, rows(1), draw)
    second = trainer.optimizer
    assert second is not first
    assert second is not None
    assert float(second.state[model.shared]["step"]) == 3
    trainer.fit(model, rows(1), draw)
    assert trainer.optimizer is second  # and keeps it inside a task


def test_weights_choose_the_rows() -> None:
    """All weight on rows whose targets were spoilt: what is learned is spoilt too."""
    data, errors = rows(0), []
    half = torch.arange(120) < 60
    data.next_obs = torch.where(half[:, None], data.obs + 3.0, data.next_obs)
    for weights in (half.float(), (~half).float()):
        model, draw = make("single", PLAIN), seeded()
        model.start_task(0, draw)
        fitter(200).fit(model, data, draw, weights)
        said = model.bind().step(model.encode(data.obs), data.action, None).state.obs
        errors.append(float((said - data.next_obs)[half].square().mean()))
    assert errors[0] < 0.01 * errors[1]


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="task sequences only"):
        fitter().check(ProbabilisticEnsemble(PLAIN.spec))
    with pytest.raises(UserError, match="no task is open"):
        fitter().fit(make("single", PLAIN), rows(0), seeded())
    for options in ({"lr": 0.0}, {"clip": -1.0}, {"updates": 0}, {"holdout": 1.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            ContinualFitter(**options)  # type: ignore[arg-type]
    trainer, draw = fitter(), seeded()
    one, other = make("single", PLAIN), make("single", PLAIN)
    for model in (one, other):
        model.start_task(0, draw)
    trainer.fit(one, rows(0), draw)
    with pytest.raises(UserError, match="another model"):
        trainer.fit(other, rows(0), draw)


# -- cost --------------------------------------------------------------------------------------------------------------


def seconds_by_task(kind: str, tasks: int = 10) -> list[float]:
    """Fastest of several short fits of each task: processor time, so that a busy machine does not count."""
    model, draw, trainer, found = make(kind, PLAIN, hidden=32), seeded(), fitter(10), []
    for task in range(tasks):
        model.start_task(task, draw)
        turns = []
        for _ in range(3):
            began = time.process_time()
            trainer.fit(model, rows(task, 60), draw)
            turns.append(time.process_time() - began)
        found.append(min(turns))
        model.end_task(task, rows(task), draw)
    return found


@pytest.mark.slow  # it times fits of a fraction of a second: not beside a suite that fills the machine
def test_a_tenth_task_costs_what_the_second_did() -> None:
    hyper, oracle = seconds_by_task("hypernet"), seconds_by_task("oracle")
    assert hyper[9] <= 1.35 * hyper[1]  # 1.2 in the benchmark, where fits are long enough to be timed
    assert oracle[9] > 2 * oracle[1]


def test_resume_is_exact(tmp_path: Any) -> None:
    """Fit, save, fit: as fit, fit."""
    results = []
    for interrupted in (False, True):
        model, draw, trainer = make("hypernet", PLAIN), seeded(), fitter()
        learn(model, range(1), draw, trainer)
        model.start_task(1, draw)
        trainer.fit(model, rows(1), draw)
        if interrupted:
            torch.save([model.state_dict(), trainer.state_dict(), draw.get_state()], tmp_path / "x.pt")
            states = torch.load(tmp_path / "x.pt", weights_only=True)
            model, draw, trainer = make("hypernet", PLAIN, seed=3), seeded(8), fitter()
            model.load_state_dict(states[0])
            trainer.load_state_dict(states[1])
            draw.set_state(states[2])
        report = trainer.fit(model, rows(1), draw)
        results.append((report, model.shared.detach()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
