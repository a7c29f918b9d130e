"""Aggregates and intervals: known answers, an independent library's numbers, coverage on simulated truth."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from envs.errors import UserError
from experiments.report import statistics
from experiments.report.statistics import (
    AGGREGATES,
    Estimate,
    Scores,
    align,
    caution,
    estimate,
    iqm,
    learning_curve,
    mean_of_task_means,
    median_of_task_means,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

ORACLE: dict[str, Any] = json.loads(Path(__file__).with_name("rliable_oracle.json").read_text())
"""Made by ``rliable_oracle.py``, for rliable cannot be installed beside the tested set."""
X, Y = ([np.array(task) for task in ORACLE[name]] for name in ("x", "y"))


def normal(runs: tuple[int, ...], seed: int = 0, mean: float = 0.5, scale: float = 0.2) -> list[np.ndarray]:
    """Scores of one agent: a task for each number of runs."""
    rng = np.random.default_rng(seed)
    return [rng.normal(mean, scale, n) for n in runs]


# ---- known answers


def test_the_iqm_of_eight_numbers_and_its_deafness_to_one_of_them() -> None:
    numbers = np.arange(8.0)
    assert iqm([numbers]) == 3.5
    assert iqm([numbers[:4], numbers[4:]]) == 3.5
    outlier = np.where(numbers == 7, 1e6, numbers)
    assert iqm([outlier]) == 3.5
    assert mean_of_task_means([outlier]) > 1e5


def test_aggregates_worked_out_by_hand() -> None:
    tasks = [np.array([0.0, 1.0, 2.0]), np.array([4.0]), np.array([0.5, 0.7])]
    assert mean_of_task_means(tasks) == pytest.approx((1 + 4 + 0.6) / 3)
    assert median_of_task_means(tasks) == pytest.approx(1.0)
    assert optimality_gap(tasks) == pytest.approx((1 + 0 + 0 + 0 + 0.5 + 0.3) / 6)
    assert optimality_gap(tasks, gamma=2.0) == pytest.approx((2 + 1 + 0 + 0 + 1.5 + 1.3) / 6)
    assert iqm(tasks) == pytest.approx((0.5 + 0.7 + 1 + 2) / 4)  # one of six is dropped at each end


@pytest.mark.parametrize("name", AGGREGATES)
def test_many_repetitions_are_one_call(name: str) -> None:
    tasks = [np.stack([row, row + 1]) for row in normal((3, 5))]
    both = AGGREGATES[name](tasks)
    assert both.shape == (2,)
    assert both == pytest.approx([float(AGGREGATES[name]([task[row] for task in tasks])) for row in (0, 1)])


def test_improvement_known_answers() -> None:
    same = [np.array([1.0, 2.0, 3.0])]
    assert probability_of_improvement(same, same).value == 0.5
    assert probability_of_improvement([np.array([4.0, 5.0])], same) == Estimate(1.0)
    assert probability_of_improvement(same, [np.array([4.0, 5.0])]) == Estimate(0.0)
    pairs = probability_of_improvement([np.array([1.0, 2.0])], [np.array([2.0, 0.0, 5.0])])
    assert pairs.value == pytest.approx((1 + 1.5) / 6)  # 1 beats 0; 2 beats 0 and ties with 2


def test_improvement_is_mann_whitneys_u() -> None:
    x, y = [np.round(task, 1) for task in normal((7, 4), 1)], [np.round(task, 1) for task in normal((5, 6), 2)]
    wanted = [mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert probability_of_improvement(x, y).value == pytest.approx(np.mean(wanted))


def test_a_profile_counted_by_hand() -> None:
    tasks = [np.array([0.1, 0.5, 0.9]), np.array([0.5, 1.5, 2.5])]
    band = performance_profile(tasks, np.array([0.0, 0.5, 2.0, 3.0]))
    assert band.value == pytest.approx([1, 3 / 6, 1 / 6, 0])  # above, not at
    assert band.low is not None
    assert band.high is not None
    assert (np.diff(band.value) <= 0).all()
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()
    assert band.low[0] == band.high[0] == 1.0
    assert band.low[1] < band.high[1]


# ---- another library's numbers


def near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=0.02)


@pytest.mark.parametrize("resample_tasks", [False, True])
@pytest.mark.parametrize("name", AGGREGATES)
def test_intervals_agree_with_rliable(name: str, resample_tasks: bool) -> None:
    found = estimate(X, AGGREGATES[name], seed=1, resample_tasks=resample_tasks)
    wanted, at = ORACLE["runs and tasks" if resample_tasks else "runs"], ORACLE["aggregates"].index(name)
    assert found.value == pytest.approx(wanted["value"][at])
    near([found.low, found.high], [wanted["low"][at], wanted["high"][at]])


def test_runs_of_all_tasks_in_one_pot_would_not_agree() -> None:
    """The control of the test above: without strata the interval is another one."""
    found = estimate([np.concatenate(X)], seed=1)
    with pytest.raises(AssertionError):
        near([found.low, found.high], [ORACLE["runs"]["low"][0], ORACLE["runs"]["high"][0]])


def test_improvement_agrees_with_rliable() -> None:
    found, wanted = probability_of_improvement(X, Y, seed=1, repetitions=20_000), ORACLE["improvement"]
    assert found.value == pytest.approx(wanted["value"][0])
    near([found.low, found.high], [*wanted["low"], *wanted["high"]])


def test_curves_and_profiles_agree_with_rliable() -> None:
    curves, wanted = np.array(ORACLE["curves"]), ORACLE["curve"]
    band = learning_curve([curves], np.arange(curves.shape[1]), seed=1, repetitions=20_000)
    np.testing.assert_allclose(band.value, wanted["value"])
    near([band.low, band.high], [wanted["low"], wanted["high"]])
    profile, wanted = performance_profile(X, np.array(ORACLE["taus"]), seed=1, repetitions=20_000), ORACLE["profile"]
    np.testing.assert_allclose(profile.value, wanted["value"])
    step = 1 / sum(len(task) for task in X)  # a percentile of a share lies on one of its steps
    np.testing.assert_allclose([profile.low, profile.high], [wanted["low"], wanted["high"]], atol=1.01 * step)


# ---- intervals


def covered(runs: int, simulations: int = 400, repetitions: int = 400, shrink: float = 1.0) -> float:
    """How often a 95 % interval of the mean of six Gaussian tasks holds the truth."""
    truth = np.linspace(0.2, 0.8, 6)
    rng, hits = np.random.default_rng(runs), 0
    for seed in range(simulations):
        scores = list(rng.normal(truth[:, None], 0.2, (6, runs)))
        found = estimate(scores, mean_of_task_means, seed=seed, repetitions=repetitions)
        assert found.low is not None
        assert found.high is not None
        middle, half = (found.low + found.high) / 2, shrink * (found.high - found.low) / 2
        hits += bool(abs(truth.mean() - middle) <= half)
    return hits / simulations


def test_intervals_of_five_runs_hold_the_truth_nearly_as_often_as_they_say() -> None:
    assert 0.86 <= covered(5) <= 0.97
    assert covered(5, shrink=0.5) < 0.8  # half as long ones do not


def test_fewer_runs_hold_the_truth_less_often() -> None:
    """The shortfall that reports tell of."""
    assert covered(3) < covered(10)


def test_more_runs_make_shorter_intervals() -> None:
    def width(runs: int) -> float:
        found = estimate(normal((runs,) * 4), repetitions=2000)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(40) < 0.6 * width(5)


def test_equal_seeds_give_equal_intervals_and_different_ones_do_not() -> None:
    curves, points = [np.stack(normal((9,) * 7))], np.arange(9)

    def all_of(seed: int) -> list[str]:
        improvement = probability_of_improvement(X, Y, seed=seed, repetitions=501)
        return [
            str(found) for found in (estimate(X, seed=seed), improvement, learning_curve(curves, points, seed=seed))
        ]

    assert all_of(3) == all_of(3)
    seen = [set(found) for found in zip(*(all_of(seed) for seed in range(5)), strict=True)]
    assert all(len(found) > 1 for found in seen)  # shares are steps, so two seeds may well meet
    assert len(seen[0]) == 5


def test_small_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(scores: Scores) -> np.ndarray:
        calls.append(len(np.atleast_2d(scores[0])))
        return iqm(scores)

    monkeypatch.setattr(statistics, "_CHUNK", 4000)
    found = estimate(X, counted, repetitions=5000)
    assert calls == [1, *[100] * 50]
    monkeypatch.undo()
    whole = estimate(X, repetitions=5000)
    near([found.low, found.high], [whole.low, whole.high])


def test_tasks_may_have_different_numbers_of_runs() -> None:
    uneven = normal((3, 9, 4))
    fixed, free = (estimate(uneven, mean_of_task_means, repetitions=4000, resample_tasks=own) for own in (False, True))
    assert fixed.value == free.value == pytest.approx(np.mean([task.mean() for task in uneven]))
    spread = [np.array([v, v, v, v][: 3 + at % 2]) for at, v in enumerate((0.0, 1.0, 2.0))]
    none, all_of_it = (estimate(spread, mean_of_task_means, resample_tasks=own) for own in (False, True))
    assert (none.low, none.high) == (1.0, 1.0)  # no run differs from another on its task
    assert (all_of_it.low, all_of_it.high) == pytest.approx((0.0, 2.0), abs=0.4)  # but tasks do


def test_one_agent_under_two_names_is_no_better_than_itself() -> None:
    one, twin = normal((5,) * 4, seed=0), normal((5,) * 4, seed=1)
    found = probability_of_improvement(one, twin)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    better = probability_of_improvement(normal((5,) * 4, seed=0, mean=0.9), twin)
    assert better.low is not None
    assert better.low > 0.5


def test_the_two_agents_are_resampled_independently() -> None:
    """Tied to the same draws, an agent would beat its own copy shifted by a hair in every repetition."""
    x = [np.arange(8.0)]
    found = probability_of_improvement([x[0] + 1e-6], x)
    assert found.low is not None
    assert found.low < 0.4


@pytest.mark.parametrize("runs", [(2, 2), (5, 2)])
def test_too_few_runs_have_no_interval(runs: tuple[int, ...]) -> None:
    few, enough = normal(runs), normal((3, 3))
    assert estimate(few) == Estimate(float(iqm(few)))
    assert estimate(enough).low is not None
    assert probability_of_improvement(few, enough).low is None
    assert probability_of_improvement(enough, few).low is None
    assert performance_profile(few, np.array([0.5])).high is None
    assert learning_curve([np.ones((2, 4))], np.arange(4)).low is None


def test_curves_hold_the_aggregate_at_every_point() -> None:
    curves = [np.stack(normal((6,) * 5, seed)) for seed in (0, 1)]
    band = learning_curve(curves, np.arange(6), mean_of_task_means, repetitions=500)
    assert band.value == pytest.approx(np.mean([task.mean(axis=0) for task in curves], axis=0))
    last = estimate([task[:, -1] for task in curves], mean_of_task_means, repetitions=20_000)
    assert band.low is not None
    assert last.low is not None
    assert band.low[-1] == pytest.approx(last.low, abs=0.03)


# ---- curves of different runs, words, refusals


def test_curves_known_at_the_same_points_stay_as_they_are() -> None:
    x, values = align([(np.array([0.0, 5.0]), np.array([1.0, 2.0])), (np.array([0.0, 5.0]), np.array([3.0, 4.0]))])
    assert x.tolist() == [0, 5]
    assert values.tolist() == [[1, 2], [3, 4]]


def test_other_curves_are_interpolated_where_all_of_them_are_known() -> None:
    x, values = align([(np.array([0.0, 4.0]), np.array([0.0, 8.0])), (np.array([1.0, 9.0]), np.array([1.0, 9.0]))], 4)
    assert x.tolist() == [1, 2, 3, 4]
    assert values.tolist() == [[2, 4, 6, 8], [1, 2, 3, 4]]
    with pytest.raises(UserError, match="no stretch in common"):
        align([(np.array([0.0, 1.0]), np.zeros(2)), (np.array([2.0, 3.0]), np.zeros(2))])
    with pytest.raises(UserError, match="at least one evaluation"):
        align([(np.array([]), np.array([]))])


def test_the_words_of_caution_carry_the_measured_coverage() -> None:
    assert "no interval" in caution(1).lower()
    assert "none is shown" in caution(2)
    assert "once in 3 " in caution(2)
    assert "85 of 100" in caution(3)
    assert "85 of 100" in caution(4)
    assert "once in 10 " in caution(3)
    assert "91.5 of 100" in caution(5)
    assert "91.7 of 100" in caution(20)


def test_luck_is_as_rare_as_the_words_say() -> None:
    draws = np.random.default_rng(0).normal(size=(40_000, 2, 3))
    apart = (draws[:, 0].min(1) > draws[:, 1].max(1)) | (draws[:, 1].min(1) > draws[:, 0].max(1))
    assert 1 / apart.mean() == pytest.approx(10, rel=0.05)


def test_scores_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(UserError, match="at least one run"):
        estimate([])
    with pytest.raises(UserError, match="at least one run"):
        estimate([np.array([1.0]), np.array([])])
    with pytest.raises(UserError, match=r"task 1.*nan"):
        estimate([np.ones(3), np.array([1.0, np.nan, 2.0])])
    with pytest.raises(UserError, match="same tasks"):
        probability_of_improvement(X, Y[:2])
    with pytest.raises(UserError, match="each of the 3 points"):
        learning_curve([np.ones((4, 2))], np.arange(3))


def test_gamma_reaches_the_bootstrap() -> None:
    found = estimate(X, partial(optimality_gap, gamma=0.5), repetitions=1000)
    assert found.high is not None
    assert found.value < found.high < float(optimality_gap(X))
