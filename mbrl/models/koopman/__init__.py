"""Koopman models: lifted coordinates in which the dynamics are linear, or nearly so."""

from mbrl.models.koopman.autoencoder import KoopmanAutoencoder
from mbrl.models.koopman.base import KoopmanModel, KoopmanState
from mbrl.models.koopman.diagonal import DiagonalKoopman
from mbrl.models.koopman.edmd import EDMD
from mbrl.models.koopman.kodex import KoopmanReference

__all__ = ["EDMD", "DiagonalKoopman", "KoopmanAutoencoder", "KoopmanModel", "KoopmanReference", "KoopmanState"]
