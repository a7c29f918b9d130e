"""Is this environment fit for training, resuming and comparing? One finding a question, and what to change."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import env_checker
from numpy.typing import NDArray

from envs.access import mujoco_handles
from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.knowledge.verify import verify_knowledge
from envs.registry import make_env
from envs.rendering import NO_GL, working_gl

Status = Literal["ok", "warn", "fail"]
Restorability = Literal["exact", "replayable", "not restorable"]

HARMLESS = (
    "infinity",
    "not having a spec",
    "normalized Box action space",
    "symmetric and normalized space",
    "skip_render_check",
)
"""Parts of checkers' warnings that do not matter here: unbounded observations are normal, scaling is ours."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question about an environment."""

    name: str
    status: Status
    seen: str
    fix: str = ""
    """What to change; empty when nothing."""

    def line(self) -> str:
        advice = f" -> {self.fix}" if self.fix else ""
        return f"{self.status:4}  {self.name}: {self.seen}{advice}"


@dataclass(frozen=True)
class CheckReport:
    """All findings about one environment. ``restorability`` says how a killed run gets its open episodes back:

    ``exact`` by ``get_state/set_state``, ``replayable`` by the episode's seed and actions, or not at all.
    """

    id: str
    findings: tuple[Finding, ...]
    restorability: Restorability

    @property
    def ok(self) -> bool:
        """Nothing failed (warnings are allowed)."""
        return all(finding.status != "fail" for finding in self.findings)

    def lines(self) -> list[str]:
        """The report, a line a finding, for printing."""
        counts = {status: sum(f.status == status for f in self.findings) for status in ("ok", "warn", "fail")}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        return [f"{self.id}: {summary}; {self.restorability}", *(f"  {finding.line()}" for finding in self.findings)]


def check_env(id: str, *, steps: int = 1000, render: bool = True, **kwargs: Any) -> CheckReport:
    """Examine one environment.

    Runs Gymnasium's and stable-baselines3's checkers, then: known reward terms and termination against the
    environment on ``steps`` random transitions, determinism under a seed, restoring, pickling of the spec, action
    scaling, size of observations and rewards, episode ends, rendering. A broken environment is reported, never raised.

    Args:
        id, kwargs: as for :func:`envs.registry.make_env`.
        steps: random transitions to look at.
        render: try to draw one frame.
    """
    try:
        env = make_env(id, **kwargs)
    except UserError as error:
        return CheckReport(id, (Finding("construction", "fail", str(error), "see the message"),), "not restorable")
    make = lambda **more: make_env(id, **{**kwargs, **more})  # noqa: E731
    questions: list[Callable[[], Finding]] = [
        lambda: _gymnasium(make),
        lambda: _stable_baselines(make),
        lambda: _known(make, steps),
        lambda: _pickling(env),
        lambda: _actions(env),
        lambda: _values(env, steps),
        lambda: _ends(env, steps),
    ]
    findings = [_ask(question) for question in questions]
    findings += _restoring(make)
    if render:
        findings.append(_rendering(make, env))
    env.close()
    return CheckReport(id, tuple(findings), _restorability(findings))


Make = Callable[..., BoundaryEnv]


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect warnings as first lines of text; those that do not matter here are dropped."""
    kept: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield kept
    for warning in caught:
        text = str(warning.message).replace("\x1b[33m", "").replace("\x1b[0m", "").strip().splitlines()[0]
        if text not in kept and not any(part in text for part in HARMLESS):
            kept.append(text)


def _ask(question: Callable[[], Finding], name: str = "stepping") -> Finding:
    """A broken environment may raise anything anywhere: that is a finding."""
    try:
        with _quiet():
            return question()
    except UserError as error:
        return Finding(name, "fail", str(error), "change what the message names")
    except Exception as error:  # whatever foreign code raises is a finding about it
        return Finding(name, "fail", f"{type(error).__name__}: {error}", "see the message")


def _foreign(name: str, check: Callable[[], None]) -> Finding:
    """The verdict of another library's checker."""
    try:
        with _quiet() as complaints:
            check()
    except Exception as error:  # checkers raise assertion errors, and whatever the environment raises
        return Finding(name, "fail", f"{type(error).__name__}: {error}", "change what the checker's message names")
    if complaints:
        return Finding(name, "warn", "; ".join(complaints), "change what the checker's message names")
    return Finding(name, "ok", "passes")


def _gymnasium(make: Make) -> Finding:
    env = make()
    return _foreign("gymnasium", lambda: env_checker.check_env(env.unwrapped, skip_render_check=True))


def _stable_baselines(make: Make) -> Finding:
    try:
        from stable_baselines3.common import env_checker as sb3_checker
    except ImportError:
        return Finding("stable-baselines3", "warn", "not installed, skipped", "pip install stable-baselines3")
    return _foreign("stable-baselines3", lambda: sb3_checker.check_env(make()))


class _EnvUnits(gym.Wrapper[Any, Any, Any, Any]):
    """What known pieces see: flat observations, flat actions in the environment's units, choices counted from 0."""

    def __init__(self, boundary: BoundaryEnv) -> None:
        super().__init__(boundary)
        spec, raw = boundary.env_spec.action, boundary.env.action_space
        self._inner, self._raw = boundary, raw
        if spec.discrete:
            self.action_space = gym.spaces.Discrete(spec.size)
        else:
            low, high = np.array(spec.low), np.array(spec.high)
            self.action_space = gym.spaces.Box(low.astype(raw.dtype), high.astype(raw.dtype), dtype=raw.dtype)  # type: ignore[arg-type]

    def step(self, action: Any) -> Any:
        raw = self._raw
        if isinstance(raw, gym.spaces.Discrete):
            native: Any = int(action) + int(raw.start)
        else:
            native = np.asarray(action).reshape(raw.shape or ())
        obs, reward, terminated, truncated, info = self._inner.env.step(native)
        return self._inner.flatten(obs), reward, terminated, truncated, info


def _known(make: Make, steps: int) -> Finding:
    env = make(action_repeat=1)
    spec, name = env.env_spec, "known pieces"
    pieces = [*spec.reward_terms, *(["termination"] if spec.termination else []), *spec.costs]
    if not pieces:
        return Finding(name, "ok", "no reward or termination function is given; models learn them")
    try:
        wrong = verify_knowledge(_EnvUnits(env), spec, steps=steps)
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        fix = "make it batched torch: (obs [B, D], action [B, A], next_obs [B, D][, params [K]]) -> [B]"
        return Finding(name, "fail", f"{', '.join(pieces)}: {type(error).__name__}: {error}", fix)
    if wrong:
        fix = "make the function equal to what the environment does, or leave it out and let models learn it"
        return Finding(name, "fail", "; ".join(map(str, wrong)), fix)
    whole = "the whole reward" if spec.reward_complete else "a part of the reward" if spec.reward_terms else "no reward"
    return Finding(name, "ok", f"{', '.join(pieces)} ({whole}) agree with the environment on {steps} transitions")


def _pickling(env: BoundaryEnv) -> Finding:
    try:
        same = pickle.loads(pickle.dumps(env.env_spec)).fingerprint == env.env_spec.fingerprint
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        fix = "make every known piece a module-level function or a static method of an importable class"
        return Finding("pickling of the spec", "fail", str(error), fix)
    return Finding("pickling of the spec", "ok" if same else "fail", "survives" if same else "changes on the way")


def _actions(env: BoundaryEnv) -> Finding:
    spec = env.env_spec.action
    if spec.discrete:
        return Finding("actions", "ok", f"{spec.size} choices")
    edges = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, spec.size)
    native = spec.to_env(edges)
    reached = np.stack([env.to_native(row).ravel() for row in edges.numpy()])
    seen = f"[-1, 1]^{spec.size} is scaled to {_range(spec.low)} .. {_range(spec.high)}"
    if not np.allclose(native.numpy(), reached, rtol=1e-6, atol=1e-6):
        return Finding("actions", "fail", f"{seen}, but the environment receives {reached.tolist()}", "report this")
    widths = np.array(spec.high) - np.array(spec.low)
    if widths.max() > 1000.0 * widths.min():
        return Finding("actions", "warn", f"{seen}: widths differ by more than 1000", "check the bounds")
    return Finding("actions", "ok", seen)


def _range(values: tuple[float, ...]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else "(" + ", ".join(f"{v:.4g}" for v in values[:8]) + ")"


def _values(env: BoundaryEnv, steps: int) -> Finding:
    obs, rewards, _ = _sample(env, min(steps, 500), seed=1)
    space, name = env.observation_space, "observations"
    outside = [row for row in obs if not space.contains(row)]
    if outside:
        fix = "widen observation_space, or clip the observation"
        return Finding(name, "fail", f"{len(outside)} of {len(obs)} lie outside the space, e.g. {outside[0]}", fix)
    largest, std = np.abs(obs).max(0), obs.std(0)
    seen = f"finite, inside the space, at most {largest.max():.3g}; rewards {rewards.min():.3g} .. {rewards.max():.3g}"
    if largest.max() > 1e4 or std.max() > 1e3:
        entry = env.name_of(int(largest.argmax()))
        return Finding(name, "warn", f"{seen}; {entry} is very large", "use units in which values are of order 1")
    if np.abs(rewards).max() > 1e4:
        return Finding(name, "warn", seen, "scale the reward to the order of 1 a step")
    return Finding(name, "ok", seen)


def _ends(env: BoundaryEnv, steps: int) -> Finding:
    limit = env.env_spec.max_episode_steps
    if limit is not None:
        return Finding("episodes", "ok", f"at most {limit} steps")
    _, _, ends = _sample(env, steps, seed=2)
    if ends:
        return Finding("episodes", "ok", f"no limit is declared; {ends} ended in {steps} random steps")
    fix = "give max_episode_steps, or register the environment with one"
    return Finding("episodes", "warn", f"no limit, and none ended in {steps} random steps", fix)


def _sample(env: BoundaryEnv, steps: int, seed: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Observations ``[T, D]``, rewards ``[T]`` and the number of ended episodes under random actions."""
    obs, rewards, ends = [env.reset(seed=seed)[0]], [], 0
    for action in _random_actions(env, steps, seed):
        now, reward, terminated, truncated, _ = env.step(action)
        obs.append(now)
        rewards.append(reward)
        if terminated or truncated:
            ends += 1
            obs.append(env.reset()[0])
    return np.stack(obs), np.array(rewards), ends


def _random_actions(env: BoundaryEnv, steps: int, seed: int) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


Trace = list[tuple[bytes, float, bool, bool]]


def _trace(env: BoundaryEnv, actions: list[Any]) -> Trace:
    """Everything the environment shows under ``actions``, up to an end; observations as bytes, so NaN is itself."""
    trace: Trace = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        trace.append((obs.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return trace


def _episode(env: BoundaryEnv, seed: int, actions: list[Any]) -> Trace:
    first, _ = env.reset(seed=seed)
    return [(first.tobytes(), 0.0, False, False), *_trace(env, actions)]


def _restoring(make: Make) -> list[Finding]:
    env = make()
    findings = [_ask(lambda: _determinism(make, env), DETERMINISM)]
    if env.restorable:
        findings.append(_ask(lambda: _exactness(env), EXACTNESS))
    return findings


DETERMINISM, EXACTNESS = "determinism", "get_state/set_state"


def _determinism(make: Make, env: BoundaryEnv) -> Finding:
    actions = _random_actions(env, 200, seed=3)
    first, again, elsewhere = _episode(env, 3, actions), _episode(env, 3, actions), _episode(make(), 3, actions)
    for other, where in ((again, "a second reset"), (elsewhere, "a new instance")):
        if first != other:
            at = next((i for i, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]), len(other))
            seen = f"the same seed and actions differ from step {at} on, in {where}"
            fix = "draw every random number from self.np_random, and reset all state in reset(seed=...)"
            return Finding(DETERMINISM, "fail", seen, fix)
    return Finding(DETERMINISM, "ok", f"the same seed and actions repeat to the bit over {len(first) - 1} steps")


def _exactness(env: BoundaryEnv) -> Finding:
    actions = _random_actions(env, 40, seed=4)
    env.reset(seed=4)
    _trace(env, actions[:5])
    saved = env.get_state()
    first = _trace(env, actions[5:])
    env.reset(seed=5)
    env.set_state(saved)
    if _trace(env, actions[5:]) == first:
        return Finding(EXACTNESS, "ok", "restores to the bit")
    fix = "save everything that a step depends on, random state too, or do not offer get_state"
    return Finding(EXACTNESS, "fail", "the continuation differs after set_state", fix)


def _restorability(findings: list[Finding]) -> Restorability:
    verdicts = {finding.name: finding.status for finding in findings}
    if verdicts.get(EXACTNESS) == "ok":
        return "exact"
    return "replayable" if verdicts[DETERMINISM] == "ok" and EXACTNESS not in verdicts else "not restorable"


def _rendering(make: Make, env: BoundaryEnv) -> Finding:
    name = "rendering"
    if "rgb_array" not in env.metadata.get("render_modes", []):
        return Finding(name, "ok", "skipped: it offers no rgb_array")
    if mujoco_handles(env) is not None and working_gl() is None:
        return Finding(name, "ok", f"skipped: {NO_GL}")
    return _ask(lambda: _frame(make), name)


def _frame(make: Make) -> Finding:
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    env.close()
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3:
        return Finding("rendering", "ok", f"draws {frame.shape[1]} x {frame.shape[0]} pixels")
    return Finding("rendering", "fail", f"render() gave {type(frame).__name__}", "return a uint8 array [H, W, 3]")
