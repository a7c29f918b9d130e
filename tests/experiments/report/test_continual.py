"""Records of task sequences as matrices, and measures whose values are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_tasks import ENV, KEPT, LOST, NAMES, references, write_run

from experiments.report.comparison import Comparison, load
from experiments.report.continual import (
    Row,
    SequenceRuns,
    at_end,
    average,
    continual_rows,
    forgetting,
    forward_transfer,
    just_learned,
    normalised,
    sequence_runs,
)

ALL = np.ones(3, dtype=bool)
SCORES = np.array([[1.0, np.nan, np.nan], [0.7, 0.9, np.nan], [0.4, 0.8, 1.1]])


def runs_of(root: Path) -> SequenceRuns:
    found = sequence_runs(load(root), ENV)
    assert found is not None
    return found


def rows_of(comparison: Comparison) -> dict[str, Row]:
    return {str(row["agent"]): row for row in continual_rows(comparison, ENV)}


# ---- measures


def test_measures_are_those_computed_by_hand() -> None:
    assert average(SCORES, ALL) == pytest.approx((0.4 + 0.8 + 1.1) / 3)
    assert forgetting(SCORES, ALL) == pytest.approx(((1.0 - 0.4) + (0.9 - 0.8)) / 2)
    assert forward_transfer(SCORES, ALL) == pytest.approx((0.0 - 0.1 + 0.1) / 3)
    assert just_learned(SCORES) == pytest.approx((1.0 + 0.9) / 2)
    assert at_end(SCORES) == pytest.approx((0.4 + 0.8) / 2)


def test_who_keeps_everything_forgets_nothing() -> None:
    kept = np.array([[0.5, np.nan, np.nan], [0.5, 0.9, np.nan], [0.5, 0.9, 0.2]])
    assert forgetting(kept, ALL) == 0.0
    assert forgetting(SCORES, ALL) != 0.0


def test_a_task_that_does_not_count_changes_each_mean() -> None:
    some = np.array([False, True, True])
    assert average(SCORES, some) == pytest.approx((0.8 + 1.1) / 2)
    assert forgetting(SCORES, some) == pytest.approx(0.9 - 0.8)
    assert forward_transfer(SCORES, some) == pytest.approx(0.0)
    assert average(SCORES, np.zeros(3, dtype=bool)) is None
    assert forgetting(SCORES, np.array([False, False, True])) is None  # the last one was just learned


def test_what_was_not_measured_is_not_averaged_away() -> None:
    holed = SCORES.copy()
    holed[2, 0] = np.nan
    assert average(holed, ALL) is None
    assert forgetting(holed, ALL) is None
    assert at_end(holed) is None
    assert just_learned(holed) == just_learned(SCORES)


def test_one_task_alone_has_nothing_to_forget() -> None:
    one = np.array([[0.5]])
    assert average(one, ALL[:1]) == 0.5
    assert forgetting(one, ALL[:1]) is None
    assert at_end(one) is None


def test_scores_lie_between_the_references_and_nowhere_without_a_span() -> None:
    low, high = np.array([0.0, 5.0, 3.0, np.nan]), np.array([10.0, 5.0, 1.0, 1.0])
    scores = normalised(np.array([[5.0, 5.0, 2.0, 0.0], [12.0, 0.0, 0.0, 0.0]]), low, high)
    assert scores[:, 0].tolist() == [0.5, 1.2]
    assert np.isnan(scores[:, 1:]).all()  # equal, turned around, unknown


# ---- reading


def test_records_become_lower_triangles(tmp_path: Path) -> None:
    errors = {5: ((0.1,), (0.2, 0.3), (0.4, None, 0.6))}
    write_run(tmp_path, "hypercrl", LOST, errors=errors, diverged=((0,), (1, 0), (2, 256, 0)))
    (run,) = runs_of(tmp_path).finished
    assert run.returns[2].tolist() == list(LOST[2])
    assert np.isnan(run.returns[np.triu_indices(3, 1)]).all()
    assert run.errors[5][1].tolist()[:2] == [0.2, 0.3]
    assert np.isnan(run.errors[5][2, 1])
    assert run.diverged[2].tolist() == [2, 256, 0]
    assert [task.name for task in run.tasks] == list(NAMES)
    assert [run.costs[place].seconds for place in range(3)] == [5, 10, 20]


def test_runs_without_tasks_make_no_sequence(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "dyna", env="Pendulum-v1")
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"task' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    comparison = load(tmp_path)
    assert comparison.runs[0].state == "done"
    assert sequence_runs(comparison, "Pendulum-v1") is None
    assert continual_rows(comparison, "Pendulum-v1") == []


DAMAGE = (
    ({"position": 2}, "position"),
    ({"learned": -1}, "learned"),
    ({"learned": 10**9}, "learned"),
    ({"learned": True, "position": 0}, "learned"),
    ({"name": None}, "name"),
    ({"return_mean": None}, "return_mean"),
)


@pytest.mark.parametrize(("change", "said"), DAMAGE)
def test_a_damaged_record_of_a_task_fails_its_run_alone(tmp_path: Path, change: dict, said: str) -> None:
    write_run(tmp_path, "hypercrl")
    folder = write_run(tmp_path, "hypercrl-ewc")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    second = next(number for number, line in enumerate(lines) if line.get("learned") == 1)
    lines[second] |= change
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = load(tmp_path)
    states = {run.agent: run.state for run in comparison.runs}
    assert states == {"hypercrl": "done", "hypercrl-ewc": "failed"}
    error = next(run.error for run in comparison.runs if run.state == "failed")
    assert f"metrics.jsonl:{second + 1}" in str(error)
    assert said in str(error)
    assert [len(run.tasks) for run in runs_of(tmp_path).unfinished] == [1]  # what came before the damage is kept


# ---- which runs are compared


def test_a_run_that_stopped_is_in_no_mean(tmp_path: Path) -> None:
    references(tmp_path)
    write_run(tmp_path, "hypercrl", LOST)
    alone = rows_of(load(tmp_path))["hypercrl"]
    write_run(tmp_path, "hypercrl", KEPT[:2], seed=1, total=300)
    row = rows_of(load(tmp_path))["hypercrl"]
    assert (alone["unfinished"], row["finished"], row["unfinished"]) == (0, 1, 1)
    assert {key: row[key] for key in row if key != "unfinished"} == {k: alone[k] for k in alone if k != "unfinished"}
    write_run(tmp_path, "hypercrl", KEPT, seed=2)
    assert rows_of(load(tmp_path))["hypercrl"]["return"] != alone["return"]  # one that went on does count


def test_a_run_killed_within_an_evaluation_ends_before_it(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", (*KEPT[:2], KEPT[2][:2]), total=300)
    (run,) = runs_of(tmp_path).unfinished
    assert ([task.name for task in run.tasks], run.returns.shape, run.complete) == (["light", "heavy"], (2, 2), True)


def test_a_run_with_a_hole_in_its_records_is_in_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", LOST)
    folder = write_run(tmp_path, "hypercrl", KEPT, seed=1)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    hole = next(number for number, line in enumerate(lines) if '"learned": 2, "position": 1' in line)
    (folder / "metrics.jsonl").write_text("".join(lines[:hole] + lines[hole + 1 :]))
    runs = runs_of(tmp_path)
    assert [run.seed for run in runs.finished] == [0]
    assert [(run.seed, run.state, run.complete) for run in runs.unfinished] == [(1, "done", False)]


@pytest.mark.parametrize("names", [("heavy", "light", "long"), ("light", "heavy"), ("light", "heavy", "short")])
def test_a_run_through_other_tasks_is_set_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    for seed in range(2):
        write_run(tmp_path, "hypercrl", LOST, seed=seed)
    before = rows_of(load(tmp_path))["hypercrl"]
    write_run(tmp_path, "odd", KEPT[: len(names)], names=names)
    runs = runs_of(tmp_path)
    assert [run.agent for run in runs.others] == ["odd"]
    assert runs.agents == ("hypercrl",)
    assert rows_of(load(tmp_path)) == {"hypercrl": before}


def test_without_a_finished_run_the_sequence_is_that_of_the_furthest(tmp_path: Path) -> None:
    for seed, reached in enumerate((1, 2)):
        write_run(tmp_path, "hypercrl", KEPT[:reached], seed=seed, total=300)
    runs = runs_of(tmp_path)
    assert [task.name for task in runs.tasks] == ["light", "heavy"]
    assert len(runs.unfinished) == 2
    assert rows_of(load(tmp_path))["hypercrl"]["return"] is None


# ---- the summary


def test_scores_are_normalised_by_task(tmp_path: Path) -> None:
    references(tmp_path)
    write_run(tmp_path, "hypercrl", LOST)
    rows = rows_of(load(tmp_path))
    row = rows["hypercrl"]
    assert row["return"] == pytest.approx(-250)
    assert row["score"] == pytest.approx((0.1 + 0.7 + 1.0) / 3)
    assert row["forgetting"] == pytest.approx((0.9 + 0.3) / 2)
    assert row["forgetting_return"] == pytest.approx((90 + 60) / 2)
    assert row["forward"] == pytest.approx(0.0)
    assert [rows["random"][key] for key in ("score", "forgetting", "forward")] == pytest.approx([0, 0, -1])
    assert [rows["hypercrl-single"][key] for key in ("score", "forgetting", "forward")] == pytest.approx([1, 0, 0])


def test_the_order_of_the_rows_is_what_forgetting_is_about(tmp_path: Path) -> None:
    """The same numbers with first and last measurement of each task exchanged: what was lost is gained."""
    references(tmp_path)
    write_run(tmp_path, "hypercrl", LOST)
    write_run(tmp_path, "shuffled", ((-190.0,), (-150.0, -260.0), (-100.0, -200.0, -300.0)))
    rows = rows_of(load(tmp_path))
    assert rows["shuffled"]["forgetting"] == pytest.approx(-float(rows["hypercrl"]["forgetting"] or 0))
    assert rows["shuffled"]["forgetting"] != rows["hypercrl"]["forgetting"]


def test_the_worst_seed_stands_beside_the_mean(tmp_path: Path) -> None:
    references(tmp_path)
    write_run(tmp_path, "hypercrl", KEPT)
    write_run(tmp_path, "hypercrl", LOST, seed=1)
    row = rows_of(load(tmp_path))["hypercrl"]
    assert (row["score"], row["score_worst"]) == (pytest.approx(0.8), pytest.approx(0.6))
    assert (row["forgetting"], row["forgetting_worst"]) == (pytest.approx(0.3), pytest.approx(0.6))
    assert (row["return"], row["return_worst"]) == (-225, -250)


def test_a_task_without_a_span_is_left_out_of_every_score(tmp_path: Path) -> None:
    write_run(tmp_path, "random", ((-50.0,), (-50.0, -400.0), (-50.0, -400.0, -600.0)))  # better than single on one
    write_run(tmp_path, "hypercrl-single", KEPT)
    write_run(tmp_path, "hypercrl", LOST)
    row = rows_of(load(tmp_path))["hypercrl"]
    assert runs_of(tmp_path).scored.tolist() == [False, True, True]
    assert row["score"] == pytest.approx((0.7 + 1.0) / 2)
    assert row["forgetting"] == pytest.approx(0.3)
    assert row["forgetting_return"] == pytest.approx(75)


@pytest.mark.parametrize("missing", ["random", "hypercrl-single"])
def test_without_a_reference_there_is_no_score(tmp_path: Path, missing: str) -> None:
    write_run(tmp_path, "hypercrl", LOST)
    write_run(tmp_path, {"random": "hypercrl-single", "hypercrl-single": "random"}[missing])
    row = rows_of(load(tmp_path))["hypercrl"]
    assert [row[key] for key in ("score", "forgetting", "forward")] == [None] * 3
    assert row["forgetting_return"] == pytest.approx(75)


def test_errors_are_means_over_the_old_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", errors={1: ((0.1,), (9.0, 0.3), (0.5, 0.9, 7.0))})
    row = rows_of(load(tmp_path))["hypercrl"]
    assert (row["error_at_1_just"], row["error_at_1_end"]) == (pytest.approx(0.2), pytest.approx(0.7))
    assert (row["diverged"], row["rollouts"]) == (0, 6 * 256)


def test_diverged_rollouts_are_counted_and_leave_no_mean_behind(tmp_path: Path) -> None:
    whole, holed = ((0.1,), (0.2, 0.3), (0.5, 0.9, 0.1)), ((0.1,), (0.2, 0.3), (None, 0.9, 0.1))
    write_run(tmp_path, "hypercrl", errors={25: whole})
    write_run(tmp_path, "hypercrl", seed=1, errors={25: holed}, diverged=((0,), (7, 0), (256, 1, 0)))
    row = rows_of(load(tmp_path))["hypercrl"]
    assert (row["error_at_25_just"], row["error_at_25_end"]) == (pytest.approx(0.2), None)
    assert (row["diverged"], row["rollouts"]) == (264, 2 * 6 * 256)


def test_an_agent_without_a_model_has_no_rollouts(tmp_path: Path) -> None:
    references(tmp_path)
    row = rows_of(load(tmp_path))["random"]
    assert (row["diverged"], row["rollouts"]) == (None, None)


def test_costs_are_those_of_the_last_task(tmp_path: Path) -> None:
    for seed, last in enumerate((20.0, 40.0)):
        write_run(tmp_path, "hypercrl", seed=seed, seconds=(5.0, 10.0, last))
    row = rows_of(load(tmp_path))["hypercrl"]
    assert [row[key] for key in ("seconds_second", "seconds_last", "seconds_ratio")] == [10, 30, 3]
    assert [row[key] for key in ("bytes", "kept_bytes", "shared_bytes", "stored_rows")] == [4096, 1024, 8192, 500]


def test_two_tasks_have_no_growth_to_tell(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", KEPT[:2], names=NAMES[:2])
    row = rows_of(load(tmp_path))["hypercrl"]
    assert (row["seconds_last"], row["seconds_ratio"]) == (10, None)
