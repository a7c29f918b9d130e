"""Datasets of every level from one training run: rows, order of the levels, what they say of themselves, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from envs.errors import UserError
from experiments import cli
from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from experiments.dataset.collect import LEVELS, UNJUDGED, Target, Wanted
from experiments.dataset.play import Began, play, some_episodes
from experiments.dataset.source import Source
from experiments.run import RunDirectory
from experiments.session import reopen
from experiments.tree import read_yaml
from mbrl.data.offline import Dataset, open_dataset
from mbrl.data.transitions import Transitions
from tests.experiments.point import ID, register
from tests.mbrl.data.made import differences

AGENT = "--agent.class_path=tests.experiments.point.Pusher"
TRAIN = [f"--env={ID}", AGENT, "--steps=600", "--evaluation.every=50", "--evaluation.episodes=5"]
COLLECT = ["dataset", "collect", "--trust=tests", "--reference-episodes=10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register()
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "random", *TRAIN, "--checkpoint.policies=true", f"--out={folder}", "--quiet"]) == 0
    return folder


@pytest.fixture
def source(run: Path) -> Iterator[Source]:
    session = reopen(RunDirectory(run), ["tests"])
    yield Source(session, RunDirectory(run), episodes=10)
    session.close()


def collect(run: Path, level: str, out: Path, *more: str, rows: int | None = 200) -> Dataset:
    wanted = [f"--level={level}", f"--out={out}", "--format=folder", *more]
    wanted += [] if rows is None else [f"--rows={rows}"]
    assert main([*COLLECT, f"--recipe={run}", *wanted]) == 0
    return open_dataset(out)


def mean_return(rows: Transitions) -> float:
    """Of whole episodes."""
    found = []
    for episode in rows.episode.unique():
        mine = rows[rows.episode == episode]
        if bool((mine.terminated | mine.truncated)[-1]):
            found.append(float(mine.reward.sum()))
    return sum(found) / len(found)


def test_levels_are_in_order(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    means = {}
    for level in LEVELS:
        dataset = collect(run, level, tmp_path / level)
        rows = dataset.rows()
        assert len(rows) == 200 or (level, len(rows)) == ("medium-replay", 150)  # it had stored no more
        means[level] = mean_return(rows)
        low, high = dataset.about.references or (0.0, 0.0)
        assert low < high
    assert means["random"] < means["medium-replay"] < means["medium"] < means["medium-expert"] < means["expert"]
    assert means["full-replay"] > means["medium-replay"]
    assert float(dataset.about.score(torch.tensor(means["expert"]))) == pytest.approx(100.0, abs=15.0)
    assert float(dataset.about.score(torch.tensor(means["random"]))) == pytest.approx(0.0, abs=15.0)


def test_the_same_seed_gives_the_same_rows_and_another_does_not(run: Path, tmp_path: Path) -> None:
    one, same = (collect(run, "medium", tmp_path / name, "--seed=3", rows=60).rows() for name in "ab")
    other = collect(run, "medium", tmp_path / "c", "--seed=4", rows=60).rows()
    assert differences(one, same) == []
    assert differences(one, other) != []


def test_what_a_dataset_says_of_itself(run: Path, tmp_path: Path) -> None:
    dataset = collect(run, "medium-expert", tmp_path / "set", rows=101)
    policy, rows = dataset.about.policy, dataset.rows()
    assert dataset.about.env == {"id": ID, "action_repeat": 1}
    medium, expert = policy["checkpoints"]
    assert (expert["name"], medium["name"][:5]) == ("best", "step-")
    assert medium["hash"] != expert["hash"]
    assert sorted(set(rows.policy_version.tolist())) == sorted({medium["updates"], expert["updates"]})
    assert (rows.policy_version == medium["updates"]).sum() == 50
    assert (policy["level"], policy["run"], policy["seed"], policy["reference_episodes"]) == (
        "medium-expert",
        "run",
        0,
        10,
    )
    assert policy["last_row_is_end"] is bool(rows.terminated[-1] | rows.truncated[-1])
    assert {"python", "packages", "git", "env"} <= set(dataset.about.versions)
    assert "sampled" in policy["action_noise"]


@pytest.mark.parametrize("same", [True, False])
def test_that_medium_is_the_best_policy_is_said(
    same: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if same:
        monkeypatch.setattr(Source, "medium", property(lambda source: source.expert))
    collect(run, "medium-expert", tmp_path / "set", rows=20)
    said = capsys.readouterr()
    assert ("both halves are its own" in said.out + said.err) is same


def test_rows_are_one_story(run: Path, tmp_path: Path) -> None:
    rows = collect(run, "expert", tmp_path / "set", rows=150).rows()
    follows = (rows.episode[1:] == rows.episode[:-1]) & (rows.step[1:] == rows.step[:-1] + 1)
    assert torch.equal(rows.next_obs[:-1][follows], rows.obs[1:][follows])
    ended = (rows.terminated | rows.truncated)[:-1]
    assert torch.equal(ended, ~follows)
    assert rows.episode.unique().tolist() == list(range(int(rows.episode.max()) + 1))


def test_replay_is_what_the_run_stored(run: Path, source: Source, tmp_path: Path) -> None:
    full = collect(run, "full-replay", tmp_path / "full", rows=None).rows()
    early = collect(run, "medium-replay", tmp_path / "early", rows=None).rows()
    until = int(source.medium.clock["env_steps"])
    assert (len(full), len(early)) == (600, until)
    assert differences(full[:until], early) == []
    assert 100 < until < 400


def test_the_medium_policy_is_the_first_that_is_a_third_of_the_way(source: Source) -> None:
    low, high = source.references
    found = {}
    for path, state in CheckpointStore(source.run.checkpoints).load_policies():
        source.session.agent.load_state_dict(state["agent"])
        found[path.stem] = source.mean_return(source.session.agent, 10, path.stem)
    first = next(name for name, mean in found.items() if mean >= low + (high - low) / 3)
    assert source.medium.name == first
    assert list(found).index(first) > 1


def test_policies_act_as_if_the_warm_up_were_over(source: Source) -> None:
    """Control: the same weights in an agent that has seen nothing act at random."""
    env, agent = source.session.config.env, source.session.agent
    agent.load_state_dict(dict(source.expert.weights))
    fresh = mean_return(play(agent, env, 150, 0, "x"))
    assert mean_return(play(source.acting(source.expert), env, 150, 0, "x")) > fresh + 5.0


@pytest.mark.parametrize(("format", "out"), [("minari", "mbrl/point-v0"), ("d4rl", "./p.hdf5"), ("minari", "./q-v0")])
def test_every_format_holds_the_same_rows(
    run: Path,
    format: str,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = collect(run, "random", tmp_path / "folder", rows=60)
    command = [*COLLECT, f"--recipe={run}", "--level=random", "--rows=60", f"--format={format}", f"--out={out}"]
    assert main(command) == 0
    dataset = open_dataset(out)
    assert differences(dataset.rows(), folder.rows()) == []
    assert dataset.about.policy == folder.about.policy
    capsys.readouterr()
    assert main(["dataset", "list"]) == 0
    assert ("mbrl/point-v0" in capsys.readouterr().out) is (out == "mbrl/point-v0")


def test_describe_makes_a_page_and_prints_a_summary(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(run, "expert", tmp_path / "set", rows=100)
    capsys.readouterr()
    assert main(["dataset", "describe", str(tmp_path / "set"), f"--out={tmp_path / 'page'}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"100 transitions in 5 episodes of {ID}")
    assert (tmp_path / "page" / "index.html").is_file()
    assert json.loads((tmp_path / "page" / "description.json").read_text())["rows"]["ends_reset"] == 0


def test_a_recipe_is_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.chdir(tmp_path)
    settings = [f"--env={ID}", AGENT, "--steps=400", "--evaluation.episodes=2"]
    wanted = ["--level=medium", "--rows=40", "--format=folder", "--out=set"]
    assert main([*COLLECT, "--recipe=random", *settings, *wanted]) == 0
    (trained,) = (tmp_path / "runs").iterdir()
    config = read_yaml(trained / "config.yaml")
    assert config["evaluation"]["every"] == 20
    assert len(list((trained / "checkpoints" / "policies").iterdir())) == 20
    assert open_dataset("set").about.policy["run"] == trained.name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--level=mediun", "--rows=9"], "Did you mean medium"),
        (["--level=medium"], "--rows"),
        (["--level=medium", "--rows=one"], "whole number"),
        (["--level=random", "--rows=9", "--format=minary"], "Did you mean minari"),
        (["--level=random", "--rows=9", "--format=d4rl"], "NAME.hdf5"),
        (["--level=random", "--rows=9", "--env=Pendulum-v1"], "leave them out"),
        (["--level=random", "--rows=9", "--out=taken"], "there already"),
        (["--level=random", "--rows=9", "--recipe=nothing"], "no recipe has this name"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path,
    more: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert main([*COLLECT, f"--recipe={run}", "--out=set", "--format=folder", *more]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("error:") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["taken"]


@pytest.mark.parametrize(
    ("setting", "level", "said"),
    [
        ("--checkpoint.policies=false", "medium", "kept no policies"),
        ("--agent.learns=false", "expert", "has learned nothing"),
    ],
)
def test_runs_that_cannot_give_it_say_why(
    setting: str, level: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    short = ["--steps=400", "--checkpoint.policies=true", setting, f"--out={tmp_path / 'run'}", "--quiet"]
    assert main(["train", "random", *TRAIN, *short]) == 0
    command = [f"--recipe={tmp_path / 'run'}", f"--level={level}", "--rows=40", f"--out={tmp_path / 'set'}"]
    assert main([*COLLECT, *command, "--format=folder"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    if level == "expert":  # what says nothing of a policy's worth is there all the same, without references
        told = [collect(tmp_path / "run", level, tmp_path / level, rows=40).about for level in UNJUDGED]
        assert [(about.references, "without references" in about.description) for about in told] == [(None, True)] * 2


def test_a_buffer_whose_first_rows_are_gone_is_no_replay(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    load = source.store.load_latest
    state = load()
    assert state is not None
    state["buffers"]["real"]["total_added"] += 1
    monkeypatch.setattr(source.store, "load_latest", lambda: state)
    with pytest.raises(UserError, match="capacity"):
        source.stored()


def test_episodes_that_began_early_count_however_long_they_last() -> None:
    """Two slots: a long episode and many short ones; nothing counts until the long one is over."""
    import numpy as np

    from envs.pool import PoolStep

    began = Began()
    for round in range(10):
        ended = np.array([round == 9, True])
        nothing = np.zeros((2, 1), np.float32)
        episode, step = np.array([0, 2 * round + 1]), np.array([round, 0])
        began.see(PoolStep(nothing, nothing, nothing[:, 0], ended, ~ended & False, episode, step, None))
        assert began.finished_rows == (0 if round < 9 else 20)
    assert began.rows == [10, *[1] * 10]


def test_some_episodes_are_whole_but_the_last(run: Path) -> None:
    rows = open_dataset(run).rows()
    few = some_episodes(rows, 130, seed=0)
    assert len(few) == 130
    lengths = {int(e): int((rows.episode == e).sum()) for e in rows.episode.unique()}
    short = [int(e) for e in few.episode.unique() if int((few.episode == e).sum()) < lengths[int(e)]]
    assert len(short) <= 1
    assert few.episode.unique().tolist() != list(range(len(few.episode.unique())))
    assert differences(some_episodes(rows, 10**6, seed=0), rows) == []


def test_the_command_line_knows_every_level() -> None:
    assert tuple(LEVELS) == cli.LEVELS


def test_targets_are_paths_or_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert Target("mbrl/a-v0", "minari").path == tmp_path / "mbrl" / "a-v0"
    assert Target("/x/a-v0", "minari").path == Path("/x/a-v0")
    assert Target("x/a", "folder").path == Path("x/a")
    with pytest.raises(UserError, match="--seed"):
        Wanted("random", 10, seed=-1)
