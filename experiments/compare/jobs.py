"""From a suite to its runs: configurations are resolved, agents built, datasets and earlier runs looked at first."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.base import Agent
from envs.errors import UserError
from experiments.compare.fleet import Job
from experiments.compare.suite import AgentEntry, Suite
from experiments.config import Resolved, RunConfig, find_recipe, resolve
from experiments.given_data import open_data
from experiments.hand_over import hand_over, need_fit, need_taker
from experiments.run import RunDirectory
from experiments.session import foreign_state, try_agent
from experiments.tree import read_yaml

EVALUATIONS = 10
"""Evaluations of a run, where the suite does not say how often; the same episodes for every agent."""


@dataclass(frozen=True)
class _Plan:
    """What one agent does on one environment, seeds aside."""

    words: tuple[str, ...]
    digest: str
    resolved: Resolved
    agent: Agent | None
    """As it begins, where another one may continue it"""
    earlier: str | None
    """The agent of the suite whose run is continued"""

    @property
    def steps(self) -> int:
        return self.resolved.config.steps

    @property
    def side(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What a hand-over looks at."""
        assert self.agent is not None
        return yaml.safe_load(self.resolved.text), self.agent.state_dict()


Plans = Mapping[tuple[str, str], _Plan]
"""By label and environment"""


def make_jobs(suite: Suite, root: Path, trust: Sequence[str]) -> list[Job]:
    """Every run of the suite, seed by seed; its folder's name ends in the digest of its configuration.

    Every configuration is resolved, its environment tried, its dataset opened and its agent built first, so that
    nothing runs when one of them is wrong. A run whose configuration is changed, or that of the run it continues, is
    another run, in another folder.

    Raises:
        UserError: a configuration is wrong; there is no such dataset, agent or run, or it is another environment's;
            what is to be continued does not fit.
    """
    plans: dict[tuple[str, str], _Plan] = {}
    for env in suite.envs:
        for label in _in_order(suite):
            plans[label, env] = _plan(suite, label, env, trust, plans)
    order = [(label, env) for env in suite.envs for label in suite.agents]
    return [_job(plans, root, label, env, seed, trust) for seed in suite.seeds for label, env in order]


def _in_order(suite: Suite) -> list[str]:
    """The agents, each behind the one that it continues; a suite has no circles."""
    found: dict[str, None] = {}
    for label in suite.agents:
        way = [label]
        while (earlier := suite.agents[way[-1]].start_from) in suite.agents:
            assert earlier is not None
            way.append(earlier)
        found |= dict.fromkeys(reversed(way))
    return list(found)


def _job(plans: Plans, root: Path, label: str, env: str, seed: int, trust: Sequence[str]) -> Job:
    plan = plans[label, env]
    trusted = [word for name in trust for word in ("--trust", name)]
    after = None if plan.earlier is None else _folder(plans, root, plan.earlier, env, seed)
    words = [*plan.words, *(["--from", str(after.resolve())] if after is not None else [])]
    command = ("train", *words, "--seed", str(seed), *trusted)
    return Job(label, env, seed, command, _folder(plans, root, label, env, seed), plan.steps, after)


def _folder(plans: Plans, root: Path, label: str, env: str, seed: int) -> Path:
    return root / "runs" / re.sub(r"[^\w.+-]", "-", env) / label / f"seed{seed}-{plans[label, env].digest}"


def _plan(suite: Suite, label: str, env: str, trust: Sequence[str], plans: Plans) -> _Plan:
    """One agent on one environment; ``plans`` has the one that it continues."""
    agent, entry = suite.agents[label], suite.envs[env]
    recipe = str(find_recipe(agent.recipe).resolve()) if "/" in agent.recipe else agent.recipe
    steps = {"steps": entry.steps} if entry.steps is not None else {}
    given = {**suite.set, **steps, **entry.set, **agent.set, **_sources(suite, label, env, plans)}
    try:
        config = resolve(recipe, [*given.items()], env, trust).config
        _check_data(config)
        count = config.steps
        fair = {"evaluation.every": -(-count // EVALUATIONS), "evaluation.episodes": 10, "evaluation.num_envs": 10}
        pairs = [*(fair | given).items()]
        resolved = resolve(recipe, pairs, env, trust)
        built = try_agent(resolved.config)
        earlier = _check_hand_over(agent, env, resolved, built, plans)
    except UserError as error:
        raise error.within(f"{label} on {env}") from error
    typed = [(key, value) for key, value in pairs if key != "start_from" or earlier is None]
    words = (recipe, "--env", env, *(f"--{key}={json.dumps(value)}" for key, value in typed))
    digest = hashlib.blake2b(resolved.text.encode(), digest_size=4).hexdigest()
    return _Plan(words, digest, resolved, built if resolved.config.data is not None else None, earlier)


def _sources(suite: Suite, label: str, env: str, plans: Plans) -> dict[str, str]:
    """What an agent begins with. A run of the suite is known by its label and digest, wherever the runs will lie."""
    agent, found = suite.agents[label], dict[str, str]()
    if agent.data is not None:
        data = agent.data_on(env)
        if data is None:
            raise UserError(f"agents.{label}.data", [*agent.data], f"it names no dataset for {env}")
        found["data"] = data
    if (earlier := agent.start_from) is None:
        return found
    if earlier in suite.agents:
        return found | {"start_from": f"{earlier} {plans[earlier, env].digest}"}
    if not (Path(earlier) / "config.yaml").is_file():
        fix = "it is no agent of this suite and no run directory"
        raise UserError(f"agents.{label}.from", earlier, fix, suite.agents)
    return found | {"start_from": str(Path(earlier).resolve())}


def _check_data(config: RunConfig) -> None:
    """Refuse a dataset that says it is of another environment; the version of a task may be another."""
    told = (open_data(config.data).about.env or {}) if config.data is not None else {}
    named, env = told.get("id"), config.env
    if named is None:
        return
    if _unversioned(named) != _unversioned(env.id):
        raise UserError("data", f"{config.data} of {named}", f"these are rows of another environment than {env.id}")
    for key, theirs, mine in (
        ("params", told.get("params") or {}, env.params),
        ("action_repeat", told.get("action_repeat") or 1, env.action_repeat),
    ):
        if theirs != mine:
            fix = f"its rows were made otherwise; set env.{key} to the same for this environment's runs"
            raise UserError("data", f"{config.data} with {key} {theirs}", fix)


def _unversioned(env: Any) -> str:
    return re.sub(r"-v\d+$", "", str(env))


def _check_hand_over(agent: AgentEntry, env: str, resolved: Resolved, built: Agent, plans: Plans) -> str | None:
    """Refuse what could not be continued; the label of the agent of the suite that is, if it is one."""
    config = resolved.config
    if config.start_from is None:
        return None
    tree = yaml.safe_load(resolved.text)
    need_taker(built)
    if (plan := plans.get((agent.start_from or "", env))) is None:
        _check_env(config, env)
        with foreign_state(Path(config.start_from)):
            hand_over(config, tree, built)
        return None
    if plan.agent is None or plan.resolved.config.data is None:
        fix = "it does not learn from a dataset, so there is nothing to continue; name an agent that has `data`"
        raise UserError("from", agent.start_from, fix)
    need_fit(str(agent.start_from), plan.side, (tree, built.state_dict()))
    rows, capacity = len(open_data(plan.resolved.config.data)), built.buffers["real"].capacity
    if rows > capacity:
        fix = f"the dataset of {agent.start_from} has {rows:,} rows; give the agent a larger capacity"
        raise UserError("agent.init_args.capacity", capacity, fix)
    return agent.start_from


def _check_env(config: RunConfig, env: str) -> None:
    """Refuse to continue a run of another environment."""
    assert config.start_from is not None
    named = read_yaml(RunDirectory.open(Path(config.start_from)).config).get("env")
    seen = named.get("id") if isinstance(named, Mapping) else None
    if seen != env:
        raise UserError("from", f"{config.start_from} on {seen}", f"it is a run of another environment than {env}")
