"""``mbrl bench plan``: what planning needs, with the true dynamics and with a learned model, on cart-pole swing-up."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from agents.mpc import MPCAgent
from envs.boundary import BoundaryEnv
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from envs.spec import EnvSpec
from experiments.benchmarks._timing import (
    bfloat16_note,
    make_parser,
    one_thread,
    parse,
    publish,
    ratio,
    table,
    take_turns,
)
from experiments.config import resolve
from experiments.session import build_agent
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.base import DynamicsModel, State
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator
from mbrl.planning.base import Planner
from mbrl.planning.cem import CEM, ICEM
from mbrl.planning.objective import Objective
from mbrl.seeding import derive_seed, generator

ENV = "mbrl/CartPoleSwingUp-v0"
TOGETHER = 16
"""Environments planned in one call."""


@dataclass(frozen=True)
class Sizes:
    """How much is played and fitted; ``steps`` None means whole episodes."""

    oracle_episodes: int = 6
    episodes: int = 10
    published_episodes: int = 3
    """Fewer, since one costs minutes."""
    steps: int | None = None
    data_episodes: int = 12
    updates: int = 3000
    oracle_cem: tuple[int, int] = (400, 5)
    published: tuple[int, int, int] = (350, 20, 5)
    """Candidates, particles, iterations of the published PETS setting."""


QUICK = Sizes(2, 2, 2, 4, 4, 20, (30, 2), (12, 5, 2))


# -- playing -------------------------------------------------------------------------------------------------------


def play(
    planner: Planner | None, model: DynamicsModel, episodes: int, steps: int | None, seed: int, noise: float = 0.0
) -> tuple[list[float], Transitions]:
    """Returns of ``episodes`` episodes planned side by side, and what happened in them; random without a planner.

    Episode ``i`` starts from reset seed ``seed + i``, whoever plans. ``noise`` is the std of what is added to actions.
    """
    make: functools.partial[BoundaryEnv] = functools.partial(make_env, ENV)
    pool = EnvPool(make, episodes, lambda slot, episode: seed + slot)
    luck, spec = generator(seed, "play"), pool.spec
    warm_start, total, rows = planner.initial(episodes) if planner else None, np.zeros(episodes), []
    pool.reset()
    for _ in range(steps or spec.max_episode_steps or 0):
        if planner:
            plan = planner.plan(model, Objective(), _state(model, pool), warm_start, generator=luck)
            action, warm_start = plan.actions[0], plan.warm_start
            action = (action + noise * torch.randn(action.shape, generator=luck)).clamp(-1, 1)
        else:
            action = torch.rand(episodes, spec.action.size, generator=luck) * 2 - 1
        step = pool.step(action.numpy())
        total += step.reward
        rows.append(_rows(step, action))
    pool.close()
    return total.tolist(), Transitions.cat(rows)


def _state(model: DynamicsModel, pool: EnvPool) -> State:
    states = pool.sim_states() if isinstance(model, Simulator) else None
    return model.encode(torch.from_numpy(pool.obs), sim_state=None if states is None else torch.from_numpy(states))


def _rows(step: Any, action: torch.Tensor) -> Transitions:
    names = ("reward", "next_obs", "terminated", "truncated", "episode", "step")
    columns: dict[str, Any] = {name: torch.from_numpy(getattr(step, name)) for name in names}
    return Transitions(torch.from_numpy(step.obs), action, **columns, policy_version=torch.zeros(len(action)).long())


# -- the parts -----------------------------------------------------------------------------------------------------


def oracle_part(spec: EnvSpec, sizes: Sizes, seed: int) -> tuple[list[str], dict[str, Any]]:
    """Few candidates (iCEM 20 × 3) beside many (CEM), both with the true dynamics."""
    candidates, iterations = sizes.oracle_cem
    planners: dict[str, Planner] = {
        "iCEM 20 x 3": ICEM(spec, horizon=30, candidates=20, iterations=3, particles=1),
        f"CEM {candidates} x {iterations}": CEM(spec, 30, candidates, iterations, particles=1),
    }
    model = Simulator(spec)
    returns = {k: play(p, model, sizes.oracle_episodes, sizes.steps, seed + 100)[0] for k, p in planners.items()}
    means = [statistics.mean(values) for values in returns.values()]
    rows: list[list[object]] = [["true dynamics", "return", "worst episode"]]
    rows += [[name, statistics.mean(values), min(values)] for name, values in returns.items()]
    return [*table(rows), f"iCEM / CEM: {means[0] / means[1]:.3f} (goal >= 0.97)"], {"returns": returns}


def learn(agent: MPCAgent, sizes: Sizes, seed: int) -> ProbabilisticEnsemble:
    """The recipe's model, fitted on episodes of random actions and of the oracle with noise."""
    spec, model = agent.spec, agent.model
    assert isinstance(model, ProbabilisticEnsemble)
    oracle, simulator, third = ICEM(spec, horizon=30, particles=1), Simulator(spec), sizes.data_episodes // 3
    mixes = [(None, 0.0, third), (oracle, 0.3, third), (oracle, 1.0, sizes.data_episodes - 2 * third)]
    data = [
        play(planner, simulator, episodes, sizes.steps, derive_seed(seed, "data", i), noise)[1]
        for i, (planner, noise, episodes) in enumerate(mixes)
    ]
    fitter = Fitter(holdout=0.0, max_updates=sizes.updates, max_epochs=sizes.updates)
    fitter.fit(model, Transitions.cat(data), generator(seed, "fit"))
    return model


def in_bfloat16(model: ProbabilisticEnsemble) -> DynamicsModel:
    """The same networks, predicting in bfloat16."""
    before, model.inference_dtype = model.inference_dtype, "bfloat16"
    bound = model.bind()
    model.inference_dtype = before
    return bound


def learned_part(agent: MPCAgent, sizes: Sizes, seed: int, repeats: int) -> tuple[list[str], dict[str, Any]]:
    """The default recipe's planner beside the published setting, on one learned model."""
    model, ours = learn(agent, sizes, seed), agent.planner
    candidates, particles, iterations = sizes.published
    published = CEM(agent.spec, ours.horizon, candidates, iterations, particles=particles)
    bound, name = model.bind(), f"CEM {candidates} x {iterations}, {particles} particles"
    setups = {
        "recipe pets": (ours, bound),
        name: (published, bound),
        "recipe pets, bfloat16": (ours, in_bfloat16(model)),
    }
    count = {name: sizes.published_episodes}
    returns = {k: play(p, m, count.get(k, sizes.episodes), sizes.steps, seed + 200)[0] for k, (p, m) in setups.items()}
    state = bound.encode(torch.tensor([[0.0, 0.0, -1.0, 0.0, 0.0]]))
    luck = generator(seed, "time")
    turns = {
        k: lambda p=p, m=m: p.plan(m, Objective(), state, p.initial(1), generator=luck) for k, (p, m) in setups.items()
    }
    seconds = take_turns(turns, repeats)
    rows: list[list[object]] = [["learned model", "episodes", "return", "std", "ms an action", "of recipe"]]
    for k, values in returns.items():
        ms = 1000 * statistics.median(seconds[k])
        spread = statistics.pstdev(values)
        rows.append([k, len(values), statistics.mean(values), spread, ms, ratio(seconds, k, "recipe pets")])
    notes = [f"horizon {ours.horizon}; goal: recipe <= 25 ms an action on one idle thread", bfloat16_note()]
    return [*table(rows), *notes], {"returns": returns, "seconds": seconds}


def together_part(agent: MPCAgent, seed: int, repeats: int) -> tuple[list[str], dict[str, Any]]:
    """Sixteen environments in one call beside sixteen calls: time, and whether the plans are the same."""
    model, planner = agent.model.bind(), agent.planner
    angle = torch.linspace(-3, 3, TOGETHER)
    obs = torch.stack([angle / 3, angle.sin(), angle.cos(), angle.sin(), angle.cos()], -1)

    def plan(rows: slice) -> torch.Tensor:
        state, warm_start = model.encode(obs[rows]), planner.initial(len(obs[rows]))
        return planner.plan(model, Objective(), state, warm_start, generator=generator(seed, "one")).actions

    def alone() -> torch.Tensor:
        return torch.cat([plan(slice(i, i + 1)) for i in range(TOGETHER)], 1)

    difference = float((plan(slice(None)) - alone()).abs().max())
    seconds = take_turns({"one call": lambda: plan(slice(None)), f"{TOGETHER} calls": alone}, repeats)
    share = ratio(seconds, "one call", f"{TOGETHER} calls")
    same = "bit-equal" if difference == 0.0 else f"at most {difference:.2g} apart"
    line = (
        f"{TOGETHER} environments: one call takes {share:.2f} of the time of {TOGETHER} calls (goal <= 1); plans {same}"
    )
    return [line], {"seconds": seconds, "largest_difference": difference}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; see ``mbrl bench plan --help``."""
    options = parse(make_parser("plan", __doc__ or "", repeats=21), argv)
    sizes, spec = QUICK if options.quick else Sizes(), env_spec(ENV)
    config = resolve("pets", [("seed", options.seed)], ENV).config
    agent = build_agent(config, spec)
    assert isinstance(agent, MPCAgent)
    with one_thread():
        parts = {
            "true dynamics": oracle_part(spec, sizes, options.seed),
            "learned model": learned_part(agent, sizes, options.seed, options.repeats),
            "together": together_part(agent, options.seed, options.repeats),
        }
    lines = [line for text, _ in parts.values() for line in (*text, "")]
    publish("plan", argv, options, asdict(sizes), lines[:-1], {name: found for name, (_, found) in parts.items()})
    return 0
