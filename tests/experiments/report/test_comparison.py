"""Runs on disk as typed records: both layouts, every state, damage that stays with its run, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.errors import UserError
from experiments.report.comparison import Comparison, Run, curve_rows, differences, load, rows

LEARNER = {"class_path": "agents.actor_critic.ActorCritic", "init_args": {"hidden": 64, "gamma": 0.99}}
AGENT = {"class_path": "agents.dyna.DynaAgent", "init_args": {"learner": LEARNER, "warmup_steps": 50}}
GIT = {"commit": "0123abc", "changed": False}


def make_run(
    folder: Path,
    returns: Sequence[Sequence[float]] = ((1.0, 3.0), (4.0, 6.0)),
    *,
    env: str = "Pendulum-v1",
    seed: int = 0,
    steps: int | None = None,
    agent: dict[str, Any] = AGENT,
    recipe: str | None = "recipes/dyna.yaml",
    counter: str = "env_steps",
    **settings: Any,
) -> Path:
    """A run evaluated every 100 steps, each evaluation 2 s long after 10 s of training."""
    folder.mkdir(parents=True)
    config = {"agent": agent, "env": {"id": env}, "seed": seed, **settings}
    config["steps"] = 100 * len(returns) if steps is None else steps
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps({"git": GIT, "sources": [recipe] if recipe else []}))
    lines: list[dict[str, Any]] = []
    for number, values in enumerate(returns, start=1):
        counts = {"env_steps": 0, "updates": 7 * number} | {counter: 100 * number}
        lines.append({"event": "fit", **counts, "seconds": 12.0 * number - 3, "error_at_1": 0.5})
        evaluation = {"returns": list(values), "evaluation_seconds": 2.0, "peak_memory_bytes": 1000 - number}
        lines.append({"event": "evaluation", **counts, "seconds": 12.0 * number, **evaluation})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_comparison(root: Path, jobs: Sequence[dict[str, Any]], /, **changes: Any) -> Path:
    status = {"suite": "small", "budget": "env_steps", "agents": ["b", "a"], "envs": ["Pendulum-v1"]}
    status |= {"references": {}, "datasets": {}, "jobs": list(jobs)}
    root.mkdir(exist_ok=True)
    (root / "status.json").write_text(json.dumps(status | changes))
    return root


def job(agent: str = "a", seed: int = 0, state: str = "done", env: str = "Pendulum-v1", **more: Any) -> dict[str, Any]:
    place = f"runs/{env}/{agent}/seed{seed}-0a"
    return {"agent": agent, "env": env, "seed": seed, "folder": place, "state": state, "error": None} | more


def only(comparison: Comparison) -> Run:
    (run,) = comparison.runs
    return run


# ---- one run


def test_a_run_is_read_with_training_seconds_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "Pendulum-v1" / "mine" / "seed3", seed=3)
    run = only(load(tmp_path))
    assert (run.agent, run.env, run.seed, run.state, run.error) == ("mine", "Pendulum-v1", 3, "done", None)
    assert [(e.env_steps, e.updates, e.seconds, e.mean) for e in run.evaluations] == [(100, 7, 10, 2), (200, 14, 20, 5)]
    assert run.evaluations[1].returns == (4.0, 6.0)
    assert (run.last, run.best, run.area, run.seconds) == (5.0, 5.0, 3.5, 20.0)
    assert [fit["error_at_1"] for fit in run.fits] == [0.5, 0.5]
    assert run.peak_memory_bytes == 999  # the largest: a resumed run begins anew


def test_best_is_not_last(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [(9.0,), (1.0,)])
    run = only(load(tmp_path))
    assert (run.last, run.best) == (1.0, 9.0)


def test_a_run_that_has_not_reached_its_steps_is_unfinished(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", steps=201)
    assert only(load(tmp_path)).state == "unfinished"
    (folder / "metrics.jsonl").write_text("")
    run = only(load(tmp_path))
    assert (run.state, run.last, run.best, run.area) == ("unfinished", None, None, None)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('{"event": "evalu', "not a JSON record"),
        ("[1, 2]", "[1, 2]"),
        ('{"event": "fit", "env_steps": "x", "updates": 0, "seconds": 1}', "env_steps"),
        ('{"event": "fit", "env_steps": 1, "updates": 0, "seconds": NaN}', "seconds"),
        ('{"event": "evaluation", "env_steps": 1, "updates": 0, "seconds": 1, "returns": [1]}', "evaluation_seconds"),
        (
            '{"event": "evaluation", "env_steps": 1, "updates": 0, "seconds": 1, "evaluation_seconds": 1, '
            '"returns": [1.0, null]}',
            "not a finite number",
        ),
        ('{"event": "evaluation", "env_steps": 1, "updates": 0, "seconds": 1, "evaluation_seconds": 1}', "returns"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_a_damaged_line_fails_its_run_alone(tmp_path: Path, line: str, seen: str) -> None:
    folder = make_run(tmp_path / "Pendulum-v1" / "bad" / "seed0")
    make_run(tmp_path / "Pendulum-v1" / "good" / "seed0")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    comparison = load(tmp_path)
    bad, good = (comparison.of(agent, "Pendulum-v1")[0] for agent in ("bad", "good"))
    assert (good.state, good.error) == ("done", None)
    assert bad.state == "failed"
    assert bad.error is not None
    assert "metrics.jsonl:5" in bad.error or "RecursionError" in bad.error
    assert seen in bad.error
    assert bad.last == 5.0  # what came before is shown


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("config.yaml", "a: [", "config.yaml"),
        ("config.yaml", "steps: 10\nseed: 4\n", "env.id"),
        ("config.yaml", "steps: ten\nseed: 4\nenv: {id: Pendulum-v1}\nagent: {class_path: A}\n", "steps"),
        ("config.yaml", "steps: 10\nseed: 4\nenv: {id: 3}\n", "env.id"),
        ("versions.json", "{", "versions.json"),
        ("versions.json", "[]", "versions.json"),
        ("metrics.jsonl", b"\xff\xfe", "UnicodeDecodeError"),
    ],
)
def test_a_damaged_file_fails_its_run(tmp_path: Path, name: str, text: str | bytes, seen: str) -> None:
    folder = make_run(tmp_path / "Pendulum-v1" / "mine" / "seed4", seed=4)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    comparison = load(tmp_path)
    run = only(comparison)
    assert (run.agent, run.env, run.seed, run.state) == ("mine", "Pendulum-v1", 4, "failed")
    assert seen in str(run.error)
    assert rows(comparison)[0]["error"] == run.error


def test_what_is_known_of_a_damaged_run_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "x")
    (folder / "config.yaml").write_text("env: {id: E-v0}\nagent: {class_path: some.Agent}\nseed: 4\n")
    run = only(load(tmp_path))
    assert (run.agent, run.env, run.seed, run.state) == ("Agent", "E-v0", 4, "failed")
    (folder / "config.yaml").write_text("")
    run = only(load(tmp_path))
    assert (run.agent, run.env, run.seed, run.state) == ("unknown", "unknown", -1, "failed")


def test_no_code_that_a_configuration_names_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_module.py").write_text("raise SystemExit('loaded')")
    monkeypatch.syspath_prepend(str(tmp_path))
    trap = {"class_path": "trap_module.Agent", "init_args": {"part": {"class_path": "trap_module.Part"}}}
    make_run(tmp_path / "runs" / "r", env="trap_module:Env", agent=trap, recipe=None)
    comparison = load(tmp_path / "runs")
    assert (only(comparison).agent, only(comparison).env) == ("Agent", "trap_module:Env")
    assert differences(comparison) == {}
    assert "trap_module" not in sys.modules
    with pytest.raises(SystemExit):
        __import__("trap_module")


# ---- any folder


def test_who_a_run_is_without_a_folder_that_says_it(tmp_path: Path) -> None:
    make_run(tmp_path / "x1")
    make_run(tmp_path / "x2", recipe=None, seed=1)
    make_run(tmp_path / "x3", recipe="runs/x1/config.yaml", seed=2)
    make_run(tmp_path / "Acrobot-v1" / "label" / "seed7", seed=3)  # of another environment: the folder says nothing
    make_run(tmp_path / "ns-Env-v0" / "slashed" / "seed4-0af3", env="ns/Env-v0", seed=4)
    names = {run.folder.name: (run.agent, run.env, run.seed) for run in load(tmp_path).runs}
    assert names == {
        "x1": ("dyna", "Pendulum-v1", 0),
        "x2": ("DynaAgent", "Pendulum-v1", 1),
        "x3": ("DynaAgent", "Pendulum-v1", 2),
        "seed7": ("dyna", "Pendulum-v1", 3),
        "seed4-0af3": ("slashed", "ns/Env-v0", 4),
    }


def test_what_is_half_written_or_hidden_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "r")
    make_run(tmp_path / ".r.123.part")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("a: 1")
    assert only(load(tmp_path)).folder == tmp_path / "r"


def test_one_run_is_a_comparison_too(tmp_path: Path) -> None:
    assert only(load(make_run(tmp_path / "r"))).state == "done"


def test_agents_and_environments_have_an_order(tmp_path: Path) -> None:
    for label in ("z", "random", "b"):
        for env in ("Y-v0", "A-v0"):
            make_run(tmp_path / env / label / "seed0", env=env)
    comparison = load(tmp_path)
    assert (comparison.agents, comparison.envs) == (["b", "z", "random"], ["A-v0", "Y-v0"])
    assert (comparison.title, comparison.axis) == (tmp_path.name, "env_steps")


def test_the_same_seed_never_counts_twice(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 0)):
        make_run(tmp_path / name, seed=seed)
    found = {run.folder.name: run.agent for run in load(tmp_path).runs}
    assert found == {"a": "dyna", "b": "dyna #2", "c": "dyna", "d": "dyna #3"}


def test_other_settings_are_another_agent_but_other_bookkeeping_is_not(tmp_path: Path) -> None:
    other = {**AGENT, "init_args": {**AGENT["init_args"], "warmup_steps": 51}}
    newer = {**AGENT, "init_args": {**AGENT["init_args"], "option_of_a_newer_version": 1}}
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, agent=other)
    make_run(tmp_path / "c", seed=2, threads=2, evaluation={"every": 3})
    make_run(tmp_path / "d", seed=3, agent=newer)
    make_run(tmp_path / "e", seed=4, agent=other)
    make_run(tmp_path / "f", seed=5, steps=100)
    found = {run.folder.name: run.agent for run in load(tmp_path).runs}
    assert found == {"a": "dyna", "b": "dyna #2", "c": "dyna", "d": "dyna", "e": "dyna #2", "f": "dyna #3"}


def test_offline_runs_are_drawn_over_updates(tmp_path: Path) -> None:
    make_run(tmp_path / "a", counter="updates")
    comparison = load(tmp_path)
    assert (comparison.axis, only(comparison).state) == ("updates", "done")
    make_run(tmp_path / "b", seed=1, counter="updates", steps=201)
    assert [run.state for run in load(tmp_path).of("dyna #2", "Pendulum-v1")] == ["unfinished"]
    make_run(tmp_path / "online")
    assert load(tmp_path).axis == "env_steps"


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_runs_is_refused(tmp_path: Path, exists: bool) -> None:
    with pytest.raises(UserError, match="no runs" if exists else "no such folder"):
        load(tmp_path if exists else tmp_path / "nowhere")


# ---- a comparison's folder


def test_every_state_of_a_job_is_shown(tmp_path: Path) -> None:
    states = ["done", "running", "failed", "interrupted", "waiting"]
    jobs = [job(seed=seed, state=state) for seed, state in enumerate(states)]
    jobs[2]["error"] = "exit code 1: it broke"
    jobs += [job("b", 0, "failed", error="it never began"), job("b", 1, "done"), job("b", 2, "waiting", folder=None)]
    for seed in range(4):
        make_run(tmp_path / str(jobs[seed]["folder"]), seed=seed)
    comparison = load(make_comparison(tmp_path, jobs))
    assert [(run.state, run.error) for run in comparison.of("a", "Pendulum-v1")] == [
        ("done", None),
        ("unfinished", None),
        ("failed", "exit code 1: it broke"),
        ("unfinished", None),
        ("missing", None),
    ]
    assert [(run.state, run.error) for run in comparison.of("b", "Pendulum-v1")] == [
        ("failed", "it never began"),
        ("missing", "its records are gone"),
        ("missing", None),
    ]
    assert len(rows(comparison)) == len(jobs)
    assert (comparison.title, comparison.agents, comparison.axis) == ("small", ["b", "a"], "env_steps")


def test_a_job_that_waits_to_go_on_is_unfinished(tmp_path: Path) -> None:
    make_run(tmp_path / job()["folder"])
    assert only(load(make_comparison(tmp_path, [job(state="waiting")]))).state == "unfinished"


def test_a_finished_job_with_damaged_records_failed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / job()["folder"])
    (folder / "metrics.jsonl").write_text("")
    make_comparison(tmp_path, [job()])
    assert (only(load(tmp_path)).state, only(load(tmp_path)).error) == (
        "failed",
        "there is no evaluation in its records",
    )
    (folder / "metrics.jsonl").write_text("damaged\n")
    assert "not a JSON record" in str(only(load(tmp_path)).error)


def cut_to(folder: Path, lines: int) -> None:
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def test_a_finished_job_whose_records_were_cut_failed(tmp_path: Path) -> None:
    """Every line that is left is whole, so nothing but the number of steps tells."""
    folder = make_run(tmp_path / job()["folder"], [(1.0,), (2.0,), (3.0,)])
    make_comparison(tmp_path, [job()])
    assert only(load(tmp_path)).state == "done"
    cut_to(folder, 2)
    run = only(load(tmp_path))
    assert (run.state, run.error, run.last) == ("failed", "its records end at step 100 of 300", 1.0)
    assert load(tmp_path).scores("a") == {}


def test_a_run_in_any_folder_whose_records_were_cut_failed(tmp_path: Path) -> None:
    """Its last checkpoint tells that it had come to its end; without one it may still be on its way."""
    folder = make_run(tmp_path / "r", [(1.0,), (2.0,), (3.0,)])
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000000000200-0123456789abcdef.pt").touch()
    cut_to(folder, 2)
    end = "its records end at step 100 of 300"
    assert (only(load(tmp_path)).state, only(load(tmp_path)).error) == ("unfinished", end)
    (folder / "checkpoints" / "step-000000000300-0123456789abcdef.pt").touch()
    assert (only(load(tmp_path)).state, only(load(tmp_path)).error) == ("failed", end)


def test_runs_that_the_suite_dropped_and_its_settings_are_read(tmp_path: Path) -> None:
    make_run(tmp_path / job()["folder"])
    dropped = [{"agent": "old", "env": "Pendulum-v1", "seed": 3, "folder": "runs/old"}]
    settings = {"agents": {"a": {"recipe": "dyna", "set": {"x": 1}}}, "envs": {}, "set": {}}
    comparison = load(make_comparison(tmp_path, [job()], dropped=dropped, settings=settings))
    assert [(run.agent, run.seed, run.folder) for run in comparison.dropped] == [("old", 3, "runs/old")]
    assert comparison.settings is not None
    assert comparison.settings.agents["a"].set == {"x": 1}
    assert len(comparison.runs) == 1


def test_jobs_are_called_as_the_suite_calls_them(tmp_path: Path) -> None:
    make_run(tmp_path / "anywhere", seed=0, recipe="other.yaml")
    run = only(load(make_comparison(tmp_path, [job("label", seed=0, folder="anywhere")])))
    assert run.agent == "label"


def test_references_and_datasets_of_the_suite(tmp_path: Path) -> None:
    for agent in ("random", "a"):
        make_run(tmp_path / job(agent)["folder"])
    references = {"Pendulum-v1": {"low": 1, "high": 9.0, "source": "the paper"}}
    datasets = {"Pendulum-v1": {"expert": 7.5}}
    changes = {"references": references, "datasets": datasets, "budget": "seconds"}
    comparison = load(make_comparison(tmp_path, [job("random"), job("a")], **changes))
    reference = comparison.references["Pendulum-v1"]
    assert (reference.low, reference.high, reference.source) == (1, 9, "the paper")
    assert comparison.datasets == datasets
    assert comparison.axis == "seconds"
    assert comparison.scores("a")["Pendulum-v1"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"budget": "parsecs"}, "budget"),
        ({"jobs": 3}, "jobs"),
        ({"jobs": [{"agent": "a"}]}, "env"),
        ({"jobs": [job(state="gone")]}, "state"),
        ({"references": {"E": {"low": 1, "high": 1}}}, "must differ"),
        ({"references": {"E": {"low": None, "high": 1}}}, "low"),
        ({"jobs": []}, "no runs"),
    ],
)
def test_a_damaged_status_is_refused(tmp_path: Path, changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(UserError, match=seen):
        load(make_comparison(tmp_path, [job(state="waiting")], **changes))
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"status\.json"):
        load(tmp_path)


# ---- references that are not given


def test_random_and_the_best_agent_span_the_scale(tmp_path: Path) -> None:
    env = tmp_path / "Pendulum-v1"
    for label, seed, last in (("random", 0, 0.0), ("random", 1, 2.0), ("a", 0, 5.0), ("b", 0, 12.0), ("b", 1, 10.0)):
        make_run(env / label / f"seed{seed}", [(100.0,), (last,)], seed=seed)
    make_run(env / "b" / "seed2", [(99.0,)], seed=2, steps=200)  # unfinished: it does not count
    comparison = load(tmp_path)
    reference = comparison.references["Pendulum-v1"]
    assert (reference.low, reference.high) == (1.0, 11.0)
    assert "`random`" in reference.source
    assert "`b`" in reference.source
    assert reference.own
    assert comparison.scores("b")["Pendulum-v1"] == pytest.approx([1.1, 0.9])
    assert comparison.scores("b", "best")["Pendulum-v1"] == pytest.approx([9.9, 9.9])
    assert comparison.scores("a")["Pendulum-v1"] == pytest.approx([0.4])


@pytest.mark.parametrize(("other", "last"), [("a", 5.0), ("random", 5.0)])
def test_without_a_span_there_is_no_scale(tmp_path: Path, other: str, last: float) -> None:
    make_run(tmp_path / "Pendulum-v1" / other / "seed0", [(last,)])
    comparison = load(tmp_path)
    assert comparison.references == {}
    assert comparison.scores(other) == {}
    assert rows(comparison)[0]["last_normalized"] is None


# ---- tables


def test_one_flat_row_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / job("b")["folder"])
    comparison = load(make_comparison(tmp_path, [job("a", state="waiting"), job("b")]))
    done, missing = rows(comparison)  # in the order of agents
    assert done == {
        "agent": "b",
        "env": "Pendulum-v1",
        "seed": 0,
        "state": "done",
        "last": 5.0,
        "best": 5.0,
        "area": 3.5,
        "last_normalized": None,
        "env_steps": 200,
        "updates": 14,
        "seconds": 20.0,
        "peak_memory_bytes": 999,
        "commit": "0123abc",
        "folder": "runs/Pendulum-v1/b/seed0-0a",
        "error": None,
    }
    assert (missing["agent"], missing["state"], missing["last"], missing["seconds"]) == ("a", "missing", None, None)
    assert missing.keys() == done.keys()


def test_a_commit_with_changes_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    (folder / "versions.json").write_text(json.dumps({"git": {**GIT, "changed": True}}))
    assert rows(load(tmp_path))[0]["commit"] == "0123abc+changed"
    (folder / "versions.json").write_text(json.dumps({"git": None}))
    assert rows(load(tmp_path))[0]["commit"] is None


def test_one_flat_row_an_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=0)
    found = curve_rows(load(tmp_path))
    assert [(row["seed"], row["env_steps"], row["return_mean"]) for row in found] == [
        (0, 100, 2.0),
        (0, 200, 5.0),
        (1, 100, 2.0),
        (1, 200, 5.0),
    ]
    assert (found[1]["return_min"], found[1]["return_max"], found[1]["episodes"], found[1]["seconds"]) == (4, 6, 2, 20)


def test_settings_that_differ_between_agents(tmp_path: Path) -> None:
    def agent(hidden: int, warmup: int, **more: Any) -> dict[str, Any]:
        learner = {**LEARNER, "init_args": {"hidden": hidden, "gamma": 0.99}}
        return {**AGENT, "init_args": {"learner": learner, "warmup_steps": warmup, **more}}

    other = {"class_path": "agents.MPCAgent", "init_args": {"horizon": 5, "warmup_steps": 1}}
    for env, warmup in (("A-v0", 10), ("B-v0", 20)):
        for seed in (0, 1):
            place = {"env": env, "seed": seed, "evaluation": {"every": warmup}}
            make_run(tmp_path / env / "small" / f"seed{seed}", agent=agent(64, warmup, kwargs={"x": 1}), **place)
            make_run(tmp_path / env / "large" / f"seed{seed}", agent=agent(256, warmup, kwargs={}), **place)
            make_run(tmp_path / env / "planner" / f"seed{seed}", agent=other, num_envs=warmup, **place)
            make_run(tmp_path / env / "twin" / f"seed{seed}", agent=other, num_envs=3, **place)
    found = differences(load(tmp_path))
    dyna, mpc = "agents.dyna.DynaAgent", "agents.MPCAgent"
    assert found == {
        "agent": {"large": dyna, "planner": mpc, "small": dyna, "twin": mpc},
        "agent.kwargs": {"large": {}, "small": {"x": 1}},
        "agent.learner.hidden": {"large": 256, "small": 64},
        "num_envs": {"planner": "A-v0: 10; B-v0: 20", "twin": 3},
    }


def test_agents_of_one_configuration_do_not_differ(tmp_path: Path) -> None:
    for number, env in enumerate(("A-v0", "B-v0")):
        for label in ("one", "two"):
            make_run(tmp_path / env / label / "seed0", env=env, num_envs=number + 1)
    assert differences(load(tmp_path)) == {}


# ---- the runs of the repository


@pytest.mark.parametrize(("name", "agent"), [("dyna", "mbpo-fast"), ("pets", "oracle-mpc")])
def test_published_runs_are_read(name: str, agent: str) -> None:
    root = Path(__file__).parents[3] / "experiments" / "results" / name
    if not root.is_dir():
        pytest.skip("the results are not part of an installed package")
    comparison = load(root)
    assert {run.state for run in comparison.runs} == {"done"}
    assert len(comparison.runs) == len(list(root.rglob("metrics.jsonl")))
    assert agent in comparison.agents
    assert not any("#" in label for label in comparison.agents)
    assert all(run.seconds > 0 for run in comparison.runs)
