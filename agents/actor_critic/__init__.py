"""One off-policy actor-critic made of parts: SAC, TD3, REDQ, DroQ, CrossQ, EDAC and TD3+BC are settings of it."""

from agents.actor_critic.callbacks import Callback, PolicyAverage, Reset, ShrinkPerturb
from agents.actor_critic.learner import ActorCritic
from agents.actor_critic.terms import ActorTerm, BehaviourCloning, Conservative, CriticTerm, GradientDiversity

__all__ = [
    "ActorCritic",
    "ActorTerm",
    "BehaviourCloning",
    "Callback",
    "Conservative",
    "CriticTerm",
    "GradientDiversity",
    "PolicyAverage",
    "Reset",
    "ShrinkPerturb",
]
