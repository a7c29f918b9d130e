"""From plain values in a recipe to what a stable-baselines3 constructor takes."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule

from envs.errors import UserError
from envs.spec import EnvSpec

AlgorithmName = Literal["sac", "td3", "ddpg", "ppo", "dqn", "tqc", "crossq"]
PLACES: Mapping[str, tuple[str, str]] = {
    "sac": ("stable_baselines3", "SAC"),
    "td3": ("stable_baselines3", "TD3"),
    "ddpg": ("stable_baselines3", "DDPG"),
    "ppo": ("stable_baselines3", "PPO"),
    "dqn": ("stable_baselines3", "DQN"),
    "tqc": ("sb3_contrib", "TQC"),
    "crossq": ("sb3_contrib", "CrossQ"),
}
DISCRETE, CONTINUOUS = frozenset({"dqn", "ppo"}), frozenset(PLACES) - {"dqn"}

HERE = "agent.init_args.kwargs"
OWN_RECORDS = "leave it out; the run keeps its own records"
OWN_MEMORY = "leave it out; transitions are kept in the platform's buffers"
RESERVED: Mapping[str, str] = {
    "policy": "set it as agent.init_args.policy",
    "env": "leave it out; the run's environment is used",
    "seed": "leave it out; the run's seed is used",
    "device": "set it as agent.init_args.device",
    "_init_setup_model": "leave it out",
    **dict.fromkeys(("verbose", "tensorboard_log", "stats_window_size"), OWN_RECORDS),
    **dict.fromkeys(("replay_buffer_class", "optimize_memory_usage"), OWN_MEMORY),
    **dict.fromkeys(("rollout_buffer_class", "rollout_buffer_kwargs"), OWN_MEMORY),
}
RESERVED_INSIDE: Mapping[str, str] = {
    "use_sde": "set it beside policy_kwargs, not inside",
    "features_extractor_class": "observations are flat here; leave it out",
}
SHARES = ("tau", "gamma", "gae_lambda", "exploration_fraction", "exploration_initial_eps", "exploration_final_eps")
LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(SHARES, (0.0, 1.0)),
    **dict.fromkeys(("batch_size", "n_steps", "n_epochs", "policy_delay", "target_update_interval"), (1, math.inf)),
    **dict.fromkeys(("learning_starts", "learning_rate", "clip_range", "clip_range_vf"), (0, math.inf)),
    **dict.fromkeys(("max_grad_norm", "target_kl", "target_policy_noise", "target_noise_clip"), (0, math.inf)),
    **dict.fromkeys(("gradient_steps", "sde_sample_freq"), (-1, math.inf)),
    "buffer_size": (1, 10**9),
}
TEXTS: Mapping[str, str] = {"ent_coef": r"auto(_\d+(\.\d+)?)?", "target_entropy": "auto"}


def algorithm_class(name: str, spec: EnvSpec) -> type[BaseAlgorithm]:
    """The library's class of this name. Raises ``UserError`` when it cannot act in this environment."""
    if name not in PLACES:
        raise UserError("agent.init_args.algorithm", name, f"there are {', '.join(PLACES)}", PLACES)
    fitting = DISCRETE if spec.action.discrete else CONTINUOUS
    if name not in fitting:
        fix = f"{spec.id} has {spec.action.kind} actions; for those there are {', '.join(sorted(fitting))}"
        raise UserError("agent.init_args.algorithm", name, fix)
    module, attribute = PLACES[name]
    found: type[BaseAlgorithm] = getattr(importlib.import_module(module), attribute)
    return found


def constructor_arguments(
    cls: type[BaseAlgorithm], policy: str, kwargs: Mapping[str, Any], spec: EnvSpec
) -> dict[str, Any]:
    """``kwargs`` as ``cls`` takes them: schedules, noise and network options made from their plain forms.

    Raises:
        UserError: a name that ``cls`` does not have or that is the platform's business; a value of another type or
            out of range. It names the field.
    """
    if policy not in cls.policy_aliases or policy != "MlpPolicy":
        raise UserError("agent.init_args.policy", policy, "observations are flat here; give MlpPolicy", ["MlpPolicy"])
    hints = _hints(cls)
    made = {}
    for name, value in kwargs.items():
        where = f"{HERE}.{name}"
        _check_name(where, name, hints, RESERVED, cls.__name__)
        if name == "policy_kwargs":
            made[name] = _policy_arguments(where, cls.policy_aliases[policy], value)
        elif name in CONVERTERS:
            made[name] = CONVERTERS[name](where, value, spec)
        else:
            made[name] = _checked(where, name, value, hints[name])
    return made


def _hints(cls: Any) -> dict[str, Any]:
    """Argument names of a constructor and their types; names that only type checkers can resolve stay unresolved."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {parameter.name: parameter.annotation for parameter in parameters}


def _check_name(where: str, name: str, known: Mapping[str, Any], reserved: Mapping[str, str], owner: str) -> None:
    if name not in known:
        raise UserError(where, name, f"{owner} has no argument of this name.", set(known) - set(reserved))
    if name in reserved:
        raise UserError(where, name, reserved[name])


def _checked(where: str, name: str, value: Any, annotation: Any) -> Any:
    """A plain value of the annotated type and in its range."""
    if not _is_of(value, annotation):
        raise UserError(where, value, f"expected {_words(annotation)}")
    if isinstance(value, str) and name in TEXTS and not re.fullmatch(TEXTS[name], value):
        raise UserError(where, value, "give a number, or auto")
    low, high = LIMITS.get(name, (-math.inf, math.inf))
    if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(where, value, f"give a number {bounds}")
    return value


def _is_of(value: Any, annotation: Any) -> bool:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)
    if annotation is Any:
        return True
    if isinstance(value, bool) or value is None:
        return type(value) in options
    if isinstance(value, int):
        return int in options or float in options
    return any(isinstance(option, type) and isinstance(value, option) for option in options)


UNIONS = (typing.Union, types.UnionType)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _words(annotation: Any) -> str:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)
    return " or ".join(dict.fromkeys(WORDS[option] for option in options if option in WORDS)) or str(annotation)


# -- values with a plain form of their own -------------------------------------------------------------------------


def _mapping(where: str, value: Any, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    form = ", ".join([*needed, *(f"{name} (optional)" for name in optional)])
    if not isinstance(value, Mapping):
        raise UserError(where, value, f"give a mapping of {form}")
    for name in value:
        if name not in (*needed, *optional):
            raise UserError(f"{where}.{name}", name, f"there is no such key here; there are {form}", needed + optional)
    for name in needed:
        if name not in value:
            raise UserError(f"{where}.{name}", "missing", f"give a mapping of {form}")
    return value


def _schedule(where: str, value: Any, spec: EnvSpec) -> float | LinearSchedule | None:
    """A number, or ``{start, end, fraction}``: linear in the run's env steps, ``end`` reached after that fraction."""
    name = where.rpartition(".")[2]
    if not isinstance(value, Mapping):
        return typing.cast(
            float | None, _checked(where, name, value, float | None if name == "clip_range_vf" else float)
        )
    parts = _mapping(where, value, ("start", "end"), ("fraction",))
    start, end = (_checked(f"{where}.{part}", name, parts[part], float) for part in ("start", "end"))
    fraction = _checked(f"{where}.fraction", "tau", parts.get("fraction", 1.0), float)
    if not fraction:
        raise UserError(f"{where}.fraction", fraction, "give a share of the run in (0, 1]")
    return LinearSchedule(start, end, fraction)


NOISES = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}


def _noise(where: str, value: Any, spec: EnvSpec) -> ActionNoise | None:
    """``{kind: normal, std: 0.1}`` in platform units, or null."""
    if value is None:
        return None
    parts = _mapping(where, value, ("kind", "std"))
    if not isinstance(parts["kind"], str) or parts["kind"] not in NOISES:
        raise UserError(f"{where}.kind", parts["kind"], f"there are {', '.join(NOISES)}", NOISES)
    std = _checked(f"{where}.std", "max_grad_norm", parts["std"], float)
    noise: ActionNoise = NOISES[parts["kind"]](np.zeros(spec.action.size), np.full(spec.action.size, float(std)))
    return noise


def _train_freq(where: str, value: Any, spec: EnvSpec) -> int | tuple[int, str]:
    """Env steps of every slot, or a list of a number and ``step`` or ``episode``."""
    count, unit = value if isinstance(value, list | tuple) and len(value) == 2 else (value, "step")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or unit not in ("step", "episode"):
        raise UserError(where, value, "give a whole number of at least 1, or for example [1, episode]")
    return count, unit


def _replay(where: str, value: Any, spec: EnvSpec) -> dict[str, Any]:
    parts = _mapping(where, {} if value is None else value, (), ("handle_timeout_termination",))
    return {name: _checked(f"{where}.{name}", name, given, bool) for name, given in parts.items()}


CONVERTERS: Mapping[str, Any] = {
    "learning_rate": _schedule,
    "clip_range": _schedule,
    "clip_range_vf": _schedule,
    "action_noise": _noise,
    "train_freq": _train_freq,
    "replay_buffer_kwargs": _replay,
}


def _policy_arguments(where: str, cls: type, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(where, value, "give a mapping, for example {net_arch: [64, 64]}")
    given_by_library = ("observation_space", "action_space", "lr_schedule")
    hints = {name: hint for name, hint in _hints(cls).items() if name not in given_by_library}
    made = {}
    for name, part in value.items():
        place = f"{where}.{name}"
        _check_name(place, name, hints, RESERVED_INSIDE, "the policy")
        if name == "net_arch":
            made[name] = _layers(place, part)
        elif name in MODULES:
            made[name] = _torch_class(place, part, *MODULES[name])
        elif name in ("optimizer_kwargs", "features_extractor_kwargs"):
            made[name] = dict(_mapping(place, part, (), tuple(part) if isinstance(part, Mapping) else ()))
        else:
            made[name] = _checked(place, name, part, hints[name])
    return made


MODULES: Mapping[str, tuple[Any, type, str]] = {
    "activation_fn": (torch.nn, torch.nn.Module, "ReLU"),
    "optimizer_class": (torch.optim, torch.optim.Optimizer, "Adam"),
}


def _torch_class(where: str, name: Any, package: Any, base: type, example: str) -> type:
    names = [n for n, cls in vars(package).items() if inspect.isclass(cls) and issubclass(cls, base)]
    if name not in names:
        raise UserError(where, name, f"give the name of a class in {package.__name__}, for example {example}", names)
    found: type = getattr(package, name)
    return found


def _layers(where: str, value: Any) -> Any:
    """``[64, 64]``, or a list for each of ``pi`` and ``qf`` (off-policy) or ``vf`` (on-policy)."""
    if isinstance(value, Mapping):
        parts = _mapping(where, value, (), ("pi", "qf", "vf"))
        return {name: _layers(f"{where}.{name}", layers) for name, layers in parts.items()}
    if not isinstance(value, list) or not all(type(width) is int and width > 0 for width in value):
        raise UserError(where, value, "give a list of layer widths, for example [64, 64]")
    return list(value)
