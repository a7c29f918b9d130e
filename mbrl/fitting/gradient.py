"""How gradient models are trained: member-wise bootstrap, holdout, early stopping, per-member best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.buffer import consecutive
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.fitting.base import ModelFitter, check_counts, check_rows, check_shares, check_weights
from mbrl.models.base import DynamicsModel

Outcome = TypeVar("Outcome")


class Epochs(Protocol):
    """A model's members under training, here or split over processes."""

    judged: bool
    """Whether rows are held out"""

    def epoch(self, order: Tensor) -> tuple[Tensor, bool]:
        """One epoch on examples ``order [E, n]``, a batch after the other.

        Returns:
            Sums over its steps of the members' losses, ``[E]``; ``[1]`` or more parts where a model only tells their
            sum. And whether any member is better than ever on held-out rows.
        """


class MemberWorkers(Protocol):
    """Train the members of one model split over processes: the weights, optimiser and random numbers are those of
    training them together. See :class:`mbrl.distributed.fitting.FitWorkers`.
    """

    def train(
        self,
        fitter: Fitter,
        model: DynamicsModel,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
        generator: Generator,
        run: Callable[[Epochs], Outcome],
    ) -> Outcome:
        """What ``run`` makes of the members under training; ``model`` and ``optimizer`` are then as after it."""


class Fitter(ModelFitter):
    """Fits a model by gradient on all data so far, warm-started from its last weights.

    With a holdout, training stops when no member has improved its holdout score by ``improvement`` for ``patience``
    epochs, and every member returns to its own best weights (a snapshot of the whole ensemble whenever *any* member
    improves, as in some public code, is not that). Without a holdout it takes ``max_updates`` steps.

    Args:
        lr: Adam's step size.
        weight_decay: L2 coefficient on weight matrices, as in Adam with coupled decay; a list gives one a layer.
        batch_size: rows for each member and step.
        holdout: share of rows held out; 0 trains on everything.
        max_holdout: at most this many rows are held out.
        fresh_holdout: draw the held rows anew at every fit, as published with MBPO. A network that goes on from its
            last weights has then been trained on most of them, looks best before its first epoch, and stops early.
            By default a row's episode and step decide, once and for ever; where rows do not have their own (made by
            hand, say) they are drawn anew.
        patience: epochs without improvement before stopping.
        max_epochs: upper bound on epochs.
        max_updates: upper bound on gradient steps in one fit.
        first_updates: that bound for the first fit (default: ``max_updates``).
        improvement: relative improvement of a member's holdout score that counts.
        bootstrap: every member draws its own rows with replacement; False gives all members the same rows, each in
            its own order.
        compile: compile loss and gradient with torch.compile (first use takes a while).
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float | Sequence[float] = 3e-5,
        batch_size: int = 256,
        holdout: float = 0.2,
        max_holdout: int = 5000,
        fresh_holdout: bool = False,
        patience: int = 5,
        max_epochs: int = 100,
        max_updates: int | None = None,
        first_updates: int | None = None,
        improvement: float = 0.01,
        bootstrap: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(holdout, max_holdout, fresh_holdout)
        check_shares(improvement=improvement)
        if not 0.0 < lr < math.inf:
            raise UserError("lr", lr, "give a finite number above 0")
        decays = weight_decay if isinstance(weight_decay, Sequence) else [weight_decay]
        if not all(0.0 <= decay < math.inf for decay in decays):
            raise UserError("weight_decay", weight_decay, "give a finite number of at least 0, or one a layer")
        check_counts(batch_size=batch_size, patience=patience, max_epochs=max_epochs)
        check_counts(max_updates=max_updates, first_updates=first_updates)
        if holdout == 0.0 and max_updates is None:
            raise UserError("holdout", holdout, "without a holdout nothing stops early: set max_updates")
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.patience, self.max_epochs = patience, max_epochs
        self.max_updates = 2**62 if max_updates is None else max_updates
        self.first_updates = self.max_updates if first_updates is None else first_updates
        self.improvement, self.bootstrap, self.compile = improvement, bootstrap, compile
        self.optimizer: torch.optim.Optimizer | None = None
        self.workers: MemberWorkers | None = None
        """Who trains models of several members; None: this process. May be changed between fits."""
        self._pending: dict[str, Any] | None = None
        self._loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]] | None = None

    def check(self, model: DynamicsModel) -> None:
        """Raise ``UserError`` when ``model`` has nothing to train, or not as many layers as there are weight decays."""
        if not any(True for _ in model.parameters()):
            fix = "this model has nothing to train by gradient: name ClosedFormFitter where it is solved for, else none"
            raise UserError("fitter", type(model).__name__, fix)
        model.parameter_groups(self.weight_decay)

    def fit(
        self, model: DynamicsModel, data: Transitions, generator: Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Train on ``data [N]``; ``weights [N]`` weigh the drawing of rows. Returns what to log."""
        check_rows(data)
        if weights is not None:
            check_weights(weights, len(data))
        optimizer = self._optimizer(model)
        rows: Record = model.prepare(data)
        train, held = self.split(data, generator, model.window)
        examples = Examples.of(rows, data, model.window, train, held, generator)
        limit = self.first_updates if self.fits == 0 else self.max_updates
        updates, epochs, loss = self._train(model, optimizer, examples, weights, generator, limit)
        self.fits += 1
        report = {"gradient_steps": float(updates), "epochs": float(epochs), "loss": loss, "rows": float(len(data))}
        if len(examples.held):
            score, extra = model.holdout_score(examples[examples.held])
            model.set_elites(score)
            report |= {"holdout_score": float(score.mean())} | {name: float(v) for name, v in extra.items()}
        return report | model.calibrate(data[held if len(held) else train], generator)

    def _train(
        self,
        model: DynamicsModel,
        optimizer: torch.optim.Optimizer,
        examples: Examples,
        weights: Tensor | None,
        generator: Generator,
        limit: int,
    ) -> tuple[int, int, float]:
        """Epochs until the limit or until no member improves; returns (updates, epochs, last loss)."""

        def run(training: Epochs) -> tuple[int, int, float]:
            members = self._member_rows(model.members, examples.train, examples.weigh(weights), generator)
            return self._epochs(training, members, generator, limit)

        if self.workers is not None and splits(model):
            return self.workers.train(self, model, optimizer, examples, generator, run)
        assert self._loss is not None
        training = Training(model, optimizer, self._loss, examples, self.batch_size, self.improvement)
        result = run(training)
        training.finish()
        return result

    def _epochs(self, training: Epochs, members: Tensor, generator: Generator, limit: int) -> tuple[int, int, float]:
        """As :meth:`_train`, on each member's own examples ``members [E, n]``."""
        updates, epoch, stale, loss = 0, 0, 0, math.nan
        per_epoch = max(1, members.shape[1] // self.batch_size)
        while updates < limit and epoch < self.max_epochs and stale < self.patience:
            steps = min(per_epoch, limit - updates)
            losses, improved = training.epoch(_shuffle(members, generator)[:, : steps * self.batch_size])
            updates, epoch = updates + steps, epoch + 1
            loss = float(losses.sum()) / (steps * len(members))
            if training.judged:
                stale = 0 if improved else stale + 1
        return updates, epoch, loss

    def _member_rows(self, members: int, train: Tensor, weights: Tensor | None, generator: Generator) -> Tensor:
        """``[E, n]`` row numbers of each member's own training set."""
        n = len(train)
        if weights is not None:
            if not bool(weights[train].sum() > 0):
                fix = "all weight lies on rows that are held out; set holdout to 0, or weigh more rows"
                raise UserError("weights", "0 on every training row", fix)
            pick = torch.multinomial(weights[train].double().expand(members, -1), n, True, generator=generator)
            return train[pick]
        if self.bootstrap and members > 1:
            return train[torch.randint(n, (members, n), generator=generator, device=generator.device)]
        return train.expand(members, n)

    def _optimizer(self, model: DynamicsModel) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self._loss = torch.compile(model.loss) if self.compile else model.loss
            self.optimizer = self.adam(model.parameter_groups(self.weight_decay))
            if self._pending is not None:
                self.optimizer.load_state_dict(self._pending)
                self._pending = None
        if self.optimizer.param_groups[0]["params"][0] is not model.parameter_groups(0.0)[0]["params"][0]:
            raise UserError("fitter", "another model", "a fitter keeps the optimiser of one model; make one for each")
        return self.optimizer

    def adam(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A fresh optimiser of groups of parameters."""
        return torch.optim.Adam(groups, lr=self.lr, fused=True)

    def state_dict(self) -> dict[str, Any]:
        state = self._pending if self.optimizer is None else self.optimizer.state_dict()
        return super().state_dict() | {"optimizer": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes effect at the next fit, when the model whose optimiser this is appears."""
        super().load_state_dict(state)
        self._pending, self.optimizer = state["optimizer"], None


@dataclass(frozen=True)
class Examples:
    """What a batch is made of: single rows, or windows of consecutive rows."""

    rows: Record
    places: Tensor | None
    """``[M, T]`` row numbers of each window; None: an example is a row"""
    train: Tensor
    held: Tensor
    """numbers of examples"""

    @classmethod
    def of(
        cls, rows: Record, data: Transitions, window: int, train: Tensor, held: Tensor, generator: Generator
    ) -> Examples:
        """Windows all of whose rows are trained on, and windows all of whose rows are held out; others are left out."""
        if window == 1:
            return cls(rows, None, train, held)
        places = consecutive(data.episode, data.step, window, data.task).T
        if not len(places):
            fix = f"no episode has so many steps ({len(data)} rows); warm up longer, or make the model's window shorter"
            raise UserError("window", window, fix)
        kept_out = torch.zeros(len(data), dtype=torch.bool, device=places.device)
        kept_out[held] = True
        outside = kept_out[places]
        order = torch.randperm(len(places), generator=generator, device=generator.device)
        learn, judge = order[~outside.any(1)[order]], order[outside.all(1)[order]]
        return cls(rows, places, learn if len(learn) else order, judge if len(learn) else order[:0])

    def __getitem__(self, numbers: Tensor) -> Record:
        return self.rows[numbers if self.places is None else self.places[numbers]]

    def weigh(self, weights: Tensor | None) -> Tensor | None:
        """Weight of each example: a window has that of its first row."""
        return weights if weights is None or self.places is None else weights[self.places[:, 0]]


class Training:
    """One fit's epochs in this process.

    Args:
        model: whose members are trained.
        optimizer: anything with an optimiser's ``zero_grad`` and ``step``.
        loss: the model's, maybe compiled.
        examples: what to train on and to judge by.
        batch_size: examples for each member and step.
        improvement: see :class:`Fitter`.
    """

    def __init__(
        self,
        model: DynamicsModel,
        optimizer: Descent,
        loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]],
        examples: Examples,
        batch_size: int,
        improvement: float,
    ) -> None:
        self.model, self.optimizer, self.loss, self.examples = model, optimizer, loss, examples
        self.batch_size = batch_size
        self.judged = len(examples.held) > 0
        self.best = _Best(model, examples[examples.held], improvement) if self.judged else None

    def epoch(self, order: Tensor) -> tuple[Tensor, bool]:
        """See :meth:`Epochs.epoch`."""
        losses = torch.zeros((), device=order.device)
        for numbers in order.split(self.batch_size, 1):
            losses = losses + self._update(self.examples[numbers])
        return losses.view(-1), self.best is not None and self.best.improved()

    def _update(self, batch: Record) -> Tensor:
        """One step; the members' losses before it, or their sum where the model does not tell them apart."""
        loss, metrics = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return metrics["member_losses"] if "member_losses" in metrics else loss.detach()

    def finish(self) -> None:
        """Return every member to its own best weights."""
        if self.best is not None:
            self.best.restore()


class Descent(Protocol):
    """What training needs of an optimiser."""

    def zero_grad(self) -> None: ...
    def step(self) -> Any: ...


class _Best:
    """Each member's best weights so far on a holdout."""

    def __init__(self, model: DynamicsModel, held: Record, improvement: float) -> None:
        self.model, self.held, self.improvement = model, held, improvement
        self.score, _ = model.holdout_score(held)
        self.weights = [p.detach().clone() for p in model.parameters()]

    def improved(self) -> bool:
        """Keep the members that are now better by enough; whether there was one."""
        score, _ = self.model.holdout_score(self.held)
        better = score < self.score - self.improvement * self.score.abs()  # a likelihood's score may be negative
        self.score = torch.where(better, score, self.score)
        for kept, p in zip(self.weights, self.model.parameters(), strict=True):
            kept.copy_(torch.where(better.view(-1, *[1] * (p.dim() - 1)), p.detach(), kept))
        return bool(better.any())

    def restore(self) -> None:
        with torch.no_grad():
            for kept, p in zip(self.weights, self.model.parameters(), strict=True):
                p.copy_(kept)


def splits(model: DynamicsModel) -> bool:
    """Whether a model has several members, whose every parameter lies along its first dimension."""
    return model.members > 1 and all(p.shape[:1] == (model.members,) for p in model.parameters())


def _shuffle(members: Tensor, generator: Generator) -> Tensor:
    """Each member's rows in an order of its own."""
    order = torch.rand(members.shape, generator=generator, device=generator.device).argsort(-1)
    return members.gather(1, order)
