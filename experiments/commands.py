"""What each subcommand does. Every function takes the parsed options, the rest, and the command as typed."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.errors import UserError


def train(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Resolve, build, make the run directory, train."""
    from experiments.config import resolve
    from experiments.session import Session
    from experiments.workers import workers_of

    overrides = [*flags(options), *dotted(rest)]
    need_trust({"env": {"id": options.env or ""}}, typed_modules(options, overrides), command)
    resolved = resolve(options.recipe, overrides, options.env, trust=typed_modules(options, overrides))
    for source in resolved.sources[1:]:
        print(f"settings for this environment: {source}", file=sys.stderr)
    with workers_of(resolved.config, options.ray) as workers, contextlib.closing(Session(resolved, workers)) as session:
        run = session.create(options.out, ["mbrl", *command])
        for note in session.notes:
            print(note, file=sys.stderr)
        print(f"run directory: {run.path}", file=sys.stderr)
        finish(session, run, options.quiet)


def finish(session: Any, run: Any, quiet: bool) -> None:
    """Run the loop to its end and say how it went."""
    from experiments.board import in_words
    from experiments.names import outside_modules
    from experiments.tree import read_yaml

    with session.loop(run, quiet) as loop:
        if loop.finished:
            print(f"{run.path} is complete: {loop.steps:,} {in_words(session.config.unit)}", file=sys.stderr)
            return
        result = loop.run()
        if session.config.video:
            record_video(session, run, loop.steps)
    print(summary(result))
    trust = [word for name in outside_modules(read_yaml(run.config)) for word in ("--trust", name)]
    print(f"next: {shlex.join(['mbrl', 'evaluate', str(run.path), '--video', *trust])}", file=sys.stderr)


def summary(result: dict[str, Any]) -> str:
    """An evaluation in one line."""
    mean, std, count = result["return_mean"], result["return_std"], len(result["returns"])
    over = "tasks" if "tasks" in result else "episodes"
    score = f" (score {result['score']:.1f})" if "score" in result else ""
    return f"return {mean:.2f} ± {std:.2f}{score} over {count} {over}, {result['act_ms']:.2f} ms a decision"


def flags(options: argparse.Namespace) -> list[tuple[str, Any]]:
    """The short flags as dotted overrides."""
    from experiments.tree import parse_value

    given = {"seed": options.seed, "steps": options.steps, "num_envs": options.num_envs}
    numbers = [(key, parse_value(f"--{key}", text)) for key, text in given.items() if text is not None]
    numbers += [("workers.asynchronous", True)] if options.asynchronous else []
    places = {"data": options.data, "start_from": options.start_from}
    return [*numbers, *((key, unquoted(text)) for key, text in places.items() if text is not None)]


def unquoted(text: str) -> str:
    """A path as it was typed; `mbrl compare` writes it in quotes, as YAML has it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def dotted(rest: Sequence[str]) -> list[tuple[str, Any]]:
    """``--a.b=value`` or ``--a.b value`` pairs, values read as YAML."""
    from experiments.tree import parse_value

    pairs, words = [], [*rest]
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UserError("command line", word, "overrides are written --agent.init_args.x=VALUE")
        if not equals:
            if not words:
                raise UserError(f"--{key}", "missing", "give a value: --" + key + "=VALUE")
            text = words.pop(0)
        pairs.append((key, parse_value(f"--{key}", text)))
    return pairs


def typed_modules(options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]) -> list[str]:
    """Modules that the user named on this command line, which may therefore be imported."""
    from experiments.names import module_of, typed_in

    env = module_of(options.env) if getattr(options, "env", None) else None
    return [*options.trust, *([env] if env else []), *typed_in(overrides)]


def resume(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Continue a run from its newest checkpoint, perhaps with other workers."""
    from experiments.session import Session, saved
    from experiments.workers import RESUMABLE, workers_of

    overrides = dotted(rest)
    for key, value in overrides:
        if key not in RESUMABLE:
            fix = "a run goes on as it was configured; of workers, other numbers can be given"
            raise UserError(f"--{key}", value, fix, RESUMABLE)
    run = trusted_run(options, command)
    resolved = saved(run, options.trust, overrides)
    with workers_of(resolved.config, options.ray) as workers, contextlib.closing(Session(resolved, workers)) as session:
        finish(session, run, options.quiet)


def open_run(
    options: argparse.Namespace, command: Sequence[str], overrides: Sequence[tuple[str, Any]] = ()
) -> tuple[Any, Any]:
    """The run's parts, once every module that its configuration names is trusted."""
    from experiments.session import reopen

    run = trusted_run(options, command)
    return reopen(run, options.trust, overrides), run


def trusted_run(options: argparse.Namespace, command: Sequence[str]) -> Any:
    """The run directory, once every module that its configuration names is trusted."""
    from experiments.run import RunDirectory
    from experiments.tree import read_yaml

    run = RunDirectory.open(Path(options.run))
    need_trust(read_yaml(run.config), options.trust, command)
    return run


def need_trust(tree: dict[str, Any], trust: Sequence[str], command: Sequence[str]) -> None:
    """Refuse a configuration that names code outside the project which is not trusted, with the command that trusts."""
    from experiments.names import outside_modules

    known = {name.split(".")[0] for name in trust}
    missing = [name for name in outside_modules(tree) if name not in known]
    if missing:
        full = shlex.join(["mbrl", *command, *(word for name in missing for word in ("--trust", name))])
        raise UserError("--trust", missing, f"this run uses code outside the project; if you trust it: {full}")


def evaluate(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Evaluate the newest (or best) weights; nothing in the run changes, except for a video."""
    from experiments.board import in_words
    from experiments.session import evaluate_run
    from experiments.tree import parse_value

    episodes = options.episodes
    overrides = [("evaluation.episodes", parse_value("--episodes", episodes))] if episodes is not None else []
    session, run = open_run(options, command, overrides)
    try:
        steps, result = evaluate_run(session, run, best=options.best)
        print(f"{steps:,} {in_words(session.config.unit)}: {summary(result)}")
        for name, mean in zip(result.get("names", ()), result["returns"], strict=False):
            print(f"  {name}: return {mean:.2f}")
        if options.video:
            record_video(session, run, steps)
    finally:
        session.close()


def record_video(session: Any, run: Any, steps: int) -> None:
    """Record an episode, or say in one line why there is none."""
    from experiments.video import record

    with session.showing() as config:
        path, problem = record(session.agent, config, run.videos / f"step-{steps:012d}.mp4")
    of = f" ({session.shown.name})" if session.in_turn else ""
    print(f"video: {path}{of}" if path else f"no video: {problem}", file=sys.stderr)


def record(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> int:
    """Film a run's agent; 1 when this machine cannot draw it."""
    from experiments.tree import parse_value
    from experiments.video import run_record

    episodes = parse_value("--episodes", options.episodes)
    seed = None if options.seed is None else parse_value("--seed", options.seed)
    session, run = open_run(options, command)
    try:
        out = None if options.out is None else Path(options.out)
        wanted = {"best": options.best, "episodes": episodes, "format": options.format, "out": out, "seed": seed}
        path, problem = run_record(session, run, **wanted, overlay=options.overlay)
    finally:
        session.close()
    print(path if path else f"no film: {problem}", file=sys.stdout if path else sys.stderr)
    return 0 if path else 1


def compare(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> int:
    """Run what is missing of a suite, then make its page; 1 when a run failed."""
    from experiments.compare.command import run_comparison

    root, failed = run_comparison(options, dotted(rest), command)
    for problem in failed:
        print(f"failed: {problem}", file=sys.stderr)
    if options.no_report:
        print(root)
    else:
        from experiments.report.build import build_report

        print(build_report(root))
    return 1 if failed else 0


def sweep(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> int:
    """Search settings of a recipe; 1 when a trial failed."""
    from experiments.sweep.command import run_sweep

    return run_sweep(options, dotted(rest))


def report(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Make the page of a folder of runs."""
    from experiments.report.build import build_report

    print(build_report(Path(options.folder), None if options.out is None else Path(options.out)))


def fit(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Fit a model alone."""
    from experiments.diagnosis.fit import run_fit
    from experiments.tree import parse_value

    seed, heldout = parse_value("--seed", options.seed), parse_value("--heldout", options.heldout)
    overrides = [*([] if options.env is None else [("env.id", options.env)]), *dotted(rest)]
    trust = [*options.trust, *typed_modules(options, overrides)]
    folder = run_fit(options.recipe, Path(options.data), options.out, overrides, trust, seed, heldout)
    print((folder / "summary.txt").read_text(encoding="utf-8"), end="")


def diagnose(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Judge a model and make a page of it; or say whether the model or the edge of its rollouts hurts an agent."""
    out = None if options.out is None else Path(options.out)
    if options.oracle:
        page = oracle(options, out, command)
    else:
        from experiments.diagnosis.diagnose import run_diagnosis

        for name, value in {"--oracle-updates": options.oracle_updates, "--oracle-out": options.oracle_out}.items():
            if value is not None:
                raise UserError(name, value, "it belongs to --oracle: add that, or leave this out")
        data = None if options.data is None else Path(options.data)
        page = run_diagnosis(Path(options.source), data, out, options.trust)
    print((page.parent / "summary.txt").read_text(encoding="utf-8"), end="")
    print(page)


def oracle(options: argparse.Namespace, out: Path | None, command: Sequence[str]) -> Path:
    """The page of ``mbrl diagnose RUN --oracle``."""
    from experiments.diagnosis.oracle.run import run_oracle
    from experiments.tree import parse_value

    if options.data is not None:
        fix = "with --oracle a run is judged on the states that its own rollouts start from: leave it out"
        raise UserError("--data", options.data, fix)
    updates = None if options.oracle_updates is None else parse_value("--oracle-updates", options.oracle_updates)
    twin = None if options.oracle_out is None else Path(options.oracle_out)
    say = functools.partial(print, file=sys.stderr)
    return run_oracle(Path(options.source), out, twin, updates, options.trust, ["mbrl", *command], say)


def dataset(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Make, describe or list datasets."""
    {"collect": collect, "describe": describe, "list": list_datasets}[options.action](options, rest, command)


def collect(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Make a dataset, from a run or from a recipe that is trained first."""
    from experiments.dataset.collect import Target, Wanted, run_collect
    from experiments.tree import parse_value, read_yaml

    rows = None if options.rows is None else parse_value("--rows", options.rows)
    seed, episodes = (
        parse_value("--seed", options.seed),
        parse_value("--reference-episodes", options.reference_episodes),
    )
    wanted = Wanted(options.level, rows, seed, episodes)
    target, overrides = Target(options.out, options.format), dotted(rest)
    trust = typed_modules(options, overrides)
    config = Path(options.recipe) / "config.yaml"
    need_trust(read_yaml(config) if config.is_file() else {"env": {"id": options.env or ""}}, trust, command)
    say = functools.partial(print, file=sys.stderr)
    print(run_collect(options.recipe, wanted, target, options.env, overrides, trust, command, say))


def describe(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Make a page of what is in a dataset, and print its summary."""
    from experiments.dataset.describe import run_describe
    from experiments.names import check_env_id, module_of

    if options.env is not None:
        module = module_of(options.env)
        check_env_id(options.env, [*options.trust, *([module] if module else [])])
    page = run_describe(options.data, None if options.out is None else Path(options.out), options.env)
    print((page.parent / "summary.txt").read_text(encoding="utf-8"), end="")
    print(page)


def list_datasets(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """The Minari datasets on this machine, one a line."""
    from experiments.dataset.local import lines

    for line in lines():
        print(line)


def list_kind(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Names, one a line."""
    from experiments.listing import lines

    for line in lines(options.kind):
        print(line)


def check_env(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> int:
    """Run every check and print what to change; 1 when a check fails."""
    from envs.check import check_env as check
    from envs.registry import env_spec
    from experiments.names import check_env_id, module_of

    module = module_of(options.env)
    need_trust({"env": {"id": options.env}}, [*options.trust, *([module] if module else [])], command)
    check_env_id(options.env, [*options.trust, *([module] if module else [])])
    env_spec(options.env)  # what cannot even be built is bad input, not a finding
    report = check(options.env)
    for line in report.lines():
        print(line)
    return 0 if report.ok else 1


def bench(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> int:
    """Run benchmarks; what follows the names goes to each of them. 1 when a run of one of them failed."""
    from experiments import benchmarks

    files = (m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))
    known = sorted(name.replace("_", "-") for name in files)
    for name in options.names:
        if name not in known:
            raise UserError("bench", name, f"there is no such benchmark; there are: {', '.join(known)}", known)
    modules = [importlib.import_module(f"experiments.benchmarks.{name.replace('-', '_')}") for name in options.names]
    return max(int(module.main([*rest]) or 0) for module in modules)


def demo(options: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """PETS on Pendulum-v1, live, then its learning curve."""
    from experiments.demo import run_demo

    run_demo(options.out)


COMMANDS = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "record": record,
    "compare": compare,
    "sweep": sweep,
    "report": report,
    "fit": fit,
    "diagnose": diagnose,
    "dataset": dataset,
    "list": list_kind,
    "check-env": check_env,
    "bench": bench,
    "demo": demo,
}
