"""Bad datasets through the command line: exit code 2, one message that names field, value and fix, and nothing written.

Every case spoils a good dataset of the pendulum in one way; the good ones train.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from envs.errors import UserError
from experiments.cli import main
from mbrl.data.d4rl import write_d4rl
from mbrl.data.minari import local_ids, write_minari
from mbrl.data.offline import About, open_dataset, save_folder
from mbrl.data.transitions import Transitions
from tests.experiments.offline_runs import ENV, RECIPE
from tests.mbrl.data.made import differences, play

COUNT = 100
"""Rows of the good datasets: four episodes of 25"""
PENDULUM = About(env=ENV, references=(-200.0, -100.0))
Case = tuple[Callable[[Path], Any], str]
"""What makes the dataset in an empty folder (its name there, or the whole ``--data``), and what the message says"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good dataset of every format."""
    folder = tmp_path_factory.mktemp("good")
    rows = play("Pendulum-v1", episodes=4, limit=25)
    save_folder([rows], COUNT, folder / "set", PENDULUM)
    write_d4rl(rows, folder / "set.hdf5", PENDULUM)
    write_minari(rows, "test/set-v0", PENDULUM, root=folder / "minari")
    write_minari(rows, "test/arrow-v0", PENDULUM, data_format="arrow", root=folder / "minari")
    cart = play("CartPole-v1", episodes=2, limit=20)
    write_minari(cart, "test/cart-v0", About(env={"id": "CartPole-v1"}), root=folder / "minari")
    return folder


@pytest.fixture
def data(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good datasets to spoil; the working directory is another one."""
    shutil.copytree(good, tmp_path / "data")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "toy.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data" / "minari"))
    return tmp_path / "data"


def train(where: Path | str, *more: str, recipe: str = "toy.yaml") -> list[str]:
    return ["train", recipe, f"--data={where}", "--quiet", "--steps=20", "--evaluation.episodes=1", *more]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must fail; it leaves nothing where it was called."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(command) == 2
    message = capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
    assert message.count("error:") == 1
    assert "Traceback" not in message
    return message


# -- D4RL-style files --------------------------------------------------------------------------------------------------


def file_with(**columns: Any) -> Callable[[Path], str]:
    """The good file with other columns: None leaves one out, a function changes it. Ours beside them go."""

    def make(data: Path) -> str:
        with h5py.File(data / "set.hdf5", "a") as file:
            if "mbrl_action" in file["infos"]:
                del file["infos/mbrl_action"]
            for name, value in columns.items():
                old = file[name][:] if name in file else None
                if name in file:
                    del file[name]
                if value is not None:
                    file[name] = value(old) if callable(value) else value
        return "set.hdf5"

    return make


def at(row: int, value: float, *entry: int) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The column with one value changed."""

    def change(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        changed = np.array(column, dtype=np.float64)
        changed[(row, *entry)] = value
        return changed

    return change


def cut(share: float) -> Callable[[Path], str]:
    def make(data: Path) -> str:
        whole = (data / "set.hdf5").read_bytes()
        (data / "set.hdf5").write_bytes(whole[: int(share * len(whole))])
        return "set.hdf5"

    return make


def other_keys(data: Path) -> str:
    with h5py.File(data / "keys.hdf5", "w") as file:
        file["obs"], file["acts"] = np.zeros((9, 3)), np.zeros((9, 1))
    return "keys.hdf5"


def packed(data: Path) -> str:
    (data / "set.hdf5.gz").write_bytes(gzip.compress((data / "set.hdf5").read_bytes()))
    return "set.hdf5.gz"


def written(name: str, content: bytes) -> Callable[[Path], str]:
    def make(data: Path) -> str:
        (data / name).write_bytes(content)
        return name

    return make


FILES: Mapping[str, Case] = {
    "NaN reward": (file_with(rewards=at(31, np.nan)), "row 31 (episode 1, step 6): reward: nan"),
    "infinite obs": (file_with(observations=at(40, np.inf, 2)), "row 40 (episode 1, step 15): obs[2]: inf"),
    "NaN at an end": (file_with(next_observations=at(99, np.nan, 1)), "row 99 (episode 3, step 24): next_obs[1]: nan"),
    "NaN action": (file_with(actions=at(3, np.nan, 0)), "row 3 (episode 0, step 3): action[0]: nan"),
    "rewards in pairs": (file_with(rewards=np.zeros((COUNT, 2))), "rewards: 'shape (100, 2)': one number a row"),
    "short rewards": (file_with(rewards=np.zeros(COUNT - 1)), "rewards: '99 rows'"),
    "a single reward": (file_with(rewards=np.float32(1.0)), "rewards: 'a single number'"),
    "a group": (file_with(rewards=None, **{"rewards/a": np.zeros(COUNT)}), "rewards: \"a group of ['a']\""),
    "words": (file_with(actions=np.array([b"left"] * COUNT)), "actions: "),
    "flat actions": (file_with(actions=np.zeros(COUNT)), "actions: 'float64 of shape (100,)'"),
    "flags in pairs": (file_with(terminals=np.zeros((COUNT, 2))), "terminals: 'shape (100, 2)'"),
    "half a flag": (file_with(terminals=at(7, 0.5)), "row 7: terminals: 0.5: a flag is 0 or 1"),
    "NaN flag": (file_with(timeouts=at(8, np.nan)), "row 8: timeouts: nan: a flag is 0 or 1"),
    "no ends": (file_with(timeouts=None, next_observations=None), "timeouts: 'missing'"),
    "one-row episodes": (file_with(next_observations=None, terminals=np.ones(COUNT)), "add the true next_observations"),
    "wrong keys": (other_keys, "a D4RL file has"),
    "cut early": (cut(0.3), "cut off"),
    "cut late": (cut(0.98), "cut off"),
    "empty": (written("empty.hdf5", b""), "not HDF5"),
    "packed": (packed, "unpack it first"),
    "pickle": (written("set.pkl", b"\x80\x04K\x01."), "a D4RL-style .hdf5 file"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_named_by_row_and_field(case: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = FILES[case]
    assert said in refused(train(data / make(data), "--env=Pendulum-v1"), capsys)


def test_actions_out_of_bounds(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In known units the environment's edge would have clipped them, and it is said; else nobody knows the units."""
    file_with(actions=at(7, 7.5, 0))(data)
    assert main(train(data / "set.hdf5")) == 0
    assert "out of bounds are clipped, as the environment's edge does; the first is in row 7: [7.5]" in (
        capsys.readouterr().err
    )
    rows = open_dataset(data / "set").rows()
    rows.action[7] = 3.75
    shutil.rmtree(data / "set")
    save_folder([rows], COUNT, data / "set", PENDULUM)
    assert "row 7 (episode 0, step 7): action[0]: 3.75" in refused(train(data / "set"), capsys)


def test_what_is_read_all_the_same(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards ``[N, 1]``, whole numbers for floats, episodes of one row, no timeouts; what was left out is said."""
    change = {"rewards": lambda column: column[:, None], "observations": lambda column: column.astype(np.int32)}
    file_with(**change, next_observations=lambda column: column.astype(np.int64), timeouts=None)(data)
    assert main(train(data / "set.hdf5")) == 0
    assert "no timeouts" in capsys.readouterr().err
    file_with(terminals=np.arange(COUNT) % 2, next_observations=None, timeouts=np.zeros(COUNT))(data)
    assert main(train(data / "set.hdf5")) == 0
    assert "50 of 100 rows are left out" in capsys.readouterr().err


# -- folders and runs --------------------------------------------------------------------------------------------------


def column(name: str, array: Any) -> Callable[[Path], str]:
    def make(data: Path) -> str:
        np.save(data / "set" / f"{name}.npy", array, allow_pickle=True)
        return "set"

    return make


def about(**values: Any) -> Callable[[Path], str]:
    def make(data: Path) -> str:
        path = data / "set" / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return "set"

    return make


def without_reward(data: Path) -> str:
    (data / "set" / "reward.npy").unlink()
    return "set"


def cut_column(data: Path) -> str:
    path = data / "set" / "obs.npy"
    path.write_bytes(path.read_bytes()[:300])
    return "set"


def other_folder(data: Path) -> str:
    (data / "notes").mkdir()
    (data / "notes" / "a.txt").write_text("")
    return "notes"


FOLDERS: Mapping[str, Case] = {
    "two rewards a row": (column("reward", np.zeros((COUNT, 1), np.float32)), "reward.npy has shape (100, 1)"),
    "flat obs": (column("obs", np.zeros(COUNT, np.float32)), "obs.npy has shape (100,)"),
    "whole numbers": (column("obs", np.zeros((COUNT, 3), np.int64)), "obs.npy holds int64"),
    "float flags": (column("terminated", np.zeros(COUNT, np.float32)), "terminated.npy holds float32"),
    "NaN episodes": (column("episode", np.full(COUNT, np.nan)), "episode.npy holds float64"),
    "words": (column("action", np.array([["left"]] * COUNT)), "action.npy holds <U4"),
    "objects": (column("action", np.array([[{}]] * COUNT, dtype=object)), "Python objects"),
    "no reward": (without_reward, "reward.npy"),
    "cut column": (cut_column, "mmap length"),
    "something else": (other_folder, "give one of these"),
    "package not installed": (
        about(env={"id": "plant/Boiler-v3"}),
        "env: 'plant/Boiler-v3': the dataset's environment",
    ),
    "code by name": (about(env={"id": "plant.boiler:Boiler"}), "nothing is imported that you did not name"),
    "no environment": (about(env=None), "give --env ID"),
    "a number for an environment": (about(env={"id": 3}), "env.id: 3"),
    "equal references": (about(references=[-5.0, -5.0]), "references: (-5.0, -5.0)"),
    "NaN reference": (about(references=[float("nan"), 0.0]), "references: (nan, 0.0)"),
    "one reference": (about(references=[1.0]), "its description is damaged"),
    "no JSON": (lambda data: [(data / "set" / "dataset.json").write_text("{"), "set"][1], "dataset.json"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folders_are_named_by_column(case: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = FOLDERS[case]
    message = refused(train(data / make(data)), capsys)
    assert said in message
    assert "set" in message or "notes" in message or "plant" in message


# -- Minari ------------------------------------------------------------------------------------------------------------


def metadata(**values: Any) -> Callable[[Path], str]:
    def make(data: Path) -> str:
        path = data / "minari" / "test" / "set-v0" / "data" / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return "test/set-v0"

    return make


def half_an_arrow(data: Path) -> str:
    part = data / "minari" / "test" / "arrow-v0" / "data" / "1" / "part-0.arrow"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    return "test/arrow-v0"


def missing_arrow(data: Path) -> str:
    shutil.rmtree(data / "minari" / "test" / "arrow-v0" / "data" / "2")
    return "test/arrow-v0"


def half_minari(data: Path) -> str:
    path = data / "minari" / "test" / "set-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "test/set-v0"


MINARI: Mapping[str, Case] = {
    "half a file": (half_minari, "test/set-v0, episode 0"),
    "half an episode": (half_an_arrow, "test/arrow-v0, episode 1"),
    "a missing episode": (missing_arrow, "test/arrow-v0, episode 2"),
    "more promised": (metadata(total_episodes=9), "test/set-v0, episode 4"),
    "more rows promised": (metadata(total_steps=101), "100 rows"),
    "unknown format": (metadata(data_format="zarr"), "data_format: 'zarr'"),
    "a space that is code": (metadata(action_space="__import__('os')"), "action_space"),
    "misspelt": (lambda data: "test/sett-v0", "Did you mean test/set-v0"),
}


@pytest.mark.parametrize("case", MINARI)
def test_bad_minari_sets_are_named_by_episode(case: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = MINARI[case]
    assert said in refused(train(make(data)), capsys)


def test_a_relative_root_is_a_root(data: Path) -> None:
    rows = open_dataset(data / "set").rows()
    for form in ("hdf5", "arrow"):
        path = write_minari(rows, f"here/{form}-v0", PENDULUM, data_format=form, root=Path("some/where"))
        assert path.is_absolute()
        assert differences(open_dataset(Path("some/where/here") / f"{form}-v0").rows(), rows) == []


# -- environments and places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--env=MountainCarContinuous-v0"], "those of MountainCarContinuous-v0 have 2 and 1 entries"),
        (["--env=Pendulum-v9"], "Did you mean Pendulum-v1"),
        (["--data=test/cart-v0"], "given twice"),
        (["--out=."], "--out: '.'"),
        (["--steps=-1"], "steps: -1"),
    ],
)
def test_what_cannot_be_together(more: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(train(data / "set", *more), capsys)


@pytest.mark.parametrize("name", ["set", "set.hdf5", "test/cart-v0"])
def test_data_of_another_environment_is_refused(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = "Pendulum-v1" if "cart" in name else "CartPole-v1"
    where = name if "cart" in name else data / name
    message = refused(train(where, f"--env={env}"), capsys)
    assert name in message


def test_another_environment_of_the_same_sizes_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about(env={"id": "PendulumOther-v0"})(data)
    assert main(train(data / "set", "--env=Pendulum-v1", "--env.max_episode_steps=20")) == 0
    assert "it is of PendulumOther-v0; it is taken as Pendulum-v1's" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "said"), [((), False), (("--env.params.gravity=15",), True)])
def test_other_physics_are_said(
    more: tuple[str, ...], said: bool, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(data / "set", "--env=Pendulum-v1", *more)) == 0
    assert ("this run of {'id': 'Pendulum-v1', 'params': {'gravity': 15" in capsys.readouterr().err) is said


def test_a_file_that_names_no_environment_is_fitted_where_the_user_does(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its actions are in torques of up to 2; the environment tells so."""
    file_with()(data)
    with h5py.File(data / "set.hdf5", "a") as file:
        del file["metadata"]
    command = ["fit", "mopo", "--data", str(data / "set.hdf5"), "--out=fit", "--agent.fitter.max_updates=2"]
    assert "name the environment" in refused(command, capsys)
    assert main([*command, "--env=Pendulum-v1"]) == 0


def test_a_home_directory_may_be_written_short(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data))
    assert main(train("~/set.hdf5", "--steps=0")) == 0


def test_a_guard_that_would_cut_the_data_leaves_no_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "guard: 0.1: the data has observations up to" in refused(
        train(data / "set", "--agent.guard=0.1", recipe="mopo"), capsys
    )


def test_what_a_killed_writer_left_is_no_dataset(data: Path) -> None:
    """A part of a process that is gone goes away with the next writer to that place; a living one's stays."""
    import os

    rows, root = open_dataset(data / "set").rows(), data / "minari" / "test"
    gone, alive = root / ".new-v0.999999999.part", root / f".new-v0.{os.getppid()}.part"
    for part in (gone, alive):
        shutil.copytree(root / "set-v0", part)
    assert local_ids() == ["test/arrow-v0", "test/cart-v0", "test/set-v0"]
    write_minari(rows, "test/new-v0", PENDULUM)
    assert (gone.exists(), alive.exists()) == (False, True)


# -- rows without an action --------------------------------------------------------------------------------------------

KNOWN = np.repeat(np.arange(4) < 2, 25)
"""The first two episodes have actions"""


def action_free(format: str, data: Path) -> Path:
    """The set with the actions of two episodes taken away, and a column that says so."""
    rows = open_dataset(data / "set").rows()
    rows.action[torch.from_numpy(~KNOWN)] = torch.nan
    rows = Transitions(**(vars(rows) | {"extra": {"has_action": torch.from_numpy(KNOWN).float()}}))
    if format == "folder":
        save_folder([rows], COUNT, data / "free", PENDULUM)
        return data / "free"
    if format == "minari":
        return write_minari(rows, "test/free-v0", PENDULUM)
    if format == "d4rl":
        return write_d4rl(rows, data / "free.hdf5", PENDULUM)
    gaps = lambda actions: np.where(KNOWN[:, None], actions, np.nan)  # noqa: E731
    return data / file_with(actions=gaps, has_action=KNOWN.astype(np.int8))(data)


FREE = ["--agent.inverse.steps=20", "--agent.inverse.hidden=8", "--agent.learner.hidden=8", "--agent.batch_size=16"]


@pytest.mark.parametrize("format", ["folder", "minari", "d4rl", "a foreign file"])
def test_rows_without_an_action_are_for_ss_orl(format: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = action_free(format, data)
    rows = open_dataset(where).rows()
    assert rows.extra["has_action"].tolist() == KNOWN.tolist()
    assert rows.action.isfinite()[:, 0].tolist() == KNOWN.tolist()
    for words in (train(where), ["fit", "mopo", "--data", str(where)]):
        message = refused(words, capsys)
        assert "has_action: '50 of 100 rows have none, the first is row 50'" in message
        assert "ss-orl" in message
    assert main(train(where, *FREE, "--agent.round_updates=10", "--out=run", recipe="ss-orl")) == 0


def test_an_action_that_is_missing_where_none_may_be(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: without the column, and with one that says otherwise."""
    gaps = {"actions": lambda actions: np.where(KNOWN[:, None], actions, np.nan)}
    for mask in ({}, {"has_action": np.arange(COUNT) != 60}):
        file_with(**(gaps | mask))(data)
        message = refused(train(data / "set.hdf5", *FREE, recipe="ss-orl"), capsys)
        assert "row 50 (episode 2, step 0): action[0]: nan" in message
        assert "set has_action to 0" in message
    file_with(actions=np.zeros((COUNT, 1)), has_action=np.full(COUNT, 0.5))(data)
    assert "has_action: 0.5" in refused(train(data / "set.hdf5", recipe="ss-orl"), capsys)
    file_with(has_action=np.arange(COUNT) < 20)(data)
    assert "two episodes" in refused(train(data / "set.hdf5", *FREE, recipe="ss-orl"), capsys)


def test_another_part_of_the_tree_that_learns_from_actions_refuses_them_too(data: Path) -> None:
    from agents.offline.base import OfflineAgent
    from agents.offline.cloning import Cloning
    from envs.registry import env_spec

    agent = OfflineAgent(env_spec("Pendulum-v1"), Cloning)
    with pytest.raises(UserError, match="OfflineAgent learns from every row's action"):
        agent.load(open_dataset(action_free("folder", data)).buffer())
