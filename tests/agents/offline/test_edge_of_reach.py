"""States that imagined rollouts only ever reach with their last step ruin plain learners, even in a perfect model.

A line of positions, moves of one step, reward ``-0.1 |x|``, rollouts of ``k`` steps from around 0: states within reach
before the last step are learned about, those at the edge are not and keep their first values, which leak inwards
(Sims et al., "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", 2024).
"""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from agents.offline.reach import Box, reach, unstored
from mbrl.data.transitions import Transitions

FAR, START, GAMMA, SEEDS, SWEEPS = 30, 2, 0.99, 20, 1500
POSITION = torch.arange(-FAR, FAR + 1)
MOVED = (POSITION[:, None] + torch.tensor([-1, 0, 1])).clamp(-FAR, FAR)
"""``[X, 3]`` where each action leads"""


def learned(members: int, k: int, patched: bool = False, reach: int | None = None) -> Tensor:
    """``[seeds, X, 3]`` values after many sweeps over the states within reach, the smallest of the members'.

    ``patched``: the states at the edge begin with their true values. ``reach``: the distance up to which states are
    learned about (default: what ``k`` steps reach before the last).
    """
    q = 10.0 * torch.randn(SEEDS, members, len(POSITION), 3, generator=Generator().manual_seed(0))
    if patched:
        q[:, :, POSITION.abs() == START + k] = true_value(START + k)
    inside = POSITION.abs() <= (START + k - 1 if reach is None else reach)
    reward, after = -0.1 * MOVED.abs(), MOVED + FAR
    for _ in range(SWEEPS):
        value = q.amin(1).amax(-1)
        target = reward + GAMMA * value[:, after]
        q[:, :, inside] = q[:, :, inside].lerp(target[:, None, inside], 0.5)
    return q.amin(1)


def true_value(distance: int) -> float:
    """Of walking to 0 and staying there."""
    return sum(-0.1 * (distance - 1 - step) * GAMMA**step for step in range(distance))


def failures(q: Tensor) -> int:
    """Seeds whose greedy policy, from 0, does not stay near it: the best return is 0."""
    position, total, seed = torch.full((SEEDS,), FAR), torch.zeros(SEEDS), torch.arange(SEEDS)
    for _ in range(100):
        position = MOVED[position, q[seed, position].argmax(-1)] + FAR
        total -= 0.1 * (position - FAR).abs()
    return int((total < -1.0).sum())


def test_plain_learners_collapse_under_the_true_dynamics() -> None:
    q = learned(members=1, k=5)
    assert failures(q) >= 18
    assert float(q[:, FAR].amax(-1).mean()) > 5.0  # at 0, where the true value is 0


def test_many_critics_are_sound() -> None:
    assert failures(learned(members=10, k=5)) <= 1


def test_true_values_at_the_edge_alone_restore_one_critic() -> None:
    assert failures(learned(members=1, k=5, patched=True)) <= 1


def test_without_an_edge_one_critic_is_sound() -> None:
    assert failures(learned(members=1, k=5, reach=FAR)) == 0


@pytest.mark.parametrize(("k", "least"), [(1, 18), (10, 10)])
def test_the_edge_matters_at_other_horizons(k: int, least: int) -> None:
    """The way to a far edge costs more than many of its made-up values promise."""
    assert failures(learned(members=1, k=k)) >= least
    assert failures(learned(members=10, k=k)) <= 1


# -- what agents log of it ---------------------------------------------------------------------------------------------


def rollouts() -> Transitions:
    """Three rollouts of at most 3 steps along a line: a whole one, one that terminates at once, one cut short.

    The last one's second step was not stored.
    """
    depth = torch.tensor([0, 0, 0, 1, 2])
    obs = torch.tensor([0.0, 10.0, 20.0, 1.0, 2.0])[:, None]
    ends = torch.tensor([False, True, False, False, False])
    ids = torch.tensor([0, 1, 2, 0, 0])
    nothing, none = torch.zeros(5), torch.zeros(5, dtype=torch.bool)
    return Transitions(obs, nothing[:, None], nothing, obs + 1.0, ends, none, ids, depth, ids, extra={"depth": depth})


def test_values_are_logged_by_depth() -> None:
    found = reach(rollouts(), horizon=3, value=lambda obs: 2.0 * obs[:, 0])
    assert found == {
        "edge_share": pytest.approx(1 / 5),
        "q_at_depth_0": 20.0,
        "q_at_depth_1": 2.0,
        "q_at_depth_2": 4.0,
        "q_at_depth_3": 6.0,
    }
    assert "q_at_depth_2" not in reach(rollouts()[:4], 3, lambda obs: obs[:, 0])


def test_rollouts_that_were_dropped_are_counted() -> None:
    rows = rollouts()
    assert unstored(rows, starts=3, horizon=3) == 1
    assert unstored(rows, starts=4, horizon=3) == 2  # one at its first step
    assert unstored(rows[torch.tensor([0, 1, 3, 4])], starts=2, horizon=3) == 0


def test_the_box_is_the_range_of_the_data() -> None:
    box = Box(torch.tensor([[0.0, -3.0], [1.0, 2.0]]))
    assert box.outside(torch.tensor([[0.5, 0.0], [1.1, 0.0], [0.5, -3.1]])).tolist() == [False, True, True]
    assert box.largest == 3.0
