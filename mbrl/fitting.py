"""How gradient models are trained: member-wise bootstrap, holdout, early stopping, per-member best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from envs.errors import UserError
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions
from mbrl.models.base import DynamicsModel


class Fitter:
    """Fits an ensemble on all data so far, warm-started from its last weights.

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
        _check_shares(holdout=holdout, improvement=improvement)
        if not 0.0 < lr < math.inf:
            raise UserError("lr", lr, "give a finite number above 0")
        decays = weight_decay if isinstance(weight_decay, Sequence) else [weight_decay]
        if not all(0.0 <= decay < math.inf for decay in decays):
            raise UserError("weight_decay", weight_decay, "give a finite number of at least 0, or one a layer")
        _check_counts(batch_size=batch_size, max_holdout=max_holdout, patience=patience, max_epochs=max_epochs)
        _check_counts(max_updates=max_updates, first_updates=first_updates)
        if holdout == 0.0 and max_updates is None:
            raise UserError("holdout", holdout, "without a holdout nothing stops early: set max_updates")
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.holdout, self.max_holdout, self.fresh_holdout = holdout, max_holdout, fresh_holdout
        self.patience, self.max_epochs = patience, max_epochs
        self.max_updates = 2**62 if max_updates is None else max_updates
        self.first_updates = self.max_updates if first_updates is None else first_updates
        self.improvement, self.bootstrap, self.compile = improvement, bootstrap, compile
        self.optimizer: torch.optim.Optimizer | None = None
        self.fits = 0
        self._pending: dict[str, Any] | None = None
        self._loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]] | None = None

    def check(self, model: DynamicsModel) -> None:
        """Raise ``UserError`` when the weight decays are not as many as ``model`` has layers; needs no data."""
        model.parameter_groups(self.weight_decay)

    def fit(
        self, model: DynamicsModel, data: Transitions, generator: Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Train on ``data [N]``; ``weights [N]`` weigh the drawing of rows. Returns what to log."""
        _check(data)
        if weights is not None:
            _check_weights(weights, len(data))
        optimizer = self._optimizer(model)
        rows: Record = model.prepare(data)
        train, held = self.split(data, generator)
        limit = self.first_updates if self.fits == 0 else self.max_updates
        updates, epochs, loss = self._train(model, optimizer, rows, train, held, weights, generator, limit)
        self.fits += 1
        report = {"gradient_steps": float(updates), "epochs": float(epochs), "loss": loss, "rows": float(len(data))}
        if len(held):
            score, extra = model.holdout_score(rows[held])
            model.set_elites(score)
            report |= {"holdout_score": float(score.mean())} | {name: float(v) for name, v in extra.items()}
        return report

    def _train(
        self,
        model: DynamicsModel,
        optimizer: torch.optim.Optimizer,
        rows: Record,
        train: Tensor,
        held: Tensor,
        weights: Tensor | None,
        generator: Generator,
        limit: int,
    ) -> tuple[int, int, float]:
        """Epochs until the limit or until no member improves; returns (updates, epochs, last loss)."""
        best = _Best(model, rows[held], self.improvement) if len(held) else None
        members = self._member_rows(model.members, train, weights, generator)
        updates, epoch, stale, loss = 0, 0, 0, math.nan
        per_epoch = max(1, members.shape[1] // self.batch_size)
        while updates < limit and epoch < self.max_epochs and stale < self.patience:
            total, steps = torch.zeros((), device=train.device), min(per_epoch, limit - updates)
            order = _shuffle(members, generator)
            for i in range(steps):
                total += self._update(optimizer, rows[order[:, i * self.batch_size : (i + 1) * self.batch_size]])
            updates, epoch = updates + steps, epoch + 1
            loss = float(total) / (steps * model.members)
            if best is not None:
                stale = 0 if best.improved() else stale + 1
        if best is not None:
            best.restore()
        return updates, epoch, loss

    def _update(self, optimizer: torch.optim.Optimizer, batch: Record) -> Tensor:
        assert self._loss is not None
        loss, _ = self._loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def split(self, data: Transitions, generator: Generator) -> tuple[Tensor, Tensor]:
        """Row numbers to train on (shuffled) and to hold out."""
        order = torch.randperm(len(data), generator=generator, device=generator.device)
        held = min(int(self.holdout * len(data)), self.max_holdout)
        if not held or self.fresh_holdout:
            return order[held:], order[:held]
        rank = _fixed_rank(data)
        if len(rank.unique()) < len(data):
            return order[held:], order[:held]
        # The line is drawn in the ranks, not at a number of rows, so that it does not move as rows come.
        line = round((2.0 * self.holdout - 1.0) * 2.0**63)
        line = min(line, int(rank.kthvalue(min(self.max_holdout + 1, len(rank))).values))
        inside = rank[order] < line
        if bool(inside.all()) or not bool(inside.any()):  # too few rows for the line to part them
            return order[held:], order[:held]
        return order[~inside], order[inside]

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
            self.optimizer = torch.optim.Adam(model.parameter_groups(self.weight_decay), lr=self.lr, fused=True)
            if self._pending is not None:
                self.optimizer.load_state_dict(self._pending)
                self._pending = None
        if self.optimizer.param_groups[0]["params"][0] is not model.parameter_groups(0.0)[0]["params"][0]:
            raise UserError("fitter", "another model", "a fitter keeps the optimiser of one model; make one for each")
        return self.optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self._pending if self.optimizer is None else self.optimizer.state_dict()
        return {"fits": self.fits, "optimizer": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes effect at the next fit, when the model whose optimiser this is appears."""
        self.fits, self._pending, self.optimizer = state["fits"], state["optimizer"], None


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise UserError(name, share, "give a share in [0, 1)")


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(name, count, "give a whole number of at least 1")


def _check_weights(weights: Tensor, rows: int) -> None:
    """One finite weight a row, none negative, not all zero."""
    if weights.shape != (rows,):
        raise UserError("weights", tuple(weights.shape), f"give one weight for each of the {rows} rows")
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise UserError("weights", "NaN, infinity, negative or all zero", "give weights >= 0 of which one is positive")


def _check(data: Transitions) -> None:
    """Rows there are, and every number in them is finite."""
    if not len(data):
        raise UserError("training data", "no rows", "collect transitions before fitting")
    finite = data.reward.isfinite()
    for column in (data.obs, data.action, data.next_obs):
        finite = finite & column.isfinite().all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise UserError(f"training data, row {row}", "NaN or infinity", "remove the row or mend the environment")


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


def _fixed_rank(data: Transitions) -> Tensor:
    """``[N]`` int64, even over their range, from each row's episode and step alone (the finaliser of splitmix64)."""

    def shifted(x: Tensor, bits: int) -> Tensor:
        moved: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)  # with zeros coming in, as of an unsigned number
        return moved

    mixed = data.episode * -7046029254386353131 + data.step
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ shifted(mixed, shift)) * factor
    return mixed ^ shifted(mixed, 31)


def _shuffle(members: Tensor, generator: Generator) -> Tensor:
    """Each member's rows in an order of its own."""
    order = torch.rand(members.shape, generator=generator, device=generator.device).argsort(-1)
    return members.gather(1, order)
