"""What every worker is told and tells: how to compute as the driver does, and where it is."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import ray
import torch

from mbrl.distributed.cluster import assigned_device


@dataclass(frozen=True)
class Arithmetic:
    """What the bits of a computation depend on beside its inputs."""

    threads: int
    """Torch's threads"""
    flushes: bool
    """Numbers too small for full precision (denormal) count as 0, also in NumPy and MuJoCo."""

    @classmethod
    def here(cls) -> Arithmetic:
        """Of this thread."""
        tiny = np.array([1e-310])
        return cls(torch.get_num_threads(), bool((tiny * 2.0)[0] == 0.0))

    def apply(self) -> None:
        """To this thread."""
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(self.flushes)


@dataclass(frozen=True)
class Placement:
    """Where a worker is."""

    node: str
    pid: int
    gpus: tuple[str, ...]
    """Ids of those that Ray gave it, a share of one included"""
    device: str
    """Where it computes"""

    @classmethod
    def here(cls) -> Placement:
        """Of this worker. Raises ``UserError`` where the GPU that Ray gave it is not there."""
        gpus = tuple(str(one) for one in ray.get_gpu_ids())
        return cls(ray.get_runtime_context().get_node_id(), os.getpid(), gpus, str(assigned_device()))
