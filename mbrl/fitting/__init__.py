"""How dynamics models are trained."""

from mbrl.fitting.base import ModelFitter
from mbrl.fitting.closed_form import ClosedFormFitter
from mbrl.fitting.gradient import Fitter

__all__ = ["ClosedFormFitter", "Fitter", "ModelFitter"]
