"""Runs that learned from data beside runs that acted: what is drawn where, what is compared with what, what is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from offline_runs_on_disk import ENV, ROWS, mixed, offline, online

from experiments.pages.parts import Code, Figure, Notice, Page, Section, Table, Text
from experiments.pages.render import walk
from experiments.report._learned import Values
from experiments.report.build import build_report
from experiments.report.comparison import Comparison, load, rows
from experiments.report.sections import SECTIONS
from experiments.report.sections._pairs import pairs
from experiments.report.sections.aggregates import aggregates
from experiments.report.sections.configuration import configuration
from experiments.report.sections.cost import cost
from experiments.report.sections.curves import curves
from experiments.report.sections.data import data, short_names
from experiments.report.sections.environments import environments
from experiments.report.sections.summary import summary


def parts(section: Section | None, kind: type) -> list[Any]:
    assert section is not None
    return [part for part in walk(Page("", "", [section])) if isinstance(part, kind)]


def said(section: Section | None) -> str:
    assert section is not None
    return " ".join([section.lead, *(part.text for kind in (Text, Notice) for part in parts(section, kind))])


def table(section: Section | None, name: str) -> list[dict[str, Any]]:
    (found,) = [part for part in parts(section, Table) if part.name == name]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def figure(section: Section | None, name: str) -> Figure:
    (found,) = [part for part in parts(section, Figure) if part.name == name]
    assert isinstance(found, Figure)
    return found


def line_of(drawn: Figure, gid: str) -> Any:
    (found,) = [line for line in drawn.figure.axes[0].lines if line.get_gid() == gid]
    return found


@pytest.fixture
def made(tmp_path: Path) -> Comparison:
    return load(mixed(tmp_path / "runs"))


def without_data(made: Comparison) -> Comparison:
    """The control: the same page of the agents that only acted."""
    kept = [run for run in made.runs if run.agent in ("sac", "mbpo")]
    return replace(made, runs=kept, agents=["mbpo", "sac"])


# ---- what is read


def test_who_learned_from_what_is_read(made: Comparison) -> None:
    mobile, continued, sac = (made.of(agent, ENV)[1] for agent in ("mobile", "continued", "sac"))
    assert (mobile.offline, continued.offline, sac.offline) == (True, False, False)
    assert mobile.data is not None
    assert mobile.data == continued.data
    assert (mobile.data.rows, mobile.data.references) == (ROWS, (0.0, 200.0))
    assert (continued.earlier, continued.inherited) == ("mobile", mobile.evaluations[-1])
    assert (sac.data, sac.inherited, sac.values) == (None, None, None)
    assert mobile.values is not None
    assert mobile.values.q == ((10_000, 20.0), (20_000, 40.0))
    assert (made.references[ENV].low, made.references[ENV].high) == (0.0, 200.0)
    row = next(row for row in rows(made) if (row["agent"], row["seed"]) == ("continued", 1))
    assert (row["rows_of_data"], row["continues"], row["inherited"], row["last_normalized"]) == (
        ROWS,
        "mobile",
        120,
        0.9,
    )
    assert "rows_of_data" not in rows(without_data(made))[0]


def test_seeds_of_a_continuation_are_one_agent_and_runs_may_be_moved(tmp_path: Path) -> None:
    mixed(tmp_path / "runs", seeds=3)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere")
    assert moved.agents == ["continued", "mbpo", "mobile", "sac"]
    inherited = [run.inherited.mean for run in moved.of("continued", ENV) if run.inherited is not None]
    assert inherited == [100.0, 120.0, 140.0], "each that of its own seed"


def test_a_run_that_is_continued_may_lie_elsewhere_or_be_gone(tmp_path: Path) -> None:
    earlier = offline(tmp_path / "old", 0, 100.0)
    online(tmp_path / "new", "continued", 0, (140.0,), start_from=earlier)
    (run,) = load(tmp_path / "new").runs
    assert (run.earlier, run.inherited and run.inherited.mean, run.data and run.data.rows) == (
        "mobile/seed0",
        100,
        ROWS,
    )
    shutil.rmtree(tmp_path / "old")
    gone = load(tmp_path / "new")
    assert (gone.runs[0].earlier, gone.runs[0].inherited, gone.runs[0].data) == ("mobile/seed0", None, None)
    assert {section(gone) is None for section in SECTIONS} == {True, False}


# ---- curves


def test_offline_runs_are_levels_and_have_their_own_figure(made: Comparison) -> None:
    drawn = figure(curves(made), f"curves-{ENV}-env_steps")
    level = line_of(drawn, "agent:mobile:level")
    assert set(level.get_ydata()) == {110.0}, "the mean of the last evaluations"
    assert level.get_linestyle() != "-"
    texts = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert texts == ["continued", "mbpo", "mobile (from data)", "sac"]
    own = figure(curves(made), f"curves-{ENV}-from-data")
    assert {line.get_gid() for line in own.figure.axes[0].lines} == {"agent:mobile:seed 0", "agent:mobile:seed 1"}
    assert own.figure.axes[0].get_xlabel() == "gradient steps"
    names = [part.name for part in parts(curves(without_data(made)), Figure)]
    assert f"curves-{ENV}-from-data" not in names


def test_a_continuation_begins_with_what_it_inherited(made: Comparison) -> None:
    drawn = figure(curves(made), f"curves-{ENV}-env_steps")
    assert line_of(drawn, "agent:continued:seed 1").get_xdata().tolist() == [0, 1000, 2000]
    assert line_of(drawn, "agent:continued:seed 1").get_ydata().tolist() == [120, 140, 180]
    assert line_of(drawn, "agent:sac:seed 1").get_xdata().tolist() == [1000, 2000]
    assert "continued goes on from mobile" in drawn.caption
    assert "goes on" not in figure(curves(without_data(made)), f"curves-{ENV}-env_steps").caption


# ---- like with like


def test_those_that_acted_are_not_judged_against_those_that_did_not(made: Comparison) -> None:
    judged = {frozenset((pair.first, pair.second)) for pair in pairs(made)}
    assert judged == {frozenset(two) for two in (("continued", "mbpo"), ("continued", "sac"), ("mbpo", "sac"))}
    text = said(summary(made))
    assert "mobile learned from data alone and took no env step" in text
    assert "Acted in the environment (continued, mbpo and sac): There are too few seeds" in text
    assert "continued goes on from mobile and its data" in text
    names = {part.name for part in parts(aggregates(made), Table)}
    assert names == {"aggregates-acted", "aggregates-from-data", "references"}
    assert [row["agent"] for row in table(aggregates(made), "aggregates-from-data")] == ["mobile"]


def test_several_that_learned_from_data_are_judged_among_themselves(tmp_path: Path) -> None:
    root = mixed(tmp_path / "runs", seeds=5)
    for seed in range(5):
        offline(root, seed, 10.0 + seed, label="poor", data="/data/Pole-v1/medium-v0")
    text = said(summary(load(root)))
    assert "Learned from data alone (mobile and poor): mobile is the clear winner" in text


def test_tables_say_what_each_agent_had(made: Comparison) -> None:
    for section, name in ((environments(made), "environments"), (summary(made), "summary")):
        had = {row["agent"]: (row["env steps"], row["rows of data"]) for row in table(section, name)}
        assert had == {"mobile": (0, ROWS), "continued": (2000, ROWS), "sac": (2000, 0), "mbpo": (2000, 0)}
    rows_of = {row["agent"]: row["rows of data"] for row in table(aggregates(made), "aggregates-acted")}
    assert rows_of == {"continued": ROWS, "mbpo": 0, "sac": 0}
    assert "continued took does not count the run that was continued" in said(cost(made))
    differing = {row["setting"]: row for row in table(configuration(made), "configuration")}
    assert differing["start_from"]["continued"] == "mobile"


def test_pages_of_agents_that_only_acted_stay_as_they_were(made: Comparison) -> None:
    alone = without_data(made)
    assert "rows of data" not in table(environments(alone), "environments")[0]
    assert "rows of data" not in table(summary(alone), "summary")[0]
    assert {part.name for part in parts(aggregates(alone), Table)} == {"aggregates", "references"}
    assert "data" not in said(summary(alone))
    assert data(alone) is None


# ---- learning from data


def test_scores_stand_by_dataset_and_agents_that_differ_in_it_share_a_column(tmp_path: Path) -> None:
    for seed in range(2):
        offline(tmp_path, seed, 100.0 + 20.0 * seed, label="medium")
        offline(tmp_path, seed, 180.0, label="expert", data="/data/Pole-v1/expert-v0")
    scores = table(data(load(tmp_path)), "data-scores")
    assert scores == [
        {"dataset": "Pole-v1/expert-v0", "environment": ENV, "rows": ROWS, "mobile": "90.0 ± 0.0"},
        {"dataset": "Pole-v1/medium-v0", "environment": ENV, "rows": ROWS, "mobile": "55.0 ± 7.1"},
        {"dataset": "average", "environment": "", "rows": None, "mobile": "72.5"},
    ]
    assert table(data(load(tmp_path)), "data-returns")[1]["mobile"] == "110.0 ± 14.1"


def test_a_seed_that_is_not_finished_is_counted_and_not_averaged(tmp_path: Path) -> None:
    offline(tmp_path, 0, 100.0)
    cut = offline(tmp_path, 1, 20.0) / "metrics.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:3]))
    (row,) = table(data(load(tmp_path)), "data-scores")
    assert row["mobile"] == "50.0 (1 of 2 seeds)"


def test_what_acting_added_is_told(made: Comparison) -> None:
    (row,) = table(data(made), "data-continued")
    told = (row["goes on from"], row["return at env step 0"], row["env steps"], row["last return"], row["gain"])
    assert told == ("mobile", 110.0, 2000, 180.0, 70.0)
    assert row["each seed"] == "100.0 to 180.0, 120.0 to 180.0"


def test_values_outside_their_range_are_named(tmp_path: Path) -> None:
    section = data(load(mixed(tmp_path / "runs", q=(50.0, 150.0, None))))
    (notice,) = parts(section, Notice)
    assert "Values of mobile left the attainable range, 0.00 to 100.00, in 4 of 6 records (2 of 2 runs" in notice.text
    assert "at the end no number" in notice.text
    assert "grow" not in notice.text
    assert parts(section, Code)[0].text in [f"mbrl diagnose {ENV}/mobile/seed{seed} --oracle" for seed in (0, 1)]
    (row,) = table(section, "data-values")
    assert (row["value at the end"], row["records outside"]) == (None, "4 of 6")


def test_values_that_grow_towards_the_edge_are_named(tmp_path: Path) -> None:
    """Five steps at 0.99 turn 40 into 42.06 at most, where no reward is below 0."""
    (notice,) = parts(data(load(mixed(tmp_path / "grows", depths=(40.0, 44.0)))), Notice)
    assert "Values of mobile grow towards the edge of its rollouts: from 40.00 after 0 imagined steps" in notice.text
    control = data(load(mixed(tmp_path / "explained", depths=(40.0, 42.0))))
    assert not parts(control, Notice)
    assert "No agent's mean value left the range" in said(control)
    assert "none grows towards the edge" in said(control)
    (row,) = table(control, "data-depths")
    assert (row["after 0"], row["after 5"], row["growth"], row["edge share"]) == (40.0, 42.0, 2.0, 0.2)
    assert row["accounted for, at most"] == pytest.approx(40.0 * (0.99**-5 - 1.0))


def test_growth_is_not_judged_without_a_discount_or_rollouts() -> None:
    known = Values(0.0, 100.0, ((1, 40.0),), 0, depths={0: 40.0, 5: 44.0}, gamma=0.99)
    assert known.grows
    assert not replace(known, gamma=None).grows
    assert not replace(known, depths={}).grows


def test_values_without_rollouts_make_one_figure_and_no_oracle(tmp_path: Path) -> None:
    section = data(load(mixed(tmp_path / "runs", depths=())))
    names = [part.name for part in parts(section, Figure)]
    assert names == [f"values-{ENV}-Pole-v1-medium-v0"]
    assert not parts(section, Code)
    assert "edge" not in said(section)


def test_data_that_changed_between_runs_is_a_warning(tmp_path: Path) -> None:
    for seed in range(2):
        offline(tmp_path, seed, 100.0, digest=f"{seed}")
    assert "were changed between runs" in said(data(load(tmp_path)))


def test_names_of_datasets_are_short_and_different() -> None:
    paths = ["/a/Hopper-v5/medium-v0", "/a/Hopper-v5/expert-v0", "mujoco/hopper/medium-v0"]
    assert [*short_names(paths).values()] == ["Hopper-v5/medium-v0", "Hopper-v5/expert-v0", "mujoco/hopper/medium-v0"]
    same = ["/a/Hopper-v5/medium-v0", "/b/Hopper-v5/medium-v0"]
    assert short_names(same) == {path: path for path in same}


def test_damaged_notes_of_data_and_values_are_nothing(tmp_path: Path) -> None:
    folder = offline(tmp_path, 0, 100.0)
    (folder / "versions.json").write_text('{"data": {"rows": "many", "digest": 3, "references": [1]}}')
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"value_low": 0.0', '"value_low": "x"'))
    (run,) = load(tmp_path).runs
    assert run.data is not None
    assert (run.data.rows, run.data.digest, run.data.references, run.values) == (None, None, None, None)
    assert data(load(tmp_path)) is not None


@pytest.mark.slow
def test_the_page_is_made(tmp_path: Path) -> None:
    page = build_report(mixed(tmp_path / "runs", seeds=1))
    assert "Learning from data" in page.read_text()
    assert (page.parent / "data-scores.csv").is_file()
