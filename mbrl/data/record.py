"""One small typed base for every record of tensors that passes between rooms."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from envs.errors import UserError

Leaf = TypeVar("Leaf")


class Record:
    """Base of dataclasses whose fields are tensors, other records, ``{name: tensor}`` mappings or None.

    Every operation acts on all tensors alike; the leading dimensions are the batch. Subclasses are plain
    ``@dataclass`` classes; each is registered as a pytree, so ``torch.func`` and ``torch.compile`` see through it.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = f"{cls.__module__}:{cls.__qualname__}"
        pytree.register_pytree_node(
            cls,
            lambda record: record._present(),
            lambda values, names: cls(**dict.fromkeys(cls._names()) | dict(zip(names, values, strict=True))),
            serialized_type_name=name,
        )

    @classmethod
    def _names(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def _values(self) -> list[Any]:
        return [getattr(self, name) for name in self._names()]

    def _present(self) -> tuple[list[Any], list[str]]:
        """Fields that are not None, and their names: None is no leaf of a tree of tensors."""
        found = {name: value for name, value in zip(self._names(), self._values(), strict=True) if value is not None}
        return list(found.values()), list(found)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The record with ``function`` applied to every tensor."""
        return type(self)(*(_map(function, [value]) for value in self._values()))

    def __getitem__(self, index: Any) -> Self:
        """Index the leading dimensions of every tensor."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device))

    def clone(self) -> Self:
        return self.map(torch.clone)

    def repeat_rows(self, times: int) -> Self:
        """Each row ``times`` times in a row: ``[B, ...] -> [B * times, ...]``."""
        return self.map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    @classmethod
    def cat(cls, records: Sequence[Self], dim: int = 0) -> Self:
        return cls._combine(lambda *tensors: torch.cat(tensors, dim), records)

    @classmethod
    def stack(cls, records: Sequence[Self], dim: int = 0) -> Self:
        return cls._combine(lambda *tensors: torch.stack(tensors, dim), records)

    @classmethod
    def _combine(cls, function: Callable[..., Tensor], records: Sequence[Self]) -> Self:
        columns = zip(*(record._values() for record in records), strict=True)
        return type(records[0])(*(_map(function, list(column)) for column in columns))

    def where(self, mask: Tensor, other: Self) -> Self:
        """Rows of ``self`` where ``mask [B]``, rows of ``other`` elsewhere."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)

        return self._combine(pick, [self, other])

    def to_dict(self) -> dict[str, Any]:
        """Tensors and strings only, so that it loads with ``weights_only=True``; see :func:`from_dict`."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return {"__record__": kind} | {name: _plain(getattr(self, name)) for name in self._names()}


def from_dict(values: Mapping[str, Any]) -> Record:
    """The record that :meth:`Record.to_dict` described.

    Only record types that are already imported are made; raises ``ValueError`` on any other name.
    """
    kind = _kind(str(values.get("__record__")))
    if kind is None:
        raise ValueError(f"not a known record: {values.get('__record__')!r}")
    return kind(**{name: _rich(value) for name, value in values.items() if name != "__record__"})


def _kind(name: str) -> type[Record] | None:
    """The record class ``module:Name`` of a module that is imported now; nothing is imported for it."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Record) else None


def _map(function: Callable[..., Tensor], values: list[Any]) -> Any:
    first = values[0]
    if any(_shape_of(value) != _shape_of(first) for value in values):
        seen = [_shape_of(value) for value in values]
        raise UserError("records", seen, "records that are put together have the same fields and extra columns")
    if first is None:
        return None
    if isinstance(first, Record):
        parts = zip(*(value._values() for value in values), strict=True)
        return type(first)(*(_map(function, list(part)) for part in parts))
    if isinstance(first, Mapping):
        return {name: _map(function, [value[name] for value in values]) for name in first}
    return function(*values)


def _shape_of(value: Any) -> str | list[str]:
    """What two fields must share to be put together: nothing, a tensor, a kind of record, or the same names."""
    if isinstance(value, Mapping):
        return sorted(value)
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "__record__" in value:
            return from_dict(value)
        return {name: _rich(part) for name, part in value.items()}
    return value
