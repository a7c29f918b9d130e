"""Pendulum data of the benchmarks that learn from it: one training run, and what is collected from it."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from numpy.typing import NDArray

from envs.errors import UserError
from experiments.compare.fleet import Job, run_fleet
from experiments.dataset.collect import Target, Wanted, run_collect
from experiments.given_data import open_data, rows_of
from mbrl.data.labels import episode_returns
from mbrl.data.offline import About, save_folder

ENV, TEACHER = "Pendulum-v1", "teacher"
SETTINGS = (
    "--agent.updates_per_step=1",
    "--evaluation.every=200",
    "--evaluation.episodes=5",
    "--evaluation.num_envs=5",
    "--checkpoint.policies=true",
)
"""One update for each env step, and an evaluation an episode: the slow learner leaves policies of every quality."""
STEPS = 8000
HIDDEN = "experiments.benchmarks._pendulum_data:PendulumWithoutSpeed"


class PendulumWithoutSpeed(PendulumEnv):
    """Gymnasium's Pendulum that shows ``(cos, sin)`` of the angle, and not how fast it turns."""

    max_episode_steps = 200

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _get_obs(self) -> NDArray[np.float32]:
        angle = self.state[0]
        return np.array([np.cos(angle), np.sin(angle)], np.float32)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that make their data."""
    root = Path("runs/bench-pendulum-data")
    parser.add_argument("--data-root", type=Path, default=root, help="where the datasets lie, or are made")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the run that the data is made from")
    parser.add_argument("--teacher-steps", type=int, default=STEPS, help="env steps of that run")


def teacher(options: argparse.Namespace) -> Job:
    """The training run that the data comes from, beside the data."""
    seed, steps = options.data_seed, options.teacher_steps
    words = ("train", "sac-fast", "--env", ENV, "--seed", str(seed), "--steps", str(steps), *SETTINGS)
    folder = options.data_root / ENV / f"{TEACHER}-seed{seed}"
    return Job(TEACHER, ENV, seed, (*words, f"--checkpoint.every={steps}"), folder)


def collected(options: argparse.Namespace, level: str, rows: int | None) -> Path:
    """The dataset of a level; where it is not there yet, the :func:`teacher` is trained or continued, and it is made.

    Raises:
        UserError: the training run failed, or has no policy of that level.
    """
    folder: Path = options.data_root.resolve() / ENV / f"{level}-seed{options.data_seed}"
    if folder.exists():
        return folder
    job = teacher(options)
    if failed := asyncio.run(run_fleet([job], 1, lambda job, state, error: None)):
        raise UserError(str(job.folder), failed[0][1], "the data is made from this run")
    run_collect(str(job.folder), Wanted(level, rows, options.data_seed), Target(str(folder), "folder"))
    return folder


def without_speed(folder: Path) -> Path:
    """The same rows for :class:`PendulumWithoutSpeed`, beside ``folder``."""
    hidden = folder.with_name(f"{folder.name}-without-speed")
    if not hidden.exists():
        dataset = open_data(str(folder))
        rows = rows_of(dataset).all()
        rows.obs, rows.next_obs, rows.sim_state = rows.obs[:, :2].clone(), rows.next_obs[:, :2].clone(), None
        about = About({"id": HIDDEN}, dataset.about.references, dataset.about.policy, dataset.about.versions)
        save_folder([rows], len(rows), hidden, about)
    return hidden


def keep_facts(data: Path, env: str, out: Path) -> dict[str, Any]:
    """``data.json`` beside an environment's kept runs: what their data is, and the returns that scores rest on."""
    dataset = open_data(str(data))
    rows = rows_of(dataset).all()
    returns, _ = episode_returns(rows)
    told = {key: value for key, value in dataset.about.policy.items() if key != "run"}
    found = {"rows": len(rows), "episodes": len(returns), "return_mean": float(returns.mean())}
    facts = {"env": env, "references": dataset.about.references, **found, "policy": told}
    (out / env).mkdir(parents=True, exist_ok=True)
    (out / env / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def score(value: float, facts: dict[str, Any]) -> float:
    """Per cent of the way from random actions to the best policy of the run that the data is from."""
    low, high = map(float, facts["references"])
    return 100.0 * (value - low) / (high - low)
