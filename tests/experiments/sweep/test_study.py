"""Suggestions and verdicts: the same for the same evaluations, however often the process is killed in between."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments.sweep.ledger import Ledger, Trial
from experiments.sweep.result import best_of, ranked
from experiments.sweep.spaces import parse_space
from experiments.sweep.study import Rules, Study
from mbrl import seeding

SPACES = {
    "agent.lr": parse_space("agent.lr", "log(1e-4, 1e-2)"),
    "agent.size": parse_space("agent.size", "[8, 16, 32]"),
}
RULES = Rules(SPACES, seed=0, mode="max", steps=1000, grace=100, reduction=3)
TRIALS = 24


def metric(trial: Trial, steps: int) -> float:
    """How good a pretended trial is; its 5th breaks down."""
    if trial.number == 4 and steps >= 300:
        return math.nan
    return -abs(math.log10(float(trial.params["agent.lr"]) / 0.002)) - 100.0 / steps


class Killed(Exception):
    """The process is gone."""


def go_through(path: Path, rules: Rules = RULES, alive: Callable[[], None] = lambda: None) -> Ledger:
    """One process of a sweep, a trial at a time; ``alive`` may raise :class:`Killed` between any two lines."""
    ledger = Ledger(path)
    study = Study(rules, ledger)
    todo = [trial.number for trial in ledger.trials.values() if trial.state == "open"]
    while todo or len(ledger.trials) < TRIALS:
        trial = ledger.trials[todo.pop(0) if todo else study.suggest()]
        alive()
        for steps in range(100, rules.steps + 1, 100):
            verdict = study.report(trial.number, steps, metric(trial, steps), last=steps == rules.steps)
            alive()
            if trial.number == 3 and steps == 200:
                study.fail(trial.number, "Traceback\nValueError: three")
            if verdict != "go" or trial.error:
                break
    return ledger


def test_killed_anywhere_it_is_line_for_line_the_same_sweep(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    go_through(whole)
    generator, kills = seeding.generator(0, "kills"), 0

    def alive() -> None:
        import torch

        if torch.rand((), generator=generator) < 0.08:
            with killed.open("ab") as file:
                file.write(b'{"trial": 3, "ste')  # a line that was being written
            raise Killed

    while True:
        try:
            ledger = go_through(killed, alive=alive)
            break
        except Killed:
            kills += 1
    assert kills > 5
    assert killed.read_bytes() == whole.read_bytes()
    states = [trial.state for trial in ledger.trials.values()]
    assert len(states) == TRIALS
    assert states.count("failed") == 1
    assert states.count("pruned") > 8
    assert states.count("finished") > 2
    assert len({json.dumps(dict(trial.params)) for trial in ledger.trials.values()}) == TRIALS


def test_another_seed_or_mode_is_another_sweep(tmp_path: Path) -> None:
    go_through(tmp_path / "a.jsonl")
    for name, rules in {"seed": replace(RULES, seed=1), "mode": replace(RULES, mode="min")}.items():
        go_through(tmp_path / name, rules)
        assert (tmp_path / name).read_bytes() != (tmp_path / "a.jsonl").read_bytes()


def test_a_ledger_that_these_rules_do_not_give_is_refused(tmp_path: Path) -> None:
    go_through(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"trial 0 would now be .* another version of optuna"):
        Study(replace(RULES, seed=1), Ledger(tmp_path / "a.jsonl"))
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace('"verdict"', '"verdkt"', 1))
    with pytest.raises(UserError, match="did not write this line"):
        Ledger(tmp_path / "a.jsonl")


def test_the_search_learns_from_the_evaluations(tmp_path: Path) -> None:
    def far(trials: list[Trial]) -> float:
        return sum(abs(math.log10(float(trial.params["agent.lr"]) / 0.002)) for trial in trials) / len(trials)

    trials = [*go_through(tmp_path / "a.jsonl").trials.values()]
    assert far(trials[12:]) < 0.7 * far(trials[:12])


def test_a_bad_trial_is_pruned_at_a_rung_and_nowhere_else(tmp_path: Path) -> None:
    study = Study(RULES, Ledger(tmp_path / "a.jsonl"))
    for quality in (3.0, 2.0, 1.0):
        number = study.suggest()
        if quality > 1.0:
            study.report(number, 100, quality, last=False)
    assert study.report(2, 50, -9.0, last=False) == "go"
    assert study.report(2, 100, 1.0, last=False) == "prune"
    assert study.report(0, 200, -9.0, last=False) == "go"
    assert study.report(0, 300, 3.0, last=False) == "go"
    never = Study(replace(RULES, grace=RULES.steps), Ledger(tmp_path / "b.jsonl"))
    for quality in (3.0, 2.0, 1.0):
        number = never.suggest()
        assert {never.report(number, steps, quality, last=False) for steps in (100, 500, 900)} == {"go"}
        assert never.report(number, 1000, quality, last=True) == "finish"


def test_what_was_decided_stays_decided(tmp_path: Path) -> None:
    study = Study(RULES, Ledger(tmp_path / "a.jsonl"))
    number = study.suggest()
    assert study.report(number, 100, 1.0, last=False) == "go"
    assert study.report(number, 200, math.inf, last=False) == "prune"
    before = (tmp_path / "a.jsonl").read_bytes()
    assert study.report(number, 100, -5.0, last=False) == "go"
    assert study.report(number, 200, 2.0, last=False) == "prune"
    study.fail(number, "too late")
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_the_best_is_complete_and_finite(tmp_path: Path) -> None:
    study = Study(RULES, Ledger(tmp_path / "a.jsonl"))
    for value, last in ((5.0, False), (1.0, True), (2.0, True), (2.0, True), (math.nan, True)):
        study.report(study.suggest(), 1000 if last else 100, value, last)
    trials = [*study.ledger.trials.values()]
    assert best_of(trials, "max") is trials[2]
    assert best_of(trials, "min") is trials[1]
    assert best_of(trials[:1], "max") is None
    assert [trial.number for trial in ranked(trials, "max")] == [2, 3, 1, 4, 0]


def test_a_learner_that_resumes_beside_its_steps_keeps_its_verdicts(tmp_path: Path) -> None:
    study = Study(RULES, Ledger(tmp_path / "ledger.jsonl"))
    for value in (0.0, 1.0, 2.0, -5.0):
        number = study.suggest()
        verdict = study.report(number, 100, value, last=False)
    assert verdict == "prune"
    lines = len(study.ledger.lines)
    assert study.report(number, 101, 9.0, last=False) == "prune"  # pruned stays pruned, however good it looks now
    assert study.report(0, 99, 9.0, last=False) == "go"  # before what is known
    assert len(study.ledger.lines) == lines
    assert study.report(0, 201, 9.0, last=False) == "go"
    assert len(study.ledger.lines) == lines + 1
