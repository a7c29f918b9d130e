"""What several sections need: which runs count, how many seeds there are, words for both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.report._status import Dropped
from experiments.report.comparison import Comparison, Run
from experiments.report.statistics import Scores


def evaluated(comparison: Comparison, agent: str, env: str) -> list[Run]:
    """The runs of an agent on an environment that were evaluated at least once, whatever became of them."""
    return [run for run in comparison.of(agent, env) if run.evaluations]


def finished(comparison: Comparison, agent: str, env: str) -> list[Run]:
    """The runs that are done: only their last evaluations are compared, the others stopped somewhere on the way."""
    return [run for run in evaluated(comparison, agent, env) if run.state == "done"]


def shown_agents(comparison: Comparison, env: str) -> list[str]:
    """The agents with something to draw on an environment, in the comparison's order."""
    return [agent for agent in comparison.agents if evaluated(comparison, agent, env)]


def finished_agents(comparison: Comparison, env: str) -> list[str]:
    """The agents with a finished run on an environment, in the comparison's order."""
    return [agent for agent in comparison.agents if finished(comparison, agent, env)]


def seeds(comparison: Comparison) -> list[int]:
    """How many finished seeds each pair of agent and environment has, pairs without one left out."""
    pairs = ((agent, env) for agent in comparison.agents for env in comparison.envs)
    return [count for pair in pairs if (count := len(finished(comparison, *pair)))]


def last_returns(comparison: Comparison, agent: str, envs: Iterable[str], normalised: bool = False) -> Scores:
    """The last evaluation of every finished run, an array ``[runs]`` for each environment; with the references'
    returns at 0 and 1 where they are ``normalised``.
    """
    if normalised:
        scores = comparison.scores(agent)
        return [scores[env] for env in envs]
    return [np.array([run.last for run in finished(comparison, agent, env)], dtype=np.float64) for env in envs]


def learned(comparison: Comparison) -> bool:
    """Whether some run learned from data, so that env steps alone do not say what agents had."""
    return any(run.data is not None or run.offline for run in comparison.runs)


def offline(comparison: Comparison, agent: str) -> bool:
    """Whether an agent learned from data alone: none of its runs acted to learn."""
    runs = [run for run in comparison.runs if run.agent == agent]
    return bool(runs) and all(run.offline for run in runs)


def alike(comparison: Comparison, agents: Sequence[str]) -> dict[str, list[str]]:
    """The agents that may be compared with one another: those that acted, and those that learned from data alone.

    Keys end names of files: one empty key where all are of one kind.
    """
    groups = {"acted": [a for a in agents if not offline(comparison, a)]}
    groups["from-data"] = [a for a in agents if offline(comparison, a)]
    return groups if all(groups.values()) else {"": list(agents)}


KINDS: Mapping[str, str] = {"acted": "Acted in the environment", "from-data": "Learned from data alone"}
"""What agents of a group have in common, in words"""


def used(runs: Iterable[Run]) -> list[str | int | None]:
    """How many env steps and how many rows of data runs had at their last evaluation; None where that is not known."""
    ended = [run for run in runs if run.evaluations]
    return [_one([run.evaluations[-1].env_steps for run in ended]), _one([_rows_of_data(run) for run in ended])]


def _rows_of_data(run: Run) -> int | None:
    if run.data is not None:
        return run.data.rows
    return None if run.offline or run.start_from is not None else 0


def _one(counts: Sequence[int | None]) -> str | int | None:
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return None
    return known[0] if len({*known}) == 1 else spread(known)


USED = ("env steps", "rows of data")


def listing(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = list(words)
    return f"{', '.join(most)} and {last}" if most else last


def plural(count: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def spread(counts: Sequence[int]) -> str:
    """``5`` or ``3 to 5``."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def slug(text: str) -> str:
    """Text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.") or "x"


def number(value: float, digits: int = 2) -> str:
    """A number inside a sentence."""
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """A p inside a sentence, two significant digits of it."""
    return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def where(run: Run | Dropped) -> str:
    """The run in words."""
    return f"{run.agent} on {run.env}, seed {run.seed if run.seed >= 0 else 'unknown'}"


def own_scale(comparison: Comparison, envs: Iterable[str]) -> str | None:
    """What to know of intervals where returns are measured against the compared runs; None where they are not."""
    own = [env for env in envs if env in comparison.references and comparison.references[env].own]
    if not own:
        return None
    return (
        f"On {listing(own)} the return that counts as 1 is the mean of the best agent of this very comparison, so that"
        " agent's mean is 1 by construction. The intervals take it as given: they ignore that it was chosen from the"
        " same runs, and that with other seeds it would be another return, perhaps of another agent."
    )
