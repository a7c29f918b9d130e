"""The sweep on Ray Tune: its trials are processes, its searcher and its scheduler ask the :class:`Study`.

Tune has a way of its own to restore an experiment. It is not used: what Tune writes down is pickled, is written every
few seconds and not before it is acted on, and would give a trial that was under way a second suggestion. Here a sweep
that was killed is a new experiment, whose searcher names the trials that are open first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from envs.errors import UserError
from experiments.sweep.study import Study
from experiments.sweep.trial import TrialProcess

ATTEMPTS = 3
"""How often a trial is begun again whose process or node was lost"""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one is never silent
}


class Asking(Searcher):
    """Names the trials that are open, then new ones as the study suggests them, until there are ``trials``.

    ``job`` is told of each number, and says what :class:`TrialProcess` has to do.
    """

    def __init__(self, study: Study, todo: Sequence[int], trials: int, job: Callable[[int], Mapping[str, Any]]) -> None:
        super().__init__()
        self.study, self.todo, self.trials, self.job = study, [*todo], trials, job

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number, or that there is none."""
        if not self.todo and len(self.study.ledger.trials) >= self.trials:
            return Searcher.FINISHED
        number = self.todo.pop(0) if self.todo else self.study.suggest()
        return {"number": number, "job": self.job(number)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The study was told by the scheduler; a trial that was lost stays open."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has all."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of it belongs into what Tune pickles."""
        return {}


class Judging(FIFOScheduler):
    """Gives the study's verdicts; ``ended`` is told the number of a trial that is pruned, complete or failed."""

    def __init__(self, study: Study, ended: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.study, self.ended = study, ended
        self.problem: UserError | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on behind an evaluation."""
        with self._noted():
            verdict = self.study.report(trial.config["number"], result["steps"], result["value"], last=False)
        return str(TrialScheduler.CONTINUE if verdict == "go" else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial has ended: it was pruned, which is known, or it is complete, or it failed."""
        number = trial.config["number"]
        with self._noted():
            if "error" in result:
                self.study.fail(number, result["error"])
            elif result["last"]:
                self.study.report(number, result["steps"], result["value"], last=True)
            self.ended(number)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.problem = error
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of it belongs into what Tune pickles."""
        return {}


def tune_trials(asking: Asking, judging: Judging, at_once: int, gpus: float, scratch: Path) -> None:
    """Run what ``asking`` names until it names no more, each with a CPU and ``gpus`` GPUs.

    Ray is connected; ``scratch`` is made and removed.

    Raises:
        UserError: the ledger could not be written.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    config = tune.TuneConfig(
        search_alg=asking,
        scheduler=judging,
        num_samples=asking.trials + len(asking.todo),  # asking says itself when there are no more
        max_concurrent_trials=at_once,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
        reuse_actors=True,
    )
    place = tune.RunConfig(
        name="trials",
        storage_path=str(scratch),
        failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run has checkpoints of its own
        verbose=0,
    )
    try:
        with _settings():
            trainable = tune.with_resources(TrialProcess, {"cpu": 1, "gpu": gpus})
            tune.Tuner(trainable, tune_config=config, run_config=place).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if judging.problem is not None:  # Tune tells it as an error of its own, or goes on
            raise judging.problem


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']:03d}"


@contextmanager
def _settings() -> Iterator[None]:
    """Tune is told some things by the environment only."""
    before = {key: os.environ.get(key) for key in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
