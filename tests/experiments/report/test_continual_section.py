"""What the section on task sequences shows of runs whose matrices are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from synthetic_runs import comparison
from synthetic_tasks import ENV, KEPT, LOST, NAMES, RANDOM, references, write_run

from experiments.pages import drawing
from experiments.pages.parts import Choice, Code, Figure, Notice, Page, Section, Table
from experiments.pages.render import walk
from experiments.report import figures
from experiments.report.build import build_report
from experiments.report.comparison import load
from experiments.report.sections.continual import continual

ERRORS = {1: ((0.01,), (0.02, 0.03), (0.5, 0.6, 0.07)), 5: KEPT, 25: ((0.1,), (0.2, 0.3), (None, 6.0, 0.7))}
DIVERGED = ((0,), (0, 0), (256, 3, 0))


def section(root: Path) -> Section:
    found = continual(load(root))
    assert found is not None
    return found


def parts(found: Section, kind: type) -> list:
    return [part for part in walk(Page("", "", [found])) if isinstance(part, kind)]


def table(found: Section, name: str) -> dict[str, dict]:
    (part,) = [part for part in parts(found, Table) if part.name == name]
    return {row[0]: dict(zip(part.columns, row, strict=True)) for row in part.rows}


def notices(found: Section) -> str:
    return " ".join(part.text for part in parts(found, Notice))


def figure(found: Section, end: str) -> Figure:
    (part,) = [part for part in parts(found, Figure) if part.name.endswith(end)]
    return part


def cells(part: Figure) -> list[str]:
    return [text.get_text() for text in part.figure.axes[0].texts]


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_gid()): [*line.get_ydata()] for line in axes.lines if str(line.get_gid()).startswith("agent")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    references(tmp_path)
    write_run(tmp_path, "hypercrl", LOST, errors=ERRORS, diverged=DIVERGED)
    return tmp_path


def test_reports_without_sequences_have_no_such_section() -> None:
    assert continual(comparison({"good": 90.0})) is None


def test_the_summary_has_a_row_an_agent(root: Path) -> None:
    found = section(root)
    rows = table(found, "tasks-tasks-three")
    assert [*rows] == ["hypercrl", "hypercrl-single", "random"]
    assert rows["hypercrl"]["score"] == pytest.approx(0.6)
    assert rows["hypercrl"]["forgetting"] == pytest.approx(0.6)
    assert rows["random"]["score"] == 0
    assert "min score" not in rows["hypercrl"]  # of one seed it is the same
    errors = table(found, "tasks-tasks-three-errors")
    assert errors["hypercrl"]["new, at 1"] == pytest.approx(0.02)
    assert (errors["hypercrl"]["end, at 25"], errors["hypercrl"]["diverged"]) == (None, 259)
    cost = table(found, "tasks-tasks-three-cost")
    assert (cost["hypercrl"]["KiB a task"], cost["hypercrl"]["kept data, KiB"], cost["hypercrl"]["rows"]) == (4, 1, 500)


def test_with_several_seeds_the_worst_is_shown(root: Path) -> None:
    write_run(root, "hypercrl", KEPT, seed=1)
    row = table(section(root), "tasks-tasks-three")["hypercrl"]
    assert (row["seeds"], row["score"], row["min score"]) == (2, pytest.approx(0.8), pytest.approx(0.6))
    assert row["max forgetting"] == pytest.approx(0.6)


def test_a_matrix_has_a_number_in_every_cell_below_the_diagonal(root: Path) -> None:
    found = section(root)
    (choice,) = parts(found, Choice)
    assert [*choice.options] == ["hypercrl", "hypercrl-single", "random"]
    minus = [text.replace("\N{MINUS SIGN}", "-") for text in cells(figure(found, "hypercrl-return"))]
    assert [float(text) for text in minus] == [value for row in LOST for value in row]
    ticks = [label.get_text() for label in figure(found, "hypercrl-return").figure.axes[0].get_yticklabels()]
    assert ticks == ["1 light", "2 heavy", "3 long"]
    assert not [part for part in parts(found, Figure) if "depth-5" in part.name]  # the least and the greatest depth do


def test_diverged_rollouts_are_marked_where_they_happened_and_warned_of(root: Path) -> None:
    found = section(root)
    drawn = figure(found, "hypercrl-error-at-depth-25")
    assert cells(drawn) == ["0.1", "0.2", "0.3", "\N{EN DASH}\n!256", "6\n!3", "0.7"]
    assert "259 of 1,536" in drawn.caption
    assert "hypercrl (259 of 1,536)" in notices(found)
    calm = write_run(root, "calm", KEPT, errors={1: ERRORS[1]}).parent.name
    assert f"{calm} (" not in notices(section(root))


def test_the_course_of_each_task_begins_when_it_is_learned(root: Path) -> None:
    strips = figure(section(root), "over-the-sequence").figure.axes
    assert [axes.get_title(loc="left") for axes in strips] == ["1 light", "2 heavy", "3 long"]
    drawn = [lines(axes)["agent:hypercrl:line"] for axes in strips]
    assert drawn == [pytest.approx([1.0, 0.5, 0.1]), pytest.approx([1.0, 0.7]), pytest.approx([1.0])]


def test_a_collapse_is_cut_off_and_that_is_said(root: Path) -> None:
    assert "outside the figure" not in figure(section(root), "over-the-sequence").caption
    write_run(root, "fallen", ((-100.0,), (-100.0, -200.0), (-9000.0, -200.0, -300.0)))
    drawn = figure(section(root), "over-the-sequence")
    assert "outside the figure" in drawn.caption
    assert drawn.figure.axes[0].get_ylim()[0] == -0.5


def test_without_references_the_command_that_adds_them_is_given(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", LOST)
    write_run(tmp_path, "hypercrl-ewc", KEPT)
    found = section(tmp_path)
    assert "no finished run of random and hypercrl-single" in notices(found)
    (code,) = parts(found, Code)
    out = "--out DIR/tasks-three/random/seed0"
    assert code.text.splitlines()[0] == f"mbrl train random --env tasks:three --seed 0 --tasks.steps=100 {out}"
    row = table(found, "tasks-tasks-three")["hypercrl"]
    assert "score" not in row
    assert row["forgetting, in return"] == pytest.approx(75)
    drawn = lines(figure(found, "over-the-sequence").figure.axes[0])["agent:hypercrl:line"]
    assert drawn == [-100, -150, -190]
    references(tmp_path)
    assert not parts(section(tmp_path), Code)


def test_a_task_without_a_span_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "random", RANDOM)
    write_run(tmp_path, "hypercrl-single", ((-100.0,), (-100.0, -500.0), (-100.0, -500.0, -300.0)))
    write_run(tmp_path, "hypercrl", LOST)
    found = section(tmp_path)
    assert "not above random on 2 heavy," in notices(found)
    strips = figure(found, "over-the-sequence").figure.axes
    assert [axes.get_title(loc="left") for axes in strips] == ["1 light", "3 long"]
    assert "Grey" in figure(found, "hypercrl-return").caption


def test_a_run_that_stopped_is_named_and_drawn_thin(root: Path) -> None:
    write_run(root, "hypercrl", KEPT[:2], seed=1, total=300)
    write_run(root, "hypercrl-ewc", KEPT[:1], seed=0, total=300)
    found = section(root)
    assert "hypercrl seed 1 (2 of 3 tasks) and hypercrl-ewc seed 0 (1 of 3 tasks)" in notices(found)
    drawn = lines(figure(found, "over-the-sequence").figure.axes[0])
    assert drawn["agent:hypercrl:seed 1"] == [1.0, 1.0]
    assert drawn["agent:hypercrl:line"] == pytest.approx([1.0, 0.5, 0.1])
    rows = table(found, "tasks-tasks-three")
    assert (rows["hypercrl"]["seeds"], rows["hypercrl-ewc"]["seeds"]) == ("1 of 2", "0 of 1")
    assert "unfinished (1 of 3 tasks)" in figure(found, "hypercrl-ewc-return").figure.axes[0].get_title(loc="left")


def test_runs_through_other_tasks_are_named(root: Path) -> None:
    write_run(root, "turned", KEPT, names=NAMES[::-1])
    found = section(root)
    assert "turned seed 0 (long, heavy, light)" in notices(found)
    assert "turned" not in table(found, "tasks-tasks-three")


def test_unfinished_runs_alone_make_a_section_without_averages(tmp_path: Path) -> None:
    write_run(tmp_path, "hypercrl", (*KEPT[:1], ()), total=300)
    write_run(tmp_path, "hypercrl", (*KEPT[:2], KEPT[2][:1]), seed=1, total=300)
    found = section(tmp_path)
    assert "hypercrl seed 0 (1 task so far) and hypercrl seed 1 (2 tasks so far)" in notices(found)
    assert table(found, "tasks-tasks-three") == {"hypercrl": {"agent": "hypercrl", "seeds": "0 of 2"}}
    assert len(cells(figure(found, "hypercrl-return"))) == 3


def test_many_tasks_are_drawn_without_their_numbers(tmp_path: Path) -> None:
    many = [[-1.0 * (column + 1) for column in range(row + 1)] for row in range(13)]
    names = [f"task {place}" for place in range(13)]
    write_run(tmp_path, "hypercrl", many, names=names, seconds=[1.0] * 13)
    assert {text.strip() for text in cells(figure(section(tmp_path), "hypercrl-return"))} == {""}
    assert len(figure(section(tmp_path), "hypercrl-return").figure.axes[0].patches) == 13 * 14 / 2


def test_several_sequences_are_a_choice(root: Path) -> None:
    write_run(root, "hypercrl", KEPT, env="tasks:other")
    (choice,) = [part for part in parts(section(root), Choice) if part.name == "tasks-env"]
    assert [*choice.options] == ["tasks:other", ENV]


def test_a_heat_map_is_drawn_in_lines_and_readable_in_both_themes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawing.svg(figure(section(root), "hypercrl-return"))
    assert b"<image" not in drawn
    inks = {ink for ink in (figures.DARK_INK, figures.LIGHT_INK) if ink.encode() in drawn}
    assert len(inks) == 2
    assert all(drawing.themed(ink) == ink for ink in inks)  # a theme that turned them would hide them
    monkeypatch.setattr(figures, "COLOUR_STEPS", 256)
    assert b"<image" in drawing.svg(figure(section(root), "hypercrl-return"))


def test_the_whole_report_is_written_and_twice_the_same(root: Path) -> None:
    write_run(root, "hypercrl", KEPT[:2], seed=1, total=300)
    page = build_report(root, root / "one").read_text()
    assert 'id="tasks"' in page
    assert page.index('id="curves"') < page.index('id="tasks"') < page.index('id="cost"')
    assert build_report(root, root / "two").read_text() == page
