"""The arithmetic floor: what the matrix products of an ensemble alone cost on this machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbrl.models.ensemble import ProbabilisticEnsemble

SQUARE = 512
"""Side of the large matrices whose product shows the machine's best rate."""
SQUARE_TURNS = 64


def forward_flops(model: ProbabilisticEnsemble, rows: int) -> int:
    """Multiplications and additions of one forward pass, ``rows`` a member."""
    return sum(2 * rows * int(weight.numel()) for weight in model.weights)


def training_flops(model: ProbabilisticEnsemble, rows: int) -> int:
    """Forward pass, gradient of every weight, and of every layer's input but the first."""
    return 3 * forward_flops(model, rows) - 2 * rows * int(model.weights[0].numel())


def square_products() -> Callable[[], None]:
    """Products of large square matrices: the best rate there is."""
    left, right, out = (torch.randn(SQUARE, SQUARE) for _ in range(3))

    def run() -> None:
        for _ in range(SQUARE_TURNS):
            torch.mm(left, right, out=out)

    return run


def square_flops() -> int:
    return SQUARE_TURNS * 2 * SQUARE**3


def shaped_products(model: ProbabilisticEnsemble, rows: int, backward: bool) -> Callable[[], None]:
    """The very products of a forward (and backward) pass, into memory that is already there, and nothing else."""
    layers = [_Layer(weight, rows) for weight in model.weights]

    def run() -> None:
        for layer in layers:
            torch.bmm(layer.inputs, layer.weight, out=layer.outputs)
        for i, layer in reversed([*enumerate(layers)] if backward else []):
            torch.bmm(layer.inputs.mT, layer.outputs, out=layer.weight_grad)
            if i:
                torch.bmm(layer.outputs, layer.weight.mT, out=layer.input_grad)

    return run


class _Layer:
    def __init__(self, weight: Tensor, rows: int) -> None:
        members, inputs, outputs = weight.shape
        self.weight, self.weight_grad = weight.detach(), torch.empty(weight.shape)
        self.inputs, self.outputs = torch.randn(members, rows, inputs), torch.randn(members, rows, outputs)
        self.input_grad = torch.empty(members, rows, inputs)
