"""Parts of the documentation that are made from the repository itself, as Markdown, so that they cannot go stale."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "experiments" / "recipes"
RESULTS = ROOT / "experiments" / "results"
NOT_MEASURED = "not measured"
# Settings of a run that leave its recipe what it is.
OF_THE_RUN = (
    "--env",
    "--data",
    "--seed",
    "--steps",
    "--out",
    "--quiet",
    "--evaluation.",
    "--checkpoint.",
    "--tasks.",
    "--threads",
    "--trust",
)


@dataclass(frozen=True)
class Reference:
    """A publication: how comments cite it, and names that stand for it."""

    cited: list[str]
    methods: list[str]
    authors: str
    title: str
    year: int

    def is_source_of(self, comment: str) -> bool:
        named = any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", comment) for name in self.methods)
        return named or any(form in comment for form in self.cited)

    def __str__(self) -> str:
        return f"{self.authors}, “{self.title}”, {self.year}"


@dataclass(frozen=True)
class Result:
    """What one agent of a benchmark reached on one environment, a number a seed."""

    env: str
    label: str
    env_steps: int
    returns: tuple[float, ...]
    benchmark: str
    updates: int = 0
    """Of an agent that learned from data alone"""

    def __str__(self) -> str:
        seeds = f"{len(self.returns)} seeds, lowest {_number(min(self.returns))}" if self.returns[1:] else "1 seed"
        trained = f"after {self.env_steps:,} env steps" if self.env_steps else "without training"
        trained = f"after {self.updates:,} updates from data" if self.updates else trained
        return f"{self.env}: **{_number(mean(self.returns))}** {trained} ({seeds})"


def modules(package: str, *but: str) -> str:
    """The reference of a package's public modules, without the sub-packages named in ``but``."""
    place = importlib.import_module(package)
    found = [module.name for module in pkgutil.walk_packages(getattr(place, "__path__", ()), f"{package}.")]
    names = [name for name in (package, *sorted(found)) if _public(name)]
    names = [name for name in names if not any(name == other or name.startswith(f"{other}.") for other in but)]
    contents = "\n".join(["```{eval-rst}", ".. autosummary::", "", *(f"   {name}" for name in names), "```"])
    return "\n\n".join([contents, *(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```" for name in names)])


def _public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def sections(package: str) -> str:
    """What a generated page tells: of every function in the package's ``SECTIONS``, what its module says of itself."""
    homes = [sys.modules[section.__module__] for section in importlib.import_module(package).SECTIONS]
    return "\n".join(f"- {_first_paragraph(home.__doc__ or '')}" for home in homes)


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def recipes() -> str:
    """A row a recipe: its name, what its file says of it, who published it, what it reached here."""
    measured = results()
    rows = ["| recipe | what it is, and its source | measured |", "|---|---|---|"]
    for path in sorted(RECIPES.glob("*.yaml")):
        about = first_comment(path) + tuned_for(path)
        sources = dict.fromkeys(f"*{reference}*" for reference in references() if reference.is_source_of(about))
        reached = [_with_label(result, path.stem) for result in measured.get(path.stem, [])]
        rows.append(f"| `{path.stem}` | {'<br>'.join([about, *sources])} | {'<br>'.join(reached) or NOT_MEASURED} |")
    return "\n".join(rows)


def first_comment(path: Path) -> str:
    """The comment that a YAML file begins with, on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end]).replace("|", r"\|")


def tuned_for(path: Path) -> str:
    """The environments for which a recipe has settings of its own."""
    names = sorted(overlay.stem for overlay in path.with_suffix("").glob("*.yaml"))
    return f" Settings for: {', '.join(names)}." if names else ""


@cache
def references() -> list[Reference]:
    entries = yaml.safe_load((ROOT / "docs" / "references.yaml").read_text(encoding="utf-8"))
    return [Reference(**entry) for entry in entries]


def results() -> dict[str, list[Result]]:
    """By recipe, what it reached as it is, without settings that change it."""
    found: dict[str, list[Result]] = defaultdict(list)
    for summary in sorted(RESULTS.glob("*/summary.json")):
        for result in of_summary(summary):
            recipe = recipe_of(summary.parent / result.env / result.label)
            if recipe is not None:
                found[recipe].append(result)
    return found


def of_summary(path: Path) -> Iterator[Result]:
    """What a benchmark's summary holds: the return of the last evaluation of every run."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in json.loads(path.read_text(encoding="utf-8")).get("runs", ()):
        if {"env", "label"} <= run.keys() and not run.keys().isdisjoint(("return_mean", "last")):
            groups[run["env"], run["label"]].append(run)
    for (env, label), runs in groups.items():
        returns = tuple(run["return_mean"] if "return_mean" in run else run["last"] for run in runs)
        steps, updates = (max(run.get(name, 0) for run in runs) for name in ("env_steps", "updates"))
        yield Result(env, label, steps, returns, path.parent.name, 0 if steps else updates)


def recipe_of(folder: Path) -> str | None:
    """The recipe of the runs in a folder, by the commands that were typed; None where they changed it."""
    for versions in sorted(folder.glob("seed*/versions.json")):
        _, verb, recipe, *words = json.loads(versions.read_text(encoding="utf-8"))["command"]
        changes = [word for word in words if word.startswith("--") and not word.startswith(OF_THE_RUN)]
        return None if verb != "train" or changes else recipe
    return None


def _with_label(result: Result, recipe: str) -> str:
    return str(result) if result.label == recipe else f"{result}, as `{result.label}`"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
