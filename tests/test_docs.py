"""The documentation's pages: every relative link leads somewhere, in the repository and in the built site."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
WANTED = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in WANTED if page.is_file()]


def load_builder(root: Path) -> ModuleType:
    """A copy of ``docs/build.py`` that reads from ``root`` and writes to ``root/site``."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__.update(ROOT=root, SITE=root / "site")
    return module


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of two pages, a picture and a text."""
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "docs" / "images" / "curve.png").write_bytes(b"picture")
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "README.md").write_text(
        "# Home\n\n![c](docs/images/curve.png) [g](docs/guide.md#second-part) [l](LICENSE)\n"
    )
    (tmp_path / "docs" / "guide.md").write_text(
        "# Guide\n\n## Second part\n\n[home](../README.md) <https://example.org>\n"
    )
    return tmp_path


def test_links_are_rewritten_and_files_copied(small: Path) -> None:
    build = load_builder(small)
    pages = [small / "README.md", small / "docs" / "guide.md"]
    assert [build.write_page(page, pages) for page in pages] == [[], []]
    home = (small / "site" / "index.html").read_text()
    guide = (small / "site" / "docs" / "guide.html").read_text()
    assert 'href="docs/guide.html#second-part"' in home
    assert 'href="../index.html"' in guide
    assert 'id="second-part"' in guide
    assert (small / "site" / "docs" / "images" / "curve.png").read_bytes() == b"picture"
    assert (small / "site" / "LICENSE").exists()


def test_dead_link_is_named(small: Path) -> None:
    page = small / "README.md"
    page.write_text("# Home\n\n[gone](docs/gone.md) [outside](../secret)\n")
    assert load_builder(small).write_page(page, [page]) == [
        "README.md: nothing at docs/gone.md",
        "README.md: nothing at ../secret",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_our_links_are_alive(page: Path, tmp_path: Path) -> None:
    build = load_builder(ROOT)
    build.__dict__["SITE"] = tmp_path
    assert build.write_page(page, PAGES) == []
