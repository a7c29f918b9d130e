"""``mbrl dataset collect``: random, medium, replay and expert data from a training run.

The levels' names are those of Fu, Kumar, Nachum, Tucker, Levine, "D4RL: Datasets for Deep Data-Driven Reinforcement
Learning", 2020, which does not say when a policy is medium; here it is the first one of a run that, over 20 episodes,
comes a third of the way from random actions to the best policy of the run, which is what "expert" means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError
from experiments.config import resolve
from experiments.dataset.play import play, some_episodes
from experiments.dataset.source import TRIED_EPISODES, Policy, Source
from experiments.given_data import ENV_KEYS
from experiments.run import RunDirectory, versions
from experiments.session import Session, reopen
from mbrl.data.d4rl import write_d4rl
from mbrl.data.minari import local_root, write_minari
from mbrl.data.offline import About, save_folder
from mbrl.data.order import grouped, run_ends
from mbrl.data.transitions import Transitions

FORMATS = ("minari", "d4rl", "folder")
UNJUDGED = ("random", "full-replay")
"""Levels that a run also gives whose best policy is no better than random actions; such data has no references"""
EVALUATIONS = 20
"""Of a run that is trained for its data and says nothing itself"""


@dataclass(frozen=True)
class Wanted:
    """What to collect.

    Args:
        level: one of :data:`LEVELS`.
        rows: how many transitions; None takes all that a replay buffer holds.
        seed: where every random number comes from.
        episodes: those that the returns of the random and the expert policy are means of.
    """

    level: str
    rows: int | None = None
    seed: int = 0
    episodes: int = 100

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError("--level", self.level, f"give one of {', '.join(LEVELS)}", LEVELS)
        for field, value, least in (("--seed", self.seed, 0), ("--reference-episodes", self.episodes, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(field, value, f"give a whole number of at least {least}")
        if self.rows is None and "replay" in self.level:
            return
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 2:
            raise UserError("--rows", self.rows, "give a whole number of at least 2")


@dataclass(frozen=True)
class Target:
    """Where a dataset goes: for ``minari`` an id, or a path that begins with ``/`` or ``.``; else a path."""

    out: str
    format: str

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError("--format", self.format, f"give one of {', '.join(FORMATS)}", FORMATS)
        if self.format == "d4rl" and Path(self.out).suffix not in (".hdf5", ".h5"):
            raise UserError("--out", self.out, "a D4RL-style file is called NAME.hdf5")
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise UserError("--out", str(self.path), "there already; name a place where nothing is")

    @property
    def path(self) -> Path:
        return self._root / self.out if self.format == "minari" and not self._by_path else Path(self.out)

    @property
    def _by_path(self) -> bool:
        return self.out.startswith(("/", "."))

    @property
    def _root(self) -> Path:
        return Path(self.out).resolve().parent if self._by_path else local_root()

    def write(self, rows: Transitions, about: About) -> Path:
        """The dataset appears whole or not at all. The environment was built before, so its name is trusted."""
        if self.format == "minari":
            name = Path(self.out).name if self._by_path else self.out
            return write_minari(rows, name, about, root=self._root, named=True)
        if self.format == "d4rl":
            return write_d4rl(rows, self.path, about, named=True)
        save_folder([rows], len(rows), self.path, about)
        return self.path


# -- levels ------------------------------------------------------------------------------------------------------------


Level = Callable[[Source, Wanted], tuple[Transitions, list[Policy]]]
"""Rows, and the policies that they, or their end, come from"""


def _random(source: Source, wanted: Wanted) -> tuple[Transitions, list[Policy]]:
    return play(source.random, source.session.config.env, wanted.rows or 0, wanted.seed, "random"), []


def _of(which: Callable[[Source], Policy]) -> Level:
    def collect(source: Source, wanted: Wanted) -> tuple[Transitions, list[Policy]]:
        policy, env = which(source), source.session.config.env
        agent, version = source.acting(policy), int(policy.clock["updates"])
        return play(agent, env, wanted.rows or 0, wanted.seed, policy.name, version), [policy]

    return collect


def _medium_expert(source: Source, wanted: Wanted) -> tuple[Transitions, list[Policy]]:
    """Half of each, the medium one first."""
    count = wanted.rows or 0
    medium, one = _of(lambda s: s.medium)(source, dataclasses.replace(wanted, rows=count // 2))
    expert, other = _of(lambda s: s.expert)(source, dataclasses.replace(wanted, rows=count - count // 2))
    expert.episode += medium.episode.max() + 1
    return Transitions.cat([medium, expert]), one + other


def _medium_replay(source: Source, wanted: Wanted) -> tuple[Transitions, list[Policy]]:
    """What the run had stored when it came to its medium policy."""
    rows = source.stored(int(source.medium.clock["env_steps"]))
    return some_episodes(rows, wanted.rows or len(rows), wanted.seed), [source.medium]


def _full_replay(source: Source, wanted: Wanted) -> tuple[Transitions, list[Policy]]:
    rows = source.stored()
    return some_episodes(rows, wanted.rows or len(rows), wanted.seed), []


LEVELS: Mapping[str, Level] = {
    "random": _random,
    "medium": _of(lambda source: source.medium),
    "medium-replay": _medium_replay,
    "medium-expert": _medium_expert,
    "expert": _of(lambda source: source.expert),
    "full-replay": _full_replay,
}


# -- collecting --------------------------------------------------------------------------------------------------------


def run_collect(
    recipe: str,
    wanted: Wanted,
    target: Target,
    env: str | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
    trust: Sequence[str] = (),
    command: Sequence[str] = (),
    say: Callable[[str], object] = str,
) -> Path:
    """Make a dataset from a run, or from a recipe that is trained first; where it is.

    Args:
        recipe: a run directory, or a recipe; its run goes to ``runs/`` and keeps its policies.
        wanted: level and size.
        target: format and place.
        env: of a recipe, the environment.
        overrides: of a recipe, settings.
        trust: packages outside the project that may be imported.
        command: as typed, for the run's record.
        say: is told what the user should know besides.

    Raises:
        UserError: the run cannot give what is wanted, or something is at ``target``; then nothing is written.
    """
    if (Path(recipe) / "config.yaml").is_file():
        if env is not None or overrides:
            fix = "a run has its environment and settings; leave them out, or give a recipe"
            raise UserError("--recipe", recipe, fix)
        run = RunDirectory.open(Path(recipe))
    else:
        run = trained(recipe, env, overrides, trust, command)
    session = reopen(run, trust)
    try:
        source = Source(session, run, wanted.episodes, wanted.seed)
        rows, policies = LEVELS[wanted.level](source, wanted)
        rows = grouped(rows)
        made = about(source, wanted, rows, policies)
        if len(policies) == 2 and policies[0].digest == policies[1].digest:
            say("The first policy that passes a third of the way is the best one: both halves are its own.")
        if made.references is None:
            say(made.description)
        return target.write(rows, made)
    finally:
        session.close()


def trained(
    recipe: str, env: str | None, overrides: Sequence[tuple[str, Any]], trust: Sequence[str], command: Sequence[str]
) -> RunDirectory:
    """A finished run that kept its policies."""
    settings = [*overrides, ("checkpoint.policies", True)]
    resolved = resolve(recipe, settings, env, trust)
    if not resolved.config.evaluation.every:
        every = max(1, resolved.config.steps // EVALUATIONS)
        resolved = resolve(recipe, [*settings, ("evaluation.every", every)], env, trust)
    session = Session(resolved)
    try:
        run = session.create(None, ["mbrl", *command])
        with session.loop(run) as loop:
            loop.run()
    finally:
        session.close()
    return run


def about(source: Source, wanted: Wanted, rows: Transitions, policies: Sequence[Policy]) -> About:
    """Everything that a later reader must know of how the rows came about.

    Raises:
        UserError: the run has learned nothing, and the level says that a policy is good.
    """
    references, why = source.references_or_why if wanted.level in UNJUDGED else (source.references, "")
    config, spec, run = source.session.config, source.session.pool.spec, source.run
    env = {key: value for key, value in dataclasses.asdict(config.env).items() if key in ENV_KEYS}
    ends = torch.from_numpy(run_ends(rows))
    cut = int((ends & ~(rows.terminated | rows.truncated)).sum())
    noise = "none: uniformly random actions" if wanted.level == "random" else "sampled from the policy, as in training"
    policy = {
        "name": f"{source.session.resolved.name} {wanted.level}",
        "level": wanted.level,
        "run": run.path.resolve().name,
        "agent": type(source.session.agent).__name__,
        "checkpoints": [dict(policy.clock) | {"name": policy.name, "hash": policy.digest} for policy in policies],
        "seed": wanted.seed,
        "run_seed": config.seed,
        "run_steps": config.steps,
        "action_noise": noise,
        "reference_episodes": source.episodes,
        "medium_episodes": min(TRIED_EPISODES, source.episodes),
        "last_row_is_end": bool(torch.any(rows.terminated[-1:] | rows.truncated[-1:])),
        "cut_episodes": cut,
    }
    packages = versions() | {"env": {"id": spec.id, "version": spec.version, "fingerprint": spec.fingerprint}}
    described = f"{len(rows):,} transitions of {spec.id}, {wanted.level}"
    described += "; expert is the best policy of a run." if references else f"; without references: {why}."
    told = {key: value for key, value in env.items() if value not in (None, {}, [])}
    return About(told, references, policy, packages, described)
