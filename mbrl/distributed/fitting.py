"""An ensemble fitted by several Ray workers: each trains some of its members.

Members never meet in a gradient, so whoever trains one needs the rows and its random numbers alone. The driver draws
all of them, hears after every epoch whether any member got better, and decides when to stop.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayTaskError
from torch import Generator, Tensor, nn

from envs.errors import UserError
from mbrl.distributed.cluster import assigned_device, check_resources
from mbrl.distributed.crew import LOST, MOST_LOSSES, START_SECONDS, own_error
from mbrl.distributed.parcel import Parcel, Replica
from mbrl.distributed.worker import Arithmetic, Placement
from mbrl.fitting.gradient import Epochs, Examples, Fitter, Outcome, Training
from mbrl.models.base import DynamicsModel

NAME = "fit workers"
LANES = 16
"""Numbers that one instruction of a CPU handles at most. The last ones of a tensor, when they do not fill it, are
rounded differently."""

Group = tuple[int, int]
"""First member, and the first that is not in it"""


class FitWorkers:
    """Workers on a Ray cluster among which the members of an ensemble are split, as evenly as it goes: what
    :class:`mbrl.fitting.Fitter` takes as its ``workers``.

    Weights, optimiser, elites, report and random numbers are as after training in one process. On CPUs they are equal
    bit for bit where the batch size is a multiple of 16; else within rounding (1e-5 after a hundred steps).
    The rows are sent once a fit (all of them: their standardisation changes with every one), an epoch's row numbers
    and results once an epoch.

    When a worker is lost, all begin this fit again, from the weights and the random state that it began with.

    Models with one member, or with parameters that members share, are trained where the fitter is. A model's loss may
    draw no random numbers and change no buffers, as fits that are to be repeated ask anyway.

    Args:
        workers: how many; more than a model has members are not started.
        num_cpus: processors that Ray sets aside for each; fractions are allowed.
        num_gpus: GPUs for each; fractions share one.

    Raises:
        UserError: the cluster does not have that much.
    """

    def __init__(self, workers: int, num_cpus: float = 1.0, num_gpus: float = 0.0) -> None:
        check_resources(workers, num_cpus, num_gpus, NAME)
        self.size = workers
        self._kind = ray.remote(FitWorker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0
        )
        self.actors: list[Any] = []

    def train(
        self,
        fitter: Fitter,
        model: DynamicsModel,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
        generator: Generator,
        run: Callable[[Epochs], Outcome],
    ) -> Outcome:
        """See :class:`mbrl.fitting.gradient.MemberWorkers`.

        Raises:
            UserError: no worker could be started, or three times in this fit one was lost.
            Exception: what the model raised in a worker, with the traceback of there.
        """
        before = generator.get_state()
        for loss in itertools.count(1):
            try:
                actors = self.start(min(self.size, model.members))
                split = SplitTraining(actors, fitter, model, optimizer, examples)
                result = run(split)
                split.finish(model, optimizer)
                return result
            except RayTaskError as error:
                raise own_error(error) from error
            except LOST as error:
                if loss == MOST_LOSSES:
                    fix = "this fit takes its workers with it (memory?): make it smaller, or fit without Ray"
                    raise UserError(NAME, f"lost {loss} times in one fit: {error}", fix) from error
                generator.set_state(before)
        raise AssertionError("not reached")

    def start(self, size: int) -> list[Any]:
        """``size`` living workers."""
        self.actors = [actor for actor in self.actors if _lives(actor)]
        fresh: list[Any] = [self._kind.remote() for _ in range(size - len(self.actors))]
        self.actors += fresh
        try:
            ray.get([actor.ready.remote() for actor in fresh], timeout=START_SECONDS)
        except GetTimeoutError as error:
            self.close()
            free = {name: round(have, 2) for name, have in ray.available_resources().items() if name in ("CPU", "GPU")}
            fix = "not all could be started: something else may hold the cluster's CPUs or GPUs; ask for fewer"
            raise UserError(NAME, f"{size} workers, free now: {free}", fix) from error
        return self.actors[:size]

    def placements(self) -> list[Placement]:
        """Where the workers are that have been started."""
        found: list[Placement] = ray.get([actor.ready.remote() for actor in self.actors])
        return found

    def close(self) -> None:
        """End the workers."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


def _lives(actor: Any) -> bool:
    """Waits until it has done what it was asked for before."""
    try:
        ray.get(actor.ready.remote())
    except LOST:
        return False
    return True


class SplitTraining:
    """One fit's epochs, each member with one of some workers; see :class:`mbrl.fitting.gradient.Epochs`."""

    def __init__(
        self,
        actors: list[Any],
        fitter: Fitter,
        model: DynamicsModel,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
    ) -> None:
        ends = [model.members * i // len(actors) for i in range(len(actors) + 1)]
        self.groups: list[Group] = list(itertools.pairwise(ends))
        self.actors, self.judged = actors, len(examples.held) > 0
        self.device = next(model.parameters()).device
        plain = copy.copy(fitter)
        plain.workers = plain.optimizer = plain._loss = plain._pending = None
        needed = replace(examples, train=examples.train[:0])  # which rows to take comes with every epoch
        weights = ray.put(Parcel.of(model))
        work = ray.put(Parcel.of((plain, needed, optimizer.state_dict())))
        arithmetic, parts = Arithmetic.here(), zip(self.actors, self.groups, strict=True)
        ray.get([actor.begin.remote(arithmetic, weights, work, group) for actor, group in parts])

    def epoch(self, order: Tensor) -> tuple[Tensor, bool]:
        rows, parts = order.cpu().numpy(), zip(self.actors, self.groups, strict=True)
        said = ray.get([actor.epoch.remote(rows[first:end]) for actor, (first, end) in parts])
        losses = torch.cat([torch.tensor(losses) for losses, _ in said])
        return losses, any(improved for _, improved in said)

    @torch.no_grad()
    def finish(self, model: DynamicsModel, optimizer: torch.optim.Optimizer) -> None:
        """Bring weights and optimiser home."""
        parcels = ray.get([actor.finish.remote() for actor in self.actors])
        weights, states = zip(*(Replica(self.device).open(parcel) for parcel in parcels), strict=True)
        for parameter, parts in zip(model.parameters(), zip(*weights, strict=True), strict=True):
            parameter.copy_(torch.cat(parts))
        state = {number: _joined([each[number] for each in states]) for number in states[0]}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class FitWorker:
    """One actor: trains the members that it is given."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.whole: DynamicsModel | None = None
        self.group: Group = (0, 0)
        self.training: Training | None = None

    def ready(self) -> Placement:
        """Answers once the actor can work. Raises ``UserError`` where the GPU that Ray gave it is not there."""
        self.replica = self.replica or Replica(assigned_device())
        return Placement.here()

    def begin(self, arithmetic: Arithmetic, weights: Parcel, work: Parcel, group: Group) -> None:
        """Be ready to train members ``group`` of the model in ``weights``; ``work`` is what to do with it."""
        arithmetic.apply()
        assert self.replica is not None
        whole, part = self.replica.open(weights), slice(*group)
        fitter, examples, state = Replica(self.replica.device).open(work)
        if whole is not self.whole or group != self.group:
            self.whole, self.group, self.model = whole, group, members_of(whole, part)
            self.loss = torch.compile(self.model.loss) if fitter.compile else self.model.loss
        self.descent = MemberDescent(fitter, whole, self.model, part, state)
        parts = (self.model, self.descent, self.loss, examples, fitter.batch_size, fitter.improvement)
        self.training = Training(*parts)

    def epoch(self, order: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
        """Train on ``order [E, n]``, E members of this group; see :meth:`mbrl.fitting.gradient.Epochs.epoch`."""
        assert self.training is not None
        assert self.replica is not None
        losses, improved = self.training.epoch(torch.tensor(order, device=self.replica.device))
        return losses.cpu().numpy(), improved

    def finish(self) -> Parcel:
        """Weights of the members, and the state of their optimiser."""
        assert self.training is not None
        self.training.finish()
        self.training = None  # the rows with it
        return Parcel.of(([p.detach() for p in self.model.parameters()], self.descent.state()))


@torch.no_grad()
def members_of(whole: DynamicsModel, part: slice) -> DynamicsModel:
    """A model of some of its members. Its buffers are those of ``whole``; its parameters are its own."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in whole.buffers()}
    memo |= {id(p): nn.Parameter(p[part].clone(), p.requires_grad) for p in whole.parameters()}
    model = copy.deepcopy(whole, memo)
    model.members = len(range(whole.members)[part])
    return model


class MemberDescent:
    """An optimiser's steps for some members, rounded as its steps for all of them are.

    Where a member's share of a parameter does not fill whole instructions, the parameter is stepped at its full size
    with gradient for these members alone, so that their numbers lie where they lie in the whole. These are the small
    ones: biases, and the output layer.

    Args:
        fitter: makes the optimiser.
        whole: the model as the fit begins.
        model: these members of it; takes their weights from ``whole``.
        part: which they are.
        state: of the whole model's optimiser.
    """

    @torch.no_grad()
    def __init__(
        self, fitter: Fitter, whole: DynamicsModel, model: DynamicsModel, part: slice, state: dict[str, Any]
    ) -> None:
        self.part, self.model = part, model
        self.padded: dict[nn.Parameter, nn.Parameter] = {}
        for mine, full in zip(model.parameters(), whole.parameters(), strict=True):
            mine.copy_(full[part])
            if full[0].numel() % LANES:
                self.padded[mine] = nn.Parameter(full.detach().clone())
        groups = model.parameter_groups(fitter.weight_decay)
        self.stepped = [p for group in groups for p in group["params"]]
        for group in groups:
            group["params"] = [self.padded.get(p, p) for p in group["params"]]
        self.optimizer = fitter.adam(groups)
        cut = {number: self._cut(number, values) for number, values in state["state"].items()}
        self.optimizer.load_state_dict({"state": cut, "param_groups": state["param_groups"]})

    def _cut(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        """What the optimiser here keeps of a parameter, of what the whole one's keeps; counters are left alone."""
        if self.stepped[number] in self.padded:
            return values
        return {name: value[self.part] if value.dim() else value for name, value in values.items()}

    def state(self) -> dict[int, dict[str, Any]]:
        """What the optimiser keeps of these members, by number of the parameter."""
        state: dict[int, dict[str, Any]] = self.optimizer.state_dict()["state"]
        padded = {number for number, p in enumerate(self.stepped) if p in self.padded}
        return {
            number: {n: v[self.part] if v.dim() and number in padded else v for n, v in values.items()}
            for number, values in state.items()
        }

    def zero_grad(self) -> None:
        for p in self.model.parameters():
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for mine, full in self.padded.items():
            if mine.grad is None:
                full.grad = None
                continue
            if full.grad is None:
                full.grad = torch.zeros_like(full)
            full.grad[self.part] = mine.grad
        self.optimizer.step()
        for mine, full in self.padded.items():
            mine.copy_(full[self.part])


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all members, what the optimiser keeps of some."""
    return {name: torch.cat([p[name] for p in parts]) if v.dim() else v for name, v in parts[0].items()}
