"""Episodes of an agent as a film, where the machine can draw: ``mbrl record``, and the film of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from agents.base import Agent
from envs.boundary import BoundaryEnv
from envs.errors import UserError
from experiments import evaluation
from experiments.config import RunConfig, make_one_env
from experiments.film import KINDS, Film, Image, film, write_on
from experiments.run import RunDirectory
from experiments.session import Session, restore_agent
from mbrl import seeding

USUAL_RATE = 30.0
"""Frames a second where an environment does not say how long a step takes."""


class CannotDraw(Exception):
    """This machine, or this environment, gives no frames; the text says why in one line."""


def run_record(
    session: Session,
    run: RunDirectory,
    *,
    best: bool = False,
    episodes: int = 1,
    format: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    overlay: bool = False,
) -> tuple[Path | None, str]:
    """Film the agent of a run. Nothing of the run changes but ``videos/``.

    Args:
        session: the run's parts, see :func:`experiments.session.reopen`.
        run: where its checkpoints lie.
        best: the best weights instead of the newest.
        episodes: how many, one after the other in one film.
        format: ``mp4`` or ``gif``; by default as ``out`` ends, else ``mp4``.
        out: the file; by default ``RUN/videos/step-ENV_STEPS.FORMAT``. A file that is there is replaced.
        seed: episode ``i`` starts from reset seed ``seed + i``; by default the starts of the evaluation.
        overlay: write the step and the return so far on every frame.

    Returns:
        The file and an empty text; or None and one line that says why there is none.

    Raises:
        UserError: a value that cannot be used, a run without a checkpoint, a place that cannot be written to.
    """
    _check_count("--episodes", episodes, least=1)
    if seed is not None:
        _check_count("--seed", seed, least=0)
    ending = _ending(format, out)
    env_steps = restore_agent(session, run, best)
    if out is None:
        marks = ("-best" if best else "") + (f"-seed{seed}" if seed is not None else "")
        out = run.videos / f"step-{env_steps:012d}{marks}{ending}"
    try:
        with session.showing() as config:
            return _film(session.agent, config, out, episodes=episodes, seed=seed, overlay=overlay), ""
    except CannotDraw as error:
        return None, str(error)


def record(agent: Agent, config: RunConfig, path: Path) -> tuple[Path | None, str]:
    """An episode from the first evaluation start as ``path`` (mp4 or gif); or None and why there is none."""
    try:
        return _film(agent, config, path), ""
    except CannotDraw as error:
        return None, str(error)
    except Exception as error:  # a run that has come to its end must not fail for the sake of its film
        return None, f"this machine cannot film it ({_in_words(error)})"


def _check_count(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(field, value, f"give a whole number of at least {least}")


def _ending(format: str | None, out: Path | None) -> str:
    """How the file's name ends, dot included: as asked, and as the file is called."""
    if format is not None and f".{format}" not in KINDS:
        raise UserError("--format", format, "give mp4 or gif", ("mp4", "gif"))
    if out is None:
        return f".{format or 'mp4'}"
    if out.is_dir():
        raise UserError("--out", str(out), "it is a directory; name a file, for example film.gif")
    if out.suffix not in KINDS:
        raise UserError("--out", str(out), "the name must end in .mp4 or .gif")
    if format is not None and out.suffix != f".{format}":
        raise UserError("--out", str(out), f"--format {format} makes no {out.suffix} file; leave one of them out")
    return out.suffix


def _film(
    agent: Agent, config: RunConfig, path: Path, episodes: int = 1, seed: int | None = None, overlay: bool = False
) -> Path:
    _check_rendering(config)
    start = config.evaluation.seed if seed is None else seed
    generator = seeding.generator(config.seed, "video")
    noise = torch.Generator(agent.device).manual_seed(generator.initial_seed())
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # pygame would look for a screen and a sound card, aloud
        os.environ.setdefault(driver, "dummy")
    with _drawing():
        env = make_one_env(config.env, render_mode="rgb_array")()
    try:
        rate = 1.0 / env.env_spec.dt if env.env_spec.dt else USUAL_RATE
        with film(path, rate) as reel, seeding.seeded(generator), torch.no_grad():
            for episode in range(episodes):
                _play(agent, env, start + episode, noise, reel, overlay)
    finally:
        env.close()
    return path


@contextmanager
def _drawing() -> Iterator[None]:
    """Graphics fail in as many ways as there are drivers; every one of them becomes :class:`CannotDraw`."""
    try:
        yield
    except Exception as error:
        raise CannotDraw(f"this machine cannot draw it ({_in_words(error)})") from error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _check_rendering(config: RunConfig) -> None:
    """The environment's class offers frames, else :class:`CannotDraw` says what it lacks."""
    lacks = "the environment offers no rgb_array rendering: "
    env = make_one_env(config.env)()
    modes = (env.metadata or {}).get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        raise CannotDraw(lacks + "name it in metadata['render_modes'] of its class")
    try:
        make_one_env(config.env, render_mode="rgb_array")().close()
    except UserError as error:
        if isinstance(error.__cause__, TypeError):  # built without a render mode it could be
            raise CannotDraw(f"{lacks}its constructor must take render_mode ({error.__cause__})") from error
        raise CannotDraw(f"this machine cannot draw it ({_in_words(error)})") from error


def _play(agent: Agent, env: BoundaryEnv, seed: int, noise: torch.Generator, reel: Film, overlay: bool) -> None:
    """Film one episode: a frame of the start, and one after every step."""
    actor_state, is_first, over, total, steps = agent.initial_actor_state(1), True, False, 0.0, 0
    obs, _ = env.reset(seed=seed)
    reel.add(_frame(env, f"step 0  return {total:.1f}" if overlay else ""))
    while not over:
        batch = torch.as_tensor(np.asarray(obs, dtype=np.float32), device=agent.device)[None]
        state = env.sim_state() if agent.wants_sim_state else None
        sim_state = None if state is None else torch.as_tensor(state, device=agent.device)[None]
        first = torch.tensor([is_first], device=agent.device)
        action, actor_state, _ = agent.act(batch, actor_state, first, "evaluate", noise, sim_state=sim_state)
        row = action[0].cpu().numpy()
        obs, reward, terminated, truncated, _ = env.step(int(row.argmax()) if env.env_spec.action.discrete else row)
        total, steps = total + float(reward), steps + 1
        reel.add(_frame(env, f"step {steps}  return {total:.1f}" if overlay else ""))
        is_first, over = False, terminated or truncated
        if not over and env.env_spec.max_episode_steps is None and steps >= evaluation.LONGEST_EPISODE:
            fix = f"an episode did not end within {steps} steps; set env.max_episode_steps in the run's configuration"
            raise UserError("env.max_episode_steps", None, fix)


def _frame(env: BoundaryEnv, text: str) -> Image:
    with _drawing():
        drawn = np.asarray(env.render())
        if drawn.ndim != 3 or drawn.shape[-1] != 3 or drawn.dtype != np.uint8:
            seen = f"{drawn.dtype} of shape {list(drawn.shape)}"
            raise TypeError(f"render returned {seen}; it must be uint8 [height, width, 3]")
    return write_on(drawn, text) if text else drawn
