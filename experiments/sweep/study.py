"""Who decides in a sweep: Optuna suggests, successive halving prunes. Both are built again from the ledger's lines.

Suggestions are those of the tree-structured Parzen estimator (Bergstra, Bardenet, Bengio, Kégl, "Algorithms for
Hyper-Parameter Optimization", 2011): at random for the first ten trials, then where good trials were denser. A trial
that was pruned counts as worse than one that came further. Pruning is ASHA (Li, Jamieson, Rostamizadeh, Gonina, Hardt,
Recht, Talwalkar, "A System for Massively Parallel Hyperparameter Tuning", 2020): at ``grace``, ``grace * reduction``,
... steps a trial goes on if it is among the best ``1 / reduction`` of those that have come there so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from envs.errors import UserError
from experiments.sweep.ledger import Ledger, Verdict
from experiments.sweep.plan import Mode
from experiments.sweep.spaces import Space
from mbrl.seeding import derive_seed


@dataclass(frozen=True)
class Rules:
    """What suggestions and verdicts follow from, besides the evaluations.

    Args:
        spaces: by setting.
        seed: of the suggestions.
        mode: whether the metric is to be high or low.
        steps: of a whole run.
        grace: steps before which no trial is pruned; with ``steps`` none ever is.
        reduction: one in so many goes on.
    """

    spaces: Mapping[str, Space]
    seed: int
    mode: Mode
    steps: int
    grace: int
    reduction: int


@dataclass(frozen=True)
class _Named:
    """A trial as a scheduler of Tune sees it."""

    trial_id: str


class Study:
    """Suggests settings and gives verdicts; everything goes through the ledger, which is told first.

    Raises:
        UserError: the ledger's suggestions are not those that these rules give.
    """

    def __init__(self, rules: Rules, ledger: Ledger) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.rules, self.ledger = rules, ledger
        # Unfinished trials count as bad ones until they end, so that two do not look at the same place at once.
        sampler = optuna.samplers.TPESampler(seed=derive_seed(rules.seed, "sweep"), constant_liar=True)
        space = {key: space.distribution() for key, space in rules.spaces.items()}
        self.searcher = OptunaSearch(space, metric="value", mode=rules.mode, sampler=sampler)
        self.pruner: Any = ASHAScheduler(  # told of no controller, for it looks at none
            "steps", "value", rules.mode, rules.steps, rules.grace, rules.reduction, stop_last_trials=False
        )
        for line in ledger.lines:
            self._replay(line)

    def _replay(self, line: Mapping[str, Any]) -> None:
        number = line["trial"]
        if "params" in line:
            drawn = self._draw(number)
            if drawn != line["params"]:
                fix = f"trial {number} would now be {drawn}: another version of optuna, or other rules; begin elsewhere"
                raise UserError(str(self.ledger.path), line["params"], fix)
        elif "error" in line:
            self._forget(number)
        else:
            self._weigh(number, line["steps"], line["value"], line["verdict"] == "finish")
            self._tell(number, line["steps"], line["value"], line["verdict"])

    def suggest(self) -> int:
        """The number of a new trial; its settings are in the ledger."""
        number = len(self.ledger.trials)
        self.ledger.suggest(number, self._draw(number))
        return number

    def report(self, number: int, steps: int, value: float | None, last: bool) -> Verdict:
        """What follows from the metric of a trial at an evaluation; ``last``: it is the run's last one.

        An evaluation that was reported before, by a run that was interrupted behind it, has the verdict of then. Of a
        learner that resumes inexactly it may fall beside where it was: before what is known the run goes on, and one
        that has its verdict keeps it.
        """
        trial = self.ledger.trials[number]
        if steps in trial.reports:
            return trial.reports[steps].verdict
        if trial.last is not None and (trial.state != "open" or steps < trial.steps):
            return trial.last.verdict
        if value is not None and not math.isfinite(value):
            value = None
        verdict = self._weigh(number, steps, value, last)
        self.ledger.report(number, steps, value, verdict)
        self._tell(number, steps, value, verdict)
        return verdict

    def fail(self, number: int, error: str) -> None:
        """A trial failed by itself."""
        if self.ledger.trials[number].state == "open":
            self.ledger.fail(number, error)
            self._forget(number)

    # -- the searcher and the pruner of Tune -------------------------------------------------------------------------

    def _draw(self, number: int) -> dict[str, Any]:
        drawn = self.searcher.suggest(str(number))
        assert drawn is not None
        self.pruner.on_trial_add(None, _Named(str(number)))
        return {key: space.value(drawn[key]) for key, space in self.rules.spaces.items()}

    def _weigh(self, number: int, steps: int, value: float | None, last: bool) -> Verdict:
        """The pruner's verdict; a metric that is no finite number is the worst there is."""
        if value is None:
            return "finish" if last else "prune"
        trial, result = _Named(str(number)), {"steps": steps, "value": value}
        if last:
            self.pruner.on_trial_complete(None, trial, result)
            return "finish"
        stop = self.pruner.on_trial_result(None, trial, result) == TrialScheduler.STOP
        return "prune" if stop else "go"

    def _tell(self, number: int, steps: int, value: float | None, verdict: Verdict) -> None:
        """Let the searcher learn from an evaluation."""
        name, seen = str(number), math.nan if value is None else value
        self.searcher.on_trial_result(name, {"value": seen, "training_iteration": steps})
        if verdict != "go":
            whole = verdict == "finish" and value is not None
            self.searcher.on_trial_complete(name, {"value": value} if whole else None)

    def _forget(self, number: int) -> None:
        """A failed trial says nothing about its settings that a number could."""
        self.searcher.on_trial_complete(str(number), None, error=True)
