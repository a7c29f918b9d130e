"""``mbrl diagnose RUN --oracle``: whether model error or the edge of reach hurts an offline Dyna agent.

Sims, Lu, Foerster, Teh, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning", 2024: under the true
dynamics there is no model error, so what hurts an agent there is something else, and mostly the values of states that
rollouts reach with their last step only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.diagnosis.fit import SUMMARY, plain
from experiments.diagnosis.oracle.evidence import measure
from experiments.diagnosis.oracle.subject import open_run, true_dynamics
from experiments.diagnosis.oracle.twin import TWIN, plan_twin, train_twin
from experiments.diagnosis.oracle.verdict import Case, difference, verdict
from experiments.pages.parts import Page

NUMBERS = "oracle.json"
FOLDER = "oracle"


def run_oracle(
    source: Path,
    out: Path | None,
    twin: Path | None,
    updates: int | None,
    trust: Sequence[str],
    command: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    """Judge an offline Dyna run under the true dynamics, train its twin there, and write the page.

    The page appears as soon as the run's newest checkpoint is measured, and again, whole, when the twin is finished.
    A twin that was stopped goes on from its newest checkpoint.

    Args:
        source: a run directory.
        out: folder of the page (default: ``SOURCE/oracle``).
        twin: run directory of the twin (default: ``twin`` inside the page's folder).
        updates: the twin's (default: those of the run); 0: no twin.
        trust: modules outside the project that configurations may name.
        command: as typed; kept with the twin.
        say: where a line goes before the twin is trained.

    Beside ``index.html`` lie its figures and tables, ``oracle.json`` (every number) and ``summary.txt``.

    Raises:
        UserError: no offline Dyna run, unknown true dynamics, a folder that holds something else, or data that has
            changed.
    """
    if updates is not None and (isinstance(updates, bool) or not isinstance(updates, int) or updates < 0):
        raise UserError("--oracle-updates", updates, "give a whole number; 0 trains no twin")
    subject = open_run(source, trust)
    folder = source / FOLDER if out is None else out
    plan = None
    if subject.agent.learned and updates != 0:  # what cannot be trained is refused before anything is measured
        place = folder / TWIN if twin is None else twin
        plan = plan_twin(subject, place, subject.updates if updates is None else updates, trust)
    seed = subject.resolved.config.seed
    found = measure(subject.agent, subject.simulator, seed)
    case = Case(subject.title, subject.agent.spec.id, found, subject.training, data_returns=subject.data_returns)
    if case.own_twin:
        case = replace(case, twin=found, twin_training=subject.training)
    elif plan is not None:
        _write(case, folder)
        say(f"twin under the true dynamics, {plan.resolved.config.steps:,} updates: {plan.place}")
        trained = train_twin(plan, command)
        twins = measure(trained.agent, true_dynamics(trained.agent, subject.resolved), seed)
        case = replace(case, twin=twins, twin_training=trained.training)
    return _write(case, folder)


def _write(case: Case, folder: Path) -> Path:
    from experiments.diagnosis.oracle.sections import sections
    from experiments.pages.render import write_page

    page = Page("Which hurts: the model or the edge of reach?", f"{case.title} · {case.env}", sections(case))
    record = json.dumps(plain(numbers(case)), indent=1, allow_nan=False) + "\n"
    return write_page(page, folder, {NUMBERS: record.encode(), SUMMARY: (summary(case) + "\n").encode()})


def numbers(case: Case) -> dict[str, Any]:
    """Everything measured and said, as plain names and numbers."""
    found = verdict(case)
    gap = None if case.twin_training is None or case.own_twin else difference(case.training, case.twin_training)
    return {
        "subject": case.title,
        "env": case.env,
        "hurts": found.hurts,
        "sentence": found.sentence,
        "findings": [asdict(each) for each in found.findings],
        "difference": None if gap is None else asdict(gap),
        "data_returns": list(case.data_returns),
        "run": {"measured": asdict(case.run), "training": asdict(case.training)},
        "twin": case.twin
        and case.twin_training
        and {"measured": asdict(case.twin), "training": asdict(case.twin_training)},
    }


def summary(case: Case) -> str:
    """A few lines for the terminal."""
    found = verdict(case)
    lines = [f"{case.title}: {found.sentence}"]
    return "\n".join([*lines, *(f"- {each.question} {each.answer}: {each.sentence}" for each in found.findings)])
