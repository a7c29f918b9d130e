"""A page is one file that needs nothing else, shows text as text, and is written whole or not at all."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import matplotlib.figure
import pytest

from envs.errors import UserError
from experiments.pages import cells, drawing, palette, render
from experiments.pages.parts import Choice, Code, Figure, Fold, Notice, Page, Part, Section, Table, Text
from experiments.pages.render import write_page

NASTY = """<script>alert('x')</script>"&{{ 7 * 7 }}"""
AGENTS = {"one": "#0072b2", "one:two": "#c85200"}


def figure(name: str = "drawing", agents: tuple[str, ...] = tuple(AGENTS)) -> Figure:
    drawn = matplotlib.figure.Figure(figsize=(3, 2))
    axes = drawn.add_subplot()
    axes.set_title("title")
    for number, agent in enumerate(agents):
        (line,) = axes.plot([0, 1], [number, 2], color=AGENTS[agent], marker="o")
        line.set_gid(f"agent:{agent}:line")
    return Figure(name, drawn, "A caption", f"Seen: {NASTY}")


def page(*parts: Part) -> Page:
    return Page("Title", "Subtitle", [Section("first", "First", "Lead.", parts)], AGENTS)


def html(*parts: Part) -> str:
    return render.render(page(*parts))["index.html"].decode()


def test_a_page_is_one_file_and_its_figures_and_tables(tmp_path: Path) -> None:
    table = Table("numbers", ["a", "b"], [["x", 1.5], ["y", None]])
    path = write_page(page(figure(), table), tmp_path / "new" / "page", {"runs.csv": b"a\n"})
    names = {"index.html", "drawing.png", "drawing.svg", "numbers.csv", "runs.csv"}
    assert path == tmp_path / "new" / "page" / "index.html"
    assert {file.name for file in path.parent.iterdir()} == names
    assert list(csv.reader((path.parent / "numbers.csv").open())) == [["a", "b"], ["x", "1.5"], ["y", ""]]
    text = path.read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert all(link.startswith("#") or link in names or link == "data:," for link in links), links
    assert "@import" not in text
    assert "url(http" not in text


def test_the_same_page_gives_the_same_bytes() -> None:
    first, second = (render.render(page(figure(), Table("t", ["a"], [[1]]))) for _ in range(2))
    assert first == second
    assert first != render.render(page(figure(agents=("one",)), Table("t", ["a"], [[1]])))


@pytest.mark.parametrize(
    "part",
    [
        Text(NASTY),
        Notice(NASTY, "failure"),
        Code(NASTY),
        Fold(NASTY, [Text(NASTY)]),
        Table("t", [NASTY], [[NASTY]], NASTY),
        Choice("c", NASTY, {NASTY: [Text(NASTY)], "other": []}),
        figure(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_text_cannot_become_markup(part: Part) -> None:
    text = html(part)
    assert text.count("<script") == 1  # the page's own
    assert "alert(" in text
    assert "49" not in re.sub(r"<svg.*?</svg>|<style.*?</style>|<script.*?</script>|<meta.*?>", "", text, flags=re.S)


def test_an_agents_label_cannot_become_markup() -> None:
    text = render.render(Page(NASTY, NASTY, [Section("s", NASTY, NASTY)], {NASTY: "#0072b2"}))["index.html"].decode()
    assert text.count("<script") == 1


def test_figures_of_a_page_share_no_ids() -> None:
    text = html(figure("first"), figure("second"))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) > 20
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text))
    assert used
    assert {a or b for a, b in used} <= set(ids)


def test_artists_carry_the_agent_with_the_longest_label_that_fits() -> None:
    text = html(figure())
    assert text.count('data-agent="one"') == 1
    assert text.count('data-agent="one:two"') == 1
    assert drawing.agents_of("agent:one:agent:one:two:point", AGENTS) == ["one", "one:two"]
    assert drawing.agents_of("agent:three:line", AGENTS) == []


def test_figures_take_the_colours_of_the_theme() -> None:
    inside = re.search(r"<svg.*?</svg>", html(figure()), flags=re.S)
    assert inside is not None
    assert "var(--ink-0072b2)" in inside[0]
    assert "#000000" not in inside[0]
    assert "#0072b2" not in inside[0]
    assert "#0072b2" in render.render(page(figure()))["drawing.svg"].decode()


def test_colours_can_be_seen_in_both_themes() -> None:
    assert all(palette.contrast(light, palette.LIGHT_GROUND) >= 3 for light in palette.TWINS)
    assert all(palette.contrast(dark, palette.DARK_GROUND) >= 3 for dark in palette.TWINS.values())
    assert palette.contrast("#f0e442", palette.LIGHT_GROUND) < 3  # Okabe and Ito's yellow as it is
    assert len(set(palette.colours("abcdefgh").values())) == 8


def test_nothing_is_written_when_a_part_cannot_be_made(tmp_path: Path) -> None:
    broken = figure("broken")
    broken.figure.axes[0].set_title("$\\nothing{$")
    with pytest.raises(ValueError, match="nothing"):
        write_page(page(figure(), broken), tmp_path / "page")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def refuse(path: Path, data: bytes) -> int:
        written.append(path.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="free some space"):
        write_page(page(figure()), tmp_path / "page")
    assert written
    assert list(tmp_path.iterdir()) == []


def test_a_new_page_replaces_an_old_one_and_touches_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    write_page(page(figure("old"), figure("both")), folder)
    (folder / "notes.txt").write_text("mine")
    write_page(page(figure("both"), figure("new")), folder)
    kept = {"both.png", "both.svg", "new.png", "new.svg", "index.html", "notes.txt"}
    assert {file.name for file in folder.iterdir()} == kept


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no report"):
        write_page(page(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["../evil", "", ".hidden", "a/b"])
def test_names_must_be_names_of_files(name: str) -> None:
    with pytest.raises(UserError, match="name of a file"):
        render.render(page(Table(name, ["a"], [])))


def test_two_parts_with_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="2 parts"):
        render.render(page(Table("same", ["a"], []), Fold("f", [Table("same", ["a"], [])])))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (True, "yes"),
        (1234567, "1,234,567"),
        (-1234.5678, "\N{MINUS SIGN}1,235"),
        (0.012345678, "0.01235"),
        (0.0000123, "1.230e\N{MINUS SIGN}05"),
        (0.0, "0"),
        (float("nan"), "nan"),
        ("-x", "-x"),
    ],
)
def test_cells_as_they_are_read(cell: cells.Cell, text: str) -> None:
    assert cells.shown(cell, 4) == text
