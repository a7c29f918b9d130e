"""Physics parameters of MuJoCo tasks that take a new compilation of the model: sizes, lengths, densities, shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs.access import mujoco_state
from envs.errors import UserError
from envs.variants import checked_params

UNBOUNDED = (-float("inf"), float("inf"))


class CompiledParams:
    """Mix-in, before a Gymnasium MuJoCo class: ``params`` and ``set_params`` through an edited ``mjSpec``.

    The compiled numbers are written into the model that is there, so that the renderer and every other holder of it
    sees them. A subclass gives ``defaults``, ``bounds`` of the values that make sense, and :meth:`edit`.
    """

    defaults: ClassVar[Mapping[str, float]]
    """Physics parameters by name, SI units."""
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Smallest and largest value of the parameters that are not free."""
    params: dict[str, float]
    model: Any
    data: Any
    fullpath: str

    @staticmethod
    def edit(spec: Any, params: Mapping[str, float]) -> None:
        """Write ``params`` (all of them) into the ``mjSpec`` of the task's own file."""
        raise NotImplementedError

    @staticmethod
    def finish(model: Any) -> None:
        """What is left to do to the compiled ``MjModel``; nothing, unless a subclass says otherwise."""

    def start_params(self) -> None:
        """Put the defaults in force; for constructors."""
        self.params = dict(self.defaults)
        self.set_params({})

    def set_params(self, params: Mapping[str, float]) -> None:
        """Change physics parameters by name; the others stay.

        Raises:
            UserError: an unknown name, a value that is no finite number or outside its bounds.
        """
        name = type(self).__name__
        wanted = {**self.params, **checked_params(params, tuple(self.defaults), name)}
        for key, value in wanted.items():
            low, high = self.bounds.get(key, UNBOUNDED)
            if not low <= value <= high:
                raise UserError(f"{name}: params.{key}", value, f"give a value from {low:g} to {high:g}.")
        spec = mujoco.MjSpec.from_file(self.fullpath)
        self.edit(spec, wanted)
        model = spec.compile()
        self.finish(model)
        copy_numbers(model, self.model)
        self.params = wanted


def copy_numbers(source: Any, target: Any) -> None:
    """Overwrite every array of one ``MjModel`` with those of another of the same structure, and gravity."""
    for name in _arrays(source):
        getattr(target, name)[...] = getattr(source, name)
    target.opt.gravity[:] = source.opt.gravity


def _arrays(model: Any) -> list[str]:
    names = [name for name in dir(model) if not name.startswith("_")]
    return [name for name in names if isinstance(getattr(model, name), np.ndarray)]


def resume(model: Any, data: Any, state: NDArray[np.float64]) -> None:
    """Put ``mjSTATE_INTEGRATION`` in force, with body positions where they belong."""
    mujoco.mj_setState(model, data, state, _INTEGRATION)
    mujoco.mj_kinematics(model, data)


def snapshot(model: Any, data: Any) -> NDArray[np.float64]:
    """``mjSTATE_INTEGRATION``: all that the next step depends on, the solver's warm start too."""
    return mujoco_state(model, data, _INTEGRATION)


_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
