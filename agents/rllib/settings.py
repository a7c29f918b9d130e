"""From plain values in a recipe to a configuration of RLlib."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from envs.errors import UserError
from envs.rendering import gl_backend
from envs.spec import EnvSpec
from mbrl.imagination.model_env import spaces_of

AlgorithmName = Literal["ppo", "sac", "dreamerv3"]
PLACES: Mapping[str, tuple[str, str]] = {
    "ppo": ("ray.rllib.algorithms.ppo", "PPOConfig"),
    "sac": ("ray.rllib.algorithms.sac", "SACConfig"),
    "dreamerv3": ("ray.rllib.algorithms.dreamerv3", "DreamerV3Config"),
}

HERE = "agent.init_args.kwargs"
ELSEWHERE: Mapping[str, str] = {
    "rollout_fragment_length": "env_runners",
    "batch_mode": "env_runners",
    "min_sample_timesteps_per_iteration": "reporting",
}
"""Settings that RLlib takes in other methods than ``training``."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "model_size": ("nano", "micro", "mini", "XXS", "XS", "S", "M", "L", "XL"),
    "batch_mode": ("truncate_episodes", "complete_episodes"),
}
CODE = "a recipe holds plain values; leave it out"
OLD = "RLlib's current API does without it; leave it out"
RESERVED: Mapping[str, str] = {
    **dict.fromkeys(("learner_class", "learner_connector", "add_default_connectors_to_learner_pipeline"), CODE),
    **dict.fromkeys(("learner_config_dict", "_deterministic_loss", "_use_beta_distribution", "use_curiosity"), CODE),
    **dict.fromkeys(("num_aggregator_actors_per_learner", "max_requests_in_flight_per_aggregator_actor"), CODE),
    **dict.fromkeys(("optimizer", "optimization_config", "q_model_config", "policy_model_config"), OLD),
    **dict.fromkeys(("num_sgd_iter", "max_requests_in_flight_per_sampler_worker", "vf_share_layers"), OLD),
    **dict.fromkeys(("lr_schedule", "entropy_coeff_schedule", "clip_actions"), OLD),
    "train_batch_size": "set it as train_batch_size_per_learner",
    "store_buffer_in_checkpoints": "leave it out; the run's checkpoints hold the rows",
}
RESERVED_OF: Mapping[str, Mapping[str, str]] = {
    "ppo": {},
    "sac": {"lr": "set actor_lr, critic_lr and alpha_lr"},
    "dreamerv3": {
        "lr": "set world_model_lr, actor_lr and critic_lr",
        "model": "set model_size",
        "train_batch_size_per_learner": "set batch_size_B and batch_length_T",
    },
}


def make_config(spec: EnvSpec, algorithm: str, kwargs: Mapping[str, Any]) -> Any:
    """RLlib's configuration of an algorithm: ``kwargs`` checked and set, the environment's spaces told.

    Raises:
        UserError: an algorithm or a name that there is not, or a value that RLlib refuses. It names the field.
    """
    if algorithm not in PLACES:
        raise UserError("agent.init_args.algorithm", algorithm, f"there are {', '.join(PLACES)}", PLACES)
    config = _config_class(algorithm)()
    known, reserved = _names(type(config)), {**RESERVED, **RESERVED_OF[algorithm]}
    by_method: dict[str, dict[str, Any]] = {}
    for name, value in kwargs.items():
        where = f"{HERE}.{name}"
        if name not in known:
            raise UserError(where, name, f"{algorithm} has no setting of this name.", set(known) - set(reserved))
        if name in reserved:
            raise UserError(where, name, reserved[name])
        by_method.setdefault(known[name], {})[name] = _checked(where, name, value, config)
    obs_space, action_space = spaces_of(spec)
    config.environment(observation_space=obs_space, action_space=action_space)
    config.reporting(min_time_s_per_iteration=0)  # rounds are counted in env steps, not in seconds
    for method, values in by_method.items():
        _set(config, method, values)
    return config


def _config_class(algorithm: str) -> type:
    """RLlib's import tries environments of its own, which warn, and imports dm_control, which looks for a display."""
    module, attribute = PLACES[algorithm]
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore", UserWarning)
        if "dm_control" not in sys.modules:
            stack.enter_context(gl_backend("off"))
        found: type = getattr(importlib.import_module(module), attribute)
    return found


def _names(config: type) -> dict[str, str]:
    """Every setting of an algorithm, and the method that takes it."""
    names = {
        name: "training"
        for cls in config.__mro__
        if "training" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["training"]).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return {**names, **ELSEWHERE, "model": "rl_module"}


def _checked(where: str, name: str, value: Any, config: Any) -> Any:
    """A value of the kind that RLlib's own is; what is a number there may be a schedule ``[[step, value], ...]``."""
    if name == "model":
        return _model(where, value)
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(where, value, f"there are {', '.join(CHOICES[name])}", CHOICES[name])
    default = getattr(config, name, None)
    if isinstance(default, Mapping):
        return _mapping(where, value, default)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(where, value, f"give true or false (RLlib's own: {str(default).lower()})")
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and (isinstance(value, bool) or not isinstance(value, int | float | list)):
        raise UserError(where, value, f"give a number (RLlib's own: {default})")
    if name.endswith("lr") and isinstance(value, int | float) and not 0.0 <= value < math.inf:
        raise UserError(where, value, "give a finite number of at least 0")
    return value


def _mapping(where: str, value: Any, default: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(where, value, f"give a mapping, as RLlib's own is: {dict(default)}")
    for name in value:
        if name not in default:
            raise UserError(f"{where}.{name}", name, "there is no such setting here.", default)
    return dict(value)


def _model(where: str, value: Any) -> Any:
    """The options of RLlib's default networks, for example ``{fcnet_hiddens: [64, 64]}``."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    names = [field.name for field in dataclasses.fields(DefaultModelConfig)]
    return DefaultModelConfig(**_mapping(where, value, dict.fromkeys(names)))


def _set(config: Any, method: str, values: Mapping[str, Any]) -> None:
    given = {"model_config": values["model"]} if method == "rl_module" else values
    try:
        getattr(config, method)(**given)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(HERE, dict(values), f"RLlib refuses these values: {first_line(error)}") from error


def check_config(config: Any) -> None:
    """Have RLlib judge a configuration whose workers are set too. Raises ``UserError``."""
    try:
        config.validate()
    except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(HERE, config.algo_class.__name__, f"RLlib refuses this: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, short."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[0] if said else type(error).__name__
