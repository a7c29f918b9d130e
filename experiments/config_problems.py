"""Finding what is wrong with a configuration: the innermost place, in the user's words."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from envs.errors import UserError


def first_problem(path: str, kind: Any, value: Any, what: str, skip: int = 0) -> UserError | None:
    """The first wrong key or value of ``{"init_args": ...}`` for class ``kind``, or None.

    Args:
        path: dotted place of the part in the configuration.
        kind: the class whose constructor takes the arguments.
        value: the part.
        what: how to call it in messages.
        skip: leading constructor parameters that are not configured (factories get the spec at build time).
    """
    given = value.get("init_args", {})
    inside = f"{path}.init_args." if path else ""
    if not isinstance(given, Mapping):
        return UserError(f"{path}.init_args", given, "give a mapping of argument names to values, or leave it out")
    parameters, open_ended = constructor(kind, skip)
    for key in given:
        if not isinstance(key, str) or (key not in parameters and not open_ended):
            return unknown(f"{inside}{key}", key, f"{what} has no argument of this name", list(parameters))
    for key, parameter in parameters.items():
        if key in given:
            problem = problem_of(f"{inside}{key}", parameter.annotation, given[key])
            if problem is not None:
                return problem
        elif parameter.default is parameter.empty:
            return UserError(f"{inside}{key}", "missing", f"{what} needs it")
    return None


def unknown(where: str, key: object, reason: str, valid: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.0)
    return UserError(where, key, f"{reason}. The nearest is {near[0]!r}." if near else f"{reason}.")


def constructor(kind: Any, skip: int) -> tuple[dict[str, inspect.Parameter], bool]:
    """Configurable parameters of a class, annotations resolved; and whether it takes any keyword."""
    found: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        hints = _hints(cls.__init__)
        own = list(inspect.signature(cls.__init__).parameters.values())[1:]
        for p in own:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p.replace(annotation=hints.get(p.name, p.empty)))
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return dict(list(found.items())[skip:]), False
    return dict(list(found.items())[skip:]), True


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # names that exist for type checkers only
        return {}


def problem_of(path: str, annotation: Any, value: Any) -> UserError | None:
    """What is wrong with ``value`` as an ``annotation``, or None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (inspect.Parameter.empty, Any):
        return None
    if origin in (typing.Union, types.UnionType):
        return _problem_of_union(path, annotation, arguments, value)
    if origin in (collections.abc.Sequence, list, tuple) and isinstance(value, list) and arguments:
        items = (problem_of(f"{path}.{i}", arguments[0], item) for i, item in enumerate(value))
        if _is_part(arguments[0]):
            return next((item for item in items if item is not None), None)
    if _is_part(annotation):
        return _problem_of_part(path, annotation, value)
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            return UserError(path, value, "give a mapping of names to values")
        problem = first_problem(path, annotation, {"init_args": value}, path)
        return problem and UserError(problem.field.replace(".init_args", ""), problem.seen, problem.fix)
    return _problem_of_leaf(path, annotation, value)


def _problem_of_union(path: str, annotation: Any, options: Sequence[Any], value: Any) -> UserError | None:
    real = [option for option in options if option is not type(None)]
    if value is None and len(real) < len(options):
        return None
    problems = [problem_of(path, option, value) for option in real]
    if None in problems:
        return None
    return problems[0] if len(real) == 1 else _problem_of_leaf(path, annotation, value)


def _is_part(annotation: Any) -> bool:
    """Whether a value is a class of ours with ``init_args``, or a factory of one."""
    if typing.get_origin(annotation) is collections.abc.Callable:
        return True
    own = inspect.isclass(annotation) and annotation.__module__.split(".")[0] not in ("builtins", "pathlib")
    return own and not dataclasses.is_dataclass(annotation)


def _problem_of_part(path: str, annotation: Any, value: Any) -> UserError | None:
    skip, wanted = 0, annotation
    if typing.get_origin(annotation) is collections.abc.Callable:
        inputs, wanted = typing.get_args(annotation)
        skip = len(inputs) if isinstance(inputs, list) else 0
    name = getattr(wanted, "__name__", str(wanted))
    if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        return UserError(path, value, f"give class_path and init_args of a {name}")
    for key in value:
        if key not in ("class_path", "init_args"):
            return unknown(f"{path}.{key}", key, "a part has class_path and init_args", ["class_path", "init_args"])
    module, _, attribute = value["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(wanted) and not issubclass(kind, wanted):
        kinds = [sub.__name__ for sub in _subclasses(wanted)]
        return UserError(f"{path}.class_path", value["class_path"], f"it is no {name}.", kinds)
    if inspect.isabstract(kind):
        return UserError(f"{path}.class_path", value["class_path"], f"it is abstract; name one kind of {name}.")
    return first_problem(path, kind, value, kind.__name__, skip)


def _subclasses(kind: type) -> list[type]:
    direct: list[type] = kind.__subclasses__()
    return [sub for child in direct for sub in (child, *_subclasses(child))]


def _problem_of_leaf(path: str, annotation: Any, value: Any) -> UserError | None:
    from jsonargparse import ArgumentParser

    if value is None and annotation not in (None, type(None), object):  # jsonargparse takes null for anything
        return UserError(path, value, f"expected {type_name(annotation)}")
    if isinstance(value, bool) and annotation in (int, float):
        return UserError(path, value, f"expected {type_name(annotation)}")
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=annotation)
        parser.parse_object({"value": value})
    except Exception:  # argparse and jsonargparse raise several kinds; all of them say: not of this type
        return UserError(path, value, f"expected {type_name(annotation)}")
    return None


def type_name(annotation: Any) -> str:
    """An annotation as a person would say it."""
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return plain.get(annotation) or re.sub(r"\b(\w+\.)+", "", str(annotation))


def innermost(error: BaseException) -> tuple[str, str]:
    """The deepest field and the last line of a parser's nested message."""
    text = str(error)
    keys = re.findall(r'[Pp]arser key "([^"]+)"', text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ".".join(keys), (lines[-1] if lines else type(error).__name__)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The message for the user that a parser wrapped in its own, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
