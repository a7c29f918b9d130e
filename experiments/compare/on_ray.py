"""The same runs as tasks of Ray: on this machine, or on a cluster whose nodes share the file system."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.compare.fleet import Execute, Job, environment, program


def run_here(job: Job) -> tuple[int, str]:
    """Run a job where the task landed; its exit code and what it said on stderr.

    Blocking, for an event loop inside a Ray worker waits for ever on its processes.
    """
    done = subprocess.run(program(job), env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@contextmanager
def ray_fleet(address: str) -> Iterator[tuple[Execute, int]]:
    """How to execute a job on Ray, and how many jobs its CPUs take at once.

    Args:
        address: ``local`` starts Ray on this machine; otherwise a cluster's address, or ``auto``.

    Raises:
        UserError: as of :func:`mbrl.distributed.cluster.connect`.
    """
    import ray

    from mbrl.distributed.cluster import connect, processors

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

    with connect(address):
        yield execute, processors()
