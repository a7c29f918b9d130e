"""Builds the documentation into ``site/``: README.md, docs/*.md and the API reference (``make docs``).

A page keeps its place in the repository, so every relative link that works there works here; a link to nothing is an
error.
"""

from __future__ import annotations

import html
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
PACKAGES = ("envs", "mbrl", "agents", "experiments")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; color: #222 }}
img {{ max-width: 100% }} pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto }}
code {{ font: 14px/1.5 ui-monospace, monospace }} table {{ border-collapse: collapse }}
td, th {{ border: 1px solid #ccc; padding: .3rem .6rem }} nav a {{ margin-right: 1rem }}
</style></head><body><nav>{nav}</nav>
{body}</body></html>
"""


def main() -> int:
    shutil.rmtree(SITE, ignore_errors=True)
    wanted = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
    pages = [page for page in wanted if page.is_file()]
    dead = [line for page in pages for line in write_page(page, pages)]
    if dead:
        sys.stderr.write("\n".join([*dead, ""]))
        return 1
    command = [sys.executable, "-m", "pdoc", "--math", "-o", str(SITE / "api"), *PACKAGES]
    return subprocess.run(command, check=False).returncode


def write_page(page: Path, pages: list[Path]) -> list[str]:
    """Writes one page and copies the files that it links to; returns its dead links."""
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(page.read_text(encoding="utf-8"))
    name_headings(tokens)
    dead = [f"{page.relative_to(ROOT)}: nothing at {link}" for link in relink(tokens, page, pages)]
    here = address(page)
    nav = "".join(f'<a href="{relative(address(other), here)}">{title(other)}</a>' for other in pages)
    nav += f'<a href="{relative(SITE / "api" / "index.html", here)}">API</a>'
    body = markdown.renderer.render(tokens, markdown.options, {})
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text(PAGE.format(title=title(page), nav=nav, body=body), encoding="utf-8")
    return dead


def relink(tokens: list[Token], page: Path, pages: list[Path]) -> Iterator[str]:
    """Points links between pages at their HTML, copies other files beside them, and yields dead links."""
    for token in (child for block in tokens for child in block.children or []):
        name = {"link_open": "href", "image": "src"}.get(token.type, "")
        path, mark, anchor = str(token.attrGet(name) or "").partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            yield path
        elif target in pages:
            token.attrSet(name, relative(address(target), address(page)) + mark + anchor)
        elif target.is_file():
            copy = SITE / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)


def name_headings(tokens: list[Token]) -> None:
    """Gives headings the anchors that GitHub gives them."""
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^\w\- ]", "", text.content.lower()).replace(" ", "-"))


def address(page: Path) -> Path:
    """Where a Markdown file of the repository lies in the site."""
    inside = page.relative_to(ROOT).with_suffix(".html")
    return SITE / ("index.html" if page.name == "README.md" and page.parent == ROOT else inside)


def relative(target: Path, page: Path) -> str:
    return "../" * len(page.parent.relative_to(SITE).parts) + target.relative_to(SITE).as_posix()


def title(page: Path) -> str:
    """The first heading, or the file's name."""
    heading = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return html.escape(heading.group(1) if heading else page.stem)


if __name__ == "__main__":
    sys.exit(main())
