"""TensorBoard holds what the records hold, and pictures of it, whatever interrupted the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments.board as board
from experiments.board import Curves, TensorBoard, pixels
from experiments.cli import main
from experiments.metrics import read_records
from experiments.run import RunDirectory

RUN = ["train", "random", "--env=Pendulum-v1", "--env.max_episode_steps=10", "--steps=40", "--quiet"]
JUDGED = ["--evaluation.every=10", "--evaluation.episodes=1", "--checkpoint.every=20"]


def events(run: Path) -> Any:
    """Everything that was written, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def images(run: Path) -> dict[str, list[int]]:
    """Env steps of every picture, by name."""
    found = events(run)
    return {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]}


def records(steps: int, error: float | None = None) -> list[dict[str, Any]]:
    """One episode, one evaluation and, when there is an error to report, one fit."""
    fits = [{"event": "fit", "env_steps": steps, "error_at_1": error, "error_at_8": 2.0}] if error is not None else []
    return [
        {"event": "episode", "env_steps": steps, "return": -float(steps)},
        *fits,
        {"event": "evaluation", "env_steps": steps, "return_mean": float(steps)},
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_run_leaves_the_scalars_of_its_records_and_one_last_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, *JUDGED, "--out=run"]) == 0
    written = [record for record in read_records(Path("run/metrics.jsonl")) if record["event"] == "evaluation"]
    scalars = events(Path("run")).Scalars("evaluation/return_mean")
    assert [(event.step, event.value) for event in scalars] == [
        (record["env_steps"], pytest.approx(record["return_mean"], rel=1e-6)) for record in written
    ]
    assert images(Path("run")) == {"figures/learning_curve": [40]}


def test_a_picture_after_every_evaluation_when_time_allows_and_not_twice(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "DRAW_EVERY_SECONDS", 0.0)
    writer = TensorBoard(run, None)
    for steps in (10, 20):
        for record in records(steps, error=0.5):
            writer.write(record)
    writer.close()
    assert images(run.path) == {"figures/learning_curve": [10, 20], "figures/model_error": [10, 20]}


def test_a_model_error_is_drawn_only_of_agents_that_report_one(run: RunDirectory) -> None:
    writer = TensorBoard(run, None)
    for record in records(10):
        writer.write(record)
    writer.close()
    assert images(run.path) == {"figures/learning_curve": [10]}


def test_nothing_is_drawn_of_nothing(run: RunDirectory) -> None:
    writer = TensorBoard(run, None)
    writer.write({"event": "update", "env_steps": 3, "loss": 1.0})
    writer.close()
    assert images(run.path) == {}


@pytest.mark.parametrize("remembers", [True, False], ids=["resumed", "control: forgets its past"])
def test_resumed_pictures_are_those_of_an_uninterrupted_run(
    tmp_path: Path, remembers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at 30 with a checkpoint at 20: 30 is drawn once, and every picture shows the steps before 20 as well."""
    monkeypatch.setattr(board, "DRAW_EVERY_SECONDS", 0.0)
    whole, killed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")

    def play(run: RunDirectory, steps: list[int], resumed_at: int | None = None) -> None:
        past = [record for at in (10, 20) for record in records(at)] if resumed_at and remembers else []
        writer = TensorBoard(run, resumed_at, past)
        for record in [record for at in steps for record in records(at)]:
            writer.write(record)
        writer.close()

    play(whole, [10, 20, 30])
    play(killed, [10, 20, 30])
    play(killed, [30], resumed_at=20)
    assert images(killed.path) == images(whole.path)
    one, other = (events(run.path).Images("figures/learning_curve")[-1] for run in (whole, killed))
    assert (one.encoded_image_string == other.encoded_image_string) is remembers


def test_a_run_resumed_by_command_shows_its_whole_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.loops.online import OnlineLoop

    monkeypatch.chdir(tmp_path)
    assert main([*RUN, *JUDGED, "--out=whole"]) == 0
    advance = OnlineLoop.advance

    def dying(loop: OnlineLoop) -> None:
        if loop.clock.env_steps >= 35:
            raise KeyboardInterrupt
        advance(loop)

    monkeypatch.setattr(OnlineLoop, "advance", dying)
    assert main([*RUN, *JUDGED, "--out=killed"]) == 130
    assert images(Path("killed")) == {"figures/learning_curve": [30]}  # the last thing there was to show
    monkeypatch.setattr(OnlineLoop, "advance", advance)
    assert main(["resume", "killed", "--quiet"]) == 0
    assert images(Path("killed")) == images(Path("whole")) == {"figures/learning_curve": [40]}
    last = [events(Path(run)).Images("figures/learning_curve")[-1].encoded_image_string for run in ("whole", "killed")]
    assert last[0] == last[1]


def test_curves_take_what_is_finite_and_thin_what_is_long() -> None:
    curves = Curves()
    assert curves.add({"event": "episode", "env_steps": 1, "return": None}) is False
    assert curves.add({"event": "fit", "env_steps": 1, "error_at_1": None}) is False
    for step in range(5001):
        assert curves.add({"event": "episode", "env_steps": step, "return": 0.0}) is True
    ((name, figure),) = curves.figures()
    (line,) = figure.axes[0].lines
    assert name == "learning_curve"
    assert len(line.get_xdata()) <= board.MOST_POINTS
    assert line.get_xdata()[-1] == 5000
    frame = pixels(figure)
    assert (frame.ndim, frame.shape[-1], frame.dtype) == (3, 3, np.uint8)


def test_no_window_system_and_no_global_figures_are_touched() -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom experiments.board import Curves, pixels\ncurves = Curves()\n"
        "curves.add({'event': 'evaluation', 'env_steps': 1, 'return_mean': 2.0})\n"
        "[pixels(figure) for _, figure in curves.figures()]\nsys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
