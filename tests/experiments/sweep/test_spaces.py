"""Spaces as they are typed: what each means, and what is refused with its fix."""

from __future__ import annotations

import math

import pytest

from envs.errors import UserError
from experiments.sweep.spaces import Choice, Range, Space, parse_space
from experiments.tree import parse_value


def drawn(space: Space, count: int = 200) -> list[object]:
    """Values as a search at random draws them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.value(study.ask({"x": space.distribution()}).params["x"]) for _ in range(count)]


def test_a_list_is_a_choice_of_any_values() -> None:
    space = parse_space("agent.model", "[5, 1e-3, true, null, small, [64, 64], {class_path: Linear}]")
    assert isinstance(space, Choice)
    assert space.examples() == [5, 0.001, True, None, "small", [64, 64], {"class_path": "Linear"}]
    assert all(value in space.examples() for value in drawn(space))
    assert {str(value) for value in drawn(space)} == {str(value) for value in space.examples()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform(0.5, 2)", Range(0.5, 2, log=False, whole=False)),
        (" log( 1e-4 , 1e-2 ) ", Range(1e-4, 1e-2, log=True, whole=False)),
        ("int(1,4)", Range(1, 4, log=False, whole=True)),
        ("logint(8, 512)", Range(8, 512, log=True, whole=True)),
    ],
)
def test_ranges_have_bounds_that_are_kept(text: str, expected: Range) -> None:
    space = parse_space("agent.lr", text)
    assert space == expected
    assert isinstance(space, Range)
    values = [float(str(value)) for value in drawn(space)]
    assert all(space.low <= value <= space.high for value in values)
    assert all(type(value) is (int if space.whole else float) for value in drawn(space, 5))
    middle = math.sqrt(space.low * space.high) if space.log else (space.low + space.high) / 2
    assert 60 < sum(value < middle for value in values) < 140


def test_whole_numbers_include_both_ends() -> None:
    assert set(drawn(parse_space("n", "int(1, 4)"))) == {1, 2, 3, 4}


def test_what_is_drawn_is_the_same_when_it_is_typed() -> None:
    import json

    values = drawn(parse_space("lr", "log(1e-9, 1e-2)"))
    assert [parse_value("lr", json.dumps(value)) for value in values] == values


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("0.1", r"give a list \[A, B"),
        ("[0.1]", "two values or more"),
        ("[1, 1]", "is given once"),
        ("[.inf, 1]", "finite"),
        ("[2020-01-01, 1]", "numbers"),
        ("[1, ", "not a YAML value"),
        ("unifrom(1, 2)", "Did you mean uniform"),
        ("loguniform(1, 2)", "give a list"),
        ("uniform(1)", "give two finite numbers"),
        ("uniform(1, 2, 3)", "give two finite numbers"),
        ("uniform(1, .nan)", "give two finite numbers"),
        ("uniform(a, b)", "give two finite numbers"),
        ("uniform(true, 2)", "give two finite numbers"),
        ("int(1, 2.5)", "give two whole numbers"),
        ("uniform(2, 1)", "the smaller one"),
        ("log(0, 1)", "numbers above 0"),
        ("logint(-1, 4)", "numbers above 0"),
    ],
)
def test_what_is_no_space_is_refused(text: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix) as told:
        parse_space("agent.lr", text)
    assert told.value.field == "--param agent.lr"
