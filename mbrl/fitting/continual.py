"""How models of a task sequence are trained: so many steps on the open task's rows, old tasks kept by a penalty."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from envs.errors import UserError
from mbrl.data.transitions import Transitions
from mbrl.fitting.base import ModelFitter, check_counts, check_rows, check_weights
from mbrl.models.base import DynamicsModel
from mbrl.models.continual.base import ContinualModel
from mbrl.models.ensemble import Regression


class ContinualFitter(ModelFitter):
    """Trains a :class:`~mbrl.models.continual.base.ContinualModel` on the task that is open.

    One step, as published with HyperCRL: the loss's gradient; the task's own parameters are clipped; the step that
    Adam would make of the shared ones is previewed, where the model looks ahead; the penalty's gradient there is
    added; the joint gradient is clipped; Adam steps. Every task starts with new Adam states.

    Args:
        updates: gradient steps in one fit.
        lr: Adam's step size. Published: 1e-4 for hypernetworks (of larger networks), 1e-3 for the baselines.
        batch_size: rows for each member and step, drawn with replacement.
        clip: largest norm of a member's gradient, of its own and of its shared parameters.
        holdout: share of rows held out to report an error on; nothing stops early.
        max_holdout: at most this many rows are held out.
    """

    def __init__(
        self,
        updates: int = 1000,
        lr: float = 1e-3,
        batch_size: int = 100,
        clip: float = 5.0,
        holdout: float = 0.25,
        max_holdout: int = 5000,
    ) -> None:
        super().__init__(holdout, max_holdout)
        check_counts(updates=updates, batch_size=batch_size)
        for name, value in (("lr", lr), ("clip", clip)):
            if not 0.0 < value < math.inf:
                raise UserError(name, value, "give a finite number above 0")
        self.updates, self.lr, self.batch_size, self.clip = updates, lr, batch_size, clip
        self.optimizer: torch.optim.Adam | None = None
        self.task: int | None = None
        self._pending: dict[str, Any] | None = None

    def check(self, model: DynamicsModel) -> None:
        if not isinstance(model, ContinualModel):
            raise UserError("fitter", type(model).__name__, "ContinualFitter trains models of task sequences only")

    def fit(
        self, model: DynamicsModel, data: Transitions, generator: Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Train on ``data [N]``, rows of the open task; ``weights [N]`` weigh the drawing of rows.

        Returns:
            Means over the fit of ``loss`` (the task's, by row), ``penalty`` (by row) and ``gradient_norm`` (joint,
            before clipping), and ``holdout_mse`` in standardised units.

        Raises:
            UserError: no task is open, or rows are of another one.
        """
        check_rows(data)
        if weights is not None:
            check_weights(weights, len(data))
        self.check(model)
        assert isinstance(model, ContinualModel)
        rows, optimizer = model.prepare(data), self._optimizer(model)
        train, held = self.split(data, generator)
        report = self._train(model, optimizer, rows, self._draws(model.members, train, weights, generator), generator)
        self.fits += 1
        report |= {"gradient_steps": float(self.updates), "rows": float(len(data)), "task": float(model.current)}
        if len(held):
            score, extra = model.holdout_score(rows[held])
            report |= {"holdout_score": float(score.mean())} | {name: float(v) for name, v in extra.items()}
        return report

    def _draws(self, members: int, train: Tensor, weights: Tensor | None, generator: Generator) -> Tensor:
        """``[updates, E, B]`` row numbers."""
        shape = self.updates, members, self.batch_size
        if weights is None:
            return train[torch.randint(len(train), shape, generator=generator, device=generator.device)]
        if not bool(weights[train].sum() > 0):
            fix = "all weight lies on rows that are held out; set holdout to 0, or weigh more rows"
            raise UserError("weights", "0 on every training row", fix)
        return train[torch.multinomial(weights[train].double(), math.prod(shape), True, generator=generator)].view(
            shape
        )

    def _train(
        self,
        model: ContinualModel,
        optimizer: torch.optim.Adam,
        rows: Regression,
        draws: Tensor,
        generator: Generator,
    ) -> dict[str, float]:
        total = torch.zeros(3, device=rows.inputs.device)
        for draw in draws:
            total += self._step(model, optimizer, rows[draw], generator)
        loss, penalty, norm = (total / (self.updates * model.members)).tolist()
        return {"loss": loss / self.batch_size, "penalty": penalty / self.batch_size, "gradient_norm": norm}

    def _step(
        self, model: ContinualModel, optimizer: torch.optim.Adam, batch: Regression, generator: Generator
    ) -> Tensor:
        """One step; loss, penalty and norm of the joint gradient, each summed over members, ``[3]``."""
        optimizer.zero_grad(set_to_none=True)
        loss = model.objective(batch, generator)
        loss.backward()
        own = [p.grad for p in model.trained_own() if p.grad is not None]
        norm = clip_members(own, self.clip) if own else torch.zeros(model.members)
        penalty = torch.zeros_like(loss)
        if model.shared.numel():
            penalty, norm = self._step_shared(model, optimizer, generator)
        else:
            optimizer.step()
        return torch.stack([loss.detach(), penalty.detach(), norm.sum()])

    def _step_shared(
        self, model: ContinualModel, optimizer: torch.optim.Adam, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Add the penalty's gradient, clip, step, and let the model watch; penalty and norms ``[E]``."""
        shared, penalty = model.shared, torch.zeros((), device=model.shared.device)
        assert shared.grad is not None
        gradient = shared.grad.clone()
        if model.ended:
            found = model.penalty(self._preview(model, optimizer, gradient), self.batch_size, generator)
            if found is not None:
                found.backward()
                penalty = found.detach()
        norm = clip_members([shared.grad], self.clip)
        before = shared.detach().clone() if model.watches_steps else None
        optimizer.step()
        if before is not None:
            model.watch_step(gradient, shared.detach() - before)
        return penalty, norm

    def _preview(self, model: ContinualModel, optimizer: torch.optim.Adam, gradient: Tensor) -> Tensor | None:
        """What the loss alone would change, with its gradient clipped as the step's is."""
        if not model.look_ahead:
            return None
        alone = gradient.clone()
        clip_members([alone], self.clip)
        return preview_step(optimizer, model.shared, alone)

    def _optimizer(self, model: ContinualModel) -> torch.optim.Adam:
        """The open task's optimiser: new with a new task, else the one of the last fit."""
        own, task = model.trained_own(), model.current
        shared = [model.shared] if model.shared.numel() else []
        if self.task != task:
            self.optimizer, self._pending = None, None
        if self.optimizer is None:
            groups = [{"params": params} for params in (shared, own) if params]
            self.optimizer, self.task = torch.optim.Adam(groups, lr=self.lr, fused=True), task
            if self._pending is not None:
                self.optimizer.load_state_dict(self._pending)
                self._pending = None
        if self.optimizer.param_groups[-1]["params"][-1] is not own[-1]:
            raise UserError("fitter", "another model", "a fitter keeps the optimiser of one model; make one for each")
        return self.optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self._pending if self.optimizer is None else self.optimizer.state_dict()
        return super().state_dict() | {"task": self.task, "optimizer": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes effect at the next fit, when the model whose optimiser this is appears."""
        super().load_state_dict(state)
        self.task, self._pending, self.optimizer = state["task"], state["optimizer"], None


def clip_members(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale gradients ``[E, ...]`` so that no member's joint norm is above ``limit``; the norms before, ``[E]``."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norm


def preview_step(optimizer: torch.optim.Adam, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """The change of ``parameter`` that Adam's next step on ``gradient`` would make; the optimiser stays as it is."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    state, (beta1, beta2) = optimizer.state.get(parameter, {}), group["betas"]
    count = float(state["step"]) + 1 if state else 1.0
    first, second = (1 - beta1) * gradient, (1 - beta2) * gradient.square()
    if state:
        first, second = first + beta1 * state["exp_avg"], second + beta2 * state["exp_avg_sq"]
    spread = second.sqrt() / math.sqrt(1 - beta2**count) + group["eps"]
    step: Tensor = -group["lr"] / (1 - beta1**count) * first / spread
    return step
