"""What is written comes back to the bit, in every format; and what was changed in between is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import torch

from envs import make_env
from envs.errors import UserError
from mbrl.data.d4rl import write_d4rl
from mbrl.data.minari import write_minari
from mbrl.data.offline import About, open_dataset, save_folder
from mbrl.data.order import grouped
from mbrl.data.transitions import Transitions
from tests.mbrl.data.made import differences, odd_rows, play

Write = Callable[[Transitions, Path, About | None], Path]


def _hdf5(rows: Transitions, root: Path, about: About | None) -> Path:
    return write_minari(rows, "test/set-v0", about, root=root)


def _arrow(rows: Transitions, root: Path, about: About | None) -> Path:
    return write_minari(rows, "test/set-v0", about, data_format="arrow", root=root)


def _d4rl(rows: Transitions, root: Path, about: About | None) -> Path:
    return write_d4rl(rows, root / "set.hdf5", about)


def _folder(rows: Transitions, root: Path, about: About | None) -> Path:
    rows = grouped(rows)
    save_folder([rows[:5], rows[5:]], len(rows), root / "set", about)
    return root / "set"


FORMATS: dict[str, Write] = {"minari hdf5": _hdf5, "minari arrow": _arrow, "d4rl": _d4rl, "folder": _folder}


@pytest.fixture(params=list(FORMATS))
def write(request: pytest.FixtureRequest) -> Write:
    return FORMATS[request.param]


@pytest.mark.parametrize("id", ["Pendulum-v1", "Hopper-v5", "CartPole-v1"])
def test_rows_of_an_environment_come_back_to_the_bit(id: str, write: Write, tmp_path: Path) -> None:
    rows = play(id)
    assert bool(rows.truncated.any()) or bool(rows.terminated.any())
    about = About(env={"id": id, "max_episode_steps": 25}, references=(-5.0, 100.0), policy={"name": "random"})
    found = open_dataset(write(rows, tmp_path, about))
    assert differences(found.rows(), rows) == []
    assert found.about == about
    found.validate()
    assert found.spec().max_episode_steps == 25
    assert found.notes == []


def test_every_column_of_odd_rows_comes_back(write: Write, tmp_path: Path) -> None:
    rows = odd_rows()
    back = open_dataset(write(rows, tmp_path, None)).rows()
    assert differences(back, grouped(rows)) == []
    assert differences(back, rows) != []  # they were interleaved


def test_the_order_of_episodes_and_the_last_row_are_told_apart(write: Write, tmp_path: Path) -> None:
    """The control: the comparison above notices episodes that were swapped, and a row that was lost."""
    rows = play("Pendulum-v1", episodes=2)
    half = len(rows) // 2
    swapped = Transitions.cat([rows[half:], rows[:half]])
    assert "obs" in differences(open_dataset(write(swapped, tmp_path / "a", None)).rows(), rows)
    assert "next_obs" in differences(open_dataset(write(rows[:-1], tmp_path / "b", None)).rows(), rows)


def test_the_environment_goes_where_the_file_says(tmp_path: Path) -> None:
    """The stored actions, in the environment's units, lead to the stored observations, at the ends too."""
    rows = play("Hopper-v5")
    path = write_minari(
        rows, "hopper/random-v0", About(env={"id": "Hopper-v5", "max_episode_steps": 25}), root=tmp_path
    )
    env = make_env("Hopper-v5", max_episode_steps=25).env
    for episode in minari.MinariDataset(path / "data").iterate_episodes():
        observations = [env.reset(seed=int(episode.id))[0]]
        for action in episode.actions:
            observations.append(env.step(action)[0])
        assert np.array_equal(episode.observations, np.array(observations, dtype=np.float32))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_itself_reads_it(data_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rows = play("Pendulum-v1")
    about = About(
        env={"id": "Pendulum-v1", "max_episode_steps": 25}, references=(-200.0, 0.0), policy={"name": "noise"}
    )
    write_minari(rows, "pendulum/noise-v0", about, data_format=data_format)
    found = minari.load_dataset("pendulum/noise-v0")
    assert list(minari.list_local_datasets()) == ["pendulum/noise-v0"]
    assert (found.total_steps, found.total_episodes) == (len(rows), 4)
    assert found.env_spec.id == "Pendulum-v1"
    assert found.env_spec.max_episode_steps == 25
    first = found[0]
    assert np.allclose(first.actions, 2 * rows.action[:25].numpy())
    assert np.array_equal(first.observations[:-1], rows.obs[:25].numpy())
    assert minari.get_normalized_score(found, np.array([-100.0])) == pytest.approx(0.5)
    assert about.score(torch.tensor([-100.0])).tolist() == [50.0]
    assert differences(open_dataset("pendulum/noise-v0").rows(), rows) == []  # by its id


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari wants an author
def test_what_minari_wrote_is_read_in_our_units(
    data_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    observations, actions = np.random.default_rng(0).normal(size=(4, 3)), np.array([[2.0], [-1.0], [3.0]])
    infos = {"power": [np.zeros(1)] * 4}
    buffer: Any = minari.data_collector.EpisodeBuffer(
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        rewards=[1.0, 2.0, 3.0],
        terminations=[False] * 3,
        truncations=[False, False, True],
        infos=infos,
    )
    minari.create_dataset_from_buffers(
        "foreign-v0", [buffer, buffer], env="Pendulum-v1", algorithm_name="human", data_format=data_format
    )
    found = open_dataset("foreign-v0")
    rows = found.rows()
    assert rows.action[:3, 0].tolist() == [1.0, -0.5, 1.0]  # torque 2 is the bound; beyond it the edge clips
    assert any("out of bounds" in note for note in found.notes)
    assert torch.equal(rows.next_obs[:2], rows.obs[1:3])
    assert torch.equal(rows.next_obs[2], torch.from_numpy(observations[-1]).float())  # not the next episode's first
    assert rows.episode.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.step.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.truncated.tolist() == [False, False, True] * 2
    assert found.about.policy == {"name": "human"}
    assert found.spec().id == "Pendulum-v1"


def test_a_lost_last_observation_is_noticed(tmp_path: Path) -> None:
    path = write_minari(play("Pendulum-v1"), "test/set-v0", root=tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        observations = file["episode_2/observations"][:-1]
        del file["episode_2/observations"]
        file["episode_2/observations"] = observations
    with pytest.raises(UserError, match=r"episode 2: observations.*25 entries.*needs 26.*is lost"):
        open_dataset(path).rows()


def test_episodes_that_change_places_in_the_file_are_noticed(tmp_path: Path) -> None:
    rows = play("Pendulum-v1")
    path = write_minari(rows, "test/set-v0", root=tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        for old, new in (("episode_0", "aside"), ("episode_1", "episode_0"), ("aside", "episode_1")):
            file.move(old, new)
    assert "episode" in differences(open_dataset(path).rows(), rows)


def test_actions_that_change_under_our_own_are_noticed(tmp_path: Path) -> None:
    rows, about = play("InvertedPendulum-v5"), About(env={"id": "InvertedPendulum-v5"})  # a third loses a bit
    for path, place, name in (
        (_hdf5(rows, tmp_path, about), "data/main_data.hdf5", "episode_0/actions"),
        (_d4rl(rows, tmp_path, about), "", "actions"),
    ):
        with h5py.File(path / place if place else path, "a") as file:
            file[name][3] = 0.0
        with pytest.raises(UserError, match="do not agree"):
            open_dataset(path).rows()
