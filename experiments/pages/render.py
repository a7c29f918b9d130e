"""Writes a :class:`~experiments.pages.parts.Page` as one HTML file without network, figures and tables beside.

The page works without scripts (everything is shown, nothing can be switched); its content policy lets no script run but
the page's own, so text that came with a run stays text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from envs.errors import UserError
from experiments.pages import cells, drawing, palette
from experiments.pages.parts import Choice, Figure, Fold, Page, Part, Table
from experiments.storage import disk_errors, make_folder, write_atomically

HERE = Path(__file__).parent
INDEX = "index.html"
GENERATOR = "mbrl-platform"
WIDE = 6.0
"""Inches from which a figure has a row of the page to itself."""


def write_page(page: Page, folder: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """Write ``folder/index.html``, its figures (``NAME.png``, ``NAME.svg``) and tables (``NAME.csv``).

    All is made before the first byte is written. A new folder appears whole or not at all; in a folder that holds a
    page, every file is replaced in one step, the page last, and the files that only the old page had are deleted.

    Args:
        page: what to write.
        folder: where; made if it is not there.
        files: further files that lie beside the page, by name.

    Returns:
        The page's path.

    Raises:
        UserError: two parts share a name, the folder holds something that is no page of ours, or the disk refuses.
    """
    old = _old_files(folder)
    content = {**(files or {}), **render(page, list(files or {}))}
    if old is None:
        make_folder(folder, content)
    else:
        _write_over(folder, content, old)
    return folder / INDEX


def render(page: Page, others: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of a page by its name, ``index.html`` the last; the page links ``others`` too."""
    parts = list(walk(page))
    _require_unique(parts, page)
    files: dict[str, bytes] = {}
    drawn: dict[str, Markup] = {}
    for part in parts:
        if isinstance(part, Figure):
            files[f"{part.name}.png"], files[f"{part.name}.svg"] = drawing.png(part), drawing.svg(part)
            drawn[part.name] = Markup(drawing.inline(files[f"{part.name}.svg"], part, list(page.agents)))
        elif isinstance(part, Table):
            files[f"{part.name}.csv"] = cells.as_csv(part)
    return files | {INDEX: _html(page, drawn, others).encode()}


def walk(page: Page) -> Iterator[Part]:
    """Every part of a page, those inside of choices and folds too, in order."""
    for section in page.sections:
        yield from _walk(section.parts)


def _walk(parts: Iterable[Part]) -> Iterator[Part]:
    for part in parts:
        yield part
        if isinstance(part, Fold):
            yield from _walk(part.parts)
        elif isinstance(part, Choice):
            for option in part.options.values():
                yield from _walk(option)


def _require_unique(parts: Sequence[Part], page: Page) -> None:
    names = Counter(part.name for part in parts if isinstance(part, Figure | Table | Choice))
    names.update(f"section {section.id}" for section in page.sections)
    for name, count in names.items():
        if count > 1:
            raise UserError("page", name, f"{count} parts have this name; give each its own")
        if not re.fullmatch(r"[\w.+ -]+", name) or name.startswith("."):
            raise UserError("page", name, "this is to be the name of a file: letters, digits, '.', '-', '+' and '_'")


@dataclass(frozen=True)
class _Block:
    """Consecutive parts that stand side by side (figures) or one part alone."""

    kind: str
    parts: tuple[Part, ...]


def _blocks(parts: Iterable[Part]) -> list[_Block]:
    return [_Block(kind, tuple(same)) for kind, same in groupby(parts, lambda part: type(part).__name__.lower())]


def _html(page: Page, drawn: Mapping[str, Markup], others: Sequence[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"blocks": _blocks, "shown": cells.shown, "sort_key": cells.sort_key}
    environment.tests["wide"] = lambda part: part.figure.get_figwidth() >= WIDE
    script = (HERE / "page.js").read_text(encoding="utf-8")
    context: dict[str, Any] = {
        "page": page,
        "drawn": drawn,
        "others": others,
        "css": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "light": Markup(palette.declarations(dark=False)),
        "dark": Markup(palette.declarations(dark=True)),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "generator": GENERATOR,
        "variable": palette.variable,
        "numeric": cells.numeric,
    }
    return environment.get_template("page.html.j2").render(context)


def _old_files(folder: Path) -> set[str] | None:
    """The files of the page in ``folder``; None where there is nothing yet."""
    with disk_errors(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        index = folder / INDEX
        text = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    if f'content="{GENERATOR}"' not in text:
        raise UserError("--out", str(folder), "it holds something that is no report; name another folder")
    return set(re.findall(r'href="([^"#/:]+\.(?:png|svg|csv))"', text))


def _write_over(folder: Path, content: Mapping[str, bytes], old: set[str]) -> None:
    for name in sorted(content, key=lambda name: name == INDEX):
        write_atomically(folder / name, content[name])
    with disk_errors(folder):
        for name in old - set(content):
            (folder / name).unlink(missing_ok=True)
