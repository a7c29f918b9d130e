"""Windows of the gradient fitter: whole, inside an episode, never shared by training and holdout."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec, never
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.fitting.base import BLOCK_WINDOWS
from mbrl.models.base import DynamicsModel, State, Step

SPEC = EnvSpec("Line-v0", "0", "0", 1, ActionSpec("continuous", 1, (-1.0,), (1.0,)), termination=never)


@dataclass
class Keys(Record):
    """``1000 * episode + step`` of each row."""

    key: Tensor


class Noting(DynamicsModel):
    """Remembers the windows that it trained on and those that it was judged on."""

    def __init__(self, window: int, members: int = 1) -> None:
        super().__init__(SPEC)
        self.window, self.members = window, members
        self.weight = nn.Parameter(torch.zeros(members, 1))
        self.shown: list[Tensor] = []
        self.judged: list[Tensor] = []

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        raise AssertionError("not asked here")

    def prepare(self, data: Transitions) -> Keys:
        return Keys(1000 * data.episode + data.step)

    def loss(self, batch: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        self.shown.append(batch.key)
        return self.weight.square().sum(), {}

    def holdout_score(self, batch: Keys) -> tuple[Tensor, dict[str, Tensor]]:
        self.judged.append(batch.key)
        return torch.ones(self.members), {}

    def trained(self) -> Tensor:
        """``[M, window]`` distinct windows of all members."""
        return torch.cat([keys.flatten(0, 1) for keys in self.shown]).unique(dim=0)


def rows(episodes: int, length: int, shuffled: bool = True) -> Transitions:
    episode = torch.arange(episodes).repeat_interleave(length)
    step = torch.arange(length).repeat(episodes)
    order = (
        torch.randperm(len(step), generator=torch.Generator().manual_seed(9)) if shuffled else torch.arange(len(step))
    )
    episode, step = episode[order], step[order]
    column, none = step[:, None].float(), step < 0
    return Transitions(column, column * 0, column[:, 0], column, none, none, episode, step, step * 0)


def fit(model: Noting, data: Transitions, fitter: Fitter | None = None, seed: int = 0) -> Fitter:
    fitter = fitter or Fitter(holdout=0.25, patience=2, batch_size=16)
    fitter.fit(model, data, torch.Generator().manual_seed(seed))
    return fitter


@pytest.mark.parametrize("members", [1, 3])
def test_windows_are_consecutive_steps_of_one_episode(members: int) -> None:
    model = Noting(4, members)
    fit(model, rows(12, 100))
    assert all(keys.dim() == 3 and keys.shape[0] == members and keys.shape[2] == 4 for keys in model.shown)
    assert all(keys.dim() == 2 and keys.shape[1] == 4 for keys in model.judged)
    for windows in (model.trained(), model.judged[0]):
        assert bool((windows.diff(dim=1) == 1).all())
        assert bool((windows[:, 0] // 1000 == windows[:, -1] // 1000).all())


def test_no_row_is_in_a_window_of_either_kind() -> None:
    """And the control: were windows parted by their first row alone, rows would be shared."""
    model, data = Noting(4), rows(12, 100)
    fitter = fit(model, data)
    learned, judged = set(model.trained().flatten().tolist()), set(model.judged[0].flatten().tolist())
    assert judged
    assert learned
    assert not learned & judged
    train, held = fitter.split(data, torch.Generator().manual_seed(0), 4)
    first = {1000 * int(data.episode[i]) + int(data.step[i]) for i in held}
    outside = {1000 * int(data.episode[i]) + int(data.step[i]) for i in train}
    assert judged <= first
    assert learned <= outside
    assert {key + 3 for key in first} & learned  # a held first row's window would have reached into these


def test_nearly_all_rows_are_in_a_window() -> None:
    model, data = Noting(4), rows(12, 100)
    fit(model, data)
    seen = set(model.trained().flatten().tolist()) | set(model.judged[0].flatten().tolist())
    assert len(seen) == len(data)
    share = len(model.judged[0]) / (len(model.judged[0]) + len(model.trained()))
    assert 0.1 < share < 0.4


def test_held_blocks_are_whole_and_fixed_for_ever() -> None:
    """Whatever the order of the rows, the luck of the fit, and how many come after; the control draws them anew."""
    fitter, drawn = Fitter(holdout=0.25), Fitter(holdout=0.25, fresh_holdout=True)
    trained, leaked = set[tuple[int, int]](), 0
    for length, window in ((60, 4), (120, 4), (200, 4)):
        data = rows(12, length)
        train, held = fitter.split(data, torch.Generator().manual_seed(length), window)
        blocks = list(zip(data.episode.tolist(), (data.step // (BLOCK_WINDOWS * window)).tolist(), strict=True))
        held_blocks, train_blocks = {blocks[i] for i in held}, {blocks[i] for i in train}
        assert not held_blocks & train_blocks
        assert not held_blocks & trained
        trained |= train_blocks
        _, anew = drawn.split(data, torch.Generator().manual_seed(length), 1)
        leaked += len({blocks[i] for i in anew} & trained)
    assert leaked > 20


def test_single_steps_are_single_rows() -> None:
    model = Noting(1)
    fit(model, rows(12, 20))
    assert all(keys.dim() == 2 for keys in model.shown)
    assert not set(torch.cat(model.shown, 1).flatten().tolist()) & set(model.judged[0].tolist())


def test_weights_are_those_of_first_rows() -> None:
    model, data = Noting(4), rows(6, 50, shuffled=False)
    weights = (data.step == 10).float()
    fitter = Fitter(holdout=0.0, max_updates=3)
    fitter.fit(model, data, torch.Generator().manual_seed(0), weights)
    assert set((model.trained()[:, 0] % 1000).tolist()) == {10}


def test_too_short_episodes_are_refused_and_one_window_is_enough() -> None:
    with pytest.raises(UserError, match="window"):
        fit(Noting(8), rows(12, 7))
    model = Noting(8)
    fit(model, rows(1, 8))
    assert model.trained().tolist() == [list(range(8))]
