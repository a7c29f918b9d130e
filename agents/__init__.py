"""Things that act and learn to act."""

from agents.base import ActorState, Agent
from agents.mpc import MPCAgent
from agents.random_agent import RandomAgent

__all__ = ["ActorState", "Agent", "MPCAgent", "RandomAgent"]
