"""What a stable-baselines3 learner would log, collected for the run's own records."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.logger import Logger

SCHEDULED = frozenset({"learning_rate", "exploration_rate", "clip_range", "clip_range_vf"})
"""Values that follow a schedule: the newest says more than a mean."""
COUNTED = frozenset({"n_updates"})
"""What every record of the run carries anyway."""


class MetricsLogger(Logger):
    """Sums what is logged until it is taken; writes nothing itself."""

    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        name = key.rpartition("/")[2]
        fresh = name in SCHEDULED or name not in self._sums
        if name not in COUNTED:
            self._sums[name] = float(value) if fresh else self._sums[name] + float(value)
            self._counts[name] = 1 if fresh else self._counts[name] + 1

    def take(self) -> dict[str, float]:
        """Means since the last call (of what follows a schedule, the newest value), and start anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
