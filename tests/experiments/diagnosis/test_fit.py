"""``mbrl fit``: what it writes, what it holds out, what it refuses, and that it repeats itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.errors import UserError
from experiments.config import resolve
from experiments.diagnosis.dataset import read_dataset, split_episodes
from experiments.diagnosis.fit import load_weights, run_fit
from experiments.segments import BufferStore
from mbrl.data.buffer import ReplayBuffer
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.experiments.diagnosis.conftest import SMALL


def record(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path / "fit.json").read_text())
    return loaded


def weights(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path / "model.pt", weights_only=True)["model"]
    return loaded


def test_the_folder_holds_everything(fit: Path, run: Path) -> None:
    assert {p.name for p in fit.iterdir()} == {"model.pt", "config.yaml", "fit.json", "summary.txt", "versions.json"}
    about = record(fit)
    assert about["data"]["rows"] == 370
    assert about["fit"]["gradient_steps"] == 40
    assert {"error_at_1", "coverage_90", "nll"} <= set(about["heldout"])
    assert weights(fit)["weights.0"].shape[0] == 2
    config = resolve(str(fit / "config.yaml")).config
    assert (config.env.id, config.env.max_episode_steps) == ("Pendulum-v1", 30)  # the data's, not the recipe's
    assert "held out" in (fit / "summary.txt").read_text()


def test_whole_episodes_are_held_out(fit: Path) -> None:
    about = record(fit)
    train, held = set(about["split"]["train"]), set(about["split"]["heldout"])
    assert not train & held
    assert len(train | held) == 13
    assert len(held) == round(0.2 * 13)
    rows = read_dataset(Path(about["data"]["path"])).buffer.all()
    assert about["fit"]["rows"] == int(sum((rows.episode == episode).sum() for episode in train))


def test_a_seed_decides_everything(fit: Path, run: Path, tmp_path: Path) -> None:
    again = run_fit("pets", run, str(tmp_path / "again"), SMALL, [])
    other = run_fit("pets", run, str(tmp_path / "other"), SMALL, [], seed=1)
    for name, value in weights(fit).items():
        assert torch.equal(value, weights(again)[name])
    assert record(again) | {"summary": ""} == record(fit) | {"summary": ""}
    assert not torch.equal(weights(fit)["weights.0"], weights(other)["weights.0"])
    assert record(other)["split"]["heldout"] != record(fit)["split"]["heldout"]


def test_training_helps(fit: Path, run: Path, tmp_path: Path) -> None:
    longer = [*SMALL, ("agent.fitter.first_updates", 400)]
    trained = run_fit("pets", run, str(tmp_path / "long"), longer, [])
    assert record(trained)["heldout"]["error_at_1"] < 0.8 * record(fit)["heldout"]["error_at_1"]


def test_a_saved_buffer_is_data_where_the_environment_is_named(fit: Path, run: Path, tmp_path: Path) -> None:
    read_dataset(run).buffer.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"env\.id"):
        run_fit("pets", tmp_path / "saved", str(tmp_path / "out"), SMALL, [])
    named = [*SMALL, ("env.id", "Pendulum-v1"), ("env.max_episode_steps", 30)]
    same = run_fit("pets", tmp_path / "saved", str(tmp_path / "out"), named, [])
    assert torch.equal(weights(same)["weights.0"], weights(fit)["weights.0"])


def test_a_run_is_a_recipe(run: Path, tmp_path: Path) -> None:
    path = run_fit(str(run), run, str(tmp_path / "out"), [("agent.fitter.first_updates", 5)], [])
    assert record(path)["fit"]["gradient_steps"] == 5
    assert weights(path)["weights.0"].shape[-1] == 8


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"recipe": "petz"}, "RECIPE"),
        ({"recipe": "random", "overrides": []}, "no dynamics model"),
        ({"recipe": "oracle-mpc", "overrides": []}, "not learned"),
        ({"overrides": [("agent.model.hiden", 3)]}, "hiden"),
        ({"overrides": [("env.id", "InvertedPendulum-v5")]}, "observations and actions"),
        ({"data": Path("nowhere")}, "--data"),
        ({"heldout": 1.0}, "--heldout"),
        ({"heldout": "much"}, "--heldout"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    run: Path, tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    given: dict[str, Any] = {"recipe": "pets", "data": run, "out": str(tmp_path / "out"), "overrides": SMALL}
    with pytest.raises(UserError, match=names):
        run_fit(**{**given, "trust": [], **change})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_left_alone(fit: Path, run: Path) -> None:
    before = (fit / "model.pt").read_bytes()
    with pytest.raises(UserError, match="--out"):
        run_fit("pets", run, str(fit), SMALL, [])
    assert (fit / "model.pt").read_bytes() == before


def test_rows_that_are_not_finite_are_named(run: Path, tmp_path: Path) -> None:
    read_dataset(run).buffer.save(tmp_path / "saved")
    obs = np.load(tmp_path / "saved" / "obs.npy")
    obs[17, 1] = np.nan
    np.save(tmp_path / "saved" / "obs.npy", obs)
    with pytest.raises(UserError, match="row 17"):
        read_dataset(tmp_path / "saved")


def test_one_episode_cannot_be_parted() -> None:
    with pytest.raises(UserError, match="one episode"):
        split_episodes(torch.zeros(50, dtype=torch.int64), 0.2, 0)
    for share in (0.01, 0.99):
        split = split_episodes(torch.arange(4).repeat(5), share, 0)
        assert min(len(split.train), len(split.heldout)) == 1


def test_code_that_a_data_sets_configuration_names_is_not_run(run: Path, tmp_path: Path) -> None:
    evil = tmp_path / "run"
    shutil.copytree(run, evil)
    config = (evil / "config.yaml").read_text()
    (evil / "config.yaml").write_text(config.replace("id: Pendulum-v1", "id: evil_env:Evil"))
    (tmp_path / "evil_env.py").write_text("raise SystemExit('ran')\n")
    sys.path.append(str(tmp_path))
    try:
        with pytest.raises(UserError, match="--trust evil_env"):
            run_fit("pets", evil, str(tmp_path / "out"), SMALL, [])
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "out").exists()
    assert len(read_dataset(evil).buffer) == 370  # as data alone it can be read


def test_weights_of_another_kind_are_refused(fit: Path, tmp_path: Path) -> None:
    from envs.registry import env_spec

    model = ProbabilisticEnsemble(env_spec("Pendulum-v1"), members=3, hidden=8)
    with pytest.raises(UserError, match=r"model\.pt"):
        load_weights(fit, model)
    shutil.copytree(fit, tmp_path / "cut")
    (tmp_path / "cut" / "model.pt").write_bytes((fit / "model.pt").read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path / "cut", ProbabilisticEnsemble(env_spec("Pendulum-v1"), members=2, hidden=8))


def test_rows_that_a_ring_let_go_are_still_data(run: Path, tmp_path: Path) -> None:
    """Segments below the oldest live row are gone from the disk; what is left is read by its ids."""
    whole = read_dataset(run).buffer
    store = BufferStore(tmp_path / "run" / "checkpoints" / "buffers" / "real", segment_rows=100)
    store.append(whole)
    store.prune(250)
    shutil.copy(run / "config.yaml", tmp_path / "run")
    for path in (run / "checkpoints").glob("*.pt"):
        shutil.copy(path, tmp_path / "run" / "checkpoints")
    left = read_dataset(tmp_path / "run").buffer
    assert left.ids.tolist() == list(range(200, 370))
    assert torch.equal(left.all().obs, whole.all().obs[200:])
    assert len(read_dataset(tmp_path / "run", most=300).buffer) == 100
    with pytest.raises(UserError, match="gone"):
        read_dataset(tmp_path / "run", most=150)


def test_an_empty_buffer_is_no_data(tmp_path: Path) -> None:
    ReplayBuffer(5).save(tmp_path / "empty")
    with pytest.raises(UserError, match="no rows"):
        read_dataset(tmp_path / "empty")
