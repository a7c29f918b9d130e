"""Names of code in configurations: short names made whole, and none imported that the user did not ask for.

Parsing a configuration imports what it names. So every name is checked before anything is parsed: it must belong to
this project or to torch, or to a module that the user typed on this command line.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from envs.errors import UserError
from experiments import model_scheme

OWN = ("envs", "mbrl", "agents", "experiments")
TRUSTED = (*OWN, "torch")
SHORT_NAMES_FROM = ("agents", "mbrl.models", "mbrl.planning", "mbrl.imagination", "mbrl.fitting")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
SCHEMES = ("dmc", model_scheme.SCHEME)


@functools.cache
def short_names() -> dict[str, str]:
    """Public classes of the packages that parts live in: ``{"RandomAgent": "agents.random_agent.RandomAgent"}``.

    Found by reading the sources, so that nothing is imported.
    """
    names: dict[str, str] = {}
    for package in SHORT_NAMES_FROM:
        for module, path in _modules(package):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    names.setdefault(node.name, f"{module}.{node.name}")
    return names


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    root = Path(__file__).parent.parent
    place = root / package.replace(".", "/")
    if place.with_suffix(".py").is_file():
        yield package, place.with_suffix(".py")
    for path in sorted(place.rglob("*.py")):
        yield ".".join(path.relative_to(root).with_suffix("").parts), path


def expand_short_names(tree: Any, path: str = "") -> Any:
    """The tree with whole names for every ``class_path``; a name alone for the agent becomes a ``class_path``."""
    if isinstance(tree, list):
        return [expand_short_names(value, f"{path}.{i}") for i, value in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    whole = {key: expand_short_names(value, f"{path}.{key}".lstrip(".")) for key, value in tree.items()}
    if path == "" and isinstance(whole.get("agent"), str):
        whole["agent"] = {"class_path": _whole(whole["agent"], "agent")}
    if isinstance(whole.get("class_path"), str):
        whole["class_path"] = _whole(whole["class_path"], f"{path}.class_path")
    return whole


def _whole(name: str, where: str) -> str:
    if "." in name:
        return name
    if name not in short_names():
        raise UserError(where, name, "no class of this project has this name; others need their module", short_names())
    return short_names()[name]


def check_names(tree: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Refuse a tree that names code which the user did not: before anything is imported.

    Raises:
        UserError: naming the place, the value and what to type.
    """
    check_env_id(str(tree["env"]["id"]), trust)
    for where, value in _strings(tree):
        if where.endswith("class_path") and not where.startswith(("env.", "env")):
            _check_module(where, value, trust)
            _check_class(where, value, trust)
        elif where.endswith("class_path"):
            raise UserError(where, value, "environments take plain values, not classes")
        elif _hides_class(value):
            raise UserError(where, value, "a class is written as class_path in a mapping, not inside a text")
        elif not where.startswith("env.") and DOTTED.fullmatch(value) and _importable(value):
            # some arguments take names of functions; environments get plain text, so `file: arena.xml` is no code there
            raise UserError(where, value, "a configuration names code only as class_path, and only classes")


def check_env_id(id: str, trust: Sequence[str]) -> None:
    """Refuse ``module:Class`` whose module was not typed, and a run's model that needs such a module."""
    module, colon, name = _without_tasks(id).partition(":")
    if colon and module == model_scheme.SCHEME:
        model_scheme.admit(name, trust)
    elif colon and module not in SCHEMES:
        _check_module("env.id", module, trust)


def module_of(env_id: str) -> str | None:
    """The module in ``module:Class`` or ``tasks:module:function``, or None."""
    module, colon, _ = _without_tasks(env_id).partition(":")
    return module if colon and module not in SCHEMES else None


def _without_tasks(env_id: str) -> str:
    """What a sequence is named by; any other id as it is."""
    return env_id.removeprefix("tasks:")


def outside_modules(tree: Mapping[str, Any]) -> list[str]:
    """Top packages that a tree names and that are neither ours nor torch."""
    named = [value for where, value in _strings(tree) if where.endswith("class_path")]
    env = module_of(str(tree.get("env", {}).get("id", "")))
    tops = {name.split(".")[0] for name in [*named, *([env] if env else [])] if "." in name or name == env}
    scheme, _, run = str(tree.get("env", {}).get("id", "")).partition(":")
    behind = model_scheme.outside_modules_of(run) if scheme == model_scheme.SCHEME else []
    return sorted((tops | {*behind}) - set(TRUSTED))


def _check_module(where: str, name: str, trust: Iterable[str]) -> None:
    if not any(name == known or name.startswith(f"{known}.") for known in (*TRUSTED, *trust)):
        fix = (
            "nothing is imported that you did not name: name it on the command line, or add --trust "
            + name.split(".")[0]
        )
        raise UserError(where, name, fix)


def _check_class(where: str, name: str, trust: Iterable[str]) -> None:
    """A trusted module may be imported; what is named in it must be a class that was made in a trusted package."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(where, name, f"there is no module {error.name!r}", short_names().values()) from error
    except AttributeError as error:
        members = [
            f"{module}.{n}" for n, value in vars(importlib.import_module(module)).items() if inspect.isclass(value)
        ]
        raise UserError(where, name, f"module {module} has no {attribute!r}.", members) from error
    except Exception as error:  # a module that the user trusts may fail in any way
        raise UserError(where, name, f"importing it failed: {type(error).__name__}: {error}") from error
    if not inspect.isclass(found):
        raise UserError(where, name, f"it is a {type(found).__name__}; a configuration names classes only")
    home = found.__module__.split(".")[0]
    if home not in {known.split(".")[0] for known in (*TRUSTED, *trust)}:
        fix = f"it only passes on {found.__module__}.{found.__qualname__}; if you trust that, add --trust {home}"
        raise UserError(where, name, fix)


def _hides_class(text: str, depth: int = 5) -> bool:
    """Whether a text, read as YAML, has the key ``class_path``: the parser reads some texts so, and imports it."""
    if "class_path" in text or depth == 0:
        return True
    if not any(mark in text for mark in ":\n\\"):  # no mapping, no escaped letters
        return False
    try:
        scalars = [event.value for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.ScalarEvent)]
    except (yaml.YAMLError, RecursionError):  # then the parser cannot read it either
        return False
    return any(scalar != text and _hides_class(scalar, depth - 1) for scalar in scalars)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name.split(".")[0]) is not None  # looks, does not import
    except (ImportError, ValueError):
        return False


def _strings(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _strings(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _strings(value, f"{path}.{i}")


def typed_in(overrides: Sequence[tuple[str, Any]]) -> list[str]:
    """Modules named by values typed on the command line (as a class or an environment)."""
    typed = []
    for key, value in overrides:
        for where, name in _strings(value, key):
            module = (
                module_of(name) if where == "env.id" else name.rpartition(".")[0] if DOTTED.fullmatch(name) else None
            )
            typed += [module] if module else []
    return typed
