"""Films of a run's agent: the right frames in the right file, or one line that says why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from envs.errors import UserError
from experiments.cli import main
from experiments.film import GIF_SIDE, Film, film, write_on
from experiments.run import RunDirectory
from experiments.session import Session, reopen
from experiments.video import record, run_record

DRAWN = '''
import gymnasium as gym
import numpy as np


class Walk(gym.Env):
    """A square that the action pushes along a line; drawn without any graphics library."""

    metadata = {"render_modes": ["rgb_array"]}
    max_episode_steps = 6
    dt = 0.1
    size = 40, 60
    observation_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None, height=40):
        self.render_mode, self.height = render_mode, height

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.drawn = self.np_random.uniform(0, 5, 1), 0
        return self.x, {}

    def step(self, action):
        self.x = self.x + 1.0 + np.asarray(action)
        return self.x, 1.0, False, False, {}

    def render(self):
        frame = np.zeros((self.height, 60, 3), np.uint8)
        self.drawn += 1
        frame[:, 5 * self.drawn : 5 * self.drawn + 5] = (250, 40, int(10 * self.x[0]))
        return frame


class Breaks(Walk):
    def render(self):
        if self.drawn == 2:
            raise OSError("no display")
        return super().render()


class Grey(Walk):
    def render(self):
        return super().render()[..., 0]
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "drawn_env.py").write_text(DRAWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "drawn_env", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(request: pytest.FixtureRequest, place: Path) -> Iterator[tuple[Session, RunDirectory]]:
    """A run of the random agent in one of the environments above, opened again."""
    name = getattr(request, "param", "Walk")
    less = ["--evaluation.episodes=1", "--steps=3", "--quiet"]
    assert main(["train", "random", "--env", f"drawn_env:{name}", "--out=run", *less]) == 0
    run = RunDirectory.open(Path("run"))
    session = reopen(run, ["drawn_env"])
    yield session, run
    session.close()


def frames_of(path: Path) -> list[Any]:
    if path.suffix == ".mp4":
        return imageio.mimread(path)
    picture = Image.open(path)
    found = []
    for place in range(picture.n_frames):
        picture.seek(place)
        found.append(np.asarray(picture.convert("RGB")))
    return found


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_a_frame_of_the_start_and_one_after_every_step(opened: tuple[Session, RunDirectory], format: str) -> None:
    path, problem = run_record(*opened, format=format)
    assert (path, problem) == (Path(f"run/videos/step-000000000003.{format}"), "")
    frames = frames_of(path)
    assert len(frames) == 7
    for number, frame in enumerate(frames, start=1):  # where the square is drawn
        assert abs(int(frame[20, :, 0].astype(float).argmax()) - 5 * number - 2) <= 3
    assert len(list(Path("run/videos").iterdir())) == 1


def test_episodes_follow_one_another_from_starts_of_their_own(opened: tuple[Session, RunDirectory]) -> None:
    path, _ = run_record(*opened, episodes=3, out=Path("elsewhere/three.gif"))
    assert path == Path("elsewhere/three.gif")
    frames = frames_of(path)
    assert len(frames) == 21
    starts = [int(frames[place][20, 6, 2]) for place in (0, 7, 14)]
    assert len(set(starts)) == 3
    again, _ = run_record(*opened, seed=opened[0].config.evaluation.seed + 1, out=Path("second.gif"))
    assert again is not None
    assert int(frames_of(again)[0][20, 6, 2]) == starts[1]


def test_the_same_film_twice_and_no_trace_in_the_random_states(opened: tuple[Session, RunDirectory]) -> None:
    before = torch.get_rng_state()
    first, _ = run_record(*opened, out=Path("a.gif"))
    second, _ = run_record(*opened, out=Path("b.gif"))
    other, _ = run_record(*opened, out=Path("c.gif"), seed=5)
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert torch.equal(before, torch.get_rng_state())


def test_best_weights_are_those_that_are_filmed(
    opened: tuple[Session, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(type(opened[0].agent), "load_state_dict", lambda agent, state: seen.append(state))
    path, _ = run_record(*opened, best=True, format="gif")
    assert path == Path("run/videos/step-000000000003-best.gif")
    assert len(seen) == 1
    (opened[1].checkpoints / "best.pt").unlink()
    with pytest.raises(UserError, match="leave --best out"):
        run_record(*opened, best=True)


def test_text_is_written_on_frames_only_when_asked(opened: tuple[Session, RunDirectory]) -> None:
    plain, _ = run_record(*opened, out=Path("plain.gif"))
    marked, _ = run_record(*opened, out=Path("marked.gif"), overlay=True)
    assert plain is not None
    assert marked is not None
    pairs = list(zip(frames_of(plain), frames_of(marked), strict=True))
    assert all((one[:20] != other[:20]).any() for one, other in pairs)
    assert all((one[30:] == other[30:]).all() for one, other in pairs)


def test_writing_on_a_frame_leaves_the_frame_alone() -> None:
    frame = np.full((30, 90, 3), 128, np.uint8)
    written = write_on(frame, "step 1")
    assert written.max() > 200 > 60 > written.min()
    assert (frame == 128).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"episodes": 0}, "--episodes: 0: give a whole number"),
        ({"episodes": 1.5}, "--episodes: 1.5"),
        ({"seed": -1}, "--seed: -1"),
        ({"format": "gift"}, "Did you mean gif"),
        ({"out": Path("film.avi")}, "must end in .mp4 or .gif"),
        ({"out": Path("film.gif"), "format": "mp4"}, "--format mp4 makes no .gif file"),
        ({"out": Path("run")}, "it is a directory"),
        ({"out": Path("drawn_env.py/film.gif")}, "check that the place exists"),
    ],
)
def test_what_a_user_can_fix_is_said(
    opened: tuple[Session, RunDirectory], arguments: dict[str, Any], says: str
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        run_record(*opened, **arguments)
    assert says in str(caught.value)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("opened", "says"), [("Breaks", "OSError: no display"), ("Grey", "uint8 of shape [40, 60]")], indirect=["opened"]
)
def test_why_nothing_can_be_drawn_is_one_line_and_no_file(opened: tuple[Session, RunDirectory], says: str) -> None:
    for path, problem in (run_record(*opened), record(opened[0].agent, opened[0].config, Path("film.gif"))):
        assert path is None
        assert problem.startswith("this machine cannot draw it")
        assert says in problem
        assert "\n" not in problem
    assert not [found for found in Path().rglob("*") if found.suffix in (".mp4", ".gif")]


def test_a_full_disk_is_an_error_of_the_place(
    opened: tuple[Session, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.film.os.replace", full)
    with pytest.raises(UserError, match=r"a\.gif.*No space left"):
        run_record(*opened, out=Path("a.gif"))
    path, problem = record(opened[0].agent, opened[0].config, Path("a.gif"))
    assert path is None
    assert "No space left" in problem  # a run that is over does not fail for its film
    assert not list(Path().glob("*a*.gif"))


def test_an_episode_without_an_end_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "drawn_env.py").write_text(DRAWN.replace("max_episode_steps = 6", "max_episode_steps = None"))
    command = ["train", "random", "--env=drawn_env:Walk", "--out=run", "--steps=3", "--evaluation.episodes=1"]
    monkeypatch.setattr("experiments.evaluation.LONGEST_EPISODE", 8)
    assert main([*command, "--quiet"]) == 2  # its evaluation does not end either; the first checkpoint is there
    run = RunDirectory.open(Path("run"))
    session = reopen(run, ["drawn_env"])
    with pytest.raises(UserError, match="did not end within 8 steps"):
        run_record(session, run)
    session.close()


def test_a_gif_is_bounded_and_keeps_its_speed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "big.gif"
    with film(path, rate=50.0) as reel:
        for _ in range(12):
            reel.add(rng.integers(0, 255, (400, 800, 3), dtype=np.uint8))
    picture = Image.open(path)
    assert (picture.size, picture.n_frames) == ((GIF_SIDE, GIF_SIDE // 2), 4)
    assert picture.info["duration"] == 60  # every third frame of 20 ms
    assert len(picture.convert("RGB").getcolors(10**6) or ()) <= 128


def add_all(reel: Film, images: list[Any]) -> None:
    for image in images:
        reel.add(image)


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="requires ndarray"), film(path, rate=10.0) as reel:
        add_all(reel, [np.zeros((32, 32, 3), np.uint8), None])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.render
def test_mujoco_is_filmed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    less = ["--steps=3", "--evaluation.episodes=1", "--env.max_episode_steps=4", "--quiet"]
    assert main(["train", "random", "--env=InvertedPendulum-v5", "--out=run", *less]) == 0
    run = RunDirectory.open(Path("run"))
    session = reopen(run, [])
    path, problem = run_record(session, run, out=Path("film.mp4"))
    session.close()
    assert problem == ""
    assert path is not None
    assert 2 <= len(frames_of(path)) <= 5
