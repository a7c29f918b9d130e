"""What there is to choose from."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from experiments.compare.suite import SUITES, list_suites
from experiments.config import RECIPES, list_recipes
from experiments.names import short_names


def lines(kind: str) -> list[str]:
    """One line a thing: its name and what it is."""
    if kind == "recipes":
        return [f"{name:<24}{_about_recipe(name)}".rstrip() for name in list_recipes()]
    if kind == "suites":
        return [f"{name:<24}{first_comment(SUITES / f'{name}.yaml')}".rstrip() for name in list_suites()]
    if kind == "tasks":
        from envs.tasks import list_tasks

        return [f"{name:<24}{about}" for name, about in list_tasks().items()]
    if kind == "envs":
        from envs import list_envs

        return list_envs()
    return [f"{name:<28}{about}" for name, about in _classes(_base(kind)).items()]


def _about_recipe(recipe: str) -> str:
    overlays = sorted(path.stem for path in (RECIPES / recipe).glob("*.yaml"))
    tuned = f" (tuned for {', '.join(overlays)})" if overlays else ""
    return first_comment(RECIPES / f"{recipe}.yaml") + tuned


def first_comment(path: Path) -> str:
    """What a YAML file says of itself in its first line; empty when that is no comment."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _base(kind: str) -> type:
    place = {"agents": "agents.base.Agent", "models": "mbrl.models.base.DynamicsModel"}
    module, _, name = place.get(kind, "mbrl.planning.base.Planner").rpartition(".")
    base: type = getattr(importlib.import_module(module), name)
    return base


def _first_sentence(text: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _classes(base: type) -> dict[str, str]:
    """Every concrete class of a kind, with the first sentence of its documentation."""
    found = {}
    for name, place in short_names().items():
        module, _, attribute = place.rpartition(".")
        cls = getattr(importlib.import_module(module), attribute)
        if issubclass(cls, base) and not inspect.isabstract(cls):
            found[name] = _first_sentence(inspect.getdoc(cls) or "")
    return dict(sorted(found.items()))
