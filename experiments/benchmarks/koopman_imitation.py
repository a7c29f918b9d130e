"""``mbrl bench koopman-imitation``: reaching as an expert was seen to, by a Koopman rollout and a tracker.

How many demonstrations it takes with and without a lift; what happens when the goal moves on the way; how often
rollouts diverge. All of it in ``mbrl/TwoLinkReach-v0``, whose batched function moves all test episodes at once. Then
``Reacher-v5``, where the tracker learns the inverse dynamics.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.koopman_imitation import KoopmanImitation, ReachExpert
from agents.tracking import PDTracker
from envs.registry import env_spec
from envs.two_link_arm import START, SUCCESS, TwoLinkReach
from experiments.benchmarks import _reacher_imitation as reacher
from experiments.benchmarks._reacher_imitation import LIFTS
from experiments.benchmarks._timing import make_parser, one_thread, parse, publish, table
from mbrl import seeding
from mbrl.data.transitions import Transitions

ENV = "mbrl/TwoLinkReach-v0"
UNGUARDED = 1e9
"""A bound that only numbers which overflow, or nearly, run into."""


@dataclass(frozen=True)
class Sizes:
    """``demonstrations`` are numbers of episodes; the few are part of the many."""

    demonstrations: tuple[int, ...] = (10, 50, 200)
    moving: int = 50
    """demonstrations where the goal moves"""
    few: int = 10
    """demonstrations where rollouts are made to diverge"""
    goals: int = 200
    steps: int = 50
    switch_at: int = 25
    periods: tuple[int, ...] = (0, 10, 1)


QUICK = Sizes(demonstrations=(5, 10), moving=10, few=5, goals=10)


@dataclass(frozen=True)
class Case:
    """One agent, and the episodes that it is judged on."""

    lift: str
    demonstrations: int
    relift_every: int = 0
    moves: bool = False
    far: bool = False
    """Episodes begin in poses that no demonstration saw"""
    bound: float = 1.0

    def __str__(self) -> str:
        what = [f"{self.lift}, {self.demonstrations} demonstrations"]
        what += [f"lifted every {self.relift_every}"] if self.relift_every else []
        what += ["goal moves"] if self.moves else []
        what += ["far starts"] if self.far else []
        return ", ".join([*what, *(["no bound"] if self.bound == UNGUARDED else [])])


def cases(sizes: Sizes) -> list[Case]:
    """Everything that is judged, in the order of the table."""
    still = [Case(lift, number) for number in sizes.demonstrations for lift in LIFTS]
    moving = [Case("polynomial", sizes.moving, period, moves=True) for period in sizes.periods]
    moving += [Case("linear", sizes.moving, sizes.periods[1], moves=True)]
    far = [
        Case("polynomial", number, period, far=True, bound=bound)
        for number in (sizes.few, sizes.demonstrations[-1])
        for period in (0, 1)
        for bound in (1.0, UNGUARDED)
    ]
    return still + moving + far


# -- episodes --------------------------------------------------------------------------------------------------------


def starts(number: int, seed: int, switch_at: int | None = None, far: bool = False) -> Tensor:
    """States ``[number, 7]`` at the beginning; ``far``: joints up to 1.5 rad away from where they use to begin."""
    rng = np.random.default_rng(seed)
    states = np.stack([TwoLinkReach.initial(rng) for _ in range(number)])
    if far:
        states[:, :2] = np.array(START) + rng.uniform(-1.5, 1.5, (number, 2))
    if switch_at is not None:
        states[:, 6] = switch_at
    return torch.from_numpy(states)


@dataclass(frozen=True)
class Played:
    """Episodes side by side."""

    rows: Transitions
    """Episode by episode, ``[N * T]``"""
    success: Tensor
    """``[N]`` bool"""
    diverged: Tensor
    """``[N]`` bool: the rollout did, at some step"""
    largest: float
    """Largest joint angle of any reference"""


@torch.no_grad()
def play(agent: KoopmanImitation | ReachExpert, states: Tensor, steps: int) -> Played:
    """Act from ``states [N, 7]``, as a pool of environments would be acted in."""
    physics, slots = TwoLinkReach.physics(dict(agent.spec.params)), len(states)
    actor, luck, seen = agent.initial_actor_state(slots), torch.Generator().manual_seed(0), list[Transitions]()
    diverged, largest, no = torch.zeros(slots, dtype=torch.bool), 0.0, torch.zeros(slots, dtype=torch.bool)
    for step in range(steps):
        obs = physics.observe(states).float()
        action, actor, extra = agent.act(obs, actor, torch.full((slots,), step == 0), "evaluate", luck)
        after = physics.rollout(states, action[None])[-1]
        reward, next_obs = physics.reward(states, action, after), physics.observe(after).float()
        ids = torch.arange(slots), torch.full((slots,), step), torch.zeros(slots, dtype=torch.long)
        seen.append(Transitions(obs, action, reward, next_obs, no, no, *ids))
        diverged |= extra.get("diverged", torch.zeros(slots)) > 0.0
        if isinstance(agent, KoopmanImitation):
            largest = max(largest, float(agent.reference.read(actor.latent).abs().max()))  # type: ignore[attr-defined]
        states = after
    rows = Transitions.stack(seen, dim=1).map(lambda x: x.flatten(0, 1))
    return Played(rows, seen[-1].reward >= -SUCCESS, diverged, largest)


def make_agent(case: Case) -> KoopmanImitation:
    """An arm that turns at ``speed`` rad/s at most arrives at its reference in one step with this gain."""
    spec = env_spec(ENV)
    tracker = PDTracker(kp=1.0 / (spec.params["speed"] * TwoLinkReach.dt))
    return KoopmanImitation(
        spec,
        ["q1", "q2"],
        ["goal_x", "goal_y"],
        tracker,
        expert=ReachExpert,
        lift=LIFTS[case.lift](),
        relift_every=case.relift_every,
        bound=case.bound,
    )


def demonstrate(number: int, steps: int, seed: int) -> Transitions:
    """``[number * steps]`` rows of the expert's."""
    return play(ReachExpert(env_spec(ENV)), starts(number, seeding.derive_seed(seed, "shown")), steps).rows


def judge(case: Case, shown: Transitions, sizes: Sizes, seed: int) -> dict[str, float]:
    """Fit to the first of the demonstrations, act, count."""
    agent = make_agent(case)
    agent.seed(seed)
    report = agent.fit(shown[: case.demonstrations * sizes.steps])
    begun = starts(sizes.goals, seeding.derive_seed(seed, "test"), sizes.switch_at if case.moves else None, case.far)
    played = play(agent, begun, sizes.steps)
    finite = played.rows.action.isfinite().all() and played.rows.next_obs.isfinite().all()
    return {
        "success": float(played.success.double().mean()),
        "diverged": float(played.diverged.double().mean()),
        "largest_reference": played.largest,
        "finite": float(finite),
        "spectral_radius": report["spectral_radius"],
    }


# -- what is found ---------------------------------------------------------------------------------------------------


def run(sizes: Sizes, seed: int) -> dict[str, dict[str, float]]:
    """Every case for one seed."""
    shown = demonstrate(max(sizes.demonstrations), sizes.steps, seed)
    return {str(case): judge(case, shown, sizes, seed) for case in cases(sizes)}


def goals(sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Case -> least and largest success that was asked for beforehand."""
    wanted = {
        Case("polynomial", sizes.moving): (0.9, 1.0),
        Case("linear", sizes.moving): (0.0, 0.5),
        Case("polynomial", sizes.moving, 0, moves=True): (0.0, 0.2),
        Case("polynomial", sizes.moving, 10, moves=True): (0.8, 1.0),
    }
    return {str(case): limits for case, limits in wanted.items()}


def lines_of(sizes: Sizes, found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A line a case: mean over the seeds, and the seed that is worst for the goal."""
    rows: list[list[object]] = [["case", "success", "each seed", "diverged", "largest reference", "goal"]]
    wanted = goals(sizes)
    for name in found[0]:
        success, diverged = ([seed[name][value] for seed in found] for value in ("success", "diverged"))
        largest = max(seed[name]["largest_reference"] for seed in found)
        each = " ".join(f"{value:.3f}" for value in success)
        rows.append([name, statistics.mean(success), each, statistics.mean(diverged), largest, "-"])
        if name in wanted:
            low, high = wanted[name]
            rows[-1][-1] = f"{low:g}..{high:g} {'reached' if all(low <= s <= high for s in success) else 'missed'}"
    what = f"{ENV}: success (tip within {100 * SUCCESS:g} cm after {sizes.steps} steps) on {sizes.goals} goals"
    finite = all(case["finite"] for seed in found for case in seed.values())
    said = f"every action and observation was {'finite' if finite else 'NOT finite'}; diverged: share of episodes"
    return [f"{what}, {len(found)} seeds; where the goal moves, after step {sizes.switch_at}", *table(rows), said]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; see ``mbrl bench koopman-imitation --help``."""
    parser = make_parser("koopman-imitation", "Imitation by a Koopman rollout", repeats=3)
    parser.add_argument("--no-reacher", action="store_true", help="leave out Reacher-v5")
    options = parse(parser, argv)
    sizes, others = (QUICK, reacher.QUICK) if options.quick else (Sizes(), reacher.Sizes())
    seeds = range(options.seed, options.seed + options.repeats)
    with one_thread():
        found = [run(sizes, seed) for seed in seeds]
        beside = [] if options.no_reacher else [reacher.run(others, seed) for seed in seeds]
    lines = lines_of(sizes, found) + (["", *reacher.lines_of(others, beside)] if beside else [])
    config: dict[str, Any] = {"arm": asdict(sizes), "reacher": asdict(others), "seeds": options.repeats}
    config |= {"goals_asked": goals(sizes)}
    publish("koopman-imitation", argv, options, config, lines, {"arm": found, "reacher": beside})
