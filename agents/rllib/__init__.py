"""RLlib: its algorithms under the platform's loop, and the platform's environments under its own."""

from agents.rllib.agent import RLlibAgent
from agents.rllib.environment import register

__all__ = ["RLlibAgent", "register"]
