"""What of a run is done by workers of a Ray cluster, where the command line says so. The data is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.base import Agent, Imagines
from envs.errors import UserError
from mbrl.fitting import Fitter

if TYPE_CHECKING:
    from envs.boundary import BoundaryEnv
    from envs.pool import Vectorize
    from experiments.config import RunConfig
    from mbrl.distributed.async_rollouts import AsyncRollouts


RESUMABLE = tuple(f"workers.{name}" for name in ("imagination", "environments", "fitting", "num_cpus", "num_gpus"))
"""Settings that a run can go on with others of: its data does not depend on them"""


@dataclass(frozen=True)
class WorkersConfig:
    """Ray workers of a run; without ``--ray`` nothing of this counts. The workers of a kind work while the others wait.

    Args:
        imagination: workers that imagine, each with a copy of model and policy; 0 for none. null is one a CPU of the
            cluster, as far as there is room beside the others; with ``num_gpus`` as many as the GPUs hold; none where
            the agent is on a GPU and workers have none.
        environments: workers that the ``num_envs`` environments are spread over; 0 plays in the run's own process. A
            round costs some 2 ms more with them, so they are for steps that take longer.
        fitting: workers that the members of an ensemble are fitted in; 0 fits in the run's own process.
        num_cpus: processors set aside for each worker; fractions are allowed.
        num_gpus: GPUs for each worker that imagines or fits; workers with a fraction share one.
        asynchronous: environments are played while the agent learns (``--async``). Two runs of one seed differ then.
        round_steps: with ``asynchronous``, env steps of each environment that a worker sends at once.
        max_staleness: with ``asynchronous``, rounds of learning that a policy may be old when it acts, at most.
    """

    imagination: int | None = None
    environments: int = 0
    fitting: int = 0
    num_cpus: float = 0.3
    num_gpus: float = 0.0
    asynchronous: bool = False
    round_steps: int = 25
    max_staleness: int = 2


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
