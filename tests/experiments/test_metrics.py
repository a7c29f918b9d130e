"""Records: flat, finite, comparable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import UserError
from experiments.metrics import MetricsLog, comparable, make_record, read_records
from mbrl.clock import Clock


def test_nonfinite_numbers_become_null_and_are_named() -> None:
    values = {"loss": torch.tensor(float("inf")), "list": [1.0, float("nan")], "good": np.float32(2), "n": 3}
    record = make_record("fit", Clock(env_steps=7, updates=2), 1.5, values)
    assert record["loss"] is None
    assert record["list"] == [1.0, None]
    assert record["nonfinite"] == ["list", "loss"]
    assert (record["good"], record["n"], record["env_steps"], record["updates"]) == (2.0, 3, 7, 2)
    json.dumps(record, allow_nan=False)


def test_comparable_drops_what_differs_from_run_to_run() -> None:
    record = {"event": "fit", "seconds": 1.0, "fit_seconds": 2.0, "act_ms": 3, "x_per_second": 4, "m_bytes": 5, "a": 6}
    assert comparable(record) == {"event": "fit", "a": 6}


def test_the_log_is_cut_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"a": 1})
    offset = log.offset()
    log.write({"a": 2})
    log.close()
    log = MetricsLog(tmp_path / "m.jsonl")
    log.cut(offset)
    log.write({"a": 3})
    log.close()
    assert [record["a"] for record in read_records(tmp_path / "m.jsonl")] == [1, 3]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"m\.jsonl:2"):
        list(read_records(tmp_path / "m.jsonl"))
