"""What hypernetworks are judged against: the same main network, tasks, rows and trainer, other ways of remembering."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import Generator, Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.continual.base import ContinualModel
from mbrl.models.continual.flat import Layers, Layout, layers_of, net_shapes
from mbrl.models.continual.slot import TaskSlot
from mbrl.models.ensemble import Regression

FISHER_ROWS = 64
"""Rows whose gradients are held at once."""


class SharedTrunk(ContinualModel):
    """One trunk for all tasks and a linear head for each; nothing keeps the trunk. The published ``finetune``.

    Args:
        spec: see the base class, as for hidden, layers, members, probabilistic, bound_weight and validity.
        heads: a head for each task; off: one network for all tasks, which the next task overwrites.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 32,
        layers: int = 2,
        members: int = 1,
        probabilistic: bool = False,
        bound_weight: float = 0.01,
        validity: float = 0.0,
        heads: bool = True,
    ) -> None:
        self.heads = heads
        super().__init__(spec, hidden, layers, members, probabilistic, bound_weight, validity)

    def shared_layout(self) -> Layout:
        return Layout(net_shapes(self.sizes[:-1] if self.heads else self.sizes))

    def own_layout(self, position: int) -> Layout:
        return Layout(net_shapes(self.sizes[-2:], first=len(self.sizes) - 2) if self.heads else {})

    def layers(self, task: int) -> Layers:
        return self.layers_with(task, self.shared)

    def layers_with(self, task: int, shared: Tensor) -> Layers:
        """The main network's weights for a task with the given shared parameters ``[E, n]``."""
        return list(layers_of(self.shared_parts.split(shared) | self.own(task)))


class SingleModels(ContinualModel):
    """A network of its own for each task: nothing is forgotten, nothing is shared, and memory grows by a network."""

    def shared_layout(self) -> Layout:
        return Layout({})

    def own_layout(self, position: int) -> Layout:
        return self.net

    def layers(self, task: int) -> Layers:
        return list(layers_of(self.own(task)))


class ProgressiveHeads(SingleModels):
    """A new column with its head for each task, which also reads the frozen columns before it.

    After Rusu et al., "Progressive Neural Networks", 2016, without their adapters: layer i of column k is
    ``f(sum_{j <= k} h_j^{i-1} U_{kj}^i + b)``. Old columns read a new task's inputs as that task standardises them.
    Time and memory grow with every task. The HyperCRL code has progressive networks too; what it does in detail is
    not known here.
    """

    def own_layout(self, position: int) -> Layout:
        width, hidden = position + 1, self.sizes[1]
        shapes = dict(self.net.shapes)
        for i in range(1, len(self.sizes) - 1):
            shapes[f"weight{i}"] = (width * hidden, shapes[f"weight{i}"][1])
        return Layout(shapes)

    def layers(self, task: int) -> Layers:
        """All columns as one wide network, with zeros where a column does not read a later one."""
        columns = [list(layers_of(self.own(old))) for old in self.tasks[: self.tasks.index(task) + 1]]
        columns[:-1] = [[(w.detach(), b.detach()) for w, b in column] for column in columns[:-1]]
        wide = [_side_by_side([column[i] for column in columns]) for i in range(len(self.sizes) - 2)]
        return [*wide, columns[-1][-1]]


def _side_by_side(layers: Layers) -> tuple[Tensor, Tensor]:
    rows = layers[-1][0].shape[1]
    weights = [F.pad(weight, (0, 0, 0, rows - weight.shape[1])) for weight, _ in layers]
    return torch.cat(weights, -1), torch.cat([bias for _, bias in layers], -1)


class Replay(SharedTrunk):
    """Shared trunk and heads, trained on rows of all tasks so far: a coreset, or the multi-task oracle.

    At each step every old task adds the loss on a batch of what is kept of it, as large as the open task's batch;
    where fewer rows are kept, on all of them, the loss scaled up to a batch. Old heads go on learning.

    Args:
        spec: see the base class, as for hidden, layers, members, probabilistic, bound_weight and validity.
        rows: M, random transitions kept of each old task; null keeps all, the oracle.
        heads: see SharedTrunk.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 32,
        layers: int = 2,
        members: int = 1,
        probabilistic: bool = False,
        bound_weight: float = 0.01,
        validity: float = 0.0,
        rows: int | None = 50,
        heads: bool = True,
    ) -> None:
        if rows is not None and rows < 1:
            raise UserError("rows", rows, "give a whole number of at least 1, or null for all")
        self.rows = rows
        super().__init__(spec, hidden, layers, members, probabilistic, bound_weight, validity, heads)

    def remember(self, slot: TaskSlot, data: Transitions, generator: Generator) -> None:
        """Rows as the task prepares them: its normalisers are fixed from now on."""
        rows = self.prepare(data, fit_statistics=False)
        order = torch.randperm(len(data), generator=generator, device=generator.device)[: self.rows]
        kept = rows[order.to(data.obs.device)]
        slot.keep(**{f"rows_{field.name}": getattr(kept, field.name) for field in fields(kept)})

    def objective(self, batch: Regression, generator: Generator) -> Tensor:
        loss, size = self.loss(batch)[0], batch.inputs.shape[1]
        for task in self.ended:
            old = self._draw(self.slot(task), size, generator)
            loss = loss + size / old.inputs.shape[1] * self.task_loss(task, self.layers(task), old)
        return loss

    def _draw(self, slot: TaskSlot, size: int, generator: Generator) -> Regression:
        """``[E, min(size, kept), ...]``"""
        rows = Regression(**{field.name: slot.kept[f"rows_{field.name}"] for field in fields(Regression)})
        count = len(rows.inputs)
        if count <= size:
            return rows.map(lambda x: x.expand(self.members, *x.shape))
        return rows[torch.randint(count, (self.members, size), generator=generator, device=generator.device)]

    def trained_own(self) -> list[nn.Parameter]:
        return [self.slot(task).own for task in self.tasks]


class ElasticWeights(SharedTrunk):
    """Elastic weight consolidation: shared parameters are held where old tasks' losses are steep.

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017, offline: one diagonal empirical
    Fisher matrix and one anchor a task, ``strength / 2 * sum_j F_j (theta - theta_j)^2``. The strength is the
    published one of HyperCRL; how their code scales the penalty beside its summed loss is not known here: F is the
    mean over rows of squared gradients of one row's loss, and the penalty is not scaled by the batch.

    Args:
        spec: see the base class, as for hidden, layers, members, probabilistic, bound_weight and validity.
        strength: weight of the penalty.
        heads: see SharedTrunk.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 32,
        layers: int = 2,
        members: int = 1,
        probabilistic: bool = False,
        bound_weight: float = 0.01,
        validity: float = 0.0,
        strength: float = 1e4,
        heads: bool = True,
    ) -> None:
        self.strength = _not_negative("strength", strength)
        super().__init__(spec, hidden, layers, members, probabilistic, bound_weight, validity, heads)

    def remember(self, slot: TaskSlot, data: Transitions, generator: Generator) -> None:
        slot.keep(fisher=self._fisher(self.prepare(data, fit_statistics=False)), anchor=self.shared)

    def _fisher(self, rows: Regression) -> Tensor:
        """``[E, n]`` mean over rows ``[N, ...]`` of squared gradients; members do not share parameters."""

        def loss(shared: Tensor, inputs: Tensor, targets: Tensor, ends: Tensor) -> Tensor:
            one = Regression(inputs, targets, ends).map(lambda x: x.expand(self.members, 1, -1))
            return self.task_loss(self.current, self.layers_with(self.current, shared), one)

        each = vmap(grad(loss), (None, 0, 0, 0))
        total, shared = torch.zeros_like(self.shared), self.shared.detach()
        for start in range(0, len(rows.inputs), FISHER_ROWS):
            part = rows[start : start + FISHER_ROWS]
            total = total + each(shared, part.inputs, part.targets, part.ends).detach().square().sum(0)
        return (total / len(rows.inputs)).detach()

    def penalty(self, step: Tensor | None, rows: int, generator: Generator) -> Tensor | None:
        if not self.ended:
            return None
        kept = [self.slot(task).kept for task in self.ended]
        fisher, anchor = (torch.stack([one[name] for one in kept]) for name in ("fisher", "anchor"))
        return self.strength / 2 * (fisher * (self.shared - anchor).square()).sum()


class SynapticIntelligence(SharedTrunk):
    """Shared parameters are held by how much of the loss's fall was theirs.

    Zenke, Poole, Ganguli, "Continual Learning Through Synaptic Intelligence", 2017: along a task's steps
    ``omega += -g * dtheta`` with the loss's own gradient g; when it ends ``Omega += omega / (change^2 + damping)``, not
    below 0; the penalty is ``strength * sum Omega (theta - theta*)^2``. What is kept does not grow with the tasks.

    Args:
        spec: see the base class, as for hidden, layers, members, probabilistic, bound_weight and validity.
        strength: c, weight of the penalty.
        damping: added to the squared change.
        heads: see SharedTrunk.
    """

    watches_steps = True
    omega: Tensor
    importance: Tensor
    anchor: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        hidden: int = 32,
        layers: int = 2,
        members: int = 1,
        probabilistic: bool = False,
        bound_weight: float = 0.01,
        validity: float = 0.0,
        strength: float = 0.1,
        damping: float = 1e-3,
        heads: bool = True,
    ) -> None:
        self.strength = _not_negative("strength", strength)
        if not 0.0 < damping < math.inf:
            raise UserError("damping", damping, "give a finite number above 0")
        self.damping = damping
        super().__init__(spec, hidden, layers, members, probabilistic, bound_weight, validity, heads)
        for name in ("omega", "importance", "anchor"):
            self.register_buffer(name, torch.zeros_like(self.shared.detach()))

    def recall(self, generator: Generator) -> None:
        self.omega.zero_()
        self.anchor.copy_(self.shared.detach())

    @torch.no_grad()
    def watch_step(self, gradient: Tensor, change: Tensor) -> None:
        self.omega.sub_(gradient * change)

    @torch.no_grad()
    def remember(self, slot: TaskSlot, data: Transitions, generator: Generator) -> None:
        share = self.omega / ((self.shared - self.anchor).square() + self.damping)
        self.importance.add_(share.clamp(min=0.0))
        self.anchor.copy_(self.shared)

    def penalty(self, step: Tensor | None, rows: int, generator: Generator) -> Tensor | None:
        if not self.ended:
            return None
        return self.strength * (self.importance * (self.shared - self.anchor).square()).sum()


def _not_negative(name: str, value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise UserError(name, value, "give a finite number of at least 0")
    return value
