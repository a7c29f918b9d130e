"""``mbrl bench inside-model``: stable-baselines3's PPO and SAC trained inside a learned model, judged in the real task.

Real transitions of random actions, one fit, then each algorithm's own ``learn`` in a vector environment that is the
model. The control is the same algorithm trained on as many env steps of the real environment.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.common import random_action
from agents.sb3.vec_env import VectorEnvAdapter
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from envs.spec import EnvSpec
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl import seeding
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.imagination.model_env import ModelVectorEnv
from mbrl.models.ensemble import ProbabilisticEnsemble

GOAL = -300.0
FIRST_EVALUATION_SEED = 10_000
"""As in the runs' evaluations, whose reset seeds no training episode has."""


@dataclass(frozen=True)
class Learner:
    """An algorithm and how long it trains in the model; ``real`` replaces settings for one real environment."""

    algorithm: type[BaseAlgorithm]
    steps: int
    kwargs: Mapping[str, Any]
    real: Mapping[str, Any]


NETWORK = {"policy_kwargs": {"net_arch": [64, 64]}, "learning_rate": 1e-3}
LEARNERS: Mapping[str, Learner] = {
    "ppo": Learner(
        PPO,
        160_000,
        NETWORK | {"n_steps": 128, "batch_size": 256, "gamma": 0.9, "gae_lambda": 0.95},
        {"n_steps": 600, "batch_size": 100},
    ),
    "sac": Learner(
        SAC, 24_000, NETWORK | {"batch_size": 128, "learning_starts": 1000, "gradient_steps": 4}, {"gradient_steps": 1}
    ),
}


@dataclass(frozen=True)
class Sizes:
    """``slots`` episodes run side by side in the model."""

    env: str = "Pendulum-v1"
    transitions: int = 3000
    slots: int = 16
    members: int = 5
    hidden: int = 64
    episodes: int = 20
    fitter: Mapping[str, Any] = field(
        default_factory=lambda: {"lr": 2e-3, "batch_size": 64, "patience": 8, "max_epochs": 200}
    )
    training_share: float = 1.0
    """of each learner's steps"""


QUICK = Sizes(transitions=400, members=2, hidden=8, episodes=2, fitter={"max_updates": 20}, training_share=0.02)


def collect(sizes: Sizes, seed: int) -> Transitions:
    """``[transitions]`` rows of uniformly random actions: whole episodes side by side."""
    limit = env_spec(sizes.env).max_episode_steps
    assert limit is not None
    slots = max(1, sizes.transitions // limit)
    pool = EnvPool(lambda: make_env(sizes.env), slots, lambda slot, episode: seeding.derive_seed(seed, slot, episode))
    generator, rows = seeding.generator(seed, "act"), []
    pool.reset()
    for _ in range(sizes.transitions // slots):
        action = random_action(pool.spec.action, slots, generator)
        rows.append(to_transitions(pool.step(action.numpy()), action, {}, version=0))
        pool.reset_ended()
    pool.close()
    return Transitions.cat(rows)


def fit(sizes: Sizes, spec: EnvSpec, rows: Transitions, seed: int) -> tuple[ProbabilisticEnsemble, dict[str, float]]:
    """The ensemble after one fit, and the fitter's report."""
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    model = ProbabilisticEnsemble(spec, members=sizes.members, hidden=sizes.hidden)
    return model, Fitter(**sizes.fitter).fit(model, rows, seeding.generator(seed, "fit"))


def train(learner: Learner, env: VecEnv, steps: int, kwargs: Mapping[str, Any], seed: int) -> BaseAlgorithm:
    """The library's own ``learn``."""
    own = copy.deepcopy(dict(kwargs))  # its constructors write into what they are given
    algorithm = learner.algorithm("MlpPolicy", env, seed=seeding.derive_seed(seed, "sb3"), device="cpu", **own)
    return algorithm.learn(steps)


def in_model(
    learner: Learner, model: ProbabilisticEnsemble, rows: Transitions, sizes: Sizes, seed: int
) -> BaseAlgorithm:
    """Episodes start at observations of the real data and last as long as real ones."""
    limit = model.spec.max_episode_steps
    env = VectorEnvAdapter(ModelVectorEnv(model, rows.obs, sizes.slots, limit))
    return train(learner, env, int(learner.steps * sizes.training_share), learner.kwargs, seed)


def in_reality(learner: Learner, sizes: Sizes, seed: int) -> BaseAlgorithm:
    """The control: as many real env steps as the model was fitted on."""
    real = gym.vector.SyncVectorEnv([lambda: make_env(sizes.env)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = VectorEnvAdapter(real)
    algorithm = train(learner, env, sizes.transitions, {**learner.kwargs, **learner.real}, seed)
    env.close()
    return algorithm


def real_return(algorithm: BaseAlgorithm, sizes: Sizes) -> float:
    """Mean return of ``episodes`` episodes in the real environment, acting with the policy's mode."""
    pool = EnvPool(lambda: make_env(sizes.env), sizes.episodes, lambda slot, episode: FIRST_EVALUATION_SEED + slot)
    obs, total = pool.reset(), np.zeros(sizes.episodes)
    playing = np.ones(sizes.episodes, dtype=np.bool_)
    while playing.any():
        step = pool.step(algorithm.predict(obs, deterministic=True)[0])
        total += step.reward * playing
        playing &= ~step.ended
        obs = pool.reset_ended()
    pool.close()
    return float(total.mean())


def run(sizes: Sizes, seed: int, control: bool) -> dict[str, Any]:
    """Everything for one seed: mean real returns and seconds by learner."""
    rows, found = collect(sizes, seed), dict[str, Any]()
    began = time.perf_counter()
    model, report = fit(sizes, env_spec(sizes.env), rows, seed)
    found["fit"] = {"seconds": time.perf_counter() - began, **report}
    for name, learner in LEARNERS.items():
        began = time.perf_counter()
        learned = in_model(learner, model, rows, sizes, seed)
        found[name] = {"in model": real_return(learned, sizes), "seconds": time.perf_counter() - began}
        if control:
            found[name]["control"] = real_return(in_reality(learner, sizes, seed), sizes)
    return found


def lines_of(sizes: Sizes, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was found, a line a learner."""
    rows: list[list[object]] = [["learner", "in the model", "worst seed", "control", f"goal {GOAL:g}"]]
    for name in LEARNERS:
        returns = [seed[name]["in model"] for seed in found]
        controls = [seed[name]["control"] for seed in found if "control" in seed[name]]
        beside = statistics.mean(controls) if controls else "-"
        verdict = "reached" if min(returns) >= GOAL else "missed"
        rows.append([name, statistics.mean(returns), min(returns), beside, verdict])
    what = f"{sizes.env}: mean return of {sizes.episodes} real episodes after {sizes.transitions:,} real transitions"
    return [f"{what}, {len(found)} seeds", *table(rows)]


def main(argv: Sequence[str]) -> None:
    parser = make_parser("inside-model", "SB3's PPO and SAC trained inside a learned model", repeats=3)
    parser.add_argument("--no-control", action="store_true", help="leave out the runs in the real environment")
    options = parse(parser, argv)
    sizes = QUICK if options.quick else Sizes()
    with one_thread():
        found = [
            run(sizes, seed, not options.no_control) for seed in range(options.seed, options.seed + options.repeats)
        ]
    learners = {name: {"steps": one.steps, "kwargs": one.kwargs, "real": one.real} for name, one in LEARNERS.items()}
    config = asdict(sizes) | {"learners": learners, "seeds": options.repeats}
    publish("inside-model", argv, options, config, lines_of(sizes, found), found)
