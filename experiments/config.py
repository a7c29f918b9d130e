"""What a run is: the schema of recipes, and how a recipe, an overlay and the command line become one configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.base import Agent
from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.registry import EnvMaker
from envs.spec import EnvSpec
from experiments.config_problems import first_problem, innermost, user_error_in
from experiments.given_data import env_of_data, locate
from experiments.names import check_names, expand_short_names
from experiments.run import RunDirectory
from experiments.task_runs import prefer_typed_steps, set_steps
from experiments.tree import merge, read_yaml, set_path

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

RECIPES = Path(__file__).parent / "recipes"
Unit = Literal["env_steps", "updates"]


@dataclass(frozen=True)
class EnvConfig:
    """The environment; see :func:`envs.registry.make_env`.

    Args:
        id: a Gymnasium id, ``module:Class``, or ``dmc:domain-task``.
        params: physics parameters by name.
        kwargs: constructor arguments.
        action_repeat: environment steps a decision.
        max_episode_steps: episode limit in environment steps; null keeps the task's own.
        learn: pieces of ``reward`` and ``termination`` that models learn although they are known.
        asynchronous: one worker process an environment; the data is the same.
    """

    id: str
    params: dict[str, float] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    action_repeat: int = 1
    max_episode_steps: int | None = None
    learn: list[str] = field(default_factory=list)
    asynchronous: bool = False


@dataclass(frozen=True)
class TasksConfig:
    """How a sequence of tasks (``env.id`` is ``tasks:NAME``) is gone through.

    Args:
        steps: env steps of each task; null divides ``steps`` evenly.
        order: places of the tasks in the sequence, in the order in which they are learned; null takes all as they are.
    """

    steps: int | None = None
    order: list[int] | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on environments of its own.

    Args:
        every: steps between evaluations; 0 evaluates at the end only.
        episodes: episodes each time.
        seed: episode ``i`` begins with reset seed ``seed + i``, whatever the run's seed is.
        num_envs: environments played side by side.
    """

    every: int = 0
    episodes: int = 20
    seed: int = 10_000
    num_envs: int = 20


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: steps between checkpoints; 0 keeps only the first and the last.
        keep: how many are kept.
        policies: keep the weights of every evaluation, for datasets of its policies (``mbrl dataset collect``).
    """

    every: int = 1000
    keep: int = 2
    policies: bool = False


@dataclass(frozen=True)
class WorkersConfig:
    """Ray workers of a run; without ``--ray`` nothing of this counts. The workers of a kind work while the others wait.

    Args:
        imagination: workers that imagine, each with a copy of model and policy; 0 for none. null is one a CPU of the
            cluster, as far as there is room beside the others; with ``num_gpus`` as many as the GPUs hold; none where
            the agent is on a GPU and workers have none.
        environments: workers that the ``num_envs`` environments are spread over; 0 plays in the run's own process. A
            round costs some 2 ms more with them, so they are for steps that take longer.
        fitting: workers that the members of an ensemble are fitted in; 0 fits in the run's own process.
        num_cpus: processors set aside for each worker; fractions are allowed.
        num_gpus: GPUs for each worker that imagines or fits; workers with a fraction share one.
        asynchronous: environments are played while the agent learns (``--async``). Two runs of one seed differ then.
        round_steps: with ``asynchronous``, env steps of each environment that a worker sends at once.
        max_staleness: with ``asynchronous``, rounds of learning that a policy may be old when it acts, at most.
    """

    imagination: int | None = None
    environments: int = 0
    fitting: int = 0
    num_cpus: float = 0.3
    num_gpus: float = 0.0
    asynchronous: bool = False
    round_steps: int = 25
    max_staleness: int = 2


@dataclass(frozen=True)
class RunConfig:
    """One run. The agent's part of the schema is the signatures of the classes it names.

    Args:
        agent: class_path and init_args of an agent.
        env: the environment.
        steps: env steps of training, of all tasks together; with 0 the agent is evaluated as it is. Of an agent that
            learns from data, gradient steps.
        seed: where every random number of the run comes from.
        num_envs: environments that data is collected in, side by side.
        evaluation: how often and on what the agent is evaluated.
        checkpoint: how often the run can be continued from.
        video: record an episode at the end.
        tasks: of a sequence of tasks, how it is gone through.
        threads: torch threads of this process; one gives the same numbers on every machine of a kind.
        data: dataset to learn from instead of the environment: a path, or the id of a Minari dataset.
        start_from: run that learned from data, and that this one continues in the environment.
        workers: what runs on a Ray cluster where the command line says ``--ray``; the data is the same.
    """

    agent: Callable[[EnvSpec], Agent]
    env: EnvConfig
    steps: int
    seed: int = 0
    num_envs: int = 1
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    video: bool = False
    tasks: TasksConfig = field(default_factory=TasksConfig)
    threads: int = 1
    data: str | None = None
    start_from: str | None = None
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    @property
    def unit(self) -> Unit:
        """What ``steps`` counts."""
        return "env_steps" if self.data is None else "updates"


PLACES = ("data", "start_from")
LEAST: Mapping[str, int] = {
    "steps": 0,
    "seed": 0,
    "num_envs": 1,
    "threads": 1,
    "env.action_repeat": 1,
    "evaluation.every": 0,
    "evaluation.episodes": 1,
    "evaluation.seed": 0,
    "evaluation.num_envs": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "workers.imagination": 0,
    "workers.environments": 0,
    "workers.fitting": 0,
    "workers.num_cpus": 0,
    "workers.num_gpus": 0,
    "workers.round_steps": 1,
    "workers.max_staleness": 0,
}
MOST: Mapping[str, int] = {"threads": 1024}
"""Others: what 64 bits hold."""
NOT_IN_KWARGS: Mapping[str, str] = {
    "id": "the environment's name is set as env.id (or --env)",
    "params": "physics parameters are set as env.params",
    "action_repeat": "set it as env.action_repeat",
    "max_episode_steps": "set it as env.max_episode_steps",
    "learn": "set it as env.learn",
    "render_mode": "the platform chooses it; for a video set video: true",
    "disable_env_checker": "leave it out; `mbrl check-env` checks environments",
}


@dataclass(frozen=True)
class Resolved:
    """A configuration with everything filled in.

    ``text`` is its YAML, which :func:`resolve` reads back to the same; ``sources`` are the files it came from.
    """

    config: RunConfig
    text: str
    name: str
    sources: tuple[Path, ...]


def resolve(
    recipe: str,
    overrides: Sequence[tuple[str, Any]] = (),
    env: str | None = None,
    trust: Sequence[str] = (),
) -> Resolved:
    """The configuration of ``recipe`` (a name or a path) for environment ``env``, with dotted ``overrides``.

    ``trust`` names modules that the user typed; modules that only a file names are never imported.

    Raises:
        UserError: a bad key, value, name, or a name that is not trusted.
    """
    path = find_recipe(recipe)
    tree = read_yaml(path)
    sources = [path]
    _set_places(tree, overrides)
    env = _id_in(overrides) or (env if env is not None else _env_id(tree))
    if env is None and (told := _told_env(tree)):
        tree["env"] = merge(told, tree.get("env") or {})
        env = _env_id(tree)
    if env is not None:
        set_path(tree, "env.id", env)
        overlay = overlay_of(path, env)
        if _is_file(overlay):
            tree = merge(tree, read_yaml(overlay))
            sources.append(overlay)
    for key, value in overrides:
        if key not in PLACES:
            set_path(tree, key, value)
    prefer_typed_steps(tree, {key for key, _ in overrides})
    return _resolve_tree(tree, path.stem if path.stem != "config" else path.parent.name, tuple(sources), trust)


def _resolve_tree(tree: dict[str, Any], name: str, sources: tuple[Path, ...], trust: Sequence[str]) -> Resolved:
    if _env_id(tree) is None:
        raise UserError(
            "env.id",
            "missing",
            "say where to act: --env ID or --env module:Class (a dataset given by --data may say it)",
        )
    _check_env_kwargs(tree["env"])
    tree = expand_short_names(tree)
    check_names(tree, trust)
    set_steps(tree)
    parser = make_parser()
    parsed = _parse(parser, tree)
    _check_ranges(tree | _plain(parsed))
    text = parser.dump(parsed, skip_unset=False)
    try:
        values = parser.instantiate(parsed)
    except Exception as error:  # constructors of parts may raise anything on a value they do not like
        said = user_error_in(error)
        if said is not None:
            raise said from error.__cause__
        raise UserError(str(sources[-1]), f"{type(error).__name__}: {error}", "a part refuses its arguments") from error
    return Resolved(RunConfig(**vars(values)), text, name, sources)


def _parse(parser: ArgumentParser, tree: dict[str, Any]) -> Any:
    problem = first_problem("", RunConfig, {"init_args": tree}, "the configuration")
    if problem is not None:
        raise problem
    try:
        return parser.parse_object(tree)
    except Exception as error:  # argparse and jsonargparse raise several kinds
        field_name, message = innermost(error)
        raise UserError(
            field_name or "configuration", message, "see `mbrl list` and the classes' documentation"
        ) from error


def make_parser() -> ArgumentParser:
    """The parser whose schema is :class:`RunConfig`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, logger=logging.getLogger("jsonargparse.quiet"))
    parser.add_class_arguments(RunConfig)
    return parser


def find_recipe(recipe: str) -> Path:
    """A recipe's file: a path that exists, or a name in ``experiments/recipes``."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        if _is_file(path):
            return path
        raise UserError("RECIPE", recipe, "there is no such file", _yaml_files(path.parent))
    named = RECIPES / f"{recipe}.yaml"
    if _is_file(named):
        return named
    raise UserError("RECIPE", recipe, "no recipe has this name; see `mbrl list recipes`", list_recipes())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a directory that may not be read
        return False


def list_recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _yaml_files(directory: Path) -> list[str]:
    return [str(path) for path in directory.glob("*.y*ml")] if directory.is_dir() else []


def overlay_of(recipe: Path, env: str) -> Path:
    """Where settings of a recipe for one environment lie (they need not exist)."""
    return recipe.with_suffix("") / f"{env.replace('/', '-').replace(':', '-')}.yaml"


def make_one_env(env: EnvConfig, render_mode: str | None = None) -> Callable[[], BoundaryEnv]:
    """A picklable maker of the configured environment."""
    return EnvMaker({"render_mode": render_mode, **env_arguments(env)})


def env_arguments(env: EnvConfig) -> dict[str, Any]:
    """The configured environment as arguments of :func:`envs.registry.make_env`."""
    return {
        "id": env.id,
        "params": env.params or None,
        "action_repeat": env.action_repeat,
        "max_episode_steps": env.max_episode_steps,
        "learn": env.learn,
        **env.kwargs,
    }


def _env_id(tree: Mapping[str, Any]) -> str | None:
    env = tree.get("env")
    if isinstance(env, str):
        raise UserError("env", env, f"write it as a mapping: env: {{id: {env}}}")
    value = env.get("id") if isinstance(env, Mapping) else None
    if value is not None and not isinstance(value, str):
        raise UserError("env.id", value, "give the environment's name as text")
    return value


def _set_places(tree: dict[str, Any], overrides: Sequence[tuple[str, Any]]) -> None:
    """Where data and an earlier run lie; from there the environment may come, so it is settled before all else."""
    tree |= {key: value for key, value in overrides if key in PLACES}
    tree |= {key: locate(tree[key]) for key in PLACES if isinstance(tree.get(key), str)}
    if all(tree.get(key) is not None for key in PLACES):
        raise UserError("--from", tree["start_from"], "that run's dataset comes with it: leave --data out")


def _told_env(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``env`` that the dataset names, or that the earlier run is in."""
    if isinstance(data := tree.get("data"), str):
        return env_of_data(data)
    if isinstance(run := tree.get("start_from"), str):
        found = read_yaml(RunDirectory.open(Path(run)).config).get("env")
        return dict(found) if isinstance(found, Mapping) else None
    return None


def _plain(parsed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = parsed.as_dict()
    return plain


def _id_in(overrides: Sequence[tuple[str, Any]]) -> str | None:
    """The environment that ``--env.id`` names."""
    named = [value for key, value in overrides if key == "env.id" and isinstance(value, str)]
    return named[-1] if named else None


def _check_env_kwargs(env: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that the platform gives itself; text is the only name an argument can have."""
    kwargs = env.get("kwargs")
    for name in kwargs if isinstance(kwargs, Mapping) else ():
        if name in NOT_IN_KWARGS:
            raise UserError(f"env.kwargs.{name}", kwargs[name], NOT_IN_KWARGS[name])  # type: ignore[index]
        if not isinstance(name, str):
            raise UserError("env.kwargs", name, "names of arguments are text")


def _check_ranges(values: Mapping[str, Any]) -> None:
    for key, least in LEAST.items():
        value: Any = values
        for part in key.split("."):
            value = value[part]
        if value is None:  # to be chosen
            continue
        if value < least:
            raise UserError(key, value, f"give a whole number of at least {least}")
        if value > MOST.get(key, 2**63 - 1):
            raise UserError(key, value, f"give a whole number of at most {MOST.get(key, 2**63 - 1)}")
