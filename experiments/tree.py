"""Configuration files as plain trees: strict reading, merging, dotted paths."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from envs.errors import UserError

MOST_TEXT = 200_000
"""Characters of a configuration, and values in it."""
MOST_DEPTH = 100


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads ``1e-3`` as the number it is (YAML 1.2)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    seen: set[str | int] = set()
    for key in keys:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text or a number", problem_mark=node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=node.start_mark)
        seen.add(key)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ``UserError`` when it cannot be read or is none."""
    try:
        with path.open(encoding="utf-8") as file:
            tree = _load(str(path), file.read(MOST_TEXT + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), type(error).__name__, "this file cannot be read as text") from error
    except yaml.YAMLError as error:
        raise UserError(
            _where(path, error), getattr(error, "problem", "") or "bad YAML", "correct the YAML here"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(str(path), type(tree).__name__, "a recipe is a mapping of names to values")
    return tree


def _load(field: str, text: str) -> Any:
    """Text as a tree; what is larger or deeper than a configuration can be is refused before the work it would make."""
    if len(text) > MOST_TEXT:
        raise UserError(field, f"{text[:40]}...", f"a configuration has at most {MOST_TEXT:,} characters")
    too_deep = UserError(field, f"{text[:40]}...", f"a configuration is nested at most {MOST_DEPTH} levels deep")
    brackets = itertools.accumulate((c in "[{") - (c in "]}") for c in text)
    if max(brackets, default=0) > MOST_DEPTH:
        raise too_deep
    try:
        tree = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise too_deep from error
    _check_nodes(field, tree, too_deep)
    return tree


def _check_nodes(field: str, tree: Any, too_deep: UserError) -> None:
    """Aliases (``*name``) can make a short text an enormous tree, or one without end."""
    todo, count = [(tree, 0)], 0
    while todo:
        node, depth = todo.pop()
        count += 1
        if depth > MOST_DEPTH:
            raise too_deep
        if count > MOST_TEXT:
            raise UserError(field, f"{count:,} values", "its aliases repeat too much; write out what is meant")
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list | set) else ()
        todo += [(child, depth + 1) for child in below]


def _where(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def parse_value(field: str, text: str) -> Any:
    """A value typed on the command line, read as YAML."""
    try:
        return _load(field, text)
    except yaml.YAMLError as error:
        raise UserError(field, text, "not a YAML value; put quotes around text with special characters") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; mappings merge, another ``class_path`` drops the old ``init_args``."""
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def set_path(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` inside nested mappings (list items by number), making mappings on the way.

    A name written over a part (a mapping with ``class_path``) exchanges that part. A part's arguments may be named
    without ``init_args``: ``agent.learner.hidden``.
    """
    *way, last = key.split(".")
    node: Any = tree
    for part in way:
        node = _descend(_arguments(node, part), part, key)
    node = _arguments(node, last)
    if isinstance(node, list):
        node[_position(node, last, key)] = value
        return
    old = node.get(last)
    if isinstance(old, Mapping) and "class_path" in old and isinstance(value, str):
        value = {"class_path": value}
    new_class = last == "class_path" and node.get(last) != value
    if isinstance(old, Mapping) and isinstance(value, Mapping):
        value = merge(old, value)
    node[last] = value
    if new_class:
        node.pop("init_args", None)


def _arguments(node: Any, name: str) -> Any:
    """Where ``name`` is set: in the arguments, when ``node`` is a part and ``name`` is none of its two keys."""
    if not isinstance(node, dict) or "class_path" not in node or name in ("class_path", "init_args"):
        return node
    if node.get("init_args") is None:
        node["init_args"] = {}
    return node["init_args"]


def _descend(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        below = node[_position(node, part, key)]
    else:
        if node.get(part) is None:
            node[part] = {}
        below = node[part]
        if isinstance(below, str) and part not in ("class_path",):
            below = node[part] = {"class_path": below}
    if not isinstance(below, dict | list):
        raise UserError(f"--{key}", below, f"{part} is a plain value here; there is nothing inside it to set")
    return below


def _position(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(f"--{key}", part, f"this is a list; give a position from 0 to {len(items) - 1}")
    return int(part)
