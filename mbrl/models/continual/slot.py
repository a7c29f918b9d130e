"""What belongs to one task: parameters of its own, its normalisers, and what a method keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mbrl.data.normalizer import Normalizer
from mbrl.models.coordinates import Coordinates

KEPT = "kept_"


class TaskSlot(nn.Module):
    """State of one task. When it is loaded it takes the sizes that were saved.

    Args:
        own: ``[E, n]`` the task's own parameters.
        inputs: width of the network's input.
        targets: width of its target.
        coordinates: of the observations.
        params: the task's physics parameters.
    """

    own: nn.Parameter
    varies: Tensor
    box: Tensor
    fitted: Tensor

    def __init__(
        self, own: Tensor, inputs: int, targets: int, coordinates: Coordinates, params: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.own = nn.Parameter(own)
        self.input_norm, self.target_norm = Normalizer(inputs), Normalizer(targets)
        self.params = dict(params)
        self.register_buffer("varies", torch.ones(targets))
        self.register_buffer("box", torch.tensor([[-math.inf], [math.inf]]).repeat(1, coordinates.size))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit_statistics(self, inputs: Tensor, targets: Tensor, z: Tensor, validity: float) -> None:
        """Normalisers from rows ``[N, ...]``, and the box that a multiple of the coordinates' range spans."""
        self.input_norm.fit(inputs)
        self.varies.copy_(self.target_norm.fit(targets).float())
        self.fitted.fill_(True)
        if validity:
            low, high = z.amin(0), z.amax(0)
            margin = validity * (high - low)
            self.box.copy_(torch.stack([low - margin, high + margin]))

    def keep(self, **tensors: Tensor) -> None:
        """Remember tensors of this task, by name, in place of those of the same names."""
        for name, tensor in tensors.items():
            self.register_buffer(KEPT + name, tensor.detach().clone())

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a method keeps, by name."""
        return {name.removeprefix(KEPT): x for name, x in self.named_buffers(recurse=False) if name.startswith(KEPT)}

    def get_extra_state(self) -> dict[str, Any]:
        return {"params": self.params}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.params = {name: float(value) for name, value in state["params"].items()}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        own = state_dict.get(prefix + "own")
        if own is not None and own.shape != self.own.shape:
            self.own = nn.Parameter(torch.empty_like(own, device=self.own.device))
        for name in [name for name in self.kept if f"{prefix}{KEPT}{name}" not in state_dict]:
            delattr(self, KEPT + name)
        for key, value in state_dict.items():
            if key.startswith(prefix + KEPT):
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(value, device=self.own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
