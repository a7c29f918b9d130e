"""The permutation test: known answers, every deal gone through by hand, and what the strata are for."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from envs.errors import UserError
from experiments.report import permutation
from experiments.report.permutation import fewest_seeds, holm, permutation_test, smallest_p
from experiments.report.statistics import Scores, probability_of_improvement


def scores(seed: int, *runs: int, mean: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.round(rng.normal(mean, 1.0, n), 1) for n in runs]


def by_hand(x: Scores, y: Scores) -> float:
    """Every deal of every task, one after the other."""

    def wins(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.heaviside(ours[:, None] - theirs, 0.5).mean())

    dealt = []
    for ours, theirs in zip(x, y, strict=True):
        pot = np.concatenate([ours, theirs])
        hands = combinations(range(len(pot)), len(ours))
        dealt.append([wins(pot[list(hand)], np.delete(pot, hand)) for hand in hands])
    far = np.array([abs(np.mean(deal) - 0.5) for deal in product(*dealt)])
    return float((far >= abs(np.mean([wins(a, b) for a, b in zip(x, y, strict=True)]) - 0.5) - 1e-9).mean())


def test_agents_apart_have_the_smallest_p() -> None:
    low, high = np.arange(3.0), np.arange(3.0) + 10
    assert permutation_test([high], [low]).p == pytest.approx(0.1)
    assert permutation_test([low], [high]).p == pytest.approx(0.1)
    assert permutation_test([low], [low]).p == 1.0
    assert permutation_test([high, high], [low, low]).p == pytest.approx(2 / 400)
    assert permutation_test([high, low], [low, high]).p == 1.0  # once this way, once the other


@pytest.mark.parametrize("runs", [((4,), (5,)), ((3, 4), (4, 2)), ((2, 3, 2), (3, 2, 2))])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_deals_are_counted(runs: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    x, y = scores(seed, *runs[0]), scores(seed + 10, *runs[1], mean=0.7)  # rounded: there are ties
    assert permutation_test(x, y).p == pytest.approx(by_hand(x, y), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_on_one_task_it_is_mann_whitneys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.5, 1, 9), rng.normal(0, 1, 7)
    assert permutation_test([x], [y]).p == pytest.approx(mannwhitneyu(x, y, method="exact").pvalue)


def test_random_deals_come_to_the_same() -> None:
    x, y = scores(0, 5, 6, mean=0.6), scores(1, 6, 5)
    exact, drawn = (permutation_test(x, y, exact=way) for way in (True, False))
    assert drawn.p == pytest.approx(exact.p, abs=4 * (exact.p / permutation.DEALS) ** 0.5)
    assert 0.01 < exact.p < 0.5
    assert drawn == permutation_test(x, y, exact=False)
    assert len({permutation_test(x, y, exact=False, seed=seed).p for seed in range(5)}) > 1
    assert permutation_test([x[0] + 9], [y[0]], exact=False, deals=99).smallest == 0.01  # no p of 0 from few deals


def test_many_runs_are_dealt_at_random_and_soon_done(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = scores(0, 300, mean=1.0), scores(1, 300)
    assert permutation_test(x, y, deals=999).p == 1 / 1000
    monkeypatch.setattr(permutation, "_drawn", None)
    permutation_test(scores(0, 20, 20), scores(1, 20, 20))  # counted


def test_runs_are_dealt_within_their_task() -> None:
    """One has most runs where returns are high; in one pot with the others they would look better."""
    easy, hard = np.arange(9.0) + 100, np.arange(9.0)
    x, y = [np.delete(easy, 4), hard[4:5]], [easy[4:5], np.delete(hard, 4)]
    assert permutation_test(x, y).p == 1.0
    assert permutation_test([np.concatenate(x)], [np.concatenate(y)]).p < 0.02


def test_the_statistic_is_the_probability_of_improvement() -> None:
    """A task with more runs weighs no more than one with few, as in the estimate."""
    x, y = scores(3, 3, 5), scores(4, 3, 2)
    assert permutation_test(x, y).p == pytest.approx(by_hand(x, y))
    shifted = [x[0] - 50, x[1] + 50]
    assert probability_of_improvement(shifted, y).value == 0.5
    assert permutation_test(shifted, y).p == 1.0


def test_the_smallest_p_and_the_seeds_that_it_takes() -> None:
    assert smallest_p([(3, 3)]) == pytest.approx(0.1)
    assert smallest_p([(1, 1)]) == 1.0
    assert smallest_p([(5, 5), (5, 4)]) == pytest.approx(2 / comb(10, 5) / comb(9, 5))
    assert [fewest_seeds(pairs, 1) for pairs in (1, 3, 10)] == [4, 5, 6]
    assert [fewest_seeds(pairs, 2) for pairs in (1, 3, 10)] == [3, 3, 3]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_other_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="same tasks"):
        permutation_test(scores(0, 3), scores(1, 3, 3))
