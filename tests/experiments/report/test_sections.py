"""What the sections of a report say about comparisons whose winner is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import comparison, run

from experiments.pages.parts import Choice, Figure, Fold, Notice, Page, Section, Table, Text
from experiments.pages.render import walk
from experiments.report._status import AgentSettings, Dropped, EnvSettings, SuiteSettings
from experiments.report.comparison import Comparison
from experiments.report.sections import SECTIONS
from experiments.report.sections.aggregates import aggregates
from experiments.report.sections.configuration import configuration
from experiments.report.sections.cost import cost
from experiments.report.sections.curves import curves
from experiments.report.sections.environments import environments
from experiments.report.sections.failures import failures
from experiments.report.sections.improvement import improvement
from experiments.report.sections.model import model
from experiments.report.sections.profiles import profiles
from experiments.report.sections.provenance import provenance
from experiments.report.sections.summary import summary


def drawings(made: Comparison) -> list[Figure]:
    sections = [found for section in SECTIONS if (found := section(made)) is not None]
    return [part for part in walk(Page("", "", sections)) if isinstance(part, Figure)]


def parts(section: Section | None, kind: type) -> list:
    assert section is not None
    return [part for part in walk(Page("", "", [section])) if isinstance(part, kind)]


def said(section: Section | None) -> str:
    assert section is not None
    texts = [part.text for kind in (Text, Notice) for part in parts(section, kind)]
    return " ".join([section.lead, *texts])


def table(section: Section | None, name: str) -> list[dict]:
    (found,) = [part for part in parts(section, Table) if part.name == name]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def gids(figure: Figure) -> set[str]:
    return {str(artist.get_gid()) for artist in figure.figure.findobj() if artist.get_gid()}


def with_bad_run(state: str, points: int = 2, **changes: object) -> Comparison:
    made = comparison({"good": 90.0, "poor": 30.0})
    bad = run("good", "Pole-v1", 9, 5.0, points=points, state=state, **changes)
    return replace(made, runs=[*made.runs, bad])


def test_a_clear_winner_is_called_one() -> None:
    made = comparison({"poor": 30.0, "good": 90.0})
    assert "good is the clear winner" in said(summary(made))
    assert "poor (every run above every other; p below 0.0001)" in said(summary(made))
    (row,) = table(improvement(made), "improvement-pairs")
    assert row["verdict"] == "good is better"
    assert row["to"] < 0.5
    assert row["p"] == pytest.approx(2 / 252**2, rel=1e-5)
    assert row["p, corrected for all pairs"] == row["p"]


def test_a_winner_by_little_is_not_called_clear() -> None:
    text = said(summary(comparison({"good": 60.3, "poor": 60.0}, seeds=20)))
    assert "good is the winner, by a narrow margin" in text
    assert "in fewer than 3 of 4 cases" in text
    assert "clear" not in text


def test_the_same_agent_under_two_names_is_no_winner() -> None:
    made = comparison({"once": 60.0, "again": 60.0})
    text = said(summary(made))
    assert "no significant difference between once and again" in text
    assert "winner" not in text
    (row,) = table(improvement(made), "improvement-pairs")
    assert row["from"] < 0.5 < row["to"]
    assert row["verdict"] == "no significant difference"
    assert row["p"] > 0.05


def test_a_lead_that_luck_explains_makes_no_winner() -> None:
    """Its interval leaves out 0.5, and once that was enough."""
    returns = {"once": (3.0, 4.0, 7.0, 8.0, 9.0), "again": (0.0, 1.0, 2.0, 5.0, 6.0)}
    made = comparison({"once": 0.0, "again": 0.0}, envs=["Pole-v1"])
    runs = [
        replace(run, evaluations=(replace(run.evaluations[-1], returns=(returns[run.agent][run.seed],)),))
        for run in made.runs
    ]
    found = replace(made, runs=runs)
    (row,), text = table(improvement(found), "improvement-pairs"), said(summary(found))
    assert row["from"] > 0.5
    assert row["p"] > 0.05
    assert row["verdict"] == "no significant difference"
    assert "no significant difference between once and again" in text
    assert "1.00; p 0.095" in text


def test_how_verdicts_are_reached_is_said() -> None:
    two, three = (said(improvement(comparison(dict.fromkeys(names, 60.0)))) for names in ("ab", "abc"))
    assert "decide nothing" in two
    assert "permutation test" in two
    assert "corrected" not in two
    assert "corrected for the 3 pairs judged here" in three


def test_one_seed_decides_nothing_and_has_no_interval() -> None:
    made = comparison({"good": 90.0, "poor": 30.0}, seeds=1)
    assert "too few seeds" in said(summary(made))
    (row,) = table(improvement(made), "improvement-pairs")
    assert (row["from"], row["to"], row["verdict"]) == (None, None, "too few runs to tell")
    assert all(row["IQM, 95 % interval"] is None for row in table(aggregates(made), "aggregates"))
    drawn = drawings(made)
    assert drawn
    assert not [gid for figure in drawn for gid in gids(figure) if "interval" in gid or "band" in gid]
    assert any("seed 0" in gid for figure in drawn for gid in gids(figure))


def test_five_seeds_have_intervals_and_bands() -> None:
    made = comparison({"good": 90.0, "poor": 30.0})
    assert all(row["IQM, 95 % interval"] for row in table(aggregates(made), "aggregates"))
    drawn = drawings(made)
    kinds = {gid.split(":")[-1].split()[0] for figure in drawn for gid in gids(figure)}
    assert {"band", "interval", "line", "point", "legend"} <= kinds


@pytest.mark.parametrize(("state", "kind"), [("failed", "failure"), ("unfinished", "warning"), ("missing", "warning")])
def test_a_run_that_did_not_end_well_is_named_in_the_summary(state: str, kind: str) -> None:
    notices = [part for part in parts(summary(with_bad_run(state)), Notice) if part.kind == kind]
    assert "good on Pole-v1, seed 9" in notices[0].text
    assert not [p for p in parts(summary(comparison({"good": 1.0, "poor": 0.0})), Notice) if p.kind != "note"]


def test_a_failed_run_is_told_in_full_and_averaged_nowhere() -> None:
    made = with_bad_run("failed", error="Traceback\n  line\nValueError: the simulation blew up")
    (fold,) = parts(failures(made), Fold)
    assert "Traceback" in fold.parts[0].text
    assert table(failures(made), "failures")[0]["error"] == "ValueError: the simulation blew up"
    row = table(environments(made), "environments")[0]
    assert row["finished seeds"] == 5
    assert row["mean"] > 80
    assert "(failed)" in row["each seed"]
    caption = next(part.caption for part in parts(curves(made), Figure) if "Pole" in part.name)
    assert "good seed 9 (failed)" in caption
    assert failures(comparison({"good": 90.0})) is None


def test_a_run_that_is_missing_altogether_breaks_nothing() -> None:
    made = with_bad_run("missing", points=0, config={}, versions={}, fits=())
    for section in SECTIONS:
        section(made)
    assert "none (missing)" in table(environments(made), "environments")[0]["each seed"]


def test_sections_with_nothing_to_say_vanish() -> None:
    empty = replace(comparison({"good": 90.0, "poor": 30.0}, seeds=0), references={})
    left = [section.__name__ for section in SECTIONS if section(empty) is not None]
    assert left == ["summary"]


def test_without_references_a_sentence_says_so() -> None:
    made = replace(comparison({"good": 90.0, "poor": 30.0}), references={})
    assert "no reference returns" in said(aggregates(made))
    assert not parts(aggregates(made), Figure)
    assert profiles(made) is None
    assert "normalised mean" not in table(environments(made), "environments")[0]


def test_an_agent_that_did_not_run_everywhere_is_left_out_by_name() -> None:
    made = comparison({"good": 90.0, "poor": 30.0})
    partial = replace(made, runs=[run for run in made.runs if (run.agent, run.env) != ("poor", "Cart-v1")])
    assert "poor" in next(iter(parts(aggregates(partial), Notice))).text
    assert [row["agent"] for row in table(aggregates(partial), "aggregates")] == ["good"]
    assert table(improvement(partial), "improvement-pairs")[0]["environments"] == "Pole-v1"


def test_curves_can_be_seen_over_each_axis_that_moves() -> None:
    (choice,) = parts(curves(comparison({"good": 90.0})), Choice)
    assert list(choice.options) == ["env steps", "updates", "training seconds"]
    by_updates = curves(comparison({"good": 90.0}, axis="updates"))
    assert next(iter(parts(by_updates, Choice)[0].options)) == "updates"


def test_curves_over_seconds_average_runs_that_took_different_times() -> None:
    figure = next(part for part in parts(curves(comparison({"good": 90.0})), Figure) if "Pole-v1-seconds" in part.name)
    (line,) = [line for line in figure.figure.axes[0].lines if line.get_gid() == "agent:good:line"]
    assert np.allclose(line.get_xdata(), np.arange(1, 7) * 12.0)  # 10 to 14 seconds for 1000 steps


def test_an_offline_agent_is_a_level_beside_online_ones() -> None:
    made = comparison({"online": 90.0, "offline": 50.0})
    still = [
        replace(run, evaluations=tuple(replace(point, env_steps=0) for point in run.evaluations))
        if run.agent == "offline"
        else run
        for run in made.runs
    ]
    drawn = {part.name: gids(part) for part in parts(curves(replace(made, runs=still)), Figure)}
    assert "agent:offline:level" in drawn["curves-Pole-v1-env_steps"]
    assert "agent:offline:line" in drawn["curves-Pole-v1-updates"]
    assert "agent:online:level" not in drawn["curves-Pole-v1-env_steps"]


def test_returns_of_datasets_are_landmarks() -> None:
    made = comparison({"good": 90.0}, datasets={"Pole-v1": {"expert": 99.0}})
    texts = {part.name: [text.get_text() for text in part.figure.axes[0].texts] for part in parts(curves(made), Figure)}
    assert texts["curves-Pole-v1-env_steps"] == ["dataset expert"]
    assert texts["curves-Cart-v1-env_steps"] == []
    assert table(curves(made), "datasets") == [{"environment": "Pole-v1", "dataset": "expert", "return": 99.0}]
    captions = {part.name: part.caption for part in parts(curves(made), Figure)}
    assert "the return of dataset expert at 99.00" in captions["curves-Pole-v1-env_steps"]
    assert "dataset" not in captions["curves-Cart-v1-env_steps"]
    assert not parts(curves(replace(made, datasets={})), Table)


def test_best_is_beside_last_and_says_what_it_is() -> None:
    made = comparison({"good": 90.0}, seeds=1)
    peak = replace(made.runs[0].evaluations[2], returns=(500.0,))
    points = (*made.runs[0].evaluations[:2], peak, *made.runs[0].evaluations[3:])
    row = table(environments(replace(made, runs=[replace(made.runs[0], evaluations=points)])), "environments")[0]
    assert row["mean"] == pytest.approx(90, abs=3)
    assert row["best of any evaluation (picked afterwards)"] == 500.0


def test_measures_of_models_are_drawn_and_losses_are_not() -> None:
    names = [part.name for part in parts(model(comparison({"good": 90.0})), Figure)]
    assert names[:3] == ["model-Pole-v1-error_at_1", "model-Pole-v1-error_at_8", "model-Pole-v1-coverage_90"]
    assert len(names) == 6
    without = comparison({"good": 90.0})
    assert model(replace(without, runs=[replace(run, fits=()) for run in without.runs])) is None


def test_seconds_to_a_good_return_are_those_of_the_first_evaluation_there() -> None:
    rows = table(cost(comparison({"good": 100.0, "poor": 30.0}, envs=["Pole-v1"])), "cost")
    assert (rows[0]["seconds to 0.9"], rows[0]["reached 0.9"]) == (72, "5 of 5")
    assert (rows[1]["seconds to 0.9"], rows[1]["reached 0.9"]) == (None, "0 of 5")
    assert rows[0]["env steps a second"] == pytest.approx(6000 / 72)
    assert rows[0]["peak memory, MiB"] == 300


def test_differences_of_configuration_are_listed() -> None:
    (row,) = table(configuration(comparison({"good": 90.0, "poor": 30.0})), "configuration")
    assert row == {"setting": "agent", "good": "agents.good", "poor": "agents.poor"}


def test_what_the_suite_set_is_listed() -> None:
    settings = SuiteSettings(
        every={"evaluation.every": 500},
        agents={"good": AgentSettings("pets", {"agent.model.hidden": 64}), "poor": AgentSettings("random")},
        envs={"Pole-v1": EnvSettings(6000, {"env.kwargs": {"x": 1}})},
    )
    made = replace(comparison({"good": 90.0, "poor": 30.0}), settings=settings)
    assert [tuple(row.values()) for row in table(configuration(made), "suite")] == [
        ("every run", "evaluation.every", "500"),
        ("environment Pole-v1", "steps", "6000"),
        ("environment Pole-v1", "env.kwargs", '{"x": 1}'),
        ("agent good", "recipe", "pets"),
        ("agent good", "agent.model.hidden", "64"),
        ("agent poor", "recipe", "random"),
    ]
    alone = replace(made, runs=[run for run in made.runs if run.agent == "good"])
    assert [part.name for part in parts(configuration(alone), Table)] == ["suite"]
    assert configuration(replace(alone, settings=None)) is None


def test_runs_that_are_not_asked_for_any_more_are_listed() -> None:
    made = replace(comparison({"good": 90.0}), dropped=[Dropped("old", "Pole-v1", 3, "runs/Pole-v1/old/seed3-0a")])
    assert "1 run on disk is not part of this suite any more" in said(summary(made))
    wanted = {"agent": "old", "environment": "Pole-v1", "seed": 3, "folder": "runs/Pole-v1/old/seed3-0a"}
    assert table(failures(made), "dropped") == [wanted]
    assert "No run failed" in said(failures(made))
    bad = replace(with_bad_run("failed"), dropped=made.dropped)
    assert [part.name for part in parts(failures(bad), Table)] == ["failures", "dropped"]
    assert "any more" not in said(summary(comparison({"good": 90.0})))


def test_a_scale_made_of_the_same_runs_is_said_to_be_one() -> None:
    given = comparison({"good": 90.0, "random": 30.0})
    own = replace(given, references={env: replace(ref, own=True) for env, ref in given.references.items()})
    chosen = "chosen from the same runs"
    assert chosen in said(aggregates(own))
    assert chosen in parts(profiles(own), Figure)[0].caption
    assert "chosen from these runs" in parts(summary(own), Table)[0].caption
    for section in SECTIONS:
        assert "chosen from" not in str(section(given))


def test_every_run_has_its_command_and_two_commits_are_a_warning() -> None:
    made = comparison({"good": 90.0}, seeds=2)
    code = parts(provenance(made), Fold)[0].parts[0].text
    assert "mbrl train Pole-v1/good/seed0/config.yaml --out again/Pole-v1/good/seed0" in code
    assert len(code.splitlines()) == 4
    assert not parts(provenance(made), Notice)
    other = replace(made.runs[0], versions={"git": {"commit": "f" * 40, "changed": True}})
    warned = parts(provenance(replace(made, runs=[other, *made.runs[1:]])), Notice)
    assert [notice.kind for notice in warned] == ["warning", "warning"]
