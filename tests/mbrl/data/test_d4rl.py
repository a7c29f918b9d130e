"""D4RL-style files that others made: what is known of successors at ends, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from envs.errors import UserError
from mbrl.data.offline import Dataset, open_dataset

LENGTHS = (3, 4, 2)
"""Episodes of the files below; the second terminates, the others time out"""
STEP = np.array([0.0, 1.0])


def columns(**others: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A file's arrays: an observation is (episode, step), so a true successor is known on sight."""
    obs = np.array([(e, t) for e, length in enumerate(LENGTHS) for t in range(length)], dtype=np.float64)
    ends = np.cumsum(LENGTHS) - 1
    terminals, timeouts = np.zeros(len(obs), bool), np.zeros(len(obs), bool)
    terminals[ends[1]], timeouts[ends[[0, 2]]] = True, True
    found = {"observations": obs, "actions": np.full((len(obs), 1), 0.5), "rewards": np.arange(len(obs), dtype=float)}
    found |= {"terminals": terminals, "timeouts": timeouts, "next_observations": obs + STEP}
    return {name: array for name, array in (found | others).items() if array is not None}


def opened(path: Path, env: str | None = None, **others: Any) -> Dataset:
    with h5py.File(path / "set.hdf5", "w") as file:
        for name, array in columns(**others).items():
            file[name] = array
    return open_dataset(path / "set.hdf5", env)


def true_successors(found: Dataset) -> bool:
    rows = found.rows()
    return torch.equal(rows.next_obs, rows.obs + torch.tensor([0.0, 1.0]))


def test_stored_successors_are_used(tmp_path: Path) -> None:
    found = opened(tmp_path)
    rows = found.rows()
    assert true_successors(found)
    assert rows.obs.tolist() == columns()["observations"].tolist()
    assert rows.episode.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert rows.step.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert rows.terminated.nonzero()[:, 0].tolist() == [6]
    assert rows.truncated.nonzero()[:, 0].tolist() == [2, 8]


def test_without_them_the_ends_are_left_out_and_it_says_so(tmp_path: Path) -> None:
    found = opened(tmp_path, next_observations=None)
    rows = found.rows()
    assert true_successors(found)
    assert rows.obs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert len(found) == len(rows) == 6
    assert any("3 of 9 rows are left out" in note for note in found.notes)


def test_the_usual_mistake_would_be_seen(tmp_path: Path) -> None:
    """The control: taking the next row's observation everywhere gives the resets as successors."""
    obs = columns()["observations"]
    naive = np.concatenate([obs[1:], obs[-1:]])
    assert not np.array_equal(naive, obs + STEP)
    found = opened(tmp_path, next_observations=naive)
    assert true_successors(found)
    assert any("3 of 9 rows" in note and "next episode's first" in note for note in found.notes)


def test_without_timeouts_an_episode_ends_where_the_next_row_does_not_follow(tmp_path: Path) -> None:
    found = opened(tmp_path, timeouts=None)
    assert torch.equal(
        found.rows().truncated,
        opened(tmp_path)
        .rows()
        .truncated[:8]
        .new_tensor([False, False, True, False, False, False, False, False, False]),
    )
    assert found.rows().episode.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_without_both_nobody_can_tell(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"timeouts.*missing"):
        opened(tmp_path, timeouts=None, next_observations=None)


def test_long_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"next_observations": None}, {"timeouts": None}):
        whole = opened(tmp_path, **options).rows()
        for chunk in (1, 2, 4):
            monkeypatch.setattr("mbrl.data.d4rl.CHUNK", chunk)
            parts = opened(tmp_path, **options)
            assert len(list(parts.pieces())) > 1
            assert torch.equal(parts.rows().next_obs, whole.next_obs)
            assert torch.equal(parts.rows().step, whole.step)
            monkeypatch.undo()


def test_actions_are_in_the_environments_units(tmp_path: Path) -> None:
    obs = np.zeros((9, 3))
    others = {"observations": obs, "next_observations": obs, "actions": np.full((9, 1), 1.5)}
    assert opened(tmp_path, "Pendulum-v1", **others).rows().action[0].tolist() == [0.75]
    with pytest.raises(UserError, match=r"row 0 \(episode 0, step 0\): action\[0\]: 1.5.*name the environment"):
        opened(tmp_path, **others).rows()
    with pytest.raises(UserError, match=r"Pendulum|shape"):
        opened(tmp_path, "Pendulum-v1").rows()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"rewards": None}, "rewards: 'missing'"),
        ({"rewards": np.zeros(8)}, "rewards: '8 rows'.*has 9"),
        ({"terminals": np.zeros(10, bool)}, "terminals: '10 rows'"),
        ({"next_observations": np.zeros((9, 3))}, r"next_observations: \(9, 3\)"),
        ({"actions": np.array([b"left"] * 9)}, "actions.*numbers"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, others: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(tmp_path, **others)
