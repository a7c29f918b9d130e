"""Records, transitions and the replay buffer."""

from mbrl.data.buffer import ReplayBuffer
from mbrl.data.record import Record
from mbrl.data.transitions import Transitions

__all__ = ["Record", "ReplayBuffer", "Transitions"]
