"""Offline learning from data of which most actions are unknown: they are predicted, then any offline agent learns.

Zheng, Henaff, Amos, Grover, "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories", 2023
(SS-ORL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.offline.base import Learner, OfflineAgent
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.labels import HAS_ACTION, label_actions, labelled_by_quality, without_actions
from mbrl.data.transitions import Transitions
from mbrl.models.inverse import WindowedInverse, r_squared


class SemiSupervisedAgent(OfflineAgent):
    """Predicts the actions that the data lacks by inverse dynamics, before the first update; learns from all rows.

    Data that has a column ``has_action`` is taken as it is. Of data that has every action, all but a poor share lose
    theirs: an experiment, whose true actions tell how good the predicted ones are (``label_r2``).

    Args:
        spec: the environment that the data is from.
        learner: factory of what learns the policy.
        inverse: factory of the inverse dynamics.
        share: share of the episodes that keep their actions, where all have them; 0.1 as published.
        lowest: these come from the lowest such part by return; 0.5 as published.
        proxies: False learns from the rows with actions alone: the control.
        options: the arguments of :class:`OfflineAgent`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        learner: Callable[[EnvSpec], Learner],
        inverse: Callable[[EnvSpec], WindowedInverse] = WindowedInverse,
        share: float = 0.1,
        lowest: float = 0.5,
        proxies: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(spec, learner, **options)
        if not (0.0 < share <= 1.0 and 0.0 < lowest <= 1.0):
            raise UserError("share, lowest", (share, lowest), "give shares in (0, 1]")
        self.inverse = inverse(spec).to(self.device)
        self.share, self.lowest, self.proxies = share, lowest, proxies
        self._labelled: ReplayBuffer | None = None

    @property
    def data(self) -> ReplayBuffer:
        """The dataset as it is learned from: labelled, once that is done."""
        return super().data if self._labelled is None else self._labelled

    def check(self, data: ReplayBuffer) -> None:
        """Rows may lack an action; those of two episodes may not: one to learn from and one to judge by."""
        known = data.columns.get(f"extra.{HAS_ACTION}")
        if known is not None and (found := len(data.columns["episode"][known.bool()].unique())) < 2:
            fix = "give actions of at least two episodes: one to learn from and one to judge by"
            raise UserError(f"--data: episodes with actions ({HAS_ACTION})", found, fix)

    def load(self, data: ReplayBuffer) -> None:
        super().load(data)
        self._labelled = None

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        """One round; before the first one the actions are predicted."""
        found = {} if self._labelled is not None else self.label()
        return ({"fit": found} if found else {}) | super().update(clock)

    def label(self) -> dict[str, float]:
        """Fit the inverse dynamics unless that is done, and put predicted actions in; what to log of a fit."""
        given, report = super().data.all(), {}
        rows = self._hidden(given).to(self.device)
        if not self.inverse.is_fitted:
            generator = seeding.generator(self.run_seed, "inverse", device=self.device)
            report = self.inverse.fit(rows, generator)
        labelled = label_actions(rows, self.inverse).to("cpu")
        known = labelled.extra[HAS_ACTION].bool()
        if report and HAS_ACTION not in given.extra and not bool(known.all()):
            report |= {"label_r2": r_squared(labelled.action[~known], given.action[~known])}
        self._labelled = _as_buffer(labelled if self.proxies else labelled[known])
        return report

    def _hidden(self, rows: Transitions) -> Transitions:
        """The rows without the actions that are not to be known; always the same ones in a run."""
        if HAS_ACTION in rows.extra:
            return rows
        generator = seeding.generator(self.run_seed, "labelled")
        return without_actions(rows, labelled_by_quality(rows, self.share, self.lowest, generator))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"inverse": self.inverse.learned_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The data is labelled anew, to the bit, at the next update."""
        super().load_state_dict(state)
        self.inverse.load_learned_state(state["inverse"])


def _as_buffer(rows: Transitions) -> ReplayBuffer:
    buffer = ReplayBuffer(len(rows), {name: tuple(column.shape[1:]) for name, column in rows.extra.items()})
    buffer.extend(rows)
    return buffer
