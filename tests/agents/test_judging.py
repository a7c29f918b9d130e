"""Agents judge their model before every fit but the first, and what they learn does not depend on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from agents import mpc
from agents.mpc import MPCAgent
from envs.registry import env_spec
from mbrl.clock import Clock
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.planning.cem import ICEM

JUDGED = {"error_at_1", "error_at_3", "error_at_8", "coverage_50", "coverage_90", "nll"}


def lived(steps: int = 60) -> tuple[MPCAgent, list[dict[str, Any]]]:
    """An agent that is shown random transitions, fitted at 20, 40 and 60."""
    torch.manual_seed(0)
    agent = MPCAgent(
        env_spec("Pendulum-v1"),
        model=partial(ProbabilisticEnsemble, members=2, hidden=8),
        planner=partial(ICEM, horizon=3, candidates=4, iterations=1, particles=2),
        fitter=Fitter(holdout=0.0, max_updates=3),
        warmup_steps=20,
        fit_every=20,
    )
    agent.seed(1)
    luck, clock, reports = torch.Generator().manual_seed(2), Clock(), []
    path = torch.randn(steps + 1, 3, generator=luck)
    for i in range(steps):
        no, at, nan = torch.zeros(1, dtype=torch.bool), torch.tensor([i]), torch.full((1,), torch.nan)
        action = torch.rand(1, 1, generator=luck)
        row = Transitions(path[i : i + 1], action, no.float(), path[i + 1 : i + 2], no, no, at * 0, at, at * 0)
        row.extra["plan_value"] = nan
        agent.observe(row)
        clock.tick(1)
        reports += [update["fit"] for update in [agent.update(clock)] if "fit" in update]
    return agent, reports


def test_every_fit_but_the_first_is_preceded_by_a_judgement() -> None:
    _, reports = lived()
    assert [set(report) & JUDGED for report in reports] == [set(), JUDGED, JUDGED]
    assert all(torch.tensor(report[name]).isfinite() for report in reports[1:] for name in JUDGED)


def test_the_judgement_comes_before_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    judge, fit = mpc.judge, Fitter.fit
    monkeypatch.setattr(mpc, "judge", lambda *given, **named: order.append("judge") or judge(*given, **named))
    monkeypatch.setattr(Fitter, "fit", lambda *given, **named: order.append("fit") or fit(*given, **named))
    lived()
    assert order == ["fit", "judge", "fit", "judge", "fit"]


def test_judging_changes_nothing_that_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it, _ = lived()
    monkeypatch.setattr(mpc, "judge", lambda *given, **named: {})
    without, _ = lived()
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(with_it.generator.get_state(), without.generator.get_state())
