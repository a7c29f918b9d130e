"""The command line: ``mbrl train | resume | evaluate | record | compare | sweep | report | fit | diagnose | ...``.

Nothing heavy is imported before it is known what to do: ``mbrl --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay")
KINDS = ("recipes", "suites", "envs", "tasks", "models", "planners", "agents")
OPEN_ENDED = ("train", "resume", "bench", "compare", "sweep", "fit", "dataset collect")
"""Commands that take dotted overrides, or arguments of their own"""
ROOT = Path(__file__).resolve().parent.parent


class Usage(Exception):
    """The command line itself is wrong; the text says how."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and lets :func:`main` leave."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{self.prog}: {message}")


class Once(argparse.Action):
    """An option of which a second one would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, space: argparse.Namespace, value: Any, text: Any = None
    ) -> None:
        if getattr(space, self.dest) is not None:
            parser.error(f"{text} is given twice, and one dataset is learned from: join their rows in one, or drop one")
        setattr(space, self.dest, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 for bad input (one message on stderr, no traceback)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        _use_working_directory()
        return _dispatch([a for a in arguments if a != "--debug"])
    except Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = (
            "the same command goes on"
            if {*arguments[:1]} & {"compare", "sweep", "diagnose"}
            else "`mbrl resume` goes on"
        )
        print(f"interrupted; {again} from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_user_error(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_user_error(error: Exception) -> bool:
    errors = sys.modules.get("envs.errors")
    return errors is not None and isinstance(error, errors.UserError)


def _use_working_directory() -> None:
    """Modules in the working directory can be named, but never stand before ours: it is last on the path."""
    here = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here) or Path(entry or here).resolve() == ROOT]
    for name in ("envs", "mbrl", "agents", "experiments"):
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        if not places or Path(str(places[0])).resolve() != ROOT / name:
            seen = places[0] if places else "nothing"
            raise Usage(f"the package {name!r} is found at {seen}, which is not ours ({ROOT / name}); remove it")
    if here not in sys.path:
        sys.path.append(here)


def _dispatch(arguments: list[str]) -> int:
    options, rest = make_parser().parse_known_args(arguments)
    name = " ".join([options.command, *([options.action] if options.command == "dataset" else [])])
    if rest and name not in OPEN_ENDED:
        raise Usage(f"mbrl {name}: unknown argument {rest[0]!r}; see `mbrl {name} --help`")
    if options.command == "train":
        _check_recipe_is_first(options.recipe, rest, arguments)
    commands = importlib.import_module("experiments.commands")
    return int(commands.COMMANDS[options.command](options, rest, arguments) or 0)


def _check_recipe_is_first(recipe: str, rest: list[str], arguments: list[str]) -> None:
    """``--key value RECIPE`` cannot be told apart: an option that is not declared leaves its value as the recipe."""
    place = arguments.index(recipe)
    before = arguments[place - 1]
    if before in rest and before.startswith("--") and "=" not in before:
        raise Usage(f"mbrl train: the recipe comes first: mbrl train RECIPE {before} {recipe}")


def make_parser() -> Parser:
    """Every subcommand and its options."""
    parser = Parser(prog="mbrl", description="Model-based reinforcement learning: train, resume, evaluate.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_train(commands)
    _add_resume_and_evaluate(commands)
    _add_compare_and_report(commands)
    _add_sweep(commands)
    _add_fit_and_diagnose(commands)
    _add_dataset(commands)
    _add_others(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    about = (
        "train a recipe (a name, see `mbrl list recipes`, or a YAML file); any key can be set: --agent.init_args.x=1"
    )
    train = commands.add_parser("train", help="train a recipe", description=about, allow_abbrev=False)
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("--env", metavar="ID", help="a Gymnasium id, module:Class, dmc:domain-task, or model:RUN_DIR")
    train.add_argument("--seed", help="seed of the run")
    train.add_argument("--steps", help="env steps; of an agent that learns from data, updates")
    train.add_argument("--num-envs", help="environments side by side")
    train.add_argument(
        "--data", metavar="PATH|ID", action=Once, help="learn from a dataset: a file, folder, run, or Minari id"
    )
    train.add_argument("--from", dest="start_from", metavar="RUN", help="continue a run that learned from data")
    train.add_argument("--out", metavar="DIR", help="run directory (default: runs/RECIPE-ENV-sSEED-n)")
    _add_trust(train)
    _add_ray(train)
    about = "with --ray: play while the agent learns; faster where steps are slow, and no longer the same for one seed"
    train.add_argument("--async", dest="asynchronous", action="store_true", help=about)
    train.add_argument("--quiet", action="store_true", help="no progress on the terminal")


def _add_resume_and_evaluate(commands: argparse._SubParsersAction[Parser]) -> None:
    resume = commands.add_parser("resume", help="continue a run exactly where it was", allow_abbrev=False)
    evaluate = commands.add_parser("evaluate", help="evaluate the agent of a run", allow_abbrev=False)
    record = commands.add_parser("record", help="film the agent of a run", allow_abbrev=False)
    for command in (resume, evaluate, record):
        command.add_argument("run", metavar="RUN", help="run directory")
        _add_trust(command)
    _add_ray(resume)
    resume.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    evaluate.add_argument("--episodes", metavar="N", help="episodes (default: as configured)")
    evaluate.add_argument("--video", action="store_true", help="record an episode")
    for command in (evaluate, record):
        command.add_argument("--best", action="store_true", help="the best weights instead of the last")
    record.add_argument("--episodes", metavar="N", default="1", help="episodes, one after the other (default: 1)")
    record.add_argument("--seed", metavar="N", help="reset seed of the first episode (default: the first evaluation's)")
    record.add_argument("--overlay", action="store_true", help="write step and return into the picture")
    record.add_argument("--format", choices=("mp4", "gif"), help="default: as --out ends, else mp4")
    record.add_argument("--out", metavar="FILE", help="default: RUN/videos/step-ENV_STEPS.FORMAT")


def _add_compare_and_report(commands: argparse._SubParsersAction[Parser]) -> None:
    about = (
        "run agents x environments x seeds and report on them; called again, it goes on where it was."
        " Give a suite (see `mbrl list suites`), a suite file or a comparison's folder, or --agents and --envs."
        " Any key can be set for all runs: --evaluation.every=500"
    )
    compare = commands.add_parser("compare", help="run many and compare them", description=about, allow_abbrev=False)
    compare.add_argument("suite", metavar="SUITE", nargs="?")
    compare.add_argument("--agents", nargs="+", metavar="[LABEL=]RECIPE", help="recipes, or recipe files with a label")
    compare.add_argument("--envs", nargs="+", metavar="ID", help="environments")
    compare.add_argument("--seeds", nargs="+", metavar="N", help="how many, or which: 3 4 5 (default: 5)")
    compare.add_argument("--steps", metavar="N", help="env steps of every run (default: as the recipes say)")
    data = "datasets to learn from; without a label, of every agent that learns from one"
    compare.add_argument("--data", nargs="+", metavar="[LABEL=]PATH|ID", help=data)
    earlier = "agents that go on from another one's run of the same environment and seed, or from a run"
    compare.add_argument("--from", dest="earlier", nargs="+", metavar="LABEL=LABEL|RUN", help=earlier)
    compare.add_argument("--out", metavar="DIR", help="the comparison's folder (default: comparisons/NAME)")
    compare.add_argument("--processes", metavar="N", help="runs at once, a thread each (default: one a core)")
    compare.add_argument(
        "--ray", metavar="ADDRESS", nargs="?", const="local", help="run them on Ray: local, auto, HOST"
    )
    compare.add_argument("--no-report", action="store_true", help="run only; `mbrl report DIR` makes the page")
    _add_trust(compare)
    report = commands.add_parser("report", help="make a page of a folder of runs", allow_abbrev=False)
    report.add_argument("folder", metavar="DIR", help="a comparison's folder, or any folder with runs below it")
    report.add_argument("--out", metavar="DIR", help="where the page goes (default: DIR/report)")


def _add_sweep(commands: argparse._SubParsersAction[Parser]) -> None:
    about = (
        "search settings of a recipe: runs with other values each, the worse ones stopped early. Called again, or as"
        " `mbrl sweep DIR`, it goes on where it was. Any other key can be set for all runs: --agent.model.hidden=64"
    )
    sweep = commands.add_parser("sweep", help="search settings of a recipe", description=about, allow_abbrev=False)
    sweep.add_argument("recipe", metavar="RECIPE|DIR", help="a recipe, or the folder of a sweep that goes on")
    sweep.add_argument("--env", metavar="ID", help="as of `mbrl train`")
    spaces = "[A, B, ...], uniform(A, B), log(A, B), int(A, B), logint(A, B); repeatable"
    sweep.add_argument("--param", metavar="KEY=SPACE", nargs="+", action="extend", help=f"what is searched: {spaces}")
    sweep.add_argument("--trials", metavar="N", help="runs (default: 16)")
    sweep.add_argument("--seed", metavar="N", help="seed of the suggestions and of every run (default: 0)")
    sweep.add_argument("--steps", metavar="N", help="env steps or updates of a whole run (default: as the recipe says)")
    sweep.add_argument("--num-envs", metavar="N", help="environments side by side in a run")
    sweep.add_argument("--data", metavar="PATH|ID", action=Once, help="learn from a dataset")
    sweep.add_argument("--from", dest="start_from", metavar="RUN", help="continue a run that learned from data")
    sweep.add_argument("--metric", metavar="NAME", help="field of evaluations (default: return_mean)")
    sweep.add_argument("--mode", metavar="max|min", help="which of it is best (default: max)")
    grace = "steps before which no run is stopped, and between evaluations (default: a tenth); as many as --steps: none"
    sweep.add_argument("--grace", metavar="STEPS", help=grace)
    sweep.add_argument("--reduction", metavar="N", help="one in so many goes on at each rung (default: 3)")
    sweep.add_argument("--processes", metavar="N", help="runs at once, a thread each (default: one a CPU)")
    sweep.add_argument("--gpus", metavar="SHARE", help="of a GPU, for each run (default: 0)")
    ray = "where: local (default), auto, HOST:PORT"
    sweep.add_argument("--ray", metavar="ADDRESS", nargs="?", const="local", default="local", help=ray)
    sweep.add_argument("--out", metavar="DIR", help="the sweep's folder (default: sweeps/RECIPE-ENV)")
    _add_trust(sweep)


def _add_fit_and_diagnose(commands: argparse._SubParsersAction[Parser]) -> None:
    about = (
        "fit the model of a recipe, by its fitter, on the transitions of a run; some episodes are held out."
        " Any key can be set: --agent.model.hidden=64"
    )
    fit = commands.add_parser("fit", help="fit a model alone", description=about, allow_abbrev=False)
    fit.add_argument("recipe", metavar="RECIPE")
    fit.add_argument("--data", metavar="RUN|FILE", required=True, help="a run's transitions, or a saved replay buffer")
    fit.add_argument("--env", metavar="ID", help="where the data does not say it, or it is another")
    fit.add_argument("--out", metavar="DIR", help="default: fits/RECIPE-ENV-n")
    fit.add_argument("--seed", metavar="N", default="0", help="seed of the split and of the networks (default: 0)")
    fit.add_argument("--heldout", metavar="SHARE", default="0.2", help="share of episodes held out (default: 0.2)")
    about = (
        "say how far a model can be trusted; with --oracle, of a run that learns offline from rollouts in a model,"
        " whether the model's error or the edge of what the rollouts reach hurts it. --oracle trains the same recipe"
        " under the true dynamics beside; killed, the same command goes on"
    )
    diagnose = commands.add_parser(
        "diagnose", help="say how far a model can be trusted", description=about, allow_abbrev=False
    )
    diagnose.add_argument("source", metavar="RUN|FIT", help="a run, or a folder that `mbrl fit` made")
    diagnose.add_argument("--data", metavar="RUN|FILE", help="judge on these transitions instead of its own")
    diagnose.add_argument("--out", metavar="DIR", help="where the page goes (default: SOURCE/diagnosis, or /oracle)")
    diagnose.add_argument("--oracle", action="store_true", help="compare an offline Dyna run with the true dynamics")
    diagnose.add_argument(
        "--oracle-updates",
        metavar="N",
        help="updates of its twin under the true dynamics (default: the run's; 0: no twin)",
    )
    diagnose.add_argument("--oracle-out", metavar="DIR", help="where the twin goes (default: RUN/oracle/twin)")
    for command in (fit, diagnose):
        _add_trust(command)


def _add_dataset(commands: argparse._SubParsersAction[Parser]) -> None:
    dataset = commands.add_parser("dataset", help="make and look at datasets", allow_abbrev=False)
    actions = dataset.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = (
        "make a dataset from a run that kept its policies (--checkpoint.policies=true), or from a recipe, which is"
        " trained first; then any of its keys can be set: --steps=100000"
    )
    collect = actions.add_parser("collect", help="make one from a run", description=about, allow_abbrev=False)
    collect.add_argument("--recipe", metavar="RECIPE|RUN", required=True, help="a run directory, or what to train")
    collect.add_argument("--env", metavar="ID", help="of a recipe, the environment")
    collect.add_argument("--level", required=True, metavar="LEVEL", help=", ".join(LEVELS))
    collect.add_argument("--rows", metavar="N", help="transitions (of a replay buffer default: all)")
    collect.add_argument(
        "--out", metavar="ID|PATH", required=True, help="Minari id, or a path; /... or ./... is a path"
    )
    collect.add_argument("--format", default="minari", metavar="FORMAT", help="minari (default), d4rl, folder")
    collect.add_argument("--seed", metavar="N", default="0", help="seed of the collecting (default: 0)")
    collect.add_argument("--reference-episodes", metavar="N", default="100", help="of random and expert (default: 100)")
    describe = actions.add_parser("describe", help="say what is in one", allow_abbrev=False)
    describe.add_argument("data", metavar="PATH|ID")
    describe.add_argument("--env", metavar="ID", help="where the dataset does not say it, or it is another")
    describe.add_argument("--out", metavar="DIR", help="where the page goes (default: dataset-pages/NAME)")
    actions.add_parser("list", help="the Minari datasets on this machine", allow_abbrev=False)
    for command in (collect, describe):
        _add_trust(command)


def _add_others(commands: argparse._SubParsersAction[Parser]) -> None:
    listing = commands.add_parser("list", help="what there is", allow_abbrev=False)
    listing.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    check = commands.add_parser("check-env", help="check an environment and say what to change", allow_abbrev=False)
    check.add_argument("env", metavar="ID|module:Class|model:RUN")
    _add_trust(check)
    bench = commands.add_parser("bench", help="measure speed against plain references", allow_abbrev=False)
    bench.add_argument("names", nargs="+", metavar="NAME")
    demo = commands.add_parser("demo", help="learn Pendulum-v1 in a minute or two", allow_abbrev=False)
    demo.add_argument("--out", metavar="DIR", help="run directory")


def _add_ray(command: Parser) -> None:
    about = (
        "workers of a Ray cluster imagine and play: local (default), auto, HOST:PORT; how many: --workers.imagination"
    )
    command.add_argument("--ray", metavar="ADDRESS", nargs="?", const="local", help=about)


def _add_trust(command: Parser) -> None:
    fix = "a package outside this project that the run may import; repeatable"
    command.add_argument("--trust", metavar="PKG", action="append", default=[], help=fix)


if __name__ == "__main__":
    sys.exit(main())
