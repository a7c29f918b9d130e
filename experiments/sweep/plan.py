"""What is searched: a recipe, spaces for some of its settings, and how many trials; checked before anything runs."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from envs.errors import UserError
from experiments.config import Unit, find_recipe, resolve
from experiments.given_data import locate
from experiments.names import module_of, typed_in
from experiments.session import try_agent
from experiments.sweep.spaces import Space, parse_space
from experiments.tree import read_yaml

Mode = Literal["max", "min"]
EVALUATIONS = 10
"""Evaluations of a whole run, where nobody says how often"""
FAIR = {"evaluation.episodes": 10, "evaluation.num_envs": 10}
"""Each trial is judged on as many episodes, the same ones, where nobody says on how many"""
METRICS = ("return_mean", "return_std", "score", "act_ms", "evaluation_seconds", "peak_memory_bytes")
FIXED = ("steps", "data", "start_from", "env.id", "evaluation", "checkpoint", "video")
"""What is the same in all trials, for they are compared at the same steps of the same task"""

KINDS: Mapping[str, type] = {"recipe": str, "env": str, "params": dict, "set": dict, "metric": str, "mode": str}
"""Of the values in a ``sweep.yaml`` that are no numbers"""


@dataclass(frozen=True)
class Plan:
    """A sweep, as its ``sweep.yaml`` says it.

    Args:
        recipe: a recipe's name or file.
        env: the environment; None where the recipe or the dataset says it.
        params: what each setting is searched over, as typed.
        trials: how many runs.
        seed: of the suggestions, and of every run.
        metric: field of the ``evaluation`` records.
        mode: ``max`` or ``min`` of it is best.
        grace: steps before which no trial is stopped; None is a tenth of the run.
        reduction: at each rung one in so many goes on.
        set: what is set in every run.
    """

    recipe: str
    env: str | None
    params: Mapping[str, str]
    trials: int = 16
    seed: int = 0
    metric: str = "return_mean"
    mode: Mode = "max"
    grace: int | None = None
    reduction: int = 3
    set: Mapping[str, Any] = field(default_factory=dict)

    def spaces(self) -> dict[str, Space]:
        """What is drawn from, by setting."""
        return {key: parse_space(key, text) for key, text in self.params.items()}

    def typed_modules(self) -> list[str]:
        """Modules outside this project that its values name, where a person typed these."""
        examples = [(key, value) for key, space in self.spaces().items() for value in space.examples()]
        module = module_of(self.env) if self.env else None
        return [*([module] if module else []), *typed_in([*self.set.items(), *examples])]

    def tree(self) -> dict[str, Any]:
        """As plain values, which :func:`make_plan` takes."""
        return {**vars(self), "params": dict(self.params), "set": dict(self.set)}

    def text(self) -> str:
        """As ``sweep.yaml``."""
        return yaml.safe_dump(self.tree(), sort_keys=False)


def make_plan(**values: Any) -> Plan:
    """A plan of values that a person gave, each checked.

    Raises:
        UserError: a value is not what it must be.
    """
    plan = Plan(**values)
    for key, least in {"trials": 1, "seed": 0, "reduction": 2, "grace": 1}.items():
        value = getattr(plan, key)
        if (value is not None or key != "grace") and (type(value) is not int or not least <= value < 2**31):
            raise UserError(f"--{key}", value, f"give a whole number of at least {least}")
    if plan.mode not in get_args(Mode):
        raise UserError("--mode", plan.mode, "give max or min", get_args(Mode))
    if plan.metric not in METRICS:
        raise UserError("--metric", plan.metric, f"evaluations have {', '.join(METRICS)}", METRICS)
    if not plan.params:
        raise UserError("--param", "none", "say what is searched: --param 'agent.learner.lr=log(1e-4, 1e-2)'")
    for key in plan.params:
        _check_key(key, plan)
    plan.spaces()
    recipe = str(find_recipe(plan.recipe).resolve()) if Path(plan.recipe).suffix or "/" in plan.recipe else plan.recipe
    places = {key: locate(value) for key, value in plan.set.items() if key in ("data", "start_from")}
    return replace(plan, recipe=recipe, set={**plan.set, **places})


def _check_key(key: str, plan: Plan) -> None:
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise UserError("--param", key, "a setting's name is written with dots: agent.planner.horizon")
    if any(f"{one}.".startswith(f"{other}.") for name in FIXED for one, other in ((key, name), (name, key))):
        raise UserError(f"--param {key}", plan.params[key], "this is the same in all trials; set it with --KEY=VALUE")
    if key in plan.set:
        raise UserError(f"--param {key}", plan.set[key], f"it is also set by --{key}; leave one of them out")


def read_plan(path: Path) -> Plan:
    """The plan in a ``sweep.yaml``; raises ``UserError`` at the first key or value that is wrong."""
    tree = read_yaml(path)
    known = [entry.name for entry in fields(Plan)]
    for key in tree:
        if key not in known:
            raise UserError(f"{path}: {key}", key, f"there are: {', '.join(known)}", known)
    for key in ("recipe", "params"):
        if key not in tree:
            raise UserError(f"{path}: {key}", "missing", "`mbrl sweep` did not write this; begin a new sweep elsewhere")
    tree = {"env": None} | tree
    for key, kind in KINDS.items():
        if not isinstance(tree.get(key, kind()), kind) and not (key == "env" and tree[key] is None):
            raise UserError(
                f"{path}: {key}", tree[key], "`mbrl sweep` writes it otherwise; begin a new sweep elsewhere"
            )
    for key, text in tree["params"].items():
        if not isinstance(text, str):
            raise UserError(f"{path}: params.{key}", text, "write its space as text, in quotes")
    return make_plan(**tree)


def check_same(old: Plan, new: Plan, root: Path) -> None:
    """Refuse to go on with another sweep than the one that lies there; more trials are welcome.

    Raises:
        UserError: naming what differs.
    """
    before, now = old.tree(), new.tree()
    for key in before:
        if key != "trials" and before[key] != now[key]:
            fix = f"there is a sweep with {key} {before[key]!r}; name another --out, or give the same again"
            raise UserError(f"--out {root}: {key}", now[key], fix)
    if new.trials < old.trials:
        raise UserError("--trials", new.trials, f"this sweep has {old.trials} already; it can only become larger")


@dataclass(frozen=True)
class Checked:
    """A plan whose runs can begin.

    ``given`` is what is set in every run; ``trust`` are modules that were typed.
    """

    plan: Plan
    env: str
    steps: int
    unit: Unit
    grace: int
    given: Mapping[str, Any]
    trust: tuple[str, ...]

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """The words after ``mbrl`` that make the run of some settings, its place aside."""
        pairs = [f"--{key}={json.dumps(value)}" for key, value in {**self.given, **params}.items()]
        trust = [word for name in self.trust for word in ("--trust", name)]
        return ["train", self.plan.recipe, "--env", self.env, *pairs, *trust]

    def command(self, params: Mapping[str, Any], out: str) -> str:
        """The same as a line for a shell."""
        return shlex.join(["mbrl", *self.words(params), "--out", out])

    def folder(self, params: Mapping[str, Any], name: str) -> str:
        """Where a run lies below the sweep, so that a report tells the trials apart."""
        env = re.sub(r"[^\w.+-]", "-", self.env)
        return f"runs/{env}/{name}/seed{params.get('seed', self.plan.seed)}"


def check(plan: Plan, trust: Sequence[str] = ()) -> Checked:
    """Resolve the configuration with each value of a list and both ends of a range, and build the agent of each.

    Raises:
        UserError: a key or value is wrong, or a run could not begin. Nothing is on disk then.
    """
    pairs = {"seed": plan.seed, **plan.set}
    base = resolve(plan.recipe, [*pairs.items()], plan.env, trust).config
    grace = plan.grace if plan.grace is not None else max(1, math.ceil(base.steps / EVALUATIONS))
    if base.steps < 1 or grace > base.steps:
        raise UserError("--grace", grace, f"it is at most the steps of a run, which are {base.steps}")
    if plan.metric == "score" and base.data is None:
        raise UserError("--metric", "score", "only runs that learn from a dataset have it; take return_mean")
    given = {**FAIR, "evaluation.every": grace, **pairs, "steps": base.steps}
    found = Checked(plan, base.env.id, base.steps, base.unit, grace, given, tuple(dict.fromkeys(trust)))
    sample: dict[str, Any] = {}
    for key, space in plan.spaces().items():
        for value in reversed(space.examples()):
            _try(found, {**sample, key: value}, f"--param {key}")
        sample[key] = value
    return found


def _try(found: Checked, params: Mapping[str, Any], place: str) -> None:
    try:
        try_agent(resolve(found.plan.recipe, [*{**found.given, **params}.items()], found.env, found.trust).config)
    except UserError as error:
        raise error.within(place) from error
