"""What a learner refuses: numbers that cannot work, and options that contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agents.actor_critic.networks import Regularization
from agents.actor_critic.policies import ActionNoise, Deterministic, Head
from agents.actor_critic.terms import GradientDiversity
from agents.actor_critic.update import Rule
from envs.errors import UserError

if TYPE_CHECKING:
    from agents.actor_critic.learner import ActorCritic

USUAL_NOISE = ActionNoise()
USUAL_SUBSET = 2


def check(
    learner: ActorCritic, rule: Rule, head: Head, sizes: tuple[int, ...], subset: int, noise: ActionNoise
) -> None:
    """Raises ``UserError`` on values that cannot work, and on options that contradict each other.

    Args:
        learner, rule, head: with their numbers set.
        sizes: of the networks: hidden, layers, critic_hidden.
        subset, noise: as they were given, whether or not they have an effect.
    """
    _check_contradictions(rule, head, subset, noise)
    _check_numbers(learner, rule, sizes)
    _check_regularization(learner.regularization, learner.target_networks, sizes[1])
    _check_terms(learner, rule, head)


def _check_numbers(learner: ActorCritic, rule: Rule, sizes: tuple[int, ...]) -> None:
    counts = (*sizes, learner.critics, learner.policy_delay, learner.target_delay)
    if min(counts) < 1:
        fields = "hidden, layers, critic_hidden, critics, policy_delay, target_delay"
        raise UserError(fields, counts, "each is at least 1")
    if not (min(rule.lr.values()) > 0.0 and max(rule.lr.values()) < math.inf and 0.0 <= rule.betas[0] < 1.0):
        raise UserError("lr, actor_lr, beta1", (*rule.lr.values(), rule.betas[0]), "lr > 0 and beta1 in [0, 1)")
    if not (0.0 <= learner.gamma <= 1.0 and 0.0 < rule.tau <= 1.0):
        raise UserError("gamma, tau", (learner.gamma, rule.tau), "gamma lies in [0, 1] and tau in (0, 1]")
    if not (0.0 < learner.alpha < math.inf and math.isfinite(rule.target_entropy)):
        raise UserError("alpha, target_entropy", (learner.alpha, rule.target_entropy), "alpha > 0, both finite")
    if learner.subset is not None and not 1 <= learner.subset <= learner.critics:
        raise UserError("subset", learner.subset, f"choose between 1 and critics = {learner.critics}")
    weights = learner.log_prob_weights
    if weights is not None and (learner.spec.action.discrete or weights.shape != (learner.spec.action.size,)):
        raise UserError("log_prob_weights", weights.tolist(), "give a number for each continuous action dimension")
    if rule.backup[1] is not None and not math.isfinite(rule.backup[1]):
        raise UserError("target_floor", rule.backup[1], "give a finite number, or leave it out")


def _check_terms(learner: ActorCritic, rule: Rule, head: Head) -> None:
    """Most need continuous actions; those that draw actions a density too, and one number for all of them."""
    discrete = learner.spec.action.discrete
    if discrete and any(isinstance(term, GradientDiversity) for term in learner.terms):
        raise UserError("terms", "GradientDiversity", "discrete actions have no gradient; leave it out")
    if discrete and rule.terms[1]:
        seen = [type(term).__name__ for term in rule.terms[1]]
        raise UserError("actor_terms", seen, "they are for continuous actions; leave them out")
    drawing = [term for term in learner.terms if term.candidates]
    if drawing and (discrete or not head.entropic):
        name = type(drawing[0]).__name__
        raise UserError("terms", name, "it draws from a policy with a density: continuous actions, policy: gaussian")
    if len({term.candidates for term in drawing}) > 1:
        counts = [term.candidates for term in drawing]
        raise UserError("terms", counts, "terms that draw candidate actions must draw equally many")


def _check_contradictions(rule: Rule, head: Head, subset: int, noise: ActionNoise) -> None:
    """Options that would have no effect. The default's own value passes: nobody need have typed it."""
    target = rule.reducers[0]
    if subset != USUAL_SUBSET and target != "random_subset_min":
        raise UserError("subset", subset, f"target is {target}: set target: random_subset_min, or leave subset out")
    if noise != USUAL_NOISE and not isinstance(head, Deterministic):
        raise UserError("noise", noise, "policy is gaussian: set policy: deterministic, or leave noise out")
    if rule.weighting == ("ignore", True):
        fix = "sample_weights is ignore: set it to normalized or raw, or leave weigh_actor out"
        raise UserError("weigh_actor", True, fix)


def _check_regularization(options: Regularization, target_networks: bool, layers: int) -> None:
    if not 0.0 <= options.dropout < 1.0:
        raise UserError("dropout", options.dropout, "give a share in [0, 1)")
    if options.batch_norm != "none" and target_networks:
        fix = "batches are normalised in one joint forward pass: set target_networks: false"
        raise UserError("batch_norm", options.batch_norm, fix)
    if options.batch_norm != "none" and options.layer_norm:
        raise UserError("batch_norm, layer_norm", (options.batch_norm, True), "choose one of the two")
    if options.dropout and not target_networks:
        raise UserError("dropout", options.dropout, "it is not defined for the joint forward pass; use target networks")
    if options.spectral_norm and layers < 2:
        raise UserError("spectral_norm", layers, "it acts on matrices between hidden layers: give layers of at least 2")
