"""Verdicts on simulated agents: how often equal ones are called different, and whether different ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import comparison

from experiments.report.comparison import Comparison, Evaluation, Run
from experiments.report.sections import _pairs
from experiments.report.sections._pairs import Pair, pairs
from experiments.report.sections.summary import summary

SIMULATIONS = 400


def made(returns: Mapping[str, Mapping[str, np.ndarray]]) -> Comparison:
    """A comparison of finished runs with these last returns, ``{env: {agent: [runs]}}``."""
    runs = [
        Run(agent, env, seed, Path(f"/{env}/{agent}/{seed}"), "done", None, (Evaluation(1, 1, 1.0, (float(value),)),))
        for env, own in returns.items()
        for agent, values in own.items()
        for seed, value in enumerate(values)
    ]
    agents = list(dict.fromkeys(run.agent for run in runs))
    return Comparison("made", Path("/"), runs, agents, list(returns))


def gaussian(rng: np.random.Generator, seeds: int, envs: int, **means: float) -> Comparison:
    return made({f"E{e}": {a: rng.normal(mean, 1.0, seeds) for a, mean in means.items()} for e in range(envs)})


@cache
def equal_agents(seeds: int, envs: int) -> list[list[Pair]]:
    """The pairs of simulated reports on three equal agents."""
    rng = np.random.default_rng([seeds, envs])
    return [pairs(gaussian(rng, seeds, envs, a=0, b=0, c=0)) for _ in range(SIMULATIONS)]


def called(reports: list[list[Pair]], rule: Callable[[Pair], bool]) -> float:
    """The share of reports that call any agent better."""
    return float(np.mean([any(rule(pair) for pair in report) for report in reports]))


def by_interval(pair: Pair) -> bool:
    """The rule that will not do: the bootstrap interval leaves out 0.5."""
    low, high = pair.estimate.low, pair.estimate.high
    return low is not None and high is not None and not low <= 0.5 <= high


@pytest.mark.parametrize(("seeds", "envs"), [(5, 1), (5, 2)])
def test_equal_agents_are_seldom_called_different(seeds: int, envs: int) -> None:
    reports = equal_agents(seeds, envs)
    assert called(reports, lambda pair: pair.winner is not None) <= 0.07
    assert called(reports, by_interval) > 0.14  # the control: intervals do not hold what verdicts must


def test_without_the_correction_three_pairs_err_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = equal_agents(5, 2)
    assert called(reports, lambda pair: pair.test.p <= 0.05) > called(reports, lambda pair: pair.winner is not None)
    monkeypatch.setattr(_pairs, "holm", list)
    rng = np.random.default_rng(0)
    plain = [pairs(gaussian(rng, 5, 2, a=0, b=0, c=0)) for _ in range(100)]
    assert called(plain, lambda pair: pair.winner is not None) > 0.07


@pytest.mark.parametrize(("seeds", "envs"), [(5, 2), (5, 1), (3, 2)])
def test_different_agents_are_called_so(seeds: int, envs: int) -> None:
    found = pairs(gaussian(np.random.default_rng(0), seeds, envs, low=0.0, middle=20.0, high=40.0))
    assert [pair.winner for pair in found] == ["middle", "high", "high"]


def test_three_seeds_on_one_environment_can_tell_nothing() -> None:
    apart = gaussian(np.random.default_rng(0), 3, 1, low=0.0, high=40.0)
    (pair,) = pairs(apart)
    assert by_interval(pair)
    assert (pair.words, pair.test.p) == ("too few runs to tell", pytest.approx(0.1))
    assert "p would be 0.1, and 0.05 is asked for" in str(summary(apart))
    assert "at least 4 seeds each on 1 environment" in str(summary(apart))


def test_more_pairs_need_more_seeds() -> None:
    rng = np.random.default_rng(0)
    assert [pair.winner for pair in pairs(gaussian(rng, 4, 1, low=0.0, high=40.0))] == ["high"]
    three = gaussian(rng, 4, 1, low=0.0, middle=20.0, high=40.0)
    assert {pair.words for pair in pairs(three)} == {"too few runs to tell"}
    assert "p would be 0.086, corrected for 3 pairs" in str(summary(three))
    assert "one of 3 pairs of agents apart at all" in str(summary(three))
    assert "at least 5 seeds each on 1 environment" in str(summary(three))


def test_pairs_that_nothing_could_decide_cost_the_others_nothing() -> None:
    runs = {"a": np.arange(4.0), "b": np.arange(4.0) + 10, "once": np.array([5.0])}
    found = {(pair.first, pair.second): pair for pair in pairs(made({"E": runs}))}
    assert found["a", "b"].winner == "b"
    assert found["a", "b"].judged == 1
    assert found["a", "once"].words == "too few runs to tell"


def test_a_winner_is_named_by_the_estimate_and_called_by_the_test() -> None:
    (pair,) = pairs(comparison({"good": 90.0, "poor": 30.0}))
    assert (pair.chance("good"), pair.chance("poor")) == (1.0, 0.0)
    assert pair.corrected == pair.test.p == pytest.approx(pair.smallest)
