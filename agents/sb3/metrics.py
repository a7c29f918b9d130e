"""What a stable-baselines3 learner would log, collected for the run's own records."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.logger import Logger

from agents.common import RunningMean

SCHEDULED = frozenset({"learning_rate", "exploration_rate", "clip_range", "clip_range_vf"})
"""Values that follow a schedule: the newest says more than a mean."""
COUNTED = frozenset({"n_updates"})
"""What every record of the run carries anyway."""


class MetricsLogger(Logger):
    """Collects what is logged until it is taken; writes nothing itself."""

    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self._means, self._newest = RunningMean(), dict[str, float]()

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        name = key.rpartition("/")[2]
        if name in SCHEDULED:
            self._newest[name] = float(value)
        elif name not in COUNTED:
            self._means.add({name: float(value)})

    def take(self) -> dict[str, float]:
        """Means since the last call (of what follows a schedule, the newest value), and start anew."""
        taken, self._newest = self._means.pop() | self._newest, {}
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means.state_dict(), "newest": dict(self._newest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means.load_state_dict(state["means"])
        self._newest = dict(state["newest"])
