"""Algorithms of RLlib under the platform's clock, records, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from agents.base import ActorState, Mode
from agents.common import RunningMean
from agents.external import Environments, SelfRunningLearner
from agents.rllib.environment import BROKEN, NAME, TELL_ERRORS, register
from agents.rllib.plain import from_plain, learner_metrics, to_plain
from agents.rllib.policy import make_policy
from agents.rllib.replay import Recorder, episodes_of
from agents.rllib.settings import HERE, AlgorithmName, check_config, first_line, make_config
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.data.buffer import ReplayBuffer
from mbrl.seeding import derive_seed, seeded

EPISODES = "episodes_ended"
"""Where env runners tell, among RLlib's metrics, of every episode its return and its length."""
LOGGERS = ("ray", "ray.rllib")
"""Each has a level of its own."""
OBJECT_STORE_BYTES = 150 * 2**20
"""of a Ray that is started for one run: what passes through it are weights and fragments of episodes"""


class RLlibAgent(SelfRunningLearner):
    """An algorithm of RLlib on its current API (EnvRunner, RLModule, Learner, torch).

    Liang, Liaw, Nishihara, Moritz, Fox, Goldberg, Gonzalez, Jordan, Stoica, "RLlib: Abstractions for Distributed
    Reinforcement Learning", 2018. It steps environments of its own, which are the run's: flat observations, actions in
    [-1, 1] or an index. A round of the loop is one of RLlib's iterations: counted when it is over, evaluated by the
    platform. ``updates`` in the run's records is how often RLlib's learner was called: gradient steps, and for PPO
    passes over a sample. Ray is started when the first round begins, unless this process is in a cluster already.

    A checkpoint holds weights, optimisers, counters and the replay buffer's rows as tensors and numbers. It does not
    hold what RLlib does not tell: open episodes, priorities of a prioritised buffer (all rows count alike when a run
    goes on), PPO's adapted KL coefficient, and random states. So a run that is resumed goes on, but not as the
    uninterrupted one would have.

    Args:
        spec: the environment.
        algorithm: which one; SAC and PPO for both kinds of actions, DreamerV3 too.
        kwargs: settings of the algorithm by RLlib's names, in plain values: what ``config.training`` takes,
            ``rollout_fragment_length``, ``batch_mode``, ``min_sample_timesteps_per_iteration``, and ``model``: options
            of the default networks, such as ``{fcnet_hiddens: [64, 64]}``.
        num_env_runners: processes that step environments; 0 steps them in this one. The run's ``num_envs`` are divided
            among them.
        num_learners: processes that learn; 0 learns in this one.
        num_gpus_per_learner: GPUs of each learner; a share is allowed.
        log_every: env steps between records of losses; at least a round.
    """

    def __init__(
        self,
        spec: EnvSpec,
        algorithm: AlgorithmName,
        kwargs: dict[str, Any] | None = None,
        num_env_runners: int = 0,
        num_learners: int = 0,
        num_gpus_per_learner: float = 0.0,
        log_every: int = 1000,
    ) -> None:
        super().__init__(spec)
        workers = {"num_env_runners": num_env_runners, "num_learners": num_learners}
        for name, count in (workers | {"num_gpus_per_learner": num_gpus_per_learner}).items():
            if not 0 <= count < float("inf"):
                raise UserError(f"agent.init_args.{name}", count, "give a number of at least 0")
        if log_every < 1:
            raise UserError("agent.init_args.log_every", log_every, "give a whole number of at least 1")
        if num_gpus_per_learner and not num_learners and not torch.cuda.is_available():
            fix = "this process learns (num_learners: 0) and CUDA is not available here; give 0"
            raise UserError("agent.init_args.num_gpus_per_learner", num_gpus_per_learner, fix)
        self.algorithm_name, self.log_every = algorithm, log_every
        self.num_env_runners, self.num_learners = num_env_runners, num_learners
        self.num_gpus_per_learner = num_gpus_per_learner
        with _quiet():
            self.config: Any = make_config(spec, algorithm, kwargs or {})
        self.algorithm: Any = None
        """RLlib's own, from the first round on"""
        self.metrics = RunningMean()
        self.sampled = 0
        """env steps that RLlib has counted"""
        self._updates = 0
        self._saved: dict[str, Any] | None = None
        self._recorder: Recorder | None = None
        self._stack = contextlib.ExitStack()

    def take_environment(self, arguments: Mapping[str, Any]) -> None:
        self.config.environment(env=NAME, env_config={**arguments, TELL_ERRORS: True})

    def setup(self, num_envs: int, total_steps: int) -> None:
        """Networks to act with. RLlib itself is set up when the first round begins: an evaluation needs none of it."""
        per_runner, left = divmod(num_envs, max(1, self.num_env_runners))
        if left or not per_runner:
            fix = f"num_env_runners is {self.num_env_runners}: give a multiple of it, each has as many environments"
            raise UserError("num_envs", num_envs, fix)
        self.config.env_runners(num_env_runners=self.num_env_runners, num_envs_per_env_runner=per_runner)
        self.config.learners(num_learners=self.num_learners, num_gpus_per_learner=self.num_gpus_per_learner)
        self.config.callbacks(on_episode_end=_tell_episode)
        self.config.debugging(log_level="ERROR")
        self.config.fault_tolerance(restart_failed_env_runners=False)  # a broken environment would be begun for ever
        with _quiet():
            check_config(self.config)
            try:
                self.policy = make_policy(self.algorithm_name, self.config, self.spec)
            except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                fix = f"RLlib cannot build networks of these settings: {first_line(error)}"
                raise UserError(HERE, self.algorithm_name, fix) from error
        if replay := getattr(self.config, "replay_buffer_config", None):
            self.buffers["real"] = ReplayBuffer(int(replay["capacity"]))

    def seed(self, run_seed: int) -> None:
        self.config.debugging(seed=derive_seed(run_seed, "agent"))

    # -- acting ----------------------------------------------------------------------------------------------------

    def initial_actor_state(self, slots: int) -> ActorState:
        return self.policy.initial_state(slots)

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """The policy's mode when evaluating, a sample of it else; DreamerV3 samples its state from ``generator``."""
        with seeded(generator), torch.no_grad():
            action, after = self.policy.act(obs, actor_state, is_first, mode == "explore")
        return action, after, {}

    # -- learning --------------------------------------------------------------------------------------------------

    def advance(self, environments: Environments) -> None:
        """One iteration of RLlib."""
        if self.algorithm is None:
            self._build()
        if self._recorder is not None:
            self._recorder.version = self._updates
        result = self._train()
        runners, learner = result["env_runners"], result.get("learners", {}).get("default_policy", {})
        before, self.sampled = self.sampled, int(runners["num_env_steps_sampled_lifetime"])
        self._updates = int(learner.get("weights_seq_no", self._updates))
        self.metrics.add(learner_metrics(learner))
        self.policy.module.set_state(self._weights())
        environments.ran(self.sampled - before, _episodes_in(runners))

    def _train(self) -> Any:
        from ray.exceptions import RayActorError

        try:
            result = self.algorithm.train()
        except RayActorError as error:
            fix = "a process of RLlib died; `mbrl resume` goes on from the last checkpoint"
            raise UserError("agent.init_args.num_env_runners", self.num_env_runners, fix) from error
        except RuntimeError as error:  # what RLlib makes of an environment's error in this process
            cause = error.__cause__
            raise cause if isinstance(cause, UserError) else error from error
        if told := result["env_runners"].get(BROKEN):
            raise UserError(*json.loads(told if isinstance(told, str) else told[0]))
        return result

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        clock.updates = self._updates
        values = self.metrics.pop() if clock.due(self.log_every) else {}
        return {"update": values} if values else {}

    def _build(self) -> None:
        """RLlib's algorithm where it was when it was saved, in a Ray that ends with :meth:`close`."""
        self._connect()
        register()
        with _quiet():
            try:
                self.algorithm = self.config.copy(copy_frozen=False).build_algo()
            except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(HERE, self.algorithm_name, f"RLlib cannot be set up: {first_line(error)}") from error
        if self._saved is not None:
            self.algorithm.set_state(from_plain(self._saved))
            self._saved = None
        if "real" in self.buffers:
            self._attach_replay(self.buffers["real"])

    def _connect(self) -> None:
        import ray

        from mbrl.distributed.cluster import check_resources, connect

        if not ray.is_initialized():
            needed = self.num_env_runners + self.num_learners + 1
            self._stack.enter_context(connect("local", num_cpus=needed, object_store_bytes=OBJECT_STORE_BYTES))
        if self.num_env_runners:
            check_resources(self.num_env_runners, 1, 0, "agent.init_args.num_env_runners")
        if self.num_learners:
            gpus, field = self.num_gpus_per_learner, "agent.init_args.num_learners"
            check_resources(self.num_learners, 0 if gpus else 1, gpus, field)

    @property
    def replay(self) -> Any:
        """RLlib's own buffer: DreamerV3 makes another than the one that all have."""
        return vars(self.algorithm).get("replay_buffer", self.algorithm.local_replay_buffer)

    def _attach_replay(self, ring: ReplayBuffer) -> None:
        """RLlib's buffer gets the rows that a checkpoint brought, then is watched."""
        replay = self.replay
        if len(ring):
            replay.add(list(episodes_of(ring, self.spec)))
        self._recorder = Recorder(ring, self.spec)
        self._recorder.attach(replay)

    def _weights(self) -> Any:
        state = self.algorithm.learner_group.get_state(components="learner/rl_module", inference_only=True)
        return state["learner"]["rl_module"]["default_policy"]

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the replay buffer's rows."""
        return {
            "policy": self.policy.weights(),
            "rllib": self._saved if self.algorithm is None else to_plain(self.algorithm.get_state()),
            "sampled": self.sampled,
            "updates": self._updates,
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The weights now; the rest when the next round begins."""
        self.policy.load(state["policy"])
        self.sampled, self._updates = state["sampled"], state["updates"]
        self.metrics.load_state_dict(state["metrics"])
        self._saved = state["rllib"]
        if self.algorithm is not None:
            self.algorithm.stop()
            self.algorithm = None

    def close(self) -> None:
        """End RLlib's processes, and Ray if it was started here."""
        if self.algorithm is not None:
            self.algorithm.stop()
            self.algorithm = None
        self._stack.close()


def _tell_episode(*, episode: Any, prev_episode_chunks: list[Any], metrics_logger: Any, **_: Any) -> None:
    """RLlib's own metrics keep means only, and count a step too many for every piece that PPO has learned from."""
    value = sum(float(part.get_return()) for part in [*prev_episode_chunks, episode])
    metrics_logger.log_value(EPISODES, (value, int(episode.t)), reduce="item_series")
    if told := episode.get_infos(-1).get(BROKEN):
        metrics_logger.log_value(BROKEN, told, reduce="item_series")


def _episodes_in(runners: Mapping[str, Any]) -> list[tuple[float, int]]:
    """Return and length of the episodes that ended in an iteration; RLlib tells one alone without its list."""
    told = runners.get(EPISODES, [])
    several = [told] if isinstance(told, tuple) else told if isinstance(told, list) else []
    return [(float(value), int(length)) for value, length in several]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """RLlib greets with warnings of its own making: of API stacks, and of deprecated calls that it makes itself."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
