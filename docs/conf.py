"""Settings of the documentation's generator, Sphinx: `make docs` builds `site/`.

What can go stale is made while it builds: a comment `<!-- NAME ARGUMENTS -->` alone on a line of a page is replaced by
what :data:`GENERATED` makes of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import generated  # noqa: E402  (it lies beside this file)

project = "mbrl-platform"
author = copyright = "the mbrl-platform authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False  # other libraries' docstrings are not written in the same markup
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
nitpicky = False
PACKAGES = ("envs", "mbrl", "agents", "experiments")
GENERATED = {"modules": generated.modules, "recipes": generated.recipes, "sections": generated.sections}


def fill_in(app: Any, document: str, source: list[str]) -> None:
    """Replace the comments of a page that stand for something generated."""
    source[0] = re.sub(r"^<!-- (\w+)((?: \S+)*) -->$", _made, source[0], flags=re.MULTILINE)


def _made(comment: re.Match[str]) -> str:
    name, arguments = comment[1], comment[2].split()
    return GENERATED[name](*arguments) if name in GENERATED else comment[0]


def as_we_write(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """In our docstrings |x| is an absolute value, not a substitution, and what stands before a colon is no type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # napoleon looks for a type in the first line only; an empty comment has none
    lines[:] = ["".join(_barred(part) for part in re.split("(``.*?``)", line)) for line in lines]


def _barred(part: str) -> str:
    return part if part.startswith("``") else part.replace("|", r"\|")


def skip_foreign(app: Any, what: str, name: str, object: Any, skip: bool, options: Any) -> bool | None:
    """Other libraries' functions that a module imports; the signatures of some cannot even be written down."""
    home = getattr(object, "__module__", None)
    return True if isinstance(home, str) and home.partition(".")[0] not in PACKAGES and callable(object) else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("autodoc-process-docstring", as_we_write, priority=400)  # napoleon comes at 500
    app.connect("source-read", fill_in)
