"""``mbrl bench datasets``: data of five tasks at every level, made by one run each, with a digest of its rows.

A soft actor-critic is trained on every task for a stated number of env steps; "expert" is the best policy of that run,
not a converged one. Sets that are there already are not made again. ``--verify`` reads them all and compares their
rows with the digests that are kept: on the same kind of processor the same rows come out, on another one rounding may
differ.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError
from experiments.benchmarks._runs import add_options, finish, make_job, row, run_all
from experiments.compare.fleet import Job
from experiments.dataset.collect import LEVELS, Target, Wanted, about
from experiments.dataset.source import TRIED_EPISODES, Source
from experiments.given_data import digest, open_data, rows_of
from experiments.run import RunDirectory
from experiments.session import Session, reopen
from mbrl import seeding
from mbrl.data.labels import episode_returns
from mbrl.data.offline import About
from mbrl.data.order import grouped
from mbrl.data.transitions import Transitions
from mbrl.models.simulator import Simulator

DATA, RECORD = "data", "datasets.json"
RECOMPUTED = 1000
"""Rows of a set whose successor is computed anew from the physics"""
CLIPPED = 9.999
"""Hopper and Walker2d show velocities up to 10 only: beyond, an observation does not tell the state"""
SAC = (
    "--agent.updates_per_step=1",
    "--agent.batch_size=256",
    "--agent.learner.gamma=0.99",
    "--agent.warmup_steps=5000",
    "--evaluation.every=10000",
    "--evaluation.episodes=10",
    "--evaluation.num_envs=10",
    "--checkpoint.every=50000",
)
"""What differs from ``sac-fast`` on the larger tasks: an update for each env step, as published"""
SMALL = (
    "--agent.updates_per_step=1",
    "--evaluation.every=500",
    "--evaluation.episodes=10",
    "--evaluation.num_envs=10",
    "--checkpoint.every=5000",
)
"""The same of the small ones, where ten updates a step would leave nothing between random and expert"""


@dataclass(frozen=True)
class Teacher:
    """How the policies of a task are trained, and how large its sets are."""

    steps: int
    rows: int
    settings: tuple[str, ...]


TASKS: Mapping[str, Teacher] = {
    "Pendulum-v1": Teacher(20_000, 20_000, SMALL),
    "InvertedPendulum-v5": Teacher(20_000, 20_000, SMALL),
    "Hopper-v5": Teacher(300_000, 100_000, (*SAC, "--agent.learner.target_entropy=-3.0")),
    "HalfCheetah-v5": Teacher(300_000, 100_000, (*SAC, "--agent.learner.target_entropy=-6.0")),
    "Walker2d-v5": Teacher(300_000, 100_000, (*SAC, "--agent.learner.target_entropy=-6.0")),
}
COLUMNS = ("task", "level", "rows", "episodes", "return", "score", "policies of env step", "next_obs", "rows' digest")


def main(argv: Sequence[str]) -> int:
    """Train what is missing, collect what is missing, write the record and its table."""
    parser = argparse.ArgumentParser(prog="mbrl bench datasets", description=__doc__)
    add_options(parser, "datasets")
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--rows", type=int, help="rows of a set, instead of 20,000 and 100,000")
    parser.add_argument("--reference-episodes", type=int, default=100)
    parser.add_argument("--verify", action="store_true", help="compare the sets that are there with the kept digests")
    options = parser.parse_args(argv)
    if options.verify:
        return finish(verify(options))
    failed = run_all(list(jobs(options)), options)
    if not options.report_only:
        for env in options.env:
            failed += collect(env, options)
    write_table(options.out, shlex.join(["mbrl", "bench", "datasets", *argv]))
    return finish(failed)


def jobs(options: argparse.Namespace) -> list[Job]:
    """The training run of every task."""
    return [make_job(options, "sac-fast", env, 0, command(env, options.steps)) for env in options.env]


def command(env: str, steps: int | None = None) -> tuple[str, ...]:
    """A training run as typed."""
    task = TASKS[env]
    length = ("--steps", str(steps or task.steps))
    return ("train", "sac-fast", "--env", env, *length, "--seed", "0", *task.settings, "--checkpoint.policies=true")


def place(env: str, level: str, work: Path) -> Path:
    """Where a set lies, as a Minari dataset."""
    return (work / DATA / env / f"{level}-v0").resolve()


# -- collecting --------------------------------------------------------------------------------------------------------


def collect(env: str, options: argparse.Namespace) -> list[str]:
    """Make the missing sets of a task; what went wrong, a line each."""
    job = make_job(options, "sac-fast", env, 0, command(env, options.steps))
    missing = [level for level in options.levels if not place(env, level, options.work).exists()]
    if not missing:
        return []
    run = RunDirectory.open(job.folder)
    session, failed = reopen(run, ()), []
    try:
        source = Source(session, run, options.reference_episodes)
        record = {"env": env, "own_scores": _own_scores(source), "references": source.references}
        _keep(options.out, f"{env}/references", record)
        for level in missing:
            try:
                _keep(options.out, f"{env}/{level}", _collect(source, env, level, options))
            except UserError as error:
                failed.append(f"{env} {level}: {error}")
    finally:
        session.close()
    return failed


def _own_scores(source: Source) -> dict[str, float]:
    """Scores of the two references' policies in episodes that the references do not rest on: near 0 and 100."""
    low, high = source.references
    agents = {"random": source.random, "expert": source.acting(source.expert)}
    found = {name: source.mean_return(agent, source.episodes, f"{name} again") for name, agent in agents.items()}
    scored = About(references=(low, high)).score
    return {name: float(scored(torch.tensor(value, dtype=torch.float64))) for name, value in found.items()}


def _collect(source: Source, env: str, level: str, options: argparse.Namespace) -> dict[str, Any]:
    wanted = Wanted(level, options.rows or TASKS[env].rows, 0, options.reference_episodes)
    rows, policies = LEVELS[level](source, wanted)
    rows = grouped(rows)
    told = about(source, wanted, rows, policies)
    where = Target(str(place(env, level, options.work)), "minari").write(rows, told)
    print(f"{env} {level}: {len(rows):,} rows in {where}", flush=True)
    returns = _returns(rows)
    return {
        "env": env,
        "level": level,
        "rows": len(rows),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(unbiased=False)),
        "score": float(told.score(returns.mean())),
        "policies": [int(policy.clock["env_steps"]) for policy in policies],
        "policy_hashes": [policy.digest for policy in policies],
        "medium_episodes": min(TRIED_EPISODES, source.episodes),
        "recomputed": recomputed(source.session, rows),
        "digest": rows_digest(where),
        "versions": told.versions,
    }


def _returns(rows: Transitions) -> torch.Tensor:
    """``[E]`` of the episodes that are whole; of all where none is."""
    returns, ids = episode_returns(rows)
    whole = torch.isin(ids, rows.episode[rows.terminated | rows.truncated])
    return returns[whole] if bool(whole.any()) else returns


def recomputed(session: Session, rows: Transitions) -> dict[str, float]:
    """How far stored successors are from what the physics make of obs and action, last rows of episodes among them.

    A MuJoCo step that begins in contact amplifies the rounding of stored observations, so a high quantile is told
    beside the largest difference.
    """
    luck = seeding.generator(0, "recomputed")
    ends = torch.nonzero(rows.terminated | rows.truncated).flatten()
    some = torch.cat([ends[: RECOMPUTED // 4], torch.randperm(len(rows), generator=luck)[:RECOMPUTED]])[:RECOMPUTED]
    told = rows[some][(rows.obs[some].abs() < CLIPPED).all(-1)]
    simulator = Simulator(session.pool.spec)
    simulator.physics.can_start_from_obs = True  # of these rows no velocity was clipped, Walker2d's either
    step = simulator.step(simulator.encode(told.obs), told.action, None)
    off = (simulator.decode(step.state) - told.next_obs).abs().amax(-1).double()
    return {
        "rows": len(told),
        "median": float(off.median()),
        "q99": float(off.quantile(0.99)),
        "largest": float(off.max()),
    }


def rows_digest(where: Path) -> str:
    """Of what is on the disk, whatever its format."""
    return digest(rows_of(open_data(str(where))))


# -- the record --------------------------------------------------------------------------------------------------------


def _read(out: Path) -> dict[str, Any]:
    path = out / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def _keep(out: Path, name: str, found: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = _read(out) | {name: found}
    (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def verify(options: argparse.Namespace) -> list[str]:
    """Sets that are missing or hold other rows than those that were kept."""
    failed = []
    for name, found in _read(options.out).items():
        if "digest" not in found or found["env"] not in options.env or found["level"] not in options.levels:
            continue
        where = place(found["env"], found["level"], options.work)
        seen = rows_digest(where) if where.exists() else "not there"
        print(f"{name}: {'as kept' if seen == found['digest'] else seen}")
        if seen != found["digest"]:
            failed.append(f"{name}: {seen}, kept: {found['digest']}")
    return failed


def write_table(out: Path, command: str) -> None:
    """``summary.md``: a row a set."""
    record = _read(out)
    lines = [f"Made by `{command}`. Score: 0 is uniformly random actions, 100 the best policy of the task's run"]
    made = {env: task for env, task in TASKS.items() if f"{env}/references" in record}
    lines += [f"({', '.join(f'{task.steps:,} env steps on {env}' for env, task in made.items())})."]
    lines += ["`next_obs`: the largest of 99 % of differences between stored successors and the physics'.", ""]
    lines += [row(COLUMNS), row("---" for _ in COLUMNS)]
    for env in TASKS:
        for level in ("random", "medium-replay", "full-replay", "medium", "medium-expert", "expert"):
            if (found := record.get(f"{env}/{level}")) is not None:
                lines.append(_line(found))
    lines += ["", "Own scores of the references' policies, in other episodes:", ""]
    for env in TASKS:
        if (found := record.get(f"{env}/references")) is not None:
            low, high = found["references"]
            own = ", ".join(f"{name} {value:.1f}" for name, value in found["own_scores"].items())
            lines.append(f"- {env}: returns {low:.4g} and {high:.5g}; {own}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.md").write_text("\n".join(lines) + "\n")


def _line(found: Mapping[str, Any]) -> str:
    returns = f"{found['return_mean']:,.1f} ± {found['return_std']:,.1f}"
    policies = ", ".join(f"{step:,}" for step in found["policies"]) or "-"
    cells = [found["env"], found["level"], f"{found['rows']:,}", f"{found['episodes']:,}", returns]
    return row([*cells, f"{found['score']:.1f}", policies, f"{found['recomputed']['q99']:.1e}", found["digest"]])
