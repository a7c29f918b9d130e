"""On little data a policy exploits its model; a penalty on what the model is unsure of prevents that."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Generator

from agents.actor_critic import ActorCritic
from agents.offline.model_based import OfflineDynaAgent
from mbrl.clock import Clock
from mbrl.fitting import Fitter
from mbrl.imagination.filters import UncertaintyPenalty
from mbrl.models.ensemble import ProbabilisticEnsemble
from tests.agents.offline.pendulum_data import REWARD_SCALE, SPEC, filled, mean_return, noisy_swing_up, play

SEEDS, UPDATES, WEIGHT = 5, 8000, 50.0


def learned(seed: int, weight: float) -> tuple[float, float]:
    """Return of the policy after learning from one episode, and what its critics say at the edge of the rollouts."""
    draw = Generator().manual_seed(seed)
    rows = play(noisy_swing_up(draw), 1, draw)
    rows.reward = rows.reward / REWARD_SCALE  # the reward is known to the model, in the environment's units
    td3 = partial(ActorCritic, policy="deterministic", actor_reducer="first", policy_delay=2, target_delay=2)
    torch.manual_seed(seed)
    agent = OfflineDynaAgent(
        SPEC,
        model=partial(ProbabilisticEnsemble, members=5, hidden=64, layers=2, probabilistic=False),
        learner=partial(td3, hidden=64, gamma=0.97, lr=1e-3),
        fitter=Fitter(batch_size=64, max_epochs=100, patience=10),
        filters=[UncertaintyPenalty("std_of_means", weight)],
        horizon=5,
        starts=1000,
        refresh_every=500,
        real_ratio=0.5,
        batch_size=128,
    )
    agent.seed(seed)
    agent.load(filled(rows))
    clock, edge = Clock(), 0.0
    while clock.updates < UPDATES:
        edge = agent.update(clock).get("imagine", {}).get("q_at_depth_5", edge)
    return mean_return(lambda obs: agent.learner.act(obs, None), episodes=20), edge


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_penalty_beats_none_on_narrow_data() -> None:
    plain, doubting = ([learned(seed, weight) for seed in range(SEEDS)] for weight in (0.0, WEIGHT))
    better = [mine[0] > other[0] for mine, other in zip(doubting, plain, strict=True)]
    assert sum(better) >= 4, (plain, doubting)
    # every reward is negative: a positive value is impossible
    assert max(edge for _, edge in doubting) < 0.0, doubting
