"""The same task with other physics: masses, lengths, friction, gains, gravity, by name.

Three kinds of environment have parameters:

* any class with an attribute ``params`` (a dict name -> value) and a method ``set_params(dict)``: the platform's own
  environments, and yours;
* Gymnasium's classic control: physical values under the names in :data:`CLASSIC`;
* MuJoCo: ``gravity`` (m/s^2, downwards), ``density`` and ``viscosity`` of the medium as values, and the fields in
  :data:`MUJOCO_SCALES` as *factors* on the task's own values, for all elements (``body_mass``) or for a named one
  (``body_mass.torso``); both kinds of factor multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from envs.access import is_classic, mujoco_handles
from envs.errors import UserError

CLASSIC: Mapping[str, Mapping[str, str]] = {
    "CartPoleEnv": {n: n for n in ("gravity", "masscart", "masspole", "length", "force_mag")},
    "PendulumEnv": {"gravity": "g", "mass": "m", "length": "l", "max_speed": "max_speed"},
    "AcrobotEnv": {
        f"link_{what}_{i}": f"LINK_{what.upper()}_{i}" for i in (1, 2) for what in ("length", "mass", "com_pos")
    }
    | {"link_moi": "LINK_MOI"},
    "MountainCarEnv": {"gravity": "gravity", "force": "force", "max_speed": "max_speed"},
    "Continuous_MountainCarEnv": {"power": "power", "max_speed": "max_speed"},
}
"""Class name -> parameter name -> attribute."""

MUJOCO_SCALES: Mapping[str, tuple[str, ...]] = {
    "body_mass": ("body", "body_mass", "body_inertia"),
    "geom_friction": ("geom", "geom_friction"),
    "dof_damping": ("joint", "dof_damping"),
    "dof_armature": ("joint", "dof_armature"),
    "dof_frictionloss": ("joint", "dof_frictionloss"),
    "jnt_stiffness": ("joint", "jnt_stiffness"),
    "actuator_gear": ("actuator", "actuator_gear"),
}
"""Parameter -> kind of element, and the ``mjModel`` fields it scales (inertia goes with mass)."""

MUJOCO_OPTIONS = ("gravity", "density", "viscosity")


class Variant(Protocol):
    """The physics parameters of one environment instance."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter that may be set."""

    def current(self) -> dict[str, float]:
        """The values in force: all of a small set; of MuJoCo's large one, those that were set."""

    def apply(self, params: Mapping[str, float]) -> None:
        """Put ``params`` in force; whatever is not named returns to the task's own value."""


def variant_of(env: gym.Env[Any, Any]) -> Variant | None:
    """The parameters of ``env``, or None when it has none that are known by name."""
    base = env.unwrapped
    if hasattr(base, "params") and callable(getattr(base, "set_params", None)):
        return _OwnVariant(base)
    if is_classic(env) and type(base).__name__ in CLASSIC:
        return _ClassicVariant(base, CLASSIC[type(base).__name__])
    handles = mujoco_handles(env)
    return None if handles is None else _MujocoVariant(*handles)


def checked_params(params: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, float]:
    """``params`` as finite floats under known names.

    Raises:
        UserError: an unknown name (the nearest ones are suggested), or a value that is not a finite number.
    """
    for name, value in params.items():
        if name not in names:
            some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise UserError(f"{where}: params", name, f"is not one of its physics parameters: {some}.", names)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{where}: params.{name}", value, "give a finite number.")
    return {name: float(value) for name, value in params.items()}


class _OwnVariant:
    def __init__(self, base: Any) -> None:
        self._base = base
        self._defaults = {name: float(value) for name, value in base.params.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._defaults)

    def current(self) -> dict[str, float]:
        return {name: float(self._base.params[name]) for name in self._defaults}

    def apply(self, params: Mapping[str, float]) -> None:
        self._base.set_params({**self._defaults, **params})


class _ClassicVariant:
    def __init__(self, base: Any, attributes: Mapping[str, str]) -> None:
        self._base, self._attributes = base, attributes
        self._defaults = self.current()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._attributes)

    def current(self) -> dict[str, float]:
        return {
            name: _number(attribute, getattr(self._base, attribute)) for name, attribute in self._attributes.items()
        }

    def apply(self, params: Mapping[str, float]) -> None:
        for name, value in {**self._defaults, **params}.items():
            setattr(self._base, self._attributes[name], value)
        if hasattr(self._base, "polemass_length"):  # CartPole caches these products in its constructor
            self._base.total_mass = self._base.masspole + self._base.masscart
            self._base.polemass_length = self._base.masspole * self._base.length


class _MujocoVariant:
    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data
        fields = {field for _, *fields in MUJOCO_SCALES.values() for field in fields}
        self._defaults = {field: np.array(getattr(model, field)) for field in fields}
        self._options = {"gravity": -float(model.opt.gravity[2])} | {
            name: float(getattr(model.opt, name)) for name in ("density", "viscosity")
        }
        self._rows = dict(_element_rows(model))
        self._set: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return (*MUJOCO_OPTIONS, *MUJOCO_SCALES, *self._rows)

    def current(self) -> dict[str, float]:
        return dict(self._set)

    def apply(self, params: Mapping[str, float]) -> None:
        import mujoco

        for field, values in self._defaults.items():
            getattr(self._model, field)[:] = values
        self._set_options({**self._options, **{k: v for k, v in params.items() if k in MUJOCO_OPTIONS}})
        for name, factor in params.items():
            if name not in MUJOCO_OPTIONS:
                self._scale(name, factor)
        mujoco.mj_setConst(self._model, self._data)  # inertias at rest and inverse weights follow from masses
        self._set = dict(params)

    def _set_options(self, options: Mapping[str, float]) -> None:
        self._model.opt.gravity[2] = -options["gravity"]
        self._model.opt.density, self._model.opt.viscosity = options["density"], options["viscosity"]

    def _scale(self, name: str, factor: float) -> None:
        _, *fields = MUJOCO_SCALES[name.partition(".")[0]]
        for field in fields:
            getattr(self._model, field)[self._rows.get(name, slice(None))] *= factor


def _element_rows(model: Any) -> list[tuple[str, slice]]:
    """``("body_mass.torso", rows)`` for every named element of every scalable field."""
    lookup: dict[str, tuple[int, Callable[[int], Any]]] = {
        "body": (model.nbody, model.body),
        "geom": (model.ngeom, model.geom),
        "joint": (model.njnt, model.joint),
        "actuator": (model.nu, model.actuator),
    }
    found = []
    for parameter, (kind, field, *_) in MUJOCO_SCALES.items():
        count, element = lookup[kind]
        for index in range(count):
            name = element(index).name or (_driven_joint(model, index) if kind == "actuator" else "")
            if name and name != "world":
                found.append((f"{parameter}.{name}", _rows(model, field, index)))
    return found


def _driven_joint(model: Any, actuator: int) -> str:
    """Many tasks leave their motors nameless: such a one goes by the joint that it drives."""
    joint = int(model.actuator_trnid[actuator, 0])
    on_joint = int(model.actuator_trntype[actuator]) <= 1  # mjTRN_JOINT, mjTRN_JOINTINPARENT
    return str(model.joint(joint).name) if on_joint else ""


def _rows(model: Any, field: str, index: int) -> slice:
    if not field.startswith("dof_"):
        return slice(index, index + 1)
    starts = [*model.jnt_dofadr.tolist(), model.nv]  # a free or ball joint owns several degrees of freedom
    return slice(starts[index], starts[index + 1])


def _number(attribute: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(attribute, value, "this physics parameter of the environment must be a number") from error
