"""Experience made by a learned model: rollouts, their filters, where they start, how long they are, where they go."""

from mbrl.imagination.filters import ChooseBest, Drop, Filter, Move, ScoreStop, UncertaintyPenalty, UncertaintyStop
from mbrl.imagination.model_buffer import ModelBuffer, mixed_batches, published_capacity
from mbrl.imagination.rollout import Chooser, ChunkMaker, PlannerChooser, PolicyChooser, imagine
from mbrl.imagination.schedule import HorizonSchedule
from mbrl.imagination.starts import BufferStarts, StartSampler, StartTable

__all__ = [
    "BufferStarts",
    "ChooseBest",
    "Chooser",
    "ChunkMaker",
    "Drop",
    "Filter",
    "HorizonSchedule",
    "ModelBuffer",
    "Move",
    "PlannerChooser",
    "PolicyChooser",
    "ScoreStop",
    "StartSampler",
    "StartTable",
    "UncertaintyPenalty",
    "UncertaintyStop",
    "imagine",
    "mixed_batches",
    "published_capacity",
]
