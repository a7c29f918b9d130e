"""A Ray cluster: reached or refused within half a minute, asked only for what it has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from envs.errors import UserError

LEAST_SHARE = 0.0001
"""What Ray counts in"""
PROBE_SECONDS = 20.0
"""How long a cluster may take to answer; Ray itself would try for minutes."""


@contextmanager
def connect(address: str, num_cpus: int | None = None, object_store_bytes: int | None = None) -> Iterator[None]:
    """Inside, this process is part of a Ray cluster; one that was started for it ends with it.

    Args:
        address: ``local`` starts Ray on this machine; ``auto`` finds the cluster that this machine is part of, and
            ``HOST:PORT`` is the address of its head.
        num_cpus: of ``local``, how many processors Ray counts (default: those that this process may use).
        object_store_bytes: of ``local``, memory for objects (default: Ray's choice).

    Raises:
        UserError: there is no cluster at this address, it does not answer, or it runs other versions.
    """
    if ray.is_initialized():
        raise UserError("--ray", address, "this process is part of a Ray cluster already; leave that first")
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    if address == "local":
        # Not None: that would join a cluster which RAY_ADDRESS names or which was started here before.
        cpus = num_cpus or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=cpus, object_store_memory=object_store_bytes, **quiet)
    else:
        _check_reachable(address)
        _check_versions(address)
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse at once what is no address, and a HOST:PORT where nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise UserError("--ray", address, "give local, auto, or the HOST:PORT of a cluster's head", ("local", "auto"))
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        fix = f"nothing answers there ({error}); start a cluster with `ray start --head`, or give local"
        raise UserError("--ray", address, fix) from error


def _check_versions(address: str) -> None:
    """Connect in a process of its own: one that waits for ever, or that dies of other versions, is not this one."""
    code = "import sys, ray; ray.init(address=sys.argv[1], include_dashboard=False, logging_level='error')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        _check_token(address, str(error.stderr))
        fix = f"it does not answer as a Ray cluster does within {PROBE_SECONDS:.0f} s; is it the head's port (6379)?"
        raise UserError("--ray", address, fix) from error
    if done.returncode != 0:
        _check_token(address, done.stderr)
        raise UserError("--ray", address, f"no Ray cluster could be joined: {_reason(done.stderr)}")


def _check_token(address: str, said: str) -> None:
    """Say it where the cluster asked for a token: `ray start` has it do so on a machine that has one."""
    if "InvalidAuthToken" in said:
        fix = "it asks for a token: set RAY_AUTH_MODE=token, and have its token in ~/.ray/auth_token here too"
        raise UserError("--ray", address, fix)


def _reason(said: str) -> str:
    """What a failed connection said: of a traceback its exception, with what it tells in further lines."""
    lines = [line.strip() for line in said.strip().splitlines()]
    told = [place for place, line in enumerate(lines) if line.startswith(("RuntimeError", "ConnectionError", "ValueE"))]
    found = " ".join(lines[told[-1] :] if told else lines[-1:]) or "it said nothing"
    return found.partition(": ")[2] or found


def check_resources(count: int, num_cpus: float, num_gpus: float, field: str) -> None:
    """Refuse ``count`` workers of this size where the whole cluster could never hold them.

    Raises:
        UserError: of ``field``, with what was asked and what there is.
    """
    if count < 1:
        raise UserError(field, count, "give a whole number of at least 1")
    for name, each in (("CPU", num_cpus), ("GPU", num_gpus)):
        if not 0.0 <= each < float("inf") or 0.0 < each < LEAST_SHARE:
            raise UserError(f"{field}: {name}s of a worker", each, f"give 0, or a number of at least {LEAST_SHARE}")
        if name == "GPU" and each > 1.0 and each != int(each):
            raise UserError(f"{field}: GPUs of a worker", each, "give a share of one, or a whole number")
        room = fitting(name, each)
        if room < count:
            have = ray.cluster_resources().get(name, 0.0)
            fix = f"the cluster has {have:g} {name}s, room for {room} such workers: ask for fewer or smaller ones"
            raise UserError(field, f"{count} workers with {each:g} {name}s each", fix)


def fitting(name: str, each: float) -> float:
    """How many workers that need ``each`` of a resource the nodes hold; a worker lies on one node, its GPU share on
    one GPU.
    """
    if each == 0.0:
        return float("inf")
    nodes = [node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]]
    if name == "GPU" and each < 1.0:
        return sum(int(have) * int(1.0 / each + 1e-6) for have in nodes)
    return sum(int(have / each + 1e-6) for have in nodes)


def processors() -> int:
    """CPUs that the cluster counts, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def assigned_device() -> torch.device:
    """Where an actor computes: the GPU that Ray gave it (which torch, seeing only its own, calls ``cuda:0``), else CPU.

    Raises:
        UserError: Ray gave it a GPU and torch finds none.
    """
    assigned = ray.get_gpu_ids()
    if not assigned:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        fix = "Ray gives this worker a GPU, but torch finds none on its machine: install torch with CUDA there, or ask"
        raise UserError("num_gpus", [str(one) for one in assigned], f"{fix} for 0 GPUs a worker")
    return torch.device("cuda", 0)
