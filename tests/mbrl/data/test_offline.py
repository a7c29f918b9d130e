"""The front door: what it tells apart, streams, maps and refuses, and that nothing is written by halves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs.errors import UserError
from mbrl.data import minari
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.d4rl import write_d4rl
from mbrl.data.minari import write_minari
from mbrl.data.offline import About, open_dataset, require_one_env, save_folder
from mbrl.data.transitions import Transitions
from tests.mbrl.data.made import differences, odd_rows, play

PENDULUM = About(env={"id": "Pendulum-v1"})


@pytest.fixture(scope="module")
def rows() -> Transitions:
    return play("Pendulum-v1")


def every_kind(rows: Transitions, root: Path, about: About | None = PENDULUM) -> dict[str, Path]:
    save_folder([rows], len(rows), root / "folder", about)
    return {
        "hdf5": write_minari(rows, "test/hdf5-v0", about, root=root),
        "arrow": write_minari(rows, "test/arrow-v0", about, data_format="arrow", root=root),
        "d4rl": write_d4rl(rows, root / "set.hdf5", about),
        "folder": root / "folder",
    }


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_found_out(rows: Transitions, tmp_path: Path) -> None:
    kinds = {name: open_dataset(path).kind for name, path in every_kind(rows, tmp_path).items()}
    assert kinds == {"hdf5": "Minari hdf5", "arrow": "Minari arrow", "d4rl": "D4RL HDF5", "folder": "replay buffer"}
    assert open_dataset(tmp_path / "test/hdf5-v0/data").kind == "Minari hdf5"
    buffer = ReplayBuffer(len(rows))
    buffer.extend(rows)
    buffer.save(tmp_path / "saved")
    assert differences(open_dataset(tmp_path / "saved").rows(), rows) == []


def test_nothing_like_that(rows: Transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    every_kind(rows, tmp_path)
    for wrong, near in (
        ("test/hdf-v0", "test/hdf5-v0"),
        (tmp_path / "sett.hdf5", "set.hdf5"),
        (tmp_path / "foldr", ""),
    ):
        with pytest.raises(UserError, match=f"a Minari folder or id.*Did you mean .*{near}"):
            open_dataset(wrong)


@pytest.mark.parametrize("batch", [1, 7, 25, 1000])
def test_streaming_gives_the_rows_in_batches(rows: Transitions, tmp_path: Path, batch: int) -> None:
    for path in every_kind(rows, tmp_path).values():
        batches = list(open_dataset(path).stream(batch))
        assert [len(part) for part in batches[:-1]] == [batch] * (len(batches) - 1)
        assert differences(Transitions.cat(batches), rows) == []


def test_streaming_reads_no_more_than_it_must(rows: Transitions, tmp_path: Path) -> None:
    found = open_dataset(write_minari(rows, "test/set-v0", root=tmp_path))
    taken = 0
    whole = found.pieces

    def counted() -> Iterator[Transitions]:
        nonlocal taken
        for piece in whole():
            taken += 1
            yield piece

    found.pieces = counted  # type: ignore[method-assign]
    next(found.stream(30))
    assert taken == 2  # episodes of 25 rows; there are 4


def test_a_mapped_set_samples_like_the_one_in_memory(rows: Transitions, tmp_path: Path) -> None:
    found = open_dataset(write_minari(rows, "test/set-v0", PENDULUM, root=tmp_path))
    mapped, whole = found.mapped(tmp_path / "map"), found.buffer()
    assert differences(mapped.all(), rows) == []
    one, other = (b.windows(50, 5, torch.Generator().manual_seed(1)) for b in (mapped, whole))
    assert differences(one, other) == []
    assert bool((one.episode == one.episode[:, :1]).all())
    assert open_dataset(tmp_path / "map").about == PENDULUM
    written = (tmp_path / "map" / "obs.npy").stat().st_mtime_ns
    found.mapped(tmp_path / "map")
    assert (tmp_path / "map" / "obs.npy").stat().st_mtime_ns == written
    fewer = open_dataset(write_minari(rows[:30], "test/fewer-v0", root=tmp_path))
    with pytest.raises(UserError, match="name another folder"):
        fewer.mapped(tmp_path / "map")


# -- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "theirs"), [("obs", "observations"), ("reward", "rewards")])
def test_nan_is_refused_with_row_and_field(rows: Transitions, tmp_path: Path, field: str, theirs: str) -> None:
    paths = every_kind(rows, tmp_path)
    place = (27, 1) if field == "obs" else 27
    inside = (2, 1) if field == "obs" else 2
    with h5py.File(paths["d4rl"], "a") as file:
        file[theirs][place] = np.nan
    with h5py.File(paths["hdf5"] / "data/main_data.hdf5", "a") as file:
        file[f"episode_1/{theirs}"][inside] = np.nan
    array = np.load(paths["folder"] / f"{field}.npy", mmap_mode="r+")
    array[place] = np.nan
    array.flush()
    name = "next_obs|obs" if field == "obs" else field
    for kind in ("d4rl", "hdf5", "folder"):
        with pytest.raises(UserError, match=rf"row 2[67] \(episode 1, step [12]\): ({name})(\[1\])?: nan"):
            open_dataset(paths[kind]).validate()
        assert sum(len(part) for part in open_dataset(paths[kind]).stream(check=False)) == len(rows)
    open_dataset(paths["arrow"]).validate()  # the control


def test_files_that_are_cut_off_are_refused(rows: Transitions, tmp_path: Path) -> None:
    paths = every_kind(rows, tmp_path)
    files = {"hdf5": "data/main_data.hdf5", "arrow": "data/2/part-0.arrow", "folder": "obs.npy"}
    for kind, path in paths.items():
        open_dataset(path).validate()
        file = path / files[kind] if kind in files else path
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=str(path)):
            open_dataset(path).validate()


def test_missing_episodes_are_noticed(rows: Transitions, tmp_path: Path) -> None:
    path = write_minari(rows, "test/set-v0", root=tmp_path)
    metadata = path / "data" / "metadata.json"
    about = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(about | {"total_episodes": 3}))
    with pytest.raises(UserError, match=r"75 rows.*it promises 100"):
        open_dataset(path).rows()
    metadata.write_text(json.dumps(about | {"total_episodes": 5}))
    with pytest.raises(UserError, match="episode 4"):
        open_dataset(path).rows()
    metadata.write_text(json.dumps(about | {"total_steps": None}))
    with pytest.raises(UserError, match="total_steps"):
        open_dataset(path)


def test_data_of_another_environment_is_refused(rows: Transitions, tmp_path: Path) -> None:
    for kind, path in every_kind(rows, tmp_path, None).items():
        with pytest.raises(UserError, match="does not say its environment"):
            open_dataset(path).spec()
        with pytest.raises(UserError, match=r"Hopper-v5|shape"):
            open_dataset(path, "Hopper-v5").validate()
        if kind == "folder":
            assert open_dataset(path, "Pendulum-v1").spec().id == "Pendulum-v1"
    with pytest.raises(UserError, match="Hopper-v5 have 11 and 3"):
        write_minari(rows, "test/wrong-v0", About(env={"id": "Hopper-v5"}), root=tmp_path)
    bounds = open_dataset(write_minari(rows, "test/right-v0", PENDULUM, root=tmp_path), "mbrl/CartPoleSwingUp-v0")
    with pytest.raises(UserError, match="another environment's"):
        bounds.spec()


def test_datasets_of_different_environments_are_not_mixed(rows: Transitions, tmp_path: Path) -> None:
    heavy = About(env={"id": "Pendulum-v1", "params": {"gravity": 15.0}})
    abouts = {"one": PENDULUM, "same": About(env={"id": "Pendulum-v1", "params": {}}), "heavy": heavy}
    found = {name: open_dataset(write_minari(rows, f"test/{name}-v0", a, root=tmp_path)) for name, a in abouts.items()}
    require_one_env([found["one"], found["same"]])
    with pytest.raises(UserError, match=r"heavy-v0.*not mixed"):
        require_one_env([found["one"], found["heavy"]])


def test_a_file_chooses_no_code(rows: Transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chosen_by_file.py").write_text(
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv as Env"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write_minari(rows, "test/set-v0", PENDULUM, root=tmp_path)
    metadata = path / "data" / "metadata.json"
    about = json.loads(metadata.read_text())
    evil = "chosen_by_file:Env"
    about["mbrl"]["about"]["env"] = {"id": evil}
    about["env_spec"] = json.dumps(json.loads(about["env_spec"]) | {"id": "chosen_by_file:Env-v0", "entry_point": evil})
    metadata.write_text(json.dumps(about))
    found = open_dataset(path)
    assert differences(found.rows(), rows) == []
    with pytest.raises(UserError, match=f"{evil}.*not installed or not registered"):
        found.validate()
    with pytest.raises(UserError, match=r"not installed or not registered"):
        write_minari(rows, "test/copy-v0", found.about, root=tmp_path)
    with pytest.raises(UserError, match=r"not installed or not registered"):
        write_d4rl(rows, tmp_path / "copy.hdf5", found.about)
    assert "chosen_by_file" not in sys.modules
    assert open_dataset(path, evil).spec().obs_size == 3  # the user named it
    assert "chosen_by_file" in sys.modules
    copy = write_minari(rows, "test/copy-v0", found.about, root=tmp_path, named=True)
    assert differences(open_dataset(copy).rows(), rows) == []


def test_an_environment_that_is_not_installed_is_named(rows: Transitions, tmp_path: Path) -> None:
    path = write_minari(rows, "test/set-v0", PENDULUM, root=tmp_path)
    metadata = path / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace("Pendulum-v1", "Pendulun-v1"))
    assert len(open_dataset(path).rows()) == 100
    with pytest.raises(UserError, match=r"'Pendulun-v1': .*not installed.*Did you mean Pendulum-v1"):
        open_dataset(path).validate()


# -- nothing is written by halves -------------------------------------------------------------------------------------

Writer = Callable[[Transitions, Path], object]
WRITERS: dict[str, Writer] = {
    "hdf5": lambda rows, root: write_minari(rows, "set-v0", root=root),
    "arrow": lambda rows, root: write_minari(rows, "set-v0", data_format="arrow", root=root),
    "d4rl": lambda rows, root: write_d4rl(rows, root / "set.hdf5"),
    "folder": lambda rows, root: save_folder([rows], len(rows), root / "set"),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_what_is_there_stays(rows: Transitions, tmp_path: Path, name: str) -> None:
    WRITERS[name](rows, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="there already"):
        WRITERS[name](rows[:10], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["hdf5", "arrow", "d4rl"])
def test_bad_rows_leave_nothing(rows: Transitions, tmp_path: Path, name: str) -> None:
    bad = rows.clone()
    bad.next_obs[40, 2] = torch.inf
    with pytest.raises(UserError, match=r"row 40 \(episode 1, step 15\): next_obs\[2\]: inf"):
        WRITERS[name](bad, tmp_path)
    bad = rows.clone()
    bad.action[3] = 1.5
    with pytest.raises(UserError, match=r"row 3 .*action"):
        WRITERS[name](bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(rows: Transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = minari._buffers

    def full(*arguments: object) -> Iterator[object]:
        yield next(buffers(*arguments))  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minari, "_buffers", full)
    for name in ("hdf5", "arrow"):
        with pytest.raises(UserError, match="No space left"):
            WRITERS[name](rows, tmp_path)
    with pytest.raises(UserError, match="100 rows were to come"):
        save_folder([rows[:50]], 100, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("id", ["set", "x/set-v0", "../set-v0", "a b-v0"])
def test_malformed_ids_are_refused(rows: Transitions, tmp_path: Path, id: str) -> None:
    with pytest.raises(UserError, match="a Minari dataset is called"):
        write_minari(rows, id, root=tmp_path)


def test_columns_of_odd_rows_survive_mapping(tmp_path: Path) -> None:
    rows = odd_rows()
    found = open_dataset(write_minari(rows, "test/odd-v0", root=tmp_path))
    assert differences(found.mapped(tmp_path / "map").all(), found.rows()) == []
