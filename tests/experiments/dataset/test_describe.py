"""The page about a dataset: every defect is found, and none where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import UserError
from experiments.dataset import run_describe
from experiments.dataset.describe import numbers
from experiments.dataset.findings import findings
from experiments.dataset.measure import Description, describe, fingerprint
from experiments.diagnosis.dataset import read_dataset
from mbrl.data.minari import write_minari
from mbrl.data.offline import About, open_dataset, save_folder
from mbrl.data.transitions import Transitions
from tests.mbrl.data.made import differences, play

NAMES = ["cos", "sin", "velocity"]
PENDULUM = About(env={"id": "Pendulum-v1", "max_episode_steps": 25}, references=(-200.0, 0.0))


@pytest.fixture(scope="module")
def rows() -> Transitions:
    return play("Pendulum-v1")


def described(rows: Transitions, path: Path, about: About = PENDULUM) -> Description:
    save_folder([rows], len(rows), path / "set", about)
    return describe(open_dataset(path / "set"))


def said(found: Description, kind: str) -> list[str]:
    return [finding.sentence for finding in findings(found) if finding.kind == kind]


def test_good_data_has_no_failure_and_no_warning(rows: Transitions, tmp_path: Path) -> None:
    found = described(rows, tmp_path)
    assert said(found, "failure") + said(found, "warning") == []
    assert (found.count, len(found.episodes.returns), found.rows.pairs, found.rows.follow) == (100, 4, 96, 96)
    assert found.rows.ends_reset == 0
    assert found.episodes.truncated.all()
    assert found.names == NAMES


def test_numbers_are_those_of_the_rows(rows: Transitions, tmp_path: Path) -> None:
    found = described(rows, tmp_path)
    obs = rows.obs.double()
    assert np.allclose(found.obs.mean, obs.mean(0))
    assert np.allclose(found.obs.std, obs.std(0, correction=0))
    assert np.allclose(found.obs.low, obs.min(0).values)
    assert np.allclose(found.action.high, rows.action.max(0).values)
    assert np.allclose(found.episodes.returns, rows.reward.double().reshape(4, 25).sum(1))
    assert found.saturated[0] == pytest.approx((rows.action.abs() >= 0.99).double().mean())


def test_the_size_of_batches_does_not_matter(
    rows: Transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers(described(rows, tmp_path / "a"))
    dataset = open_dataset(tmp_path / "a" / "set")
    stream = dataset.stream
    monkeypatch.setattr(dataset, "stream", lambda batch=7, check=True: stream(batch, check))
    parts = numbers(describe(dataset))
    assert json.dumps(parts["rows"]) == json.dumps(whole["rows"])
    assert all(parts["obs"][name]["std"] == pytest.approx(whole["obs"][name]["std"]) for name in NAMES)
    assert parts["returns"] == whole["returns"]


Spoil = Callable[[Transitions], Transitions]


def _nan(rows: Transitions) -> Transitions:
    rows.obs[3, 1] = torch.nan
    return rows


def _reset_as_successor(rows: Transitions) -> Transitions:
    """What reading ``next_obs = obs[t + 1]`` over a whole file gives."""
    rows.next_obs = torch.cat([rows.obs[1:], rows.next_obs[-1:]])
    return rows


def _shuffled_successors(rows: Transitions) -> Transitions:
    rows.next_obs = rows.next_obs[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows


def _twice(rows: Transitions) -> Transitions:
    again = rows[:25].clone()
    again.episode += 10
    return Transitions.cat([rows, again])


def _gap(rows: Transitions) -> Transitions:
    return rows[torch.arange(len(rows)) != 10]


def _end_inside(rows: Transitions) -> Transitions:
    rows.terminated[10] = True
    return rows


def _same_step(rows: Transitions) -> Transitions:
    rows.step[11] = 10
    return rows


def _at_bounds(rows: Transitions) -> Transitions:
    rows.action = rows.action.sign()
    return rows


def _same_reward(rows: Transitions) -> Transitions:
    rows.reward = torch.ones_like(rows.reward)
    return rows


@pytest.mark.parametrize(
    ("spoil", "kind", "sentence"),
    [
        (_nan, "failure", "1 rows have NaN or infinity in obs"),
        (_reset_as_successor, "failure", "3 of 3 episode ends"),
        (_shuffled_successors, "failure", "not the next row's"),
        (_twice, "warning", "25 rows (20 %) repeat"),
        (_gap, "warning", "missing at 1 places"),
        (_end_inside, "failure", "1 rows are flagged as an end"),
        (_same_step, "failure", "1 rows have the episode and step of another"),
        (_at_bounds, "warning", "100 % of the actions"),
        (_same_reward, "warning", "The reward is always 1"),
    ],
)
def test_every_defect_is_found(rows: Transitions, tmp_path: Path, spoil: Spoil, kind: str, sentence: str) -> None:
    found = described(spoil(rows.clone()), tmp_path)
    assert any(sentence in text for text in said(found, kind))
    json.dumps(numbers(found), allow_nan=False)


def test_an_environment_that_is_not_here_is_said(rows: Transitions, tmp_path: Path) -> None:
    found = described(rows, tmp_path, About(env={"id": "NoSuch-v3"}))
    assert found.names == ["obs[0]", "obs[1]", "obs[2]"]
    assert any("NoSuch-v3" in text for text in said(found, "warning"))


def test_fingerprints_tell_rows_apart() -> None:
    values = np.random.default_rng(0).integers(0, 3, (2000, 6)).astype(np.float32)
    distinct = len(np.unique(values, axis=0))
    assert len(np.unique(fingerprint(values))) == distinct < 2000
    assert fingerprint(np.array([[0.0, 1.0]], np.float32)) == fingerprint(np.array([[-0.0, 1.0]], np.float32))
    assert fingerprint(np.array([[0.0, 1.0]], np.float32)) != fingerprint(np.array([[1.0, 0.0]], np.float32))


@pytest.mark.parametrize("id", ["Hopper-v5", "CartPole-v1"])
def test_the_page_is_written_with_its_numbers(id: str, tmp_path: Path) -> None:
    rows = play(id)
    path = write_minari(rows, "test/set-v0", About(env={"id": id}, references=(0.0, 100.0)), root=tmp_path)
    page = run_describe(str(path), tmp_path / "page")
    text = page.read_text()
    assert "What is in this dataset?" in text
    record = json.loads((page.parent / "description.json").read_text())
    assert record["rows"]["count"] == len(rows)
    assert record["returns"]["mean"] == pytest.approx(float(rows.reward.sum()) / 4)
    assert f"{len(rows)} transitions in 4 episodes of {id}" in (page.parent / "summary.txt").read_text()
    assert (page.parent / "returns.svg").is_file()
    run_describe(str(path), tmp_path / "page")  # again, over it


def test_bad_data_leaves_no_page(tmp_path: Path) -> None:
    (tmp_path / "set.hdf5").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not HDF5"):
        run_describe(str(tmp_path / "set.hdf5"), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_what_fits_models_reads_the_same_files(rows: Transitions, tmp_path: Path) -> None:
    """`mbrl fit --data` and `mbrl diagnose --data` go through the same door."""
    path = write_minari(rows, "test/set-v0", PENDULUM, root=tmp_path)
    found = read_dataset(path)
    assert differences(found.buffer.all(), rows) == []
    assert found.env == PENDULUM.env
    save_folder([rows], len(rows), tmp_path / "map", PENDULUM)
    assert read_dataset(tmp_path / "map").env == PENDULUM.env
