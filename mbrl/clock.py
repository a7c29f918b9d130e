"""The one clock of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Counts env steps (warm-up included), updates and episodes. The loop owns and advances it; agents only ask.

    With several environments in parallel one tick covers several env steps: :meth:`due` is true on the tick that
    reached or passed a multiple of ``every``.
    """

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    phase: str = "online"
    previous_env_steps: int = 0

    def tick(self, env_steps: int) -> None:
        """One round of the environments took ``env_steps`` decisions."""
        self.previous_env_steps = self.env_steps
        self.env_steps += env_steps

    def due(self, every: int, offset: int = 0) -> bool:
        """Whether this tick passed ``offset + i * every`` for some ``i >= 0``; never when ``every`` is 0."""
        if every <= 0 or self.env_steps < offset:
            return False
        return (self.env_steps - offset) // every > (self.previous_env_steps - offset) // every

    def state_dict(self) -> dict[str, int | str]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        vars(self).update(state)
