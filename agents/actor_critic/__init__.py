"""One off-policy actor-critic made of parts: SAC, TD3, REDQ, DroQ, CrossQ and EDAC are settings of it."""

from agents.actor_critic.callbacks import Callback, PolicyAverage, Reset, ShrinkPerturb
from agents.actor_critic.learner import ActorCritic
from agents.actor_critic.terms import CriticTerm, GradientDiversity

__all__ = ["ActorCritic", "Callback", "CriticTerm", "GradientDiversity", "PolicyAverage", "Reset", "ShrinkPerturb"]
