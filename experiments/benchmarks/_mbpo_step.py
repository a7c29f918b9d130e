"""Where the time of one MBPO env step goes: part of ``mbrl bench update``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from agents.dyna import DynaAgent
from envs.pool import EnvPool
from experiments.config import make_one_env, resolve
from mbrl.clock import Clock
from mbrl.data.played import to_transitions

PARTS = {
    "model fit": "fitter.fit",
    "imagination": "imagine",
    "batches": "draw",
    "actor-critic updates": "learner.update",
    "errors by depth": "judge_model",
}
"""Part -> the agent's method that does it."""


def profile_step(env: str, overrides: list[tuple[str, Any]], steps: int) -> dict[str, float]:
    """Processor milliseconds an env step of every part of ``mbpo-fast``, over ``steps`` env steps after the warm-up.

    The fit that ends the warm-up and the first updates (which compile) are left out.
    """
    config = resolve("mbpo-fast", overrides, env=env).config
    pool = EnvPool(make_one_env(config.env), 1, lambda slot, episode: episode)
    agent = config.agent(pool.spec)
    assert isinstance(agent, DynaAgent)
    agent.seed(config.seed)
    spent: dict[str, float] = defaultdict(float)
    for part, name in PARTS.items():
        _watch(agent, name, part, spent)
    generator, clock, state = torch.Generator().manual_seed(0), Clock(), agent.initial_actor_state(1)
    pool.reset()
    for step in range(agent.warmup_steps + 5 + steps):
        if step == agent.warmup_steps + 5:
            spent.clear()
            began = time.process_time()
        obs, first = torch.from_numpy(pool.obs), torch.from_numpy(pool.is_first)
        action, state, extra = _timed(spent, "acting", agent.act, obs, state, first, "explore", generator)
        happened = _timed(spent, "environment", pool.step, action.numpy())
        agent.observe(to_transitions(happened, action, extra, clock.updates))
        clock.tick(1)
        agent.update(clock)
        _timed(spent, "environment", pool.reset_ended)
    total = time.process_time() - began
    pool.close()
    return {**{part: 1000 * value / steps for part, value in spent.items()}, "whole": 1000 * total / steps}


def _watch(agent: Any, name: str, part: str, spent: dict[str, float]) -> None:
    """Time every call of the agent's method ``name``, which may belong to one of its parts."""
    *owners, method = name.split(".")
    for owner in owners:
        agent = getattr(agent, owner)
    work = getattr(agent, method)
    setattr(agent, method, lambda *args, **kwargs: _timed(spent, part, work, *args, **kwargs))


def _timed(spent: dict[str, float], part: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    began = time.process_time()
    found = work(*args, **kwargs)
    spent[part] += time.process_time() - began
    return found
