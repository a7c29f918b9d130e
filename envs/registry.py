"""From a name to an environment."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import gymnasium as gym

from envs.boundary import BoundaryEnv
from envs.errors import UserError
from envs.mujoco_log import say_warnings_once
from envs.physics.base import Physics
from envs.rendering import gl_backend, working_gl
from envs.spec import EnvSpec

Loader = Callable[..., gym.Env[Any, Any]]
"""``loader(name, **kwargs) -> gym.Env``: what follows the scheme's colon, and constructor arguments."""

OWN: Mapping[str, tuple[str, int]] = {
    "mbrl/CartPoleSwingUp-v0": ("envs.cartpole:CartPoleSwingUp", 150),
    "mbrl/CartPoleBalance-v0": ("envs.cartpole:CartPoleBalance", 200),
    "mbrl/CartPoleTip-v0": ("envs.cartpole:CartPoleTip", 200),
    "mbrl/AcrobotContinuous-v0": ("envs.acrobot:AcrobotContinuous", 200),
    "mbrl/DoubleIntegrator-v0": ("envs.linear:DoubleIntegrator", 100),
    "mbrl/MassSpringDamper-v0": ("envs.linear:MassSpringDamper", 150),
    "mbrl/PointGoal-v0": ("envs.navigation:PointGoal", 100),
    "mbrl/VanDerPol-v0": ("envs.oscillator:VanDerPol", 100),
    "mbrl/TwoLinkReach-v0": ("envs.two_link_arm:TwoLinkReach", 50),
}
"""The platform's own environments, written in torch: Gymnasium id -> class, episode limit."""

OWN_MUJOCO: Mapping[str, tuple[str, int]] = {
    "mbrl/ReacherLinks-v0": ("envs.bodies:ReacherLinks", 50),
    "mbrl/HalfCheetahBodies-v0": ("envs.bodies:HalfCheetahBodies", 1000),
    "mbrl/ArmPush-v0": ("envs.pushing:ArmPush", 120),
    "mbrl/ArmDoor-v0": ("envs.door:ArmDoor", 120),
}
"""Those that MuJoCo simulates."""

PACKAGES = ("envs", "mbrl", "agents", "experiments")
"""The platform's packages: they stand before a user's folders of the same names."""

Alias = Callable[[str], tuple[str, Mapping[str, float], Mapping[str, Any]]]
"""``alias(name) -> (id, params, kwargs)``: what follows the scheme's colon as arguments of :func:`make_env`."""

USUAL: tuple[Any, ...] = (None, 1, (), [])
"""Arguments of :func:`make_env` that stand for nothing in particular; a named task may have its own."""

_SCHEMES: dict[str, Loader] = {}
_ALIASES: dict[str, Alias] = {}


def register_own() -> None:
    """Register the platform's environments with Gymnasium (done by ``import envs``)."""
    for id, (entry_point, limit) in {**OWN, **OWN_MUJOCO}.items():
        if id not in gym.registry:
            gym.register(id, entry_point, max_episode_steps=limit)


def register_scheme(scheme: str, loader: Loader) -> None:
    """Make ``scheme:name`` mean ``loader(name, **kwargs)``. Registering a scheme again replaces it."""
    _SCHEMES[scheme] = loader


@dataclass(frozen=True)
class Surroundings:
    """Where this process finds environments: what one that was started elsewhere lacks."""

    schemes: Mapping[str, Loader]
    paths: Sequence[str]

    @classmethod
    def here(cls, id: str | None = None) -> Surroundings:
        """All of it; or what the environment of that id needs."""
        scheme = None if id is None else id.partition(":")[0]
        schemes = {name: loader for name, loader in _SCHEMES.items() if scheme in (None, name)}
        return cls(schemes, tuple(sys.path))

    def bring(self) -> None:
        """Know them in this process too."""
        sys.path += [path for path in self.paths if path not in sys.path]
        for scheme, loader in self.schemes.items():
            register_scheme(scheme, loader)


class EnvMaker:
    """Makes an environment from arguments of :func:`make_env`, in a process that was started elsewhere too."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)

    def __call__(self) -> BoundaryEnv:
        return make_env(**self.arguments)

    def __reduce__(self) -> tuple[Callable[..., EnvMaker], tuple[Any, ...]]:
        return _maker_from_elsewhere, (Surroundings.here(self.arguments["id"]), self.arguments)


def _maker_from_elsewhere(surroundings: Surroundings, arguments: Mapping[str, Any]) -> EnvMaker:
    surroundings.bring()
    return EnvMaker(arguments)


def register_alias(scheme: str, alias: Alias) -> None:
    """Make ``scheme:name`` another name of an environment with parameters. Registering it again replaces it."""
    _ALIASES[scheme] = alias


def make_env(
    id: str,
    *,
    params: Mapping[str, float] | None = None,
    render_mode: str | None = None,
    action_repeat: int = 1,
    max_episode_steps: int | None = None,
    learn: Sequence[str] = (),
    **kwargs: Any,
) -> BoundaryEnv:
    """An environment in the platform's units.

    Args:
        id: a Gymnasium id (``Hopper-v5``), ``package.module:Class`` (imported), or ``scheme:name``
            (``dmc:cheetah-run``; ``tasks:pendulum-five/2`` is the third task of a sequence, and without a number
            the first).
        params: physics parameters by name, see :mod:`envs.variants`.
        render_mode: as in Gymnasium.
        action_repeat: environment steps a decision; rewards are summed.
        max_episode_steps: episode limit in *environment* steps; None keeps the task's own.
        learn: ``reward`` or ``termination``: what is known of them is not told, so that models learn them.
        kwargs: constructor arguments.

    Raises:
        UserError: an unknown name, a class that cannot be imported or built, an unsupported space or parameter.
    """
    scheme, _, name = id.partition(":")
    if scheme in _ALIASES:
        other, own_params, own = _ALIASES[scheme](name)
        given: dict[str, Any] = {"render_mode": render_mode, "max_episode_steps": max_episode_steps, "learn": learn}
        given = {key: value for key, value in (given | {"action_repeat": action_repeat}).items() if value not in USUAL}
        return make_env(other, params={**own_params, **(params or {})}, **{**own, **given, **kwargs})
    max_episode_steps = _checked_limit(id, max_episode_steps)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    env = _make_raw(id, max_episode_steps, kwargs)
    kwargs.pop("render_mode", None)
    return BoundaryEnv(env, id, params=params, action_repeat=action_repeat, learn=learn, kwargs=kwargs)


def env_spec(id: str, **kwargs: Any) -> EnvSpec:
    """What is known of an environment; arguments as for :func:`make_env`."""
    env = make_env(id, **kwargs)
    spec = env.env_spec
    env.close()
    return spec


def make_physics(id: str, params: Mapping[str, float] | None = None, **kwargs: Any) -> Physics:
    """The true dynamics of an environment as batched functions; arguments as for :func:`make_env`.

    An environment whose class offers ``physics(params)`` gives its own.

    Raises:
        UserError: no true dynamics are known for it, or actions are repeated.
    """
    if kwargs.get("action_repeat", 1) != 1:
        raise UserError(
            f"{id}: action_repeat", kwargs["action_repeat"], "the true dynamics exist without repeats only."
        )
    env = make_env(id, params=params, **kwargs)
    kind: Any = type(env.unwrapped)
    if isinstance(inspect.getattr_static(kind, "physics", None), (classmethod, staticmethod)):
        own: Physics = kind.physics(env.params)
        return own
    from envs.physics import physics_for  # simulators are imported only when asked for

    known: Physics = physics_for(env.env)
    return known


def list_envs() -> list[str]:
    """Ids of the platform's environments, then every other id that Gymnasium knows, newest versions only."""
    newest: dict[str, gym.envs.registration.EnvSpec] = {}
    for spec in gym.registry.values():
        key = f"{spec.namespace}/{spec.name}"
        if key not in newest or (spec.version or 0) > (newest[key].version or 0):
            newest[key] = spec
    own = (*OWN, *OWN_MUJOCO)
    return [*own, *sorted(spec.id for spec in newest.values() if spec.id not in own)]


def _make_raw(id: str, limit: int | None, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    head, colon, name = id.partition(":")
    if not colon:
        return _from_gymnasium(id, limit, kwargs)
    loader = _SCHEMES.get(head)
    env = _guarded(id, loader, name, **kwargs) if loader else _from_module(id, head, name, kwargs)
    if limit is None and env is env.unwrapped:  # a bare class may name its own limit
        limit = _checked_limit(id, getattr(env, "max_episode_steps", None))
    return env if limit is None else gym.wrappers.TimeLimit(env, limit)


def _checked_limit(id: str, limit: Any) -> int | None:
    """An episode limit as given by the user or by the environment's class."""
    if limit is None:
        return None
    if not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 1:
        raise UserError(f"{id}: max_episode_steps", limit, "give a whole number of at least 1.")
    return int(limit)


def _from_gymnasium(id: str, limit: int | None, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    if id not in gym.registry:
        fix = "no environment of this name is registered; give a Gymnasium id, module:Class or dmc:domain-task."
        raise UserError("env", id, fix, gym.registry)
    if "mujoco" in str(gym.registry[id].entry_point) or id in OWN_MUJOCO:
        say_warnings_once()
    return _guarded(id, gym.make, id, max_episode_steps=limit, disable_env_checker=True, **kwargs)


def _from_module(id: str, module_name: str, name: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    module = _import(id, module_name)
    kind = getattr(module, name, None)
    if kind is None:
        classes = [n for n, value in vars(module).items() if isinstance(value, type) and issubclass(value, gym.Env)]
        origin = getattr(module, "__file__", None) or "built into Python"
        found = f"module {module_name} ({origin}{_shadowing(module_name)}) has no {name!r}"
        fix = f"{found}; its environments: {', '.join(classes) or 'none'}."
        raise UserError("env", id, fix, [f"{module_name}:{c}" for c in classes])
    if not (isinstance(kind, type) and issubclass(kind, gym.Env)):
        raise UserError("env", id, f"{name} is a {type(kind).__name__}, not a subclass of gymnasium.Env.")
    return _guarded(id, kind, **kwargs)


def _import(id: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            origin = _shadowing(module_name) or " on the import path (sys.path); check the name and the directory"
            fix = f"there is no module {missing!r}{origin}."
            raise UserError("env", id, fix, [f"{scheme}:" for scheme in _SCHEMES]) from error
        raise UserError("env", id, f"module {module_name} needs {missing!r}, which is not installed.") from error
    except Exception as error:  # a user's module may fail in any way; all of them are the user's to fix
        fix = f"importing {module_name} failed: {type(error).__name__}: {error}"
        raise UserError("env", id, fix) from error


def _shadowing(module_name: str) -> str:
    """Why a module may not be the user's own of that name, and what to do; empty when it must be theirs."""
    top = module_name.partition(".")[0]
    if top in PACKAGES:
        return f"; {top!r} is the platform's own package and shadows a folder of yours of that name: rename yours"
    if top in sys.stdlib_module_names:
        return f"; {top!r} is Python's own module and shadows a file of yours of that name: rename yours"
    return ""


def _guarded(id: str, build: Loader, *args: Any, **kwargs: Any) -> gym.Env[Any, Any]:
    try:
        env = build(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # constructors are foreign code; whatever they raise is about this environment
        raise UserError("env", id, f"it cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(env, gym.Env):
        raise UserError("env", id, f"building it gave a {type(env).__name__}, not a gymnasium.Env.")
    return env


def _load_dmc(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """``cheetah-run``: a dm_control task through shimmy."""
    if not any(spec.namespace == "dm_control" for spec in gym.registry.values()):
        _register_dmc(name)
    id = f"dm_control/{name}-v0"
    if id not in gym.registry:
        names = [s.name for s in gym.registry.values() if s.namespace == "dm_control"]
        raise UserError("env", f"dmc:{name}", "there is no such dm_control task.", [f"dmc:{n}" for n in names])
    return gym.make(id, disable_env_checker=True, **kwargs)


def _register_dmc(name: str) -> None:
    # dm_control chooses its GL backend for good when it is first imported, and prefers one that needs a display.
    with gl_backend(working_gl() or "off"):
        try:
            import dm_control  # noqa: F401 (shimmy registers nothing, silently, without it)
            import shimmy
        except ImportError as error:
            fix = "dm_control and shimmy are not both installed; pip install 'mbrl-platform[dmc]'."
            raise UserError("env", f"dmc:{name}", fix) from error
        gym.register_envs(shimmy)


register_scheme("dmc", _load_dmc)
