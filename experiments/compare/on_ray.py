"""The same runs as tasks of Ray: on this machine, or on a cluster whose nodes share the file system."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from envs.errors import UserError
from experiments.compare.fleet import Execute, Job, environment, program


def run_here(job: Job) -> tuple[int, str]:
    """Run a job where the task landed; its exit code and what it said on stderr.

    Blocking, for an event loop inside a Ray worker waits for ever on its processes.
    """
    done = subprocess.run(program(job), env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _check_reachable(address: str) -> None:
    """Refuse a HOST:PORT where nothing listens at once; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        fix = f"nothing answers there ({error}); start a cluster with `ray start --head`, or give local"
        raise UserError("--ray", address, fix) from error


@contextmanager
def ray_fleet(address: str) -> Iterator[tuple[Execute, int]]:
    """How to execute a job on Ray, and how many jobs its CPUs take at once.

    Args:
        address: ``local`` starts Ray on this machine; otherwise a cluster's address, or ``auto``.

    Raises:
        UserError: there is no cluster at this address.
    """
    import ray

    _check_reachable(address)
    try:
        # Not None for local: that would join a cluster that RAY_ADDRESS names or that was started here before.
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = f"no Ray cluster could be reached ({reason}); start one, or give local"
        raise UserError("--ray", address, fix) from error
    task = ray.remote(num_cpus=1, max_retries=0)(run_here)

    async def execute(job: Job) -> tuple[int, str]:
        reference = task.remote(job)
        try:
            result: tuple[int, str] = await reference
        except asyncio.CancelledError:
            ray.cancel(reference, force=True)
            raise
        except ray.exceptions.RayError as error:  # its worker or node is gone; the other runs go on
            return 1, f"lost on Ray: {str(error).strip().splitlines()[0]}"
        return result

    try:
        yield execute, max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
