"""What the README and the documentation show is run: files are written down, commands typed, only with less to do."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from markdown_it import MarkdownIt

from experiments.cli import main, make_parser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
QUICK = ["--steps", "205", "--evaluation.episodes=1", "--env.max_episode_steps=10", "--quiet"]
LESS_FITTING = "--agent.init_args.fitter.init_args.first_updates=20"
Block = tuple[str, str]


def blocks(page: Path) -> list[Block]:
    """``(language, text)`` of every block of code, in order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


def files_in(page: Path) -> dict[str, str]:
    """Files that a page shows, by the name in their first line."""
    shown = [text for language, text in blocks(page) if language in ("python", "yaml")]
    return {text.splitlines()[0].removeprefix("# "): text for text in shown}


def lines_of(page: Path, language: str) -> list[str]:
    """Commands of the blocks in one language, without their comments."""
    return [line for found, text in blocks(page) if found == language for line in lines(text)]


def lines(text: str) -> list[str]:
    bare = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in bare if line]


def with_less_to_do(verb: str, words: list[str]) -> list[str]:
    """The same command on fewer episodes, steps, seeds and agents."""
    if verb == "train" and any(word.startswith("tasks:") for word in words):
        return [*words, "--tasks.steps=210", "--tasks.order=[0,1]", "--agent.fitter.updates=5", *QUICK[2:]]
    if verb == "train":
        return words + QUICK + ([LESS_FITTING] if "pets" in words else [])
    if verb == "evaluate":
        return [word if word != "5" else "1" for word in words]
    if verb == "compare":
        less = ["--seeds", "1", "--steps", "20", "--evaluation.episodes=1", "--evaluation.every=10"]
        kept = re.sub(r"--agents .*? --envs (\S+) .*?--seeds \d+", r"--agents random --envs \1", shlex.join(words))
        return shlex.split(kept) + less
    if verb == "sweep":
        return [*words, "--trials", "2", "--steps", "40", "--evaluation.episodes=1", "--env.max_episode_steps=10"]
    return words


SLOW = ("comparing.md", "judging.md", "rllib.md", "sweeps.md")
"""Pages whose commands train or fit several times, or start Ray"""


def runnable() -> Iterator[ParameterSet]:
    """Every page with commands to run."""
    for page in PAGES:
        if lines_of(page, "bash"):
            marks = [pytest.mark.slow] if page.name in SLOW else []
            yield pytest.param(page, id=page.name, marks=marks)


SHOWN = [(page, name) for page in PAGES for name in files_in(page)]


@pytest.mark.parametrize(("page", "name"), SHOWN, ids=[f"{page.name}-{name}" for page, name in SHOWN])
def test_files_are_named_and_short(page: Path, name: str) -> None:
    assert re.fullmatch(r"\w+\.(py|yaml)", name), "a file's first line names it"
    assert len(files_in(page)[name].splitlines()) < (30 if page == README else 50)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", list(runnable()))
def test_what_a_page_shows_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name, text in (files_in(README) | files_in(page)).items():  # pages build on the README's files
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
        (tmp_path / name).write_text(text)
    for language, text in blocks(page):
        if language == "python":
            runpy.run_path(text.splitlines()[0].removeprefix("# "))
        for command in lines(text) if language == "bash" else ():
            program, verb, *words = shlex.split(command)
            assert program == "mbrl"
            assert main([verb, *with_less_to_do(verb, words)]) in (0, None), f"{command}\n{capsys.readouterr()}"


def test_the_readme_shows_enough() -> None:
    assert len(lines_of(README, "bash")) > 8


def unknown_words(page: Path) -> list[str]:
    """Commands that are shown, run or not, and that the Makefile or the command line does not know."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    shown = lines_of(page, "console") + lines_of(page, "bash")
    return [line for line in shown if not known(line.removeprefix("$ "), targets)]


def known(line: str, targets: list[str]) -> bool:
    program, *words = shlex.split(line)
    if program == "make":
        return words[0] in targets
    if program != "mbrl":
        return line.startswith(("source .venv", "error: "))
    options, _ = make_parser().parse_known_args(words)
    there = {path.stem.replace("_", "-") for path in (ROOT / "experiments" / "benchmarks").glob("*.py")}
    named = [name for name in getattr(options, "names", []) if not name.startswith("-")]
    return {*named} <= there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_known(page: Path) -> None:
    assert unknown_words(page) == []


def test_an_unknown_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\nmake magic\nmake demo\nmbrl bench nothing\nmbrl bench pets\npip install x\n```\n")
    assert unknown_words(page) == ["make magic", "mbrl bench nothing", "pip install x"]


PROMISED = [
    (command, said)
    for page in PAGES
    for command, said in re.findall(r"^\$ mbrl (.+)\n(error: .+)$", page.read_text(encoding="utf-8"), re.M)
]


@pytest.mark.parametrize(("command", "said"), PROMISED)
def test_errors_are_told_as_promised(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2
    beginning, _, end = said.partition("...")
    told = capsys.readouterr().err.strip()
    assert told.startswith(beginning), told
    assert told.endswith(end), told
    assert list(tmp_path.iterdir()) == []
