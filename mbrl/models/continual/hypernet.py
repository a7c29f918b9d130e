"""Dynamics whose weights a hypernetwork makes from an embedding of the task.

Huang, Xie, Bharadhwaj, Shkurti, "Continual Model-Based Reinforcement Learning with Hypernetworks", 2021 (HyperCRL).
Old tasks are kept without their data: what the hypernetwork says for their embeddings is held to what it said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.models.continual.base import ContinualModel
from mbrl.models.continual.flat import Layers, Layout, layers_of, net_shapes
from mbrl.models.continual.slot import TaskSlot

Targets = Literal["ended", "restart"]
Activation = Literal["relu", "elu"]


class HyperNetwork(ContinualModel):
    """``w_t = h_theta(e_t)``: a trunk over the task's embedding, and a linear head for each tensor of the main network.

    The heads read the same features, so they are one matrix whose columns are grouped by tensor; each group starts
    Xavier-uniform by its own width. In the chunked form one small hypernetwork, fed with the task's embedding and a
    chunk's, makes the weights ``chunk`` at a time; with large main networks the heads are nearly all of the memory.

    While task t is learned, with targets ``w*_j`` of the tasks before it,

        L = L_task + beta * B * mean_j || h_{theta + dtheta}(e_j) - w*_j ||^2,

    ``dtheta`` the step that Adam would make on L_task alone, a constant. Old embeddings are fixed.

    What differs from the authors' code, on purpose: the log-variance bounds are trained; the preview is of the
    clipped gradient, as the step is; old rows and statistics are not needed; there is no weight penalty (theirs
    keeps the norm of the last tensor only).

    Args:
        spec: see the base class, as for hidden, layers, members, probabilistic, bound_weight and validity.
        trunk: widths of the hypernetwork's hidden layers.
        activation: between them.
        embedding: width of the task's embedding, drawn from N(0, 1) and learned.
        chunk: weights made at once; null for heads by tensor.
        chunk_embedding: width of a chunk's embedding.
        beta: weight of the regulariser; published 0.05, 0.5 on two manipulation tasks, 0.005 chunked.
        look_ahead: regularise where the optimiser is about to go; off: where it is.
        targets: ``ended`` keeps the weights that each task ended with; ``restart`` takes all of them anew from the
            hypernetwork whenever a task starts, as published. Then the errors of one task after another add up like
            a random walk, so the former is the default. Both hold as many floats as the main network has, a task.
        old_tasks: how many old tasks, drawn anew at each step, the mean is taken over; null for all. It bounds the
            price of a step when tasks are many and networks large.

    Raises:
        UserError: a size below 1, beta below 0, an unknown name.
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
        trunk: Sequence[int] = (32, 32),
        activation: Activation = "relu",
        embedding: int = 10,
        chunk: int | None = None,
        chunk_embedding: int = 10,
        beta: float = 0.05,
        look_ahead: bool = True,
        targets: Targets = "ended",
        old_tasks: int | None = None,
    ) -> None:
        for name, size in [("trunk", min(trunk, default=0)), ("embedding", embedding), ("chunk", chunk)]:
            _check_size(name, size)
        _check_size("chunk_embedding", chunk_embedding)
        _check_size("old_tasks", old_tasks)
        if not 0.0 <= beta < math.inf:
            raise UserError("beta", beta, "give a finite number of at least 0")
        for name, choice, known in [("targets", targets, Targets), ("activation", activation, Activation)]:
            if choice not in get_args(known):
                raise UserError(name, choice, "name one of " + ", ".join(get_args(known)), get_args(known))
        self.trunk, self.embedding, self.chunk, self.chunk_embedding = tuple(trunk), embedding, chunk, chunk_embedding
        self.beta, self.look_ahead, self.targets, self.old_tasks = beta, look_ahead, targets, old_tasks
        self._stacked: tuple[Tensor, Tensor] | None = None
        self._activate = F.relu if activation == "relu" else F.elu
        super().__init__(spec, hidden, layers, members, probabilistic, bound_weight, validity)

    # -- the hypernetwork ----------------------------------------------------------------------------------------------

    @property
    def chunks(self) -> int:
        return 0 if self.chunk is None else math.ceil(self.net.size / self.chunk)

    def shared_layout(self) -> Layout:
        """Trunk and heads, and the chunks' embeddings if there are any."""
        inputs = self.embedding + (self.chunk_embedding if self.chunk else 0)
        shapes = net_shapes([inputs, *self.trunk, self.chunk or self.net.size])
        return Layout(shapes | ({"chunks": (self.chunks, self.chunk_embedding)} if self.chunk else {}))

    def own_layout(self, position: int) -> Layout:
        return Layout({"embedding": (self.embedding,)})

    def initial_shared(self, layout: Layout) -> Tensor:
        """Xavier-uniform weights, zero biases; chunk embeddings N(0, 1)."""
        flat = layout.initial(self.members, None)
        parts, last = layout.split(flat), len(self.trunk)
        for i in range(last + 1):
            weight = parts[f"weight{i}"]
            inputs, outputs = weight.shape[-2:]
            width = torch.tensor([float(outputs)]) if i < last or self.chunk else self._widths()
            weight.uniform_(-1, 1).mul_((6 / (inputs + width)).sqrt())
        if self.chunk:
            parts["chunks"].normal_()
        return flat

    def _widths(self) -> Tensor:
        """``[P]``: for each weight of the main network, how many there are in its tensor."""
        sizes = torch.tensor(list(self.net.sizes.values()))
        widths: Tensor = sizes.repeat_interleave(sizes).float()
        return widths

    def generate(self, shared: Tensor, embeddings: Tensor) -> Tensor:
        """Main networks ``[E, t, P]`` of embeddings ``[E, t, D]``, with hypernetwork weights ``shared [E, n]``."""
        parts = self.shared_parts.split(shared)
        x = self._beside_chunks(embeddings, parts["chunks"]) if self.chunk else embeddings
        for i, (weight, bias) in enumerate(layers_of(parts)):
            x = torch.baddbmm(bias, self._activate(x) if i else x, weight)
        if not self.chunk:
            return x
        whole: Tensor = x.unflatten(1, (embeddings.shape[1], self.chunks)).flatten(2)
        return whole[..., : self.net.size]

    def _beside_chunks(self, embeddings: Tensor, chunks: Tensor) -> Tensor:
        """``[E, t * K, D + C]``"""
        tasks, count = embeddings.shape[1], self.chunks
        pairs = [embeddings[:, :, None].expand(-1, -1, count, -1), chunks[:, None].expand(-1, tasks, -1, -1)]
        return torch.cat(pairs, -1).flatten(1, 2)

    def layers(self, task: int) -> Layers:
        embedding = self.own(task)["embedding"]
        return list(layers_of(self.net.split(self.generate(self.shared, embedding[:, None])[:, 0])))

    # -- what keeps old tasks ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _weights(self, task: int) -> Tensor:
        """``[E, P]``"""
        return self.generate(self.shared, self.own(task)["embedding"][:, None])[:, 0]

    def remember(self, slot: TaskSlot, data: Transitions, generator: Generator) -> None:
        slot.keep(targets=self._weights(self.current))

    def recall(self, generator: Generator) -> None:
        if self.targets == "restart":
            for task in self.ended:
                self.slot(task).keep(targets=self._weights(task))

    def penalty(self, step: Tensor | None, rows: int, generator: Generator) -> Tensor | None:
        """The sum over members of beta B mean_j || h_{theta + dtheta}(e_j) - w*_j ||^2."""
        if not self.ended or not self.beta:
            return None
        embeddings, targets = self._old(generator)
        said = self.generate(self.shared if step is None else self.shared + step, embeddings)
        return self.beta * rows / embeddings.shape[1] * (said - targets).square().sum()

    def _old(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Embeddings ``[E, t, D]`` and targets ``[E, t, P]`` of the old tasks of one step."""
        if self._stacked is None or self._stacked[0].device != self.shared.device:
            embeddings = torch.stack([self.own(task)["embedding"] for task in self.ended], 1).detach()
            self._stacked = embeddings, torch.stack([self.slot(task).kept["targets"] for task in self.ended], 1)
        embeddings, targets = self._stacked
        if self.old_tasks is None or self.old_tasks >= embeddings.shape[1]:
            return embeddings, targets
        order = torch.randperm(embeddings.shape[1], generator=generator, device=generator.device)[: self.old_tasks]
        return embeddings[:, order], targets[:, order]

    def forget_cached(self) -> None:
        self._stacked = None


def _check_size(name: str, size: int | None) -> None:
    if size is not None and size < 1:
        raise UserError(name, size, "give whole numbers of at least 1")
