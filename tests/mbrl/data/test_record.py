"""Records: every operation acts on all tensors alike, nested or named, and what is written is read back."""

from __future__ import annotations

import importlib
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.errors import UserError
from mbrl.data.record import Record, from_dict
from mbrl.data.transitions import Transitions


@dataclass
class Inner(Record):
    x: Tensor


@dataclass
class Outer(Record):
    inner: Inner
    y: Tensor
    absent: Tensor | None = None
    named: dict[str, Tensor] = field(default_factory=dict)


def outer(rows: int = 4, start: float = 0.0) -> Outer:
    x = start + torch.arange(rows * 2.0).view(rows, 2)
    return Outer(Inner(x), x[:, 0].long(), named={"a": x * 10, "b": x[:, 1] > 3})


def tensors(record: Outer) -> list[Tensor]:
    return [record.inner.x, record.y, record.named["a"], record.named["b"]]


def assert_same(one: Outer, other: Outer) -> None:
    assert type(one) is type(other)
    assert type(one.inner) is type(other.inner)
    assert one.absent is None
    assert other.absent is None
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_map_and_index_reach_every_tensor() -> None:
    record = outer()
    for index in (1, slice(1, 3), torch.tensor([3, 0, 0]), torch.tensor([True, False, True, False])):
        for mine, whole in zip(tensors(record[index]), tensors(record), strict=True):
            assert torch.equal(mine, whole[index])
    for mine, whole in zip(tensors(record.map(lambda x: x + x)), tensors(record), strict=True):
        assert torch.equal(mine, whole + whole)


def test_clone_shares_no_memory() -> None:
    record = outer()
    copy = record.clone()
    assert_same(copy, record)
    copy.inner.x.zero_()
    copy.named["a"].zero_()
    assert_same(record, outer())


def test_cat_stack_repeat() -> None:
    one, other = outer(), outer(3, start=50.0)
    joined = Outer.cat([one, other])
    assert_same(joined[:4], one)
    assert_same(joined[4:], other)
    stacked = Outer.stack([one, outer(start=9.0)], dim=1)
    assert_same(stacked[:, 0], one)
    assert_same(stacked[:, 1], outer(start=9.0))
    assert_same(one.repeat_rows(2), one[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])])


def test_where_picks_whole_rows() -> None:
    mask = torch.tensor([True, False, False, True])
    one, other = outer(), outer(start=100.0)
    picked = one.where(mask, other)
    assert_same(picked[mask], one[mask])
    assert_same(picked[~mask], other[~mask])


@pytest.mark.parametrize("change", ["none", "missing name", "other name"])
def test_records_of_different_fields_are_not_joined(change: str) -> None:
    one, other = outer(), outer()
    if change == "none":
        one.absent = torch.zeros(4)
    else:
        del one.named["a"]
        if change == "other name":
            one.named["c"] = torch.zeros(4)
    for records in ([one, other], [other, one]):
        with pytest.raises(UserError, match="same fields"):
            Outer.cat(records)


def test_written_records_load_without_running_code() -> None:
    record, file = outer(), io.BytesIO()
    torch.save({"state": record.to_dict()}, file)
    file.seek(0)
    read = from_dict(torch.load(file, weights_only=True)["state"])
    assert isinstance(read, Outer)
    assert_same(read, record)


def test_the_record_itself_is_refused_by_weights_only() -> None:
    """The control: it is `to_dict` that makes the round trip possible."""
    file = io.BytesIO()
    torch.save(outer(), file)
    file.seek(0)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", ["os:system", "mbrl.data.record:Nothing", None, ["a"]])
def test_unknown_record_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="not a known record"):
        from_dict({"__record__": name, "x": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a known record"):
        from_dict(outer().to_dict() | {"inner": {"__record__": name, "x": torch.zeros(1)}})


def test_vmap_sees_through_records() -> None:
    def double(record: Outer) -> Outer:
        assert record.inner.x.shape == (2,)  # one row at a time
        return record.map(lambda x: x * 2)

    assert_same(torch.func.vmap(double)(outer()), outer().map(lambda x: x * 2))


def test_grad_flows_through_records() -> None:
    grad = torch.func.grad(lambda record: record.x.square().sum())(Inner(torch.tensor([1.0, 3.0])))
    assert torch.equal(grad.x, torch.tensor([2.0, 6.0]))


def test_transitions_length_is_their_rows() -> None:
    long = torch.zeros(3, dtype=torch.long)
    flag = long.bool()
    rows = Transitions(torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, 2), flag, flag, *[long] * 3)
    assert len(rows) == 3
    assert len(rows[1:]) == 2


def test_a_module_imported_twice_gives_its_present_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was imported, dropped and imported again leaves two classes of one name behind."""
    (tmp_path / "twice.py").write_text(
        "from dataclasses import dataclass\nfrom torch import Tensor\nfrom mbrl.data.record import Record\n"
        "@dataclass\nclass Note(Record):\n    x: Tensor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = importlib.import_module("twice")
    written = first.Note(torch.zeros(1)).to_dict()
    monkeypatch.delitem(sys.modules, "twice")
    second = importlib.import_module("twice")
    monkeypatch.setitem(sys.modules, "twice", first)
    assert isinstance(from_dict(written), first.Note)
    monkeypatch.setitem(sys.modules, "twice", second)
    assert isinstance(from_dict(written), second.Note)
    monkeypatch.delitem(sys.modules, "twice")
    with pytest.raises(ValueError, match="not a known record"):
        from_dict(written)
