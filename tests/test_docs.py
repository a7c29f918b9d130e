"""The documentation: every link leads somewhere, what is generated is true, and the site can be built and read."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``docs/generated.py``, fresh."""
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "generated", raising=False)
    return importlib.import_module("generated")


# -- links -----------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page, and of what it includes."""
    text = page.read_text(encoding="utf-8")
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    inside = [token for block in blocks for token in block.children or []]
    named = [str(token.attrGet("href") or token.attrGet("src") or "") for token in inside]
    return [link for link in named if link] + re.findall(r"^```\{include\} (\S+)$", text, re.M)


def dead(page: Path, root: Path) -> list[str]:
    """Relative links of a page to files or headings that are not there, or not in the repository."""
    found = []
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(root) or not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in a link, here as on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_are_alive(page: Path) -> None:
    assert dead(page, ROOT) == []


def test_a_dead_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other page\n\n## Second part\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#second-part) [b](gone.md) [c](other.md#third) ![d](x.png) [e](../out.md) <https://example.org>\n"
        "\n| t |\n|---|\n| [f](lost.md) |\n\n```{include} missing.md\n```\n"
    )
    assert dead(page, tmp_path) == ["gone.md", "other.md#third", "x.png", "../out.md", "lost.md", "missing.md"]


def roles(page: Path) -> list[str]:
    """Python objects that a page refers to."""
    return re.findall(r"\{(?:class|func|mod|meth)\}`~?([\w.]+)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if roles(page)], ids=lambda page: page.name)
def test_objects_that_are_named_exist(page: Path) -> None:
    for name in roles(page):
        module, _, attribute = name.rpartition(".")
        assert importlib.util.find_spec(name.split(".")[0]), name
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M)
    written = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    assert sorted([*listed, "index"]) == sorted(written)


# -- what is generated -----------------------------------------------------------------------------------------------


def test_every_recipe_is_in_the_table_with_what_it_reached(generated: ModuleType) -> None:
    lines = {line.split("`")[1]: line for line in generated.recipes().splitlines()[2:]}
    assert sorted(lines) == sorted(path.stem for path in (ROOT / "experiments" / "recipes").glob("*.yaml"))
    runs = json.loads((ROOT / "experiments/results/pets/summary.json").read_text())["runs"]
    returns = [run["return_mean"] for run in runs if (run["env"], run["label"]) == ("Pendulum-v1", "pets")]
    assert f"Pendulum-v1: **{sum(returns) / len(returns):.1f}** after 1,500 env steps ({len(returns)}" in lines["pets"]
    assert "Chua, Calandra, McAllister, Levine, “Deep Reinforcement Learning" in lines["pets"]


def test_a_recipe_without_a_result_says_so(
    generated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "RESULTS", tmp_path)
    lines = generated.recipes().splitlines()[2:]
    assert lines
    assert all(line.endswith("| not measured |") for line in lines)


def keep_result(root: Path, label: str, words: list[str], returns: dict[str, Any]) -> None:
    """A benchmark's summary with one run, and the command that made it."""
    place = root / "bench" / "Env-v0" / label / "seed0"
    place.mkdir(parents=True)
    (place / "versions.json").write_text(json.dumps({"command": ["mbrl", "train", *words]}))
    run = {"env": "Env-v0", "label": label, "seed": 0, "env_steps": 2000, **returns}
    (root / "bench" / "summary.json").write_text(json.dumps({"runs": [run]}))


@pytest.mark.parametrize(
    ("label", "words", "shown"),
    [
        ("pets", ["pets", "--env", "Env-v0", "--evaluation.every=5"], "Env-v0: **7.2** after 2,000 env steps (1 seed)"),
        ("old", ["pets", "--seed", "3"], "Env-v0: **7.2** after 2,000 env steps (1 seed), as `old`"),
        ("pets", ["pets", "--agent.fit_every=5"], "not measured"),
        ("pets", ["mppi"], "not measured"),
    ],
)
def test_only_runs_of_the_recipe_as_it_is_count(
    label: str, words: list[str], shown: str, generated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_result(tmp_path, label, words, {"last": 7.2})
    monkeypatch.setattr(generated, "RESULTS", tmp_path)
    (line,) = [line for line in generated.recipes().splitlines() if line.startswith("| `pets` ")]
    assert line.endswith(f"| {shown} |")


def test_whatever_a_recipe_cites_is_known(generated: ModuleType) -> None:
    for path in (ROOT / "experiments" / "recipes").glob("*.yaml"):
        comment = generated.first_comment(path)
        assert comment, f"{path.name} does not begin with a comment that says what it is"
        for year in re.finditer(r"\b(?:19|20)\d\d\b", comment):
            cited = comment[: year.end()]
            known = any(cited.endswith(form) for reference in generated.references() for form in reference.cited)
            assert known, f"{path.name} cites something ({cited[-40:]}) that docs/references.yaml does not hold"


@pytest.mark.parametrize("package", ["experiments.report.sections", "experiments.diagnosis.sections"])
def test_sections_are_described(package: str, generated: ModuleType) -> None:
    lines = generated.sections(package).splitlines()
    assert len(lines) == len(importlib.import_module(package).SECTIONS) > 3
    assert all(re.fullmatch(r"- [A-Z].{10,}\.", line) for line in lines)


# -- the site --------------------------------------------------------------------------------------------------------


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """The site of ``source``, as `make docs` builds it."""
    options = ["-q", "-E", "-W", "--keep-going", "-b", "html", "-c", str(DOCS), "-d", str(site / ".doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fetched(page: Path) -> list[str]:
    """What a browser would load from elsewhere to show a page."""
    text = page.read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]+)\"", text)
    loaded += re.findall(r"<link[^>]*\shref=\"([^\"]+)\"", text)
    return [address for address in loaded if re.match(r"(?:https?:)?//", address)]


def test_comments_are_filled_in_and_warnings_are_errors(tmp_path: Path) -> None:
    page = "# Home\n\n<!-- recipes -->\n\n<!-- modules envs.errors -->\n\n<!-- an ordinary comment -->\n\n"
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "index.md").write_text(page.replace("<!-- modules envs.errors -->\n\n", ""))
    done = build(tmp_path / "good", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site" / "index.html").read_text()
    assert "sb3-tqc" in text
    assert "not measured" in text
    (tmp_path / "good" / "index.md").write_text(page + "[dead](gone.md)\n")
    done = build(tmp_path / "good", tmp_path / "bad")
    assert done.returncode != 0
    assert "gone.md" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_whole_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    source = shutil.copytree(ROOT / "docs", tmp_path / "repository" / "docs")
    for name in ("README.md", "CHANGELOG.md", "experiments"):  # pages include them by relative paths
        (tmp_path / "repository" / name).symlink_to(ROOT / name)
    done = build(source, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page for page in (tmp_path / "site").rglob("*.html")}
    wanted = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}
    assert wanted <= pages.keys()
    assert {name: found for name, page in pages.items() if (found := fetched(page))} == {}
    assert 'id="mbrl.models.base.DynamicsModel"' in pages["api/models.html"].read_text()
    assert 'id="envs.spec.EnvSpec"' in pages["api/envs.html"].read_text()
    assert "api/agents.html#agents.base.Agent" in pages["your-agent.html"].read_text()
    assert "class MyEnv" in re.sub(r"<[^>]+>", "", pages["your-environment.html"].read_text())
    assert "recipe" in (tmp_path / "site" / "searchindex.js").read_text()


def test_what_would_be_loaded_from_elsewhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="https://fonts.example.org/x.css"><script src="_static/a.js"></script>'
        '<script async src="//cdn.example.org/b.js"></script><a href="https://example.org">a link</a>'
    )
    assert fetched(page) == ["//cdn.example.org/b.js", "https://fonts.example.org/x.css"]
