"""Whether model error or the edge of reach hurts, in plain words. Thresholds are stated where they are used.

Sims, Lu, Foerster, Teh, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", 2024: what an agent
suffers under the true dynamics is not its model's doing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.diagnosis.oracle.evidence import Estimate, Evidence, World
from experiments.diagnosis.oracle.subject import Training
from experiments.diagnosis.verdict import Finding
from experiments.pages.cells import shown

CLEAR = 2.0
"""Standard errors from which a difference is clear"""
OVER = 0.25
"""Critic minus truth at the edge that counts, in standard deviations of true values; also by how much they grow"""
OUT = 0.1
"""Share of the last third of the records of updates with a mean value above the attainable range"""
LOST = 0.05
"""Difference of returns that counts, as a share of the larger one"""
REWARD_OFF = 0.1
"""Mean error of predicted rewards that counts, in standard deviations of the data's"""
STATE_OFF = 0.25
"""Error of predicted states after the last step that counts, in standard deviations"""
ENDS_OFF = 0.02
"""Share of steps whose end is missed or invented"""
DATA_OFF = 0.05
"""Error of the data's own rewards and steps against the true dynamics from which it is not theirs"""
LAST = 3
"""Evaluations at the end whose mean is compared"""

MODEL, EDGE = "Does the model's error hurt?", "Does the edge of reach hurt?"


@dataclass(frozen=True)
class Case:
    """All that a verdict rests on."""

    title: str
    env: str
    run: Evidence
    training: Training
    twin: Evidence | None = None
    """Of the twin's own checkpoint; None without one. A run under the true dynamics is its own twin"""
    twin_training: Training | None = None
    data_returns: Sequence[float] = ()

    @property
    def own_twin(self) -> bool:
        """The run itself learns under the true dynamics."""
        return self.run.model is None


@dataclass(frozen=True)
class Verdict:
    """What hurts, and why."""

    hurts: str
    """model error, edge of reach, both, neither or unknown"""
    sentence: str
    findings: list[Finding]


def verdict(case: Case) -> Verdict:
    """The two questions answered, and what the answers rest on."""
    model, edge = _model_error(case), _edge_of_reach(case)
    hurts, sentence = _together(case, model.answer, edge.answer)
    rest = [_rewards(case), _states(case), _ends(case), _at_the_edge(case), _weight(case)]
    return Verdict(hurts, sentence, [model, edge, *(each for each in rest if each is not None)])


def _together(case: Case, model: str, edge: str) -> tuple[str, str]:
    names = {"model error": model, "the edge of reach": edge}
    if case.twin is None:
        suspects = [name for name, answer in names.items() if answer == "suspected"]
        points = " and ".join(suspects) if suspects else "neither"
        return "unknown", f"Without a twin it cannot be told; what was measured points to {points}."
    guilty = [name for name, answer in names.items() if answer == "yes"]
    if len(guilty) == 2:
        return "both", "Both the model's error and the edge of reach hurt this recipe on this data."
    unsure = [name for name, answer in names.items() if answer == "unknown"]
    more = f" Of {unsure[0]} it is not clear." if unsure else ""
    more += " Values at the edge are too high, but cost nothing that is seen." if edge == "partly" else ""
    if guilty:
        name = guilty[0].removeprefix("the ")
        said = "The edge of reach" if name == "edge of reach" else "The model's error"
        return name, f"{said} hurts this recipe on this data.{more}"
    if unsure:
        return "unknown", "What was measured does not tell which of the two hurts."
    return "neither", f"Neither the model's error nor the edge of reach is seen to hurt.{more}"


# -- does the model's error hurt -------------------------------------------------------------------------------------


def _model_error(case: Case) -> Finding:
    if case.own_twin:
        return Finding(MODEL, "no", "This run learns under the true dynamics: there is no model error.")
    off = model_off(case.run)
    wrong = f"its predictions are off ({'; '.join(off)})" if off else "its predictions are right as far as measured"
    if case.twin_training is None:
        return Finding(MODEL, "suspected" if off else "unlikely", f"There is no twin; {wrong}.")
    gap = difference(case.training, case.twin_training)
    if gap is None:
        fix = "the two were never evaluated after the same number of updates"
        return Finding(MODEL, "unknown", f"It is not known whether the policy is worse for it: {fix}; {wrong}.")
    said = f"{in_words(gap)}; {wrong}"
    if not gap.clearly_less:
        return Finding(MODEL, "no", f"The policy is not clearly worse than its twin's: {said}.")
    if not off:
        return Finding(MODEL, "unknown", f"The policy is clearly worse than its twin's: {said}. Try other seeds.")
    return Finding(MODEL, "yes", f"The policy is clearly worse than its twin's, and the model is off: {said}.")


def model_off(found: Evidence) -> list[str]:
    """In which ways the model's steps are off, in words; none where they are right."""
    if not found.steps:
        return []
    off = []
    rows = sum(step.bias.n for step in found.steps)
    worst = max(found.steps, key=lambda step: abs(step.bias.mean) if math.isfinite(step.bias.mean) else -1.0)
    bias = Estimate(abs(worst.bias.mean), worst.bias.error, worst.bias.n)
    if bias.above(REWARD_OFF * found.reward_std, CLEAR):
        way = "too high" if worst.bias.mean > 0 else "too low"
        off.append(f"rewards {way} by {_std(bias.mean / found.reward_std)} at step {worst.depth + 1}")
    if found.steps[-1].path > STATE_OFF:
        off.append(f"states off by {_std(found.steps[-1].path)} after {found.steps[-1].depth + 1} steps")
    wrong = sum(step.missed + step.invented for step in found.steps)
    if rows and wrong > ENDS_OFF * rows:
        off.append(f"{100 * wrong / rows:.1f} % of ends missed or invented")
    return off


@dataclass(frozen=True)
class Gap:
    """Returns of two policies, paired by episode, over evaluations after the same numbers of updates."""

    run: float
    twin: float
    difference: Estimate
    """Twin minus run"""
    updates: list[int]

    @property
    def less(self) -> bool:
        """The run's policy is clearly worse."""
        return self.difference.above(self._counts, CLEAR)

    @property
    def more(self) -> bool:
        """The run's policy is clearly better."""
        other = Estimate(-self.difference.mean, self.difference.error, self.difference.n)
        return other.above(self._counts, CLEAR)

    @property
    def _counts(self) -> float:
        return LOST * max(abs(self.run), abs(self.twin))


@dataclass(frozen=True)
class Gaps:
    """The last evaluations that both had, and the very last: what differs while both still learn counts for nothing."""

    last: Gap
    final: Gap

    @property
    def clearly_less(self) -> bool:
        """The run's policy is clearly worse in both."""
        return self.last.less and self.final.less

    @property
    def clearly_more(self) -> bool:
        """The run's policy is clearly better in both."""
        return self.last.more and self.final.more


def difference(run: Training, twin: Training) -> Gaps | None:
    """Over the last evaluations that both had; None where there is none."""
    ours, theirs = dict(run.evaluations), dict(twin.evaluations)
    common = sorted(set(ours) & set(theirs))[-LAST:]
    if not common or len({len(each[u]) for each in (ours, theirs) for u in common}) > 1:
        return None
    return Gaps(_gap(ours, theirs, common), _gap(ours, theirs, common[-1:]))


def _gap(ours: dict[int, list[float]], theirs: dict[int, list[float]], updates: list[int]) -> Gap:
    one, other = (torch.tensor([each[u] for u in updates], dtype=torch.float64).mean(0) for each in (ours, theirs))
    return Gap(float(one.mean()), float(other.mean()), Estimate.of(other - one), updates)


def in_words(gaps: Gaps) -> str:
    """Both returns, and how sure their difference is."""
    gap = gaps.last
    when = f"{gap.updates[-1]:,} updates"
    if len(gap.updates) > 1:
        when = f"{gap.updates[0]:,} to {when}"
    sure = f" ± {shown(CLEAR * gap.difference.error, 3)}" if math.isfinite(gap.difference.error) else ""
    return (
        f"return {shown(gap.run, 4)} against {shown(gap.twin, 4)} after {when},"
        f" a difference of {shown(gap.difference.mean, 3)}{sure} over {gap.difference.n} episodes, and of"
        f" {shown(gaps.final.difference.mean, 3)} in the last evaluation"
    )


# -- does the edge hurt ----------------------------------------------------------------------------------------------


def _edge_of_reach(case: Case) -> Finding:
    found = case.run if case.twin is None else case.twin
    beyond, sizes = exceeding(found.true, found.value_range)
    if beyond is None:
        return Finding(EDGE, "unknown", "No rollout under the true dynamics gets to its last step.")
    if case.twin is None or case.twin_training is None:
        answer = "suspected" if beyond else "unlikely"
        return Finding(EDGE, answer, f"There is no twin; the run's own {sizes} under the true dynamics.")
    training, who = case.twin_training, "run's" if case.own_twin else "twin's"
    late = training.late_share(1)
    beyond = beyond or late > OUT
    signs = [*growing(found.true, training), *collapse(case)]
    why = f"without any model error the {who} {sizes}"
    if late > OUT:
        why += f", and {100 * late:.0f} % of its last mean values are above what the data's rewards allow"
    if beyond and signs:
        return Finding(EDGE, "yes", f"{_capital(why)}; {'; '.join(signs)}.{_held(case)}")
    if beyond:
        less = "they grow neither with depth nor with updates, and the policy does not suffer"
        return Finding(EDGE, "partly", f"{_capital(why)}, but {less}: critics that have learned little do that too.")
    if collapse(case):
        told = f"{'; '.join(collapse(case))}, but {why}: look at the learner and the data"
        return Finding(EDGE, "unknown", f"{_capital(told)}.")
    return Finding(EDGE, "no", f"{_capital(why)}, and the policy does not suffer.")


def exceeding(world: World, value_range: tuple[float, float] | None) -> tuple[bool | None, str]:
    """Whether values at the edge are clearly above the true ones or what is attainable, and it in words.

    None where no rollout gets there.
    """
    edge = world.at_edge
    if edge is None:
        return None, ""
    high = math.inf if value_range is None else value_range[1]
    if edge.critic.mean - CLEAR * _finite(edge.critic.error) > high:
        return True, f"critics say {shown(edge.critic.mean, 3)} at the edge, above the attainable {shown(high, 3)}"
    over = edge.over.above(OVER * _finite(world.spread), CLEAR)
    size = f"{shown(edge.over.mean, 3)} ± {shown(CLEAR * _finite(edge.over.error), 2)}"
    start = world.values[0]
    least = f"; at the data's own states it is {shown(start.over.mean, 3)}" if start.depth == 0 else ""
    most = f"(true values {shown(edge.truth.mean, 3)}, with a spread of {shown(world.spread, 3)}{least})"
    if over:
        return True, f"critics exceed the truth at the edge by {size} {most}"
    return False, f"critics do not exceed the truth at the edge: critic minus truth is {size} {most}"


def growing(world: World, training: Training) -> list[str]:
    """Signs that values at the edge run away: along the rollout, or while it learned."""
    signs, edge = [], world.at_edge
    first = world.values[0]
    if edge is not None and first.depth == 0:
        rise = edge.over.mean - first.over.mean
        error = math.hypot(_finite(edge.over.error), _finite(first.over.error))
        if Estimate(rise, error, edge.over.n).above(0.0, CLEAR):
            signs.append(f"this grows by {shown(rise, 3)} from the data's states to the edge")
    values = [value for _, value in training.edge]
    third = len(values) // 3
    if third:
        late, middle = sum(values[-third:]) / third, sum(values[-2 * third : -third]) / third
        if late - middle > OVER * _finite(world.spread):
            signs.append(f"values at the edge grew from {shown(middle, 3)} to {shown(late, 3)} in the last part")
    return signs


def collapse(case: Case) -> list[str]:
    """Signs that the policy learned without model error is bad, in words."""
    assert case.twin_training is not None
    who, signs = "the run's policy" if case.own_twin else "the twin's policy", []
    gap = None if case.own_twin else difference(case.training, case.twin_training)
    if gap is not None and gap.clearly_more:
        worse = f"{shown(gap.last.twin, 4)} against {shown(gap.last.run, 4)}"
        signs.append(f"{who} is clearly worse than the run's, {worse}")
    last = [returns for _, returns in case.twin_training.evaluations[-LAST:]]
    if last and case.data_returns and all(_below(each, case.data_returns) for each in (_mean_of(last), last[-1])):
        given = sum(case.data_returns) / len(case.data_returns)
        reached = sum(last[-1]) / len(last[-1])
        signs.append(f"{who} returns {shown(reached, 4)} at last, the data's episodes {shown(given, 4)}")
    return signs


def _mean_of(evaluations: Sequence[Sequence[float]]) -> list[float]:
    """By episode."""
    return [sum(each) / len(each) for each in zip(*evaluations, strict=False)]


def _below(reached: Sequence[float], given: Sequence[float]) -> bool:
    """Whether one set of returns is clearly worse than another."""
    one, other = (Estimate.of(torch.tensor(each, dtype=torch.float64)) for each in (reached, given))
    error = math.hypot(_finite(one.error), _finite(other.error))
    short = Estimate(other.mean - one.mean, error, one.n)
    return short.above(LOST * max(abs(one.mean), abs(other.mean)), CLEAR)


def _held(case: Case) -> str:
    """What the run's pessimism does about it."""
    if case.own_twin:
        return ""
    beyond, sizes = exceeding(case.run.true, case.run.value_range)
    if beyond is None:
        return ""
    return f" In the run itself {sizes}{'' if beyond else '; so its doubt of the model holds the edge down'}."


# -- what it rests on ------------------------------------------------------------------------------------------------


def _rewards(case: Case) -> Finding | None:
    steps = case.run.steps
    if not steps:
        return None
    rewards = [step for step in steps if step.bias.n]
    said = ", ".join(f"{shown(s.predicted, 3)} ({shown(s.true, 3)}) at step {s.depth + 1}" for s in rewards)
    bad = any(each.startswith("rewards") for each in model_off(case.run))
    return Finding("Are its predicted rewards right?", "no" if bad else "yes", f"Predicted (true) means: {said}.")


def _states(case: Case) -> Finding | None:
    steps = case.run.steps
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    bad = last.path > STATE_OFF
    said = f"It is off by {_std(first.path)} after 1 step and {_std(last.path)} after {last.depth + 1}"
    return Finding("Are its next states right?", "no" if bad else "yes", f"{said}, the same actions taken.")


def _ends(case: Case) -> Finding | None:
    steps, rows = case.run.steps, sum(step.bias.n for step in case.run.steps)
    missed, invented = sum(s.missed for s in steps), sum(s.invented for s in steps)
    ended = any(s.ends > 0 or s.true_ends > 0 for s in steps)
    if not rows or not ended:
        return None
    bad = missed + invented > ENDS_OFF * rows
    said = f"In {rows:,} steps it misses {missed:,} ends and invents {invented:,}."
    return Finding("Are its ends right?", "no" if bad else "yes", said)


def _at_the_edge(case: Case) -> Finding | None:
    """Of the run, where the twin's answer is another's."""
    beyond, sizes = exceeding(case.run.true, case.run.value_range)
    if beyond is None:
        return None
    question = "Do the run's own critics exceed the truth at the edge?"
    return Finding(question, "yes" if beyond else "no", f"Under the true dynamics its {sizes}.")


def _weight(case: Case) -> Finding:
    edge = case.run.true.edge if case.run.model is None else case.run.model.edge
    said = (
        f"{100 * edge.share:.0f} % of the imagined rows, {100 * edge.of_batch:.0f} % of a batch, have a target that"
        f" asks for the value of a state at the edge; {100 * _finite(edge.outside):.0f} % of these states lie outside"
        f" the data's range, {100 * _finite(edge.new):.0f} % far from all that is learned about (of those it is 5 %)"
    )
    return Finding("How much hangs on the edge?", f"{100 * edge.of_batch:.0f} %", f"{said}.")


def _finite(x: float) -> float:
    return x if math.isfinite(x) else 0.0


def _std(x: float) -> str:
    return f"{shown(x, 2)} standard deviations"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
