"""``mbrl bench koopman-horizon``: open-loop errors up to 100 steps ahead, of Koopman models and of their honest rivals.

Every model has as many parameters, is fitted by gradient on the same transitions of a mediocre policy, sees as many
rows, and is judged on the same windows of the same held-out episodes. Errors of a window that flies apart are bounded
and counted, never hidden in a mean.

After an experiment of Mondal et al., "Efficient Dynamics Modeling in Interactive Environments with Koopman Theory",
2024, whose data sets, sizes and rates are not those used here.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import Agent
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from envs.spec import EnvSpec
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from experiments.config import resolve
from experiments.diagnosis.dataset import need_fit, of_episodes, read_dataset, split_episodes
from mbrl import seeding
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer, consecutive
from mbrl.data.played import to_transitions
from mbrl.data.transitions import Transitions
from mbrl.diagnostics.baselines import LinearBaseline, persistence
from mbrl.diagnostics.open_loop import pick_depth
from mbrl.diagnostics.rows import Units, miss
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.koopman.autoencoder import KoopmanAutoencoder
from mbrl.models.koopman.base import KoopmanModel
from mbrl.models.koopman.diagonal import DiagonalKoopman
from mbrl.models.recurrent import SequenceModel, count_parameters, matched_width

DEPTHS = (1, 10, 25, 50, 100)
DIVERGED = 10.0
"""Error of a window, in standard deviations, at which it counts as diverged; a mean takes no more than that of it."""
FEWEST_WINDOWS = 50
WITHIN = 1.10
"""No worse than the GRU at the greatest depth, within this factor: what is expected of the diagonal Koopman model."""


@dataclass(frozen=True)
class Sizes:
    """``env_steps`` train the policy; ``transitions`` are then made by it, exploring, in ``slots`` environments."""

    env_steps: Mapping[str, int]
    updates_per_step: int = 4
    transitions: int = 20_000
    slots: int = 10
    parameters: int = 60_000
    window: int = 30
    batch: int = 32
    updates: int = 1800
    lr: float = 1e-3
    test_windows: int = 300
    members: int = 5
    latent: int = 64
    """reals, beside the observation where a model holds that too"""
    compile: bool = True


REAL = Sizes({"HalfCheetah-v5": 15_000, "Hopper-v5": 10_000})
QUICK = Sizes(
    {"HalfCheetah-v5": 30, "Hopper-v5": 30},
    updates_per_step=1,
    transitions=900,
    parameters=6000,
    window=5,
    batch=16,
    updates=10,
    test_windows=20,
    latent=8,
    compile=False,
)


# -- data --------------------------------------------------------------------------------------------------------------


def policy_data(env: str, sizes: Sizes, seed: int, folder: Path) -> ReplayBuffer:
    """The transitions at ``folder``: read where there are any, else made with a policy of the recipe sac-fast."""
    if not folder.exists():
        agent = trained_policy(env, sizes, seed)
        buffer = ReplayBuffer(sizes.transitions)
        live(agent, env, sizes.slots, sizes.transitions, seeding.derive_seed(seed, "data"), buffer.extend)
        buffer.save(folder)
    found = read_dataset(folder)
    need_fit(found, env_spec(env))
    return found.buffer


def trained_policy(env: str, sizes: Sizes, seed: int) -> Agent:
    """Soft actor-critic after ``env_steps``: long before it is good."""
    settings = [("agent.updates_per_step", sizes.updates_per_step), ("agent.learner.compile", sizes.compile)]
    agent = resolve("sac-fast", settings, env=env).config.agent(env_spec(env))
    agent.seed(seed)
    clock = Clock()

    def learn(rows: Transitions) -> None:
        agent.observe(rows)
        clock.tick(len(rows))
        agent.update(clock)

    live(agent, env, 1, sizes.env_steps[env], seeding.derive_seed(seed, "train"), learn)
    return agent


def live(agent: Agent, env: str, slots: int, steps: int, seed: int, see: Callable[[Transitions], None]) -> None:
    """``steps`` transitions of the exploring agent, handed to ``see`` as they come."""
    pool = EnvPool(functools.partial(make_env, env), slots, lambda slot, n: seeding.derive_seed(seed, "env", slot, n))
    generator, state = seeding.generator(seed, "act"), agent.initial_actor_state(slots)
    pool.reset()
    for _ in range(steps // slots):
        obs, first = torch.from_numpy(pool.obs), torch.from_numpy(pool.is_first)
        action, state, extra = agent.act(obs, state, first, "explore", generator)
        see(to_transitions(pool.step(action.numpy()), action, extra, version=0))
        pool.reset_ended()
    pool.close()


def cut(held: Transitions, sizes: Sizes, seed: int) -> tuple[Transitions, int]:
    """Different windows ``[W, T, ...]`` of held-out rows, ``T`` the greatest depth of which there are enough, and how
    many there are.
    """
    depth = pick_depth(held, max(DEPTHS), FEWEST_WINDOWS)
    places = consecutive(held.episode, held.step, depth, held.task)
    order = torch.randperm(places.shape[1], generator=seeding.generator(seed, "windows"))
    return held[places[:, order[: sizes.test_windows]].T], places.shape[1]


# -- models ------------------------------------------------------------------------------------------------------------


def builders(spec: EnvSpec, sizes: Sizes) -> dict[str, Callable[[int], DynamicsModel]]:
    """For each kind of model how it is made at a width."""
    tau, latent = sizes.window, sizes.latent
    return {
        "diagonal Koopman": lambda width: DiagonalKoopman(spec, latent // 2, tau, width),
        "Koopman autoencoder": lambda width: KoopmanAutoencoder(spec, latent, tau, width),
        "MLP": lambda width: SequenceModel(spec, "mlp", width, window=tau),
        "GRU": lambda width: SequenceModel(spec, "gru", width, window=tau),
        "ensemble": lambda width: ProbabilisticEnsemble(spec, sizes.members, width),
    }


def fitter_of(model: DynamicsModel, sizes: Sizes) -> Fitter:
    """Every model sees as many rows; one without windows in batches of its own size."""
    batch = sizes.batch if model.window > 1 else 256
    updates = -(-sizes.updates * sizes.batch * sizes.window // (batch * model.window))
    options: dict[str, Any] = {"holdout": 0.1, "patience": 10_000, "max_epochs": 10_000}
    return Fitter(lr=sizes.lr, batch_size=batch, max_updates=updates, bootstrap=False, **options)


def fit(
    build: Callable[[int], DynamicsModel], rows: Transitions, sizes: Sizes, seed: int
) -> tuple[DynamicsModel, dict[str, float]]:
    """A fitted model of the wanted size, and what its fit reports."""
    width = matched_width(build, sizes.parameters, most=1024)
    torch.manual_seed(seeding.derive_seed(seed, "init"))
    model, began = build(width), time.perf_counter()
    report = fitter_of(model, sizes).fit(model, rows, seeding.generator(seed, "fit"))
    found = {"parameters": float(count_parameters(model)), "width": float(width)}
    return model, report | found | {"seconds": time.perf_counter() - began}


# -- errors ------------------------------------------------------------------------------------------------------------

Errors = dict[str, dict[str, float]]
"""By depth: ``median``, ``mean`` (of each window at most :data:`DIVERGED`) and share ``diverged``."""


def errors_of(spec: EnvSpec, said: Tensor, lived: Transitions, units: Units) -> Errors:
    """Root mean square error over entries that vary, in standard deviations, of ``said [T, W, D]``, at each depth."""
    gap = miss(spec, said.double(), lived.next_obs.transpose(0, 1).double()) / units.obs
    error = gap[..., units.varies].square().mean(-1).sqrt().nan_to_num(torch.inf)
    return {str(depth): summary(error[depth - 1]) for depth in DEPTHS if depth <= len(error)}


def summary(error: Tensor) -> dict[str, float]:
    """Of the errors of the windows ``[W]``."""
    bounded = error.clamp(max=DIVERGED)
    diverged = float((error >= DIVERGED).double().mean())
    return {"median": float(bounded.median()), "mean": float(bounded.mean()), "diverged": diverged}


@torch.no_grad()
def paths(model: DynamicsModel, lived: Transitions, generator: Generator | None = None) -> dict[str, Tensor]:
    """Predicted observations ``[T, W, D]`` by the way of rolling out; all start from one true observation, cold."""
    bound = model.bind()
    start, actions = bound.encode(lived.obs[:, 0]), lived.action.transpose(0, 1)
    if isinstance(model, KoopmanModel):
        ways = {"never re-encoded": 0, f"re-encoded every {model.reencode_every or 10}": model.reencode_every or 10}
        found = {way: model.rollout(start, actions, generator, reencode_every=k).states for way, k in ways.items()}
    else:
        found = {"": bound.rollout(start, actions, generator, propagation="mean").states}
    return {way: model.decode(states[1:])[:, 0] for way, states in found.items()}


def judge_baselines(spec: EnvSpec, train: Transitions, lived: Transitions, units: Units) -> dict[str, Errors]:
    first, actions = lived.obs[:, 0], lived.action.transpose(0, 1)
    line = LinearBaseline.fit(spec, train).rollout(first, actions)
    said = {"persistence": persistence(first, actions), "linear": line}
    return {name: errors_of(spec, path, lived, units) for name, path in said.items()}


def run_env(env: str, sizes: Sizes, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Everything for one task: the same data and windows for every model and seed."""
    spec, buffer = env_spec(env), policy_data(env, sizes, seeds[0], folder)
    split = split_episodes(buffer.all().episode, 0.2, seeds[0])
    train, held = (of_episodes(buffer, episodes).all() for episodes in (split.train, split.heldout))
    lived, available = cut(held, sizes, seeds[0])
    units = Units.of(spec, train)
    found: dict[str, Any] = {"baselines": judge_baselines(spec, train, lived, units), "models": []}
    for seed in seeds:
        for name, build in builders(spec, sizes).items():
            model, report = fit(build, train, sizes, seed)
            said = {way: errors_of(spec, path, lived, units) for way, path in paths(model, lived).items()}
            found["models"].append({"model": name, "seed": seed, "fit": report, "errors": said})
            print(f"{env} seed {seed} {name}: {report['seconds']:.0f} s", flush=True)
    about = {"windows": len(lived), "windows_there_are": available, "depth": lived.reward.shape[1]}
    episodes = buffer.all().episode.unique(return_counts=True)[1].double()
    return about | {"episodes": len(episodes), "median_episode": float(episodes.median()), "rows": len(buffer)} | found


# -- report ------------------------------------------------------------------------------------------------------------


def by_model(found: Mapping[str, Any]) -> dict[str, list[Errors]]:
    """Each seed's errors, by model and way of rolling out; periods that differ between seeds share a line."""
    lines: dict[str, list[Errors]] = {name: [errors] for name, errors in found["baselines"].items()}
    for one in found["models"]:
        for way, errors in one["errors"].items():
            name = ", ".join([one["model"], *([way.split(" every ")[0]] if way else [])])
            lines.setdefault(name, []).append(errors)
    return lines


def lines_of(env: str, found: Mapping[str, Any]) -> list[str]:
    """A line a model: at each depth median / mean over windows, means over seeds; at the last also what diverged."""
    depths = [depth for depth in DEPTHS if depth <= found["depth"]]
    rows: list[list[object]] = [["model", *(f"step {depth}" for depth in depths), "lowest, highest", "diverged"]]
    for name, seeds in by_model(found).items():
        at = {d: [[errors[str(d)][kind] for errors in seeds] for kind in ("median", "mean")] for d in depths}
        cells = [" / ".join(f"{statistics.mean(values):.3f}" for values in at[depth]) for depth in depths]
        last, lost = at[depths[-1]][0], [errors[str(depths[-1])]["diverged"] for errors in seeds]
        rows.append([name, *cells, f"{min(last):.3f}, {max(last):.3f}", f"{statistics.mean(lost):.1%}"])
    episodes = f"{found['episodes']} episodes, median length {found['median_episode']:.0f}"
    windows = f"{found['windows']} of {found['windows_there_are']} held-out windows of {found['depth']} steps"
    return ["", f"{env}: {found['rows']:,} transitions in {episodes}; {windows}", *table(rows), verdict(found)]


def verdict(found: Mapping[str, Any]) -> str:
    """Whether the diagonal Koopman model is no worse than the GRU at the greatest depth, by mean medians."""
    lines, deepest = by_model(found), str(max(depth for depth in DEPTHS if depth <= found["depth"]))

    def error(name: str) -> float:
        return statistics.mean(errors[deepest]["median"] for errors in lines[name])

    best = min((name for name in lines if name.startswith("diagonal")), key=error)
    factor = error(best) / error("GRU")
    said = "no worse" if factor <= WITHIN else "worse"
    return f"step {deepest}: {best}, is {said} than the GRU within {WITHIN - 1:.0%} (factor {factor:.2f})"


def main(argv: Sequence[str]) -> None:
    parser = make_parser("koopman-horizon", "open-loop errors of Koopman models and their rivals", repeats=3)
    parser.add_argument("--env", choices=sorted(REAL.env_steps), help="one task instead of both")
    what = "where transitions lie or are put, a folder a task: a saved buffer or a run"
    parser.add_argument("--data", metavar="DIR", type=Path, help=f"{what} (default: runs/koopman-horizon)")
    options = parse(parser, argv)
    sizes = QUICK if options.quick else REAL
    seeds = range(options.seed, options.seed + options.repeats)
    names = [options.env] if options.env else list(sizes.env_steps)
    with one_thread(), tempfile.TemporaryDirectory() as passing:
        root = options.data or Path(passing if options.quick else "runs/koopman-horizon")
        found = {env: run_env(env, sizes, seeds, root / env) for env in names}
    lines = ["Root mean square error in standard deviations, median / mean over windows, mean over seeds; lowest and"]
    lines += [f"highest median of a seed; windows beyond {DIVERGED:g} count as diverged and as {DIVERGED:g} in a mean."]
    lines += [line for env, one in found.items() for line in lines_of(env, one)]
    publish("koopman-horizon", argv, options, asdict(sizes) | {"seeds": list(seeds)}, lines, found)
