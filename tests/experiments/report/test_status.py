"""``status.json`` with something wrong in it: one message that names the field, the value and what to do."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from envs.errors import UserError
from experiments.report._status import read_status
from experiments.report.comparison import JOB_STATES, load

GOOD: dict[str, Any] = {
    "suite": "small",
    "budget": "env_steps",
    "agents": ["a"],
    "envs": ["E1"],
    "references": {"E1": {"low": 0, "high": 1.5, "source": "a paper"}},
    "datasets": {"E1": {"expert": 7}},
    "settings": {
        "agents": {"a": {"recipe": "pets", "set": {"agent.size": 3}}},
        "envs": {"E1": {"steps": 300, "set": {}, "low": 0, "source": "a paper", "datasets": {}}},
        "set": {"evaluation.every": 100},
    },
    "jobs": [{"agent": "a", "env": "E1", "seed": 0, "folder": None, "state": "waiting", "error": None}],
    "dropped": [{"agent": "old", "env": "E1", "seed": 1, "folder": "runs/E1/old/seed1-0a"}],
}


def write(root: Path, tree: Any) -> Path:
    path = root / "status.json"
    path.write_text(json.dumps(tree))
    return path


def with_value(way: tuple[str | int, ...], value: Any) -> Any:
    tree = deepcopy(GOOD)
    node: Any = tree
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    return tree


def ways(node: Any, way: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The place of every value in the tree."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return ([way] if way else []) + [found for key, value in below for found in ways(value, (*way, key))]


def test_what_is_right_is_read(tmp_path: Path) -> None:
    status = read_status(write(tmp_path, GOOD), ["env_steps"], JOB_STATES)
    assert status.references == {"E1": (0.0, 1.5, "a paper")}
    assert status.datasets == {"E1": {"expert": 7.0}}
    assert [run.folder for run in status.dropped] == ["runs/E1/old/seed1-0a"]
    assert status.settings is not None
    assert (status.settings.agents["a"].recipe, status.settings.envs["E1"].steps) == ("pets", 300)
    older = {key: value for key, value in GOOD.items() if key not in ("dropped", "settings")}
    status = read_status(write(tmp_path, older), ["env_steps"], JOB_STATES)
    assert (status.dropped, status.settings) == ([], None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "7", True, [1], {}, 10**400], ids=str)
@pytest.mark.parametrize(
    "way", [("references", "E1", "low"), ("references", "E1", "high"), ("datasets", "E1", "expert")]
)
def test_a_return_that_is_no_finite_number_is_refused(tmp_path: Path, way: tuple[str, ...], value: Any) -> None:
    write(tmp_path, with_value(way, value))
    with pytest.raises(UserError, match="give a finite number") as caught:
        load(tmp_path)
    assert caught.value.field == f"{tmp_path / 'status.json'}: {'.'.join(way)}"
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [5, "text", [5], {"x": 5}, [["x"]], [None], 0.5], ids=repr)
def test_wrong_types_anywhere_are_one_message(tmp_path: Path, value: Any) -> None:
    """Whatever stands anywhere, the file is read or refused in words; what is refused is named."""
    refused = 0
    for way in ways(GOOD):
        write(tmp_path, with_value(way, value))
        try:
            load(tmp_path)
        except UserError as error:
            refused += 1
            if ".".join(map(str, way)) not in error.field:
                pytest.fail(f"{way}: {error}")
    assert refused > 20


@pytest.mark.parametrize(
    ("way", "value", "field"),
    [
        (("datasets", "E1"), 5, "datasets.E1"),
        (("datasets",), ["E1"], "datasets"),
        (("references", "E1"), 5, "references.E1"),
        (("references", "E1", "source"), 5, "references.E1.source"),
        (("jobs", 0), "a job", "jobs.0"),
        (("jobs", 0, "seed"), "0", "jobs.0.seed"),
        (("jobs", 0, "folder"), 5, "jobs.0.folder"),
        (("jobs", 0, "error"), ["x"], "jobs.0.error"),
        (("agents", 0), {"a": 1}, "agents.0"),
        (("envs",), "E1", "envs"),
        (("suite",), None, "suite"),
        (("dropped", 0), "old", "dropped.0"),
        (("dropped", 0, "seed"), None, "dropped.0.seed"),
        (("settings",), 5, "settings"),
        (("settings", "agents", "a"), 5, "settings.agents.a"),
        (("settings", "envs", "E1", "steps"), "many", "settings.envs.E1.steps"),
        (("settings", "set"), [1], "settings.set"),
    ],
)
def test_the_field_is_named(tmp_path: Path, way: tuple[str | int, ...], value: Any, field: str) -> None:
    write(tmp_path, with_value(way, value))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert caught.value.field.endswith(f"status.json: {field}")
    assert caught.value.seen == value
    assert "`mbrl compare`" in caught.value.fix
