"""Hiding actions by quality, and putting predicted ones in their place."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.labels import episode_returns, label_actions, labelled_by_quality, without_actions
from mbrl.data.transitions import Transitions


def episodes(count: int = 20, steps: int = 5) -> Transitions:
    """Episode ``i`` has return ``steps * (count - i)``."""
    rows = count * steps
    episode = torch.arange(count).repeat_interleave(steps)
    never, step = torch.zeros(rows, dtype=torch.bool), torch.arange(steps).repeat(count)
    obs, reward = torch.randn(rows, 2), (count - episode).float()
    return Transitions(obs, 0.5 * torch.ones(rows, 1), reward, obs, never, never, episode, step, step * 0)


class Half:
    def predict(self, data: Transitions) -> tuple[Tensor, Tensor]:
        return torch.full_like(data.action, -0.25), torch.full((len(data),), 0.1)


def test_labels_come_from_the_worst_episodes(generator: Generator) -> None:
    data = episodes()
    known = labelled_by_quality(data, share=0.2, lowest=0.5, generator=generator)
    kept = data.episode[known].unique()
    assert len(kept) == 4
    assert int(known.sum()) == 20
    assert int(kept.min()) >= 10  # returns fall with the number
    anywhere = labelled_by_quality(data, share=0.5, lowest=1.0, generator=generator)
    assert int(data.episode[anywhere].min()) < 10


def test_returns_are_sums_over_rows_in_any_order() -> None:
    data = episodes(3, 2)[torch.tensor([5, 1, 3, 0, 2, 4])]
    returns, numbers = episode_returns(data)
    assert returns.tolist() == [6.0, 4.0, 2.0]
    assert numbers.tolist() == [0, 1, 2]


def test_hidden_actions_are_no_numbers_until_labelled(generator: Generator) -> None:
    data = episodes()
    known = labelled_by_quality(data, 0.1, 0.5, generator)
    hidden = without_actions(data, known)
    assert torch.equal(hidden.action.isnan()[:, 0], ~known)
    labelled = label_actions(hidden, Half())
    assert bool((labelled.action[known] == 0.5).all())
    assert bool((labelled.action[~known] == -0.25).all())
    assert torch.equal(labelled.extra["has_action"].bool(), known)
    assert torch.equal(labelled.extra["action_variance"] > 0.0, ~known)


def test_bad_requests_are_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="share"):
        labelled_by_quality(episodes(), 0.0, 0.5, generator)
    with pytest.raises(UserError, match="fewer"):
        labelled_by_quality(episodes(), 0.5, 0.1, generator)
    with pytest.raises(UserError, match="has_action"):
        label_actions(episodes(), Half())
