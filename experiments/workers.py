"""What of a run is done by workers of a Ray cluster, where the command line says so. The data is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from agents.base import Agent, Imagines
from envs.errors import UserError
from experiments.config import RunConfig
from mbrl.fitting import Fitter

if TYPE_CHECKING:
    from envs.boundary import BoundaryEnv
    from envs.pool import Vectorize
    from mbrl.distributed.async_rollouts import AsyncRollouts


RESUMABLE = tuple(f"workers.{name}" for name in ("imagination", "environments", "fitting", "num_cpus", "num_gpus"))
"""Settings that a run can go on with others of: its data does not depend on them"""


class Workers:
    """The workers of one run. They start when they are first needed, and end with :meth:`close`.

    Raises:
        UserError: the cluster does not have what the configuration asks for.
    """

    def __init__(self, config: RunConfig) -> None:
        from mbrl.distributed.cluster import check_resources, processors

        self.config = asked = config.workers
        self.closing = ExitStack()
        players = processors() if asked.asynchronous and not asked.environments else asked.environments
        self.environments = min(players, config.num_envs)
        self.imagination = self._room() if asked.imagination is None else asked.imagination
        computing = self.imagination + asked.fitting
        names = "workers.imagination + fitting + environments"
        if computing + self.environments:
            check_resources(computing + self.environments, asked.num_cpus, 0.0, names)
        if computing:
            check_resources(computing, 0.0, asked.num_gpus, "workers.imagination + fitting")

    def _room(self) -> int:
        """Workers that imagine, where nobody says how many: one a CPU, or what the GPUs hold; beside all others."""
        from mbrl.distributed.cluster import fitting, processors

        asked = self.config
        most = float("inf") if asked.num_gpus else processors()
        cpus = fitting("CPU", asked.num_cpus) - asked.fitting - self.environments
        return max(0, int(min(most, cpus, fitting("GPU", asked.num_gpus) - asked.fitting)))

    @property
    def vectorize(self) -> Vectorize | None:
        """How environments are put side by side; None where that is done here."""
        if not self.environments or self.config.asynchronous:
            return None
        from mbrl.distributed.environments import RayVectorEnv

        return RayVectorEnv.vectorizer(self.environments, num_cpus=self.config.num_cpus)

    def serve(self, agent: Agent) -> None:
        """Have the agent's work done by workers, as far as it has such work."""
        each = {"num_cpus": self.config.num_cpus, "num_gpus": self.config.num_gpus}
        slower = agent.device.type != "cpu" and not self.config.num_gpus and self.config.imagination is None
        if self.imagination and isinstance(agent, Imagines) and not slower:
            from mbrl.distributed.imagination import ImaginationWorkers

            maker = ImaginationWorkers(self.imagination, **each)
            self.closing.callback(maker.close)
            agent.maker = maker
        fitter = getattr(agent, "fitter", None)
        if self.config.fitting and isinstance(fitter, Fitter):
            from mbrl.distributed.fitting import FitWorkers

            fitter.workers = FitWorkers(self.config.fitting, **each)
            self.closing.callback(fitter.workers.close)

    def rollouts(self, make: Callable[[], BoundaryEnv], num_envs: int, seed: int) -> AsyncRollouts:
        """Environments that are played while the agent learns; they belong to the loop."""
        from mbrl.distributed.async_rollouts import AsyncRollouts

        how = self.config
        sizes = self.environments, how.round_steps, how.max_staleness, how.num_cpus
        return AsyncRollouts(make, num_envs, seed, *sizes)

    def close(self) -> None:
        """End them."""
        self.closing.close()


@contextmanager
def workers_of(config: RunConfig, address: str | None) -> Iterator[Workers | None]:
    """Inside, the workers of a run on the cluster at ``address``; None where that is None."""
    if address is None:
        if config.workers.asynchronous:
            raise UserError("--async", True, "it needs workers: add --ray, or --ray ADDRESS")
        yield None
        return
    from mbrl.distributed.cluster import connect

    with connect(address):
        workers = Workers(config)
        try:
            yield workers
        finally:
            workers.close()
