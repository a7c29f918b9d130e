"""An episode as a film, where the machine can draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import Agent
from envs.boundary import BoundaryEnv
from envs.errors import UserError
from experiments.config import RunConfig, make_one_env
from mbrl import seeding


def record(agent: Agent, config: RunConfig, path: Path) -> tuple[Path | None, str]:
    """An episode from the first evaluation start as ``path`` (mp4); or None and why there is none."""
    try:
        if problem := _missing_rendering(config):
            return None, f"the environment offers no rgb_array rendering: {problem}"
        env = make_one_env(config.env, render_mode="rgb_array")()
        try:
            frames, rate = _play(agent, env, config)
        finally:
            env.close()
        return _write(path, frames, rate), ""
    except Exception as error:  # graphics fail in as many ways as there are drivers; a run must not
        return None, f"this machine cannot draw it ({type(error).__name__}: {' '.join(str(error).split())})"


def _missing_rendering(config: RunConfig) -> str:
    """What the environment's class lacks to draw frames; empty when nothing."""
    env = make_one_env(config.env)()
    modes = (env.metadata or {}).get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        return "name it in metadata['render_modes'] of its class"
    try:
        make_one_env(config.env, render_mode="rgb_array")().close()
    except UserError as error:
        if isinstance(error.__cause__, TypeError):  # built without a render mode it could be
            return f"its constructor must take render_mode ({error.__cause__})"
        raise
    return ""


def _play(agent: Agent, env: BoundaryEnv, config: RunConfig) -> tuple[list[Any], float]:
    generator = seeding.generator(config.seed, "video", device=agent.device)
    actor_state, is_first, over = agent.initial_actor_state(1), True, False
    obs, _ = env.reset(seed=config.evaluation.seed)
    frames: list[Any] = [env.render()]
    while not over:
        batch = torch.as_tensor(np.asarray(obs, dtype=np.float32), device=agent.device)[None]
        state = env.sim_state() if agent.wants_sim_state else None
        sim_state = None if state is None else torch.as_tensor(state, device=agent.device)[None]
        first = torch.tensor([is_first], device=agent.device)
        action, actor_state, _ = agent.act(batch, actor_state, first, "evaluate", generator, sim_state=sim_state)
        row = action[0].cpu().numpy()
        obs, _, terminated, truncated, _ = env.step(int(row.argmax()) if env.env_spec.action.discrete else row)
        frames.append(env.render())
        is_first, over = False, terminated or truncated
    return frames, 1.0 / env.env_spec.dt if env.env_spec.dt else 30.0


def _write(path: Path, frames: list[Any], rate: float) -> Path:
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.mimsave(path, [np.asarray(frame) for frame in frames], fps=min(max(rate, 5.0), 100.0), macro_block_size=2)
    return path
