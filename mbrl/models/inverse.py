"""Which action led from one state to the next: inverse dynamics over a window of states.

Zheng, Henaff, Amos, Grover, "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories", 2023
(SS-ORL).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.data.normalizer import Normalizer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions

LOG_STD_BOUNDS = (-5.0, 2.0)
LARGEST_ACTION = 1.0 - 1e-6
"""Actions at the bounds are moved inside, where atanh is finite."""
JUDGED_ROWS = 65_536
"""Rows of one pass when nothing is learned: a bound on memory."""


class WindowedInverse(nn.Module):
    """``p(a_t | s_{t-k}, ..., s_t, s_{t+1})``: a tanh-squashed Gaussian, by ``E`` networks side by side.

    The window ends with the row's own ``next_obs``, so an episode's last step has a window like any other. The networks
    read it as ``s_t`` and the differences of order 1 to k + 1 that end with ``s_{t+1}``: the same numbers, but an
    action, which is a small part of a state, is a large part of its differences. Each order is standardised by itself;
    where an episode is too young for one, it is padded with zeros *after* that, as with the mean. A validation set of
    whole episodes judges every member now and then, and each ends as its own best copy. (The released code reads the
    states, pads before standardising, shifts the last step, and returns the last copy.)

    Args:
        spec: the environment; its actions are continuous.
        window: ``k``, states before ``s_t``: 0 where a state tells all, more where velocities, say, are hidden.
        members: ``E``; with several their disagreement is part of a label's variance.
        hidden: width of the hidden layers, of one network for the mean and one for the spread.
        layers: number of hidden layers.
        dropout: share of hidden units dropped while training.
        steps: gradient steps of a fit.
        batch_size: rows of a batch.
        lr: Adam's step size.
        validation: share of the episodes with actions that judge.
        judge_every: gradient steps between two judgements.
    """

    def __init__(
        self,
        spec: EnvSpec,
        window: int = 1,
        members: int = 1,
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.1,
        steps: int = 5000,
        batch_size: int = 256,
        lr: float = 1e-3,
        validation: float = 0.1,
        judge_every: int = 100,
    ) -> None:
        super().__init__()
        if spec.action.discrete:
            fix = "its actions are discrete, inverse dynamics predict continuous ones: take another recipe"
            raise UserError("inverse", spec.id, fix)
        counts = {"members": members, "hidden": hidden, "layers": layers, "steps": steps}
        for name, count in (counts | {"batch_size": batch_size, "judge_every": judge_every}).items():
            if count < 1:
                raise UserError(name, count, "give a whole number of at least 1")
        if window < 0 or not 0.0 <= dropout < 1.0 or not 0.0 < validation < 1.0 or not 0.0 < lr < math.inf:
            seen = (window, dropout, validation, lr)
            raise UserError("window, dropout, validation, lr", seen, "window >= 0, shares in [0, 1), lr > 0")
        self.window, self.members, self.steps, self.batch_size = window, members, steps, batch_size
        self.lr, self.validation, self.judge_every = lr, validation, judge_every
        self.norms = [Normalizer(spec.obs_size) for _ in range(window + 2)]
        for order, norm in enumerate(self.norms):
            self.add_module(f"norm{order}", norm)
        inputs = (window + 2) * spec.obs_size
        self.mean_net = StackedNet(members, inputs, spec.action.size, hidden, layers, dropout)
        self.spread_net = StackedNet(members, inputs, spec.action.size, hidden, layers, dropout)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, data: Transitions, generator: Generator) -> dict[str, float]:
        """Train on the rows of ``data [N]`` that have an action; what to log. States are standardised over all rows.

        Raises:
            UserError: fewer than two episodes have actions, so that none could judge.
        """
        self._fit_statistics(data)
        known = has_action(data)
        train, judges = self._split(data, known, generator)
        examples = Examples(self.windows(data)[known], data.action[known])
        with seeding.seeded(generator):
            self.mean_net.reset()
            self.spread_net.reset()
        report = self._train(examples[train], examples[judges], generator)
        self.get_buffer("fitted").fill_(True)
        explained = r_squared(self.predict(data)[0][known], data.action[known])
        return report | {"labelled_rows": float(known.sum()), "r2": explained}

    def _fit_statistics(self, data: Transitions) -> None:
        columns, there = self._columns(data)
        for norm, column, exists in zip(self.norms, columns, there, strict=True):
            if bool(exists.any()):
                norm.fit(column[exists])

    def _split(self, data: Transitions, known: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Numbers of rows, among those with actions, to train on and to judge by: never of one episode."""
        episode = data.episode[known]
        episodes = episode.unique()
        if len(episodes) < 2:
            fix = "give actions of at least two episodes: one to learn from and one to judge by"
            raise UserError("episodes with actions", len(episodes), fix)
        count = min(max(1, round(self.validation * len(episodes))), len(episodes) - 1)
        order = torch.randperm(len(episodes), generator=generator, device=generator.device).to(episodes.device)
        judging = torch.isin(episode, episodes[order[:count]])
        return (~judging).nonzero()[:, 0], judging.nonzero()[:, 0]

    def _train(self, train: Examples, judges: Examples, generator: Generator) -> dict[str, float]:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        best, kept = torch.full((self.members,), math.inf, device=train.action.device), self._copy()
        for step in range(1, self.steps + 1):
            shape = (self.members, self.batch_size)
            batch = train[torch.randint(len(train.action), shape, generator=generator, device=generator.device)]
            loss = self._nll(batch, generator).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % self.judge_every == 0 or step == self.steps:
                score = self._judged(judges)
                better = score < best
                best = torch.where(better, score, best)
                for name, parameter in self.named_parameters():
                    kept[name][better] = parameter.detach()[better]
        self.load_state_dict(kept, strict=False)
        return {"inverse_steps": float(self.steps), "validation_nll": float(best.mean())}

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def _judged(self, judges: Examples) -> Tensor:
        """``[E]`` negative log-likelihood of the actions of ``judges [N]``."""
        return self._nll(judges.map(lambda x: x.expand(self.members, *x.shape)), None)

    def _nll(self, batch: Examples, generator: Generator | None) -> Tensor:
        """``[E]`` mean negative log-likelihood of actions ``[E, B, A]`` under the squashed Gaussian."""
        mean, log_std = self._heads(batch.window, generator)
        before = batch.action.clamp(-LARGEST_ACTION, LARGEST_ACTION).atanh()
        each = 0.5 * ((before - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2.0 * math.pi)
        # the density of tanh(x) is that of x over 1 - tanh(x)^2
        slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        return (each + slope).sum(-1).mean(-1)

    def _heads(self, window: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the squashing, ``[E, B, A]`` of windows ``[E, B, ·]``."""
        return self.mean_net(window, generator), self.spread_net(window, generator).clamp(*LOG_STD_BOUNDS)

    @property
    def is_fitted(self) -> bool:
        """Whether it has been trained, or has loaded what was."""
        return bool(self.get_buffer("fitted"))

    # -- labelling ---------------------------------------------------------------------------------------------------

    def windows(self, data: Transitions) -> Tensor:
        """``[N, (k + 2) D]`` what the networks read of rows ``[N]`` in any order."""
        parts = [
            torch.where(exists[:, None], norm.normalize(column), 0.0)
            for norm, column, exists in zip(self.norms, *self._columns(data), strict=True)
        ]
        return torch.cat(parts, -1)

    def _columns(self, data: Transitions) -> tuple[list[Tensor], list[Tensor]]:
        """``s_t`` and the differences of rising order, ``[N, D]`` each; and ``[N]`` which rows have them."""
        earlier = previous_rows(data.episode, data.step, self.window)
        states = [data.next_obs, data.obs, *(data.obs[at.clamp(min=0)] for at in earlier)]
        always = torch.ones(len(data), dtype=torch.bool, device=data.obs.device)
        columns, there = [data.obs], [always, always, *(at >= 0 for at in earlier)]
        while len(states) > 1:
            states = [later - before for later, before in itertools.pairwise(states)]
            columns.append(states[0])
        return columns, there

    @torch.no_grad()
    def predict(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """Labels ``[N, A]``, and their variance ``[N]`` (sum over the dimensions), for rows ``[N]`` in any order.

        The label is the mean over members of ``tanh(mean)``; the variance that of the mixture, each member's own to
        first order. Rows that a window reaches back to must be among the rows given, with or without actions.

        Raises:
            UserError: it has not been fitted.
        """
        if not self.is_fitted:
            raise UserError("inverse", "not fitted", "fit it to rows with actions first")
        found = [self._mixture(part) for part in self.windows(data).split(JUDGED_ROWS)]
        return torch.cat([mean for mean, _ in found]), torch.cat([variance for _, variance in found])

    def _mixture(self, window: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._heads(window.expand(self.members, *window.shape), None)
        action = mean.tanh()
        own = (log_std.exp() * (1.0 - action.square())).square()
        return action.mean(0), (own.mean(0) + action.var(0, correction=0)).sum(-1)

    def learned_state(self) -> dict[str, Any]:
        """Copies of the networks and the statistics of their inputs."""
        return {name: value.clone() for name, value in self.state_dict().items()}

    def load_learned_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`learned_state`, bit for bit."""
        self.load_state_dict(state)


@dataclass
class Examples(Record):
    """What the networks learn from."""

    window: Tensor
    """``[..., (k + 2) D]``"""
    action: Tensor
    """``[..., A]``"""


class StackedNet(nn.Module):
    """``members`` multilayer perceptrons in one batched product.

    Args:
        members: ``E``.
        inputs: entries of an input.
        outputs: entries of an output.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        dropout: share of hidden units dropped where a generator is given.
    """

    def __init__(self, members: int, inputs: int, outputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        shapes = list(itertools.pairwise([inputs, *[hidden] * layers, outputs]))
        self.weights = nn.ParameterList([torch.empty(members, before, after) for before, after in shapes])
        self.biases = nn.ParameterList([torch.empty(members, 1, after) for _, after in shapes])
        self.reset()

    def reset(self) -> None:
        """Draw all parameters anew, uniformly from ``± 1 / sqrt(inputs of the layer)``."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1.0 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """``[E, B, outputs]`` of ``x [E, B, inputs]``."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = F.relu(x)
                if self.dropout and generator is not None:
                    kept = torch.empty_like(x).bernoulli_(1.0 - self.dropout, generator=generator)
                    x = x * kept / (1.0 - self.dropout)
        return x


def previous_rows(episode: Tensor, step: Tensor, count: int) -> Tensor:
    """``[count, N]``: row numbers of the states 1, 2, ... steps earlier in the same episode, -1 where there is none."""
    order = torch.from_numpy(np.lexsort((step.cpu().numpy(), episode.cpu().numpy()))).to(episode.device)
    found = torch.full((count, len(order)), -1, dtype=torch.long, device=episode.device)
    for back in range(1, min(count, len(order) - 1) + 1):
        here, there = order[back:], order[:-back]
        joined = (episode[here] == episode[there]) & (step[here] == step[there] + back)
        found[back - 1, here[joined]] = there[joined]
    return found


def has_action(data: Transitions) -> Tensor:
    """``[N]`` bool: which rows have an action. Without a column ``has_action`` all have."""
    known = data.extra.get("has_action")
    return torch.ones(len(data), dtype=torch.bool, device=data.obs.device) if known is None else known.bool()


def r_squared(predicted: Tensor, actual: Tensor) -> float:
    """Share of the variance of ``actual [N, A]`` that ``predicted`` explains, over all dimensions together."""
    error = (actual - predicted).square().sum()
    return float(1.0 - error / (actual - actual.mean(0)).square().sum().clamp(min=1e-12))
