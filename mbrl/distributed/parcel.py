"""Objects made of tensors on their way to other processes: the shape of the thing once, its numbers every version."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from ray import cloudpickle
from torch import Tensor, nn

from envs.errors import UserError
from mbrl.data.record import Record

TENSOR, DEVICE = "tensor", "device"


@dataclass(frozen=True)
class Parcel:
    """An object without its tensors, and the tensors.

    It travels through Ray's object store, whose arrays are shared by all workers of a machine without a copy.
    """

    skeleton: bytes
    """The object, each of its tensors and devices a number or a name"""
    tensors: Sequence[Any]
    """NumPy arrays, or tensors of a type that NumPy lacks, on the CPU"""

    @classmethod
    def of(cls, packed: Any) -> Parcel:
        """Pack an object; a tensor that occurs in it twice stays one tensor.

        Raises:
            UserError: something in it cannot be pickled.
        """
        file = io.BytesIO()
        pickler = _Pickler(file)
        try:
            pickler.dump(packed)  # type: ignore[no-untyped-call]
            tensors = [tensor.detach().to("cpu", copy=True).contiguous() for tensor in pickler.tensors]
            return cls(file.getvalue(), [_as_array(tensor) for tensor in tensors])
        except (TypeError, AttributeError, RuntimeError, pickle.PicklingError) as error:
            fix = f"it cannot be sent to other processes ({error}); run without --ray, or let it be pickled"
            raise UserError("--ray", _kinds(packed), fix) from error

    def same(self, other: Parcel) -> bool:
        """Whether the other has the same in it, to the bit."""
        if self.skeleton != other.skeleton:  # it tells shapes and types
            return False
        return all(_equal(one, another) for one, another in zip(self.tensors, other.tensors, strict=True))


Some = TypeVar("Some", bound=Record)


def to_arrays(record: Some) -> Some:
    """A record with arrays for its tensors: Ray shares arrays between processes, tensors it would pickle."""
    return record.map(lambda tensor: _as_array(tensor.detach().cpu().contiguous()))


def to_tensors(record: Some) -> Some:
    """What :func:`to_arrays` was given, on the CPU."""
    return record.map(_as_tensor)


class Replica:
    """The newest object that a worker was sent, kept on its own device.

    A parcel of the same shape as the last only brings new numbers, which are written into the tensors that are there:
    what was derived from the object's shape (compiled code, say) stays.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.content: Any = None
        """What was opened last"""
        self._skeleton = b""
        self._tensors: list[Tensor] = []

    def open(self, parcel: Parcel) -> Any:
        """The object, as it was when the parcel was packed."""
        if parcel.skeleton == self._skeleton:
            self._rewrite(parcel.tensors)
        else:
            self._build(parcel)
        return self.content

    def _rewrite(self, arrays: Sequence[Any]) -> None:
        with torch.no_grad():
            for tensor, array in zip(self._tensors, arrays, strict=True):
                tensor.copy_(_as_tensor(array))

    def _build(self, parcel: Parcel) -> None:
        unpickler = _Unpickler(io.BytesIO(parcel.skeleton), parcel.tensors, self.device)
        self.content = unpickler.load()
        self._tensors, self._skeleton = unpickler.tensors, parcel.skeleton


class _Pickler(cloudpickle.Pickler):
    """Takes tensors out, in the order in which they are met."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)  # type: ignore[no-untyped-call]
        self.tensors: list[Tensor] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return (DEVICE,)
        if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
            return None
        if id(value) not in self._known:
            self._known[id(value)] = len(self.tensors)
            self.tensors.append(value)
        shape = tuple(value.shape), str(value.dtype)
        return (TENSOR, self._known[id(value)], shape, type(value) is nn.Parameter, value.requires_grad)


class _Unpickler(pickle.Unpickler):
    """Puts tensors back, on the worker's device. What it reads comes from the run's own driver, never from a file."""

    def __init__(self, file: io.BytesIO, arrays: Sequence[Any], device: torch.device) -> None:
        super().__init__(file)
        self.arrays, self.device = arrays, device
        self.tensors: list[Tensor] = []

    def persistent_load(self, name: Any) -> Any:
        if name[0] == DEVICE:
            return self.device
        _, place, _, parameter, grad = name
        if place == len(self.tensors):  # they are met in the order in which they were packed
            tensor = _as_tensor(self.arrays[place]).to(self.device, copy=True)
            self.tensors.append(nn.Parameter(tensor, grad) if parameter else tensor.requires_grad_(grad))
        return self.tensors[place]


def _kinds(packed: Any) -> str:
    """What was to be sent."""
    parts = packed if isinstance(packed, tuple) else (packed,)
    return ", ".join(type(part).__name__ for part in parts)


def _equal(one: Any, other: Any) -> bool:
    """Compared as bytes: a number that is none equals itself."""
    if isinstance(one, Tensor):
        return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    return np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def _as_array(tensor: Tensor) -> Any:
    """bfloat16 has no NumPy type; such a tensor travels as itself."""
    return tensor if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _as_tensor(array: Any) -> Tensor:
    """Arrays of the object store are read-only, and torch warns of them: only ever read through this."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
