"""What is wrong with a sweep is said before anything runs, and nothing is left behind."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.cli import main
from experiments.sweep.plan import check, check_same, make_plan, read_plan

PENDULUM = "sac-fast --env Pendulum-v1"
LR = "--param 'agent.learner.lr=log(1e-4, 1e-2)'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{PENDULUM}", "error: --param: 'none': say what is searched"),
        (f"{PENDULUM} --param agent.learner.lr", "error: --param: 'agent.learner.lr': a setting is given one space"),
        (f"{PENDULUM} {LR} {LR}", "error: --param: 'agent.learner.lr=log(1e-4, 1e-2)': a setting is given one space"),
        (f"{PENDULUM} --param 'agent.learner.lr=lag(1, 2)'", "error: --param agent.learner.lr: 'lag(1, 2)'"),
        (f"{PENDULUM} --param 'agent.learner.lrr=[1, 2]'", "error: --param agent.learner.lrr: agent.init_args.learner"),
        (
            f"{PENDULUM} --param 'agent.learner.hidden=[8, wide]'",
            "error: --param agent.learner.hidden: agent.init_args",
        ),
        (f"{PENDULUM} --param 'num_envs=[1, 0]'", "error: --param num_envs: num_envs: 0: give a whole number"),
        (f"{PENDULUM} --param 'steps=[10, 20]'", "error: --param steps: '[10, 20]': this is the same in all trials"),
        (
            f"{PENDULUM} --param 'evaluation.every=[1, 2]'",
            "error: --param evaluation.every: '[1, 2]': this is the same",
        ),
        (f"{PENDULUM} --param 'env=[{{id: Pendulum-v1}}, {{id: CartPole-v1}}]'", "this is the same in all trials"),
        (f"{PENDULUM} --param 'agent.learner.lr=[0.001, -1]'", "error: --param agent.learner.lr: "),
        (
            f"{PENDULUM} --param 'agent.learner.lr=uniform(0.001, 2)' 'agent.batch_size=[8, -1]'",
            "--param agent.batch_size",
        ),
        (f"{PENDULUM} --param 'a/b=[1, 2]'", "error: --param: 'a/b': a setting's name is written with dots"),
        (f"{PENDULUM} {LR} --agent.learner.lr=0.1", "error: --param agent.learner.lr: 0.1: it is also set by"),
        (f"{PENDULUM} {LR} --metric retrun_mean", "Did you mean return_mean"),
        (f"{PENDULUM} {LR} --metric score", "error: --metric: 'score': only runs that learn from a dataset have it"),
        (f"{PENDULUM} {LR} --mode most", "error: --mode: 'most': give max or min"),
        (f"{PENDULUM} {LR} --trials 0", "error: --trials: '0': give a whole number of at least 1"),
        (f"{PENDULUM} {LR} --reduction 1", "error: --reduction: '1': give a whole number of at least 2"),
        (f"{PENDULUM} {LR} --steps 100 --grace 200", "error: --grace: 200: it is at most the steps of a run"),
        (f"{PENDULUM} {LR} --processes some", "error: --processes: 'some': give a whole number"),
        (f"{PENDULUM} {LR} --processes 0", "error: --processes: '0': give a whole number of at least 1"),
        (f"{PENDULUM} {LR} --gpus 1.5", "error: --gpus: '1.5': give a share of one GPU"),
        (f"{PENDULUM} {LR} --ray ray://h:10001", "error: --ray: 'ray://h:10001': give the head's own address"),
        (f"{PENDULUM} {LR} --agent.learner.hidde=3", "error: agent.init_args.learner.init_args.hidde"),
        (f". {LR}", "error: sweep: '.': there is no sweep.yaml in this folder"),
        (f"sac-fats --env Pendulum-v1 {LR}", "Did you mean sac-fast"),
        (f"sac-fast --env Pendulun-v1 {LR}", "error: "),
        (f"sac-fast {LR}", "error: env.id: 'missing': say where to act"),
    ],
)
def test_bad_input_is_refused_with_nothing_on_disk(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *shlex.split(words)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_each_value_of_a_list_and_both_ends_are_tried() -> None:
    good = make_plan(recipe="sac-fast", env="Pendulum-v1", params={"agent.learner.lr": "log(1e-4, 1e-2)"})
    found = check(good)
    assert (found.steps, found.grace, found.unit) == (3000, 300, "env_steps")
    for key, space in {
        "agent.learner.lr": "[0.1, fast]",
        "num_envs": "int(0, 4)",
        "seed": "int(0, 99999999999999999999)",
    }.items():
        with pytest.raises(UserError, match=f"--param {key}"):
            check(replace(good, params={"agent.learner.hidden": "[8, 16]", key: space}))


def test_the_words_of_a_trial_are_those_of_an_ordinary_run() -> None:
    plan = make_plan(
        recipe="random", env="CartPole-v1", params={"env.max_episode_steps": "[5, 9]"}, set={"steps": 40}, seed=3
    )
    found = check(plan)
    assert found.command({"env.max_episode_steps": 9}, "runs/x") == (
        "mbrl train random --env CartPole-v1 --evaluation.episodes=10 --evaluation.num_envs=10 --evaluation.every=4"
        " --seed=3 --steps=40 --env.max_episode_steps=9 --out runs/x"
    )
    assert found.folder({"env.max_episode_steps": 9}, "trial-000") == "runs/CartPole-v1/trial-000/seed3"


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = make_plan(recipe="random", env="CartPole-v1", params={"num_envs": "int(1, 4)"}, set={"steps": 40}, grace=8)
    (tmp_path / "sweep.yaml").write_text(plan.text())
    assert read_plan(tmp_path / "sweep.yaml") == plan
    check_same(plan, replace(plan, trials=32), tmp_path)
    with pytest.raises(UserError, match="can only become larger"):
        check_same(plan, replace(plan, trials=3), tmp_path)
    with pytest.raises(UserError, match="there is a sweep with seed 0; name another --out"):
        check_same(plan, replace(plan, seed=1), tmp_path)
    (tmp_path / "sweep.yaml").write_text(plan.text() + "trails: 3\n")
    with pytest.raises(UserError, match="Did you mean trials"):
        read_plan(tmp_path / "sweep.yaml")


def test_a_folder_with_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    words = "random --env CartPole-v1 --param num_envs=[1,2] --steps 20 --out thesis"
    assert main(["sweep", *words.split()]) == 2
    assert "it exists, is not empty and is no sweep" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_a_folder_goes_on_as_it_was_and_runs_no_code_that_was_not_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(recipe="random", env="CartPole-v1", params={"num_envs": "int(1, 4)"}, set={"steps": 40})
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.yaml").write_text(plan.text())
    assert main(["sweep", "s", "--seed", "3"]) == 2
    assert "error: --seed: 's': a sweep that is there goes on as it was" in capsys.readouterr().err
    (tmp_path / "outside.py").write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "s" / "sweep.yaml").write_text(replace(plan, env="outside:Env").text())
    assert main(["sweep", "s"]) == 2
    assert "--trust outside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("params: 5", "params: 5: `mbrl sweep` writes it otherwise"),
        ("params: {agent.learner.lr: [0.1, 0.2]}", "write its space as text, in quotes"),
        ("recipe: 5", "recipe: 5: `mbrl sweep` writes it otherwise"),
        ("env: 5", "env: 5: `mbrl sweep` writes it otherwise"),
        ("set: 5", "set: 5: `mbrl sweep` writes it otherwise"),
    ],
)
def test_an_edited_sweep_is_refused_in_words(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"recipe": "recipe: random", "env": "env: Pendulum-v1", "params": "params: {agent.limit: '[1, 2]'}"}
    whole[line.partition(":")[0]] = line
    (tmp_path / "sweep.yaml").write_text("\n".join(whole.values()))
    assert main(["sweep", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
