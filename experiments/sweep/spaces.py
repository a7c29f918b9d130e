"""What a setting is searched over, as a person types it: ``[5, 10, 20]``, ``log(1e-4, 1e-2)``."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.errors import UserError
from experiments.tree import parse_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*")
FORMS = "a list [A, B, ...], uniform(A, B), log(A, B), int(A, B) or logint(A, B)"
KINDS = ("uniform", "log", "int", "logint")


@dataclass(frozen=True)
class Choice:
    """One of some values, each as JSON: what is told apart, and what a command line can say."""

    labels: tuple[str, ...]

    def distribution(self) -> BaseDistribution:
        """What is drawn from: the labels."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def value(self, drawn: Any) -> Any:
        """The setting's value."""
        return json.loads(drawn)

    def examples(self) -> list[Any]:
        """Values that have to be allowed: all of them."""
        return [json.loads(label) for label in self.labels]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included where they are whole; ``log``: each factor is as likely."""

    low: float
    high: float
    log: bool
    whole: bool

    def distribution(self) -> BaseDistribution:
        """What is drawn from."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """The setting's value."""
        return int(drawn) if self.whole else float(drawn)

    def examples(self) -> list[Any]:
        """Values that have to be allowed: both ends."""
        return [self.value(self.low), self.value(self.high)]


Space = Choice | Range


def parse_space(key: str, text: str) -> Space:
    """The space that is typed for the setting ``key``.

    Raises:
        UserError: it has another form, or its bounds are none.
    """
    field = f"--param {key}"
    call = CALL.fullmatch(text)
    if call is not None:
        return _range(field, text, call[1], [part for part in call[2].split(",") if part.strip()])
    values = parse_value(field, text) if text.lstrip().startswith("[") else None
    if not isinstance(values, list):
        raise UserError(field, text, f"give {FORMS}")
    return _choice(field, text, values)


def _choice(field: str, text: str, values: Sequence[Any]) -> Choice:
    if len(values) < 2:
        fix = "a list needs two values or more; a setting that is the same in every trial is set with --KEY=VALUE"
        raise UserError(field, text, fix)
    try:
        labels = tuple(json.dumps(value, allow_nan=False) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(field, text, "numbers (finite ones), texts, true, false, null, lists and mappings") from error
    if len({*labels}) < len(labels):
        raise UserError(field, text, "each value of a list is given once")
    return Choice(labels)


def _range(field: str, text: str, kind: str, parts: Sequence[str]) -> Range:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise UserError(field, text, f"give {FORMS}", [text.replace(kind, known, 1) for known in near])
    bounds = [parse_value(field, part) for part in parts]
    whole, log = kind in ("int", "logint"), kind in ("log", "logint")
    kinds = (int,) if whole else (int, float)
    if len(bounds) != 2 or not all(type(bound) in kinds and math.isfinite(bound) for bound in bounds):
        raise UserError(field, text, f"give two {'whole' if whole else 'finite'} numbers: {kind}(A, B)")
    low, high = bounds
    if not low < high:
        raise UserError(field, text, "the first number is the smaller one")
    if log and low <= 0:
        raise UserError(field, text, f"{kind} needs numbers above 0")
    return Range(low, high, log, whole)
