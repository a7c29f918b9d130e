"""Model-free baselines of stable-baselines3 and sb3-contrib, under the platform's loop, records and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from torch import Generator, Tensor

from agents.base import ActorState, Mode
from agents.external import Environments, ExternalLearner
from agents.sb3.loop_env import LoopEnv
from agents.sb3.metrics import MetricsLogger
from agents.sb3.replay import NStepRingReplay, RingReplay
from agents.sb3.settings import HERE, AlgorithmName, algorithm_class, constructor_arguments
from envs.errors import UserError
from envs.spec import EnvSpec
from mbrl.clock import Clock
from mbrl.seeding import derive_seed, seeded

COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "_n_calls",
    "exploration_rate",
)
"""What an algorithm counts, where it has it: env steps, updates, episodes, schedules, DQN's target updates and ε."""


class SB3Agent(ExternalLearner):
    """An algorithm of stable-baselines3, exactly as its ``learn`` runs it.

    Raffin, Hill, Gleave, Kanervisto, Ernestus, Dormann, "Stable-Baselines3: Reliable Reinforcement Learning
    Implementations", 2021. It sees actions in [-1, 1] and flat observations. ``updates`` in the run's records is what
    the library counts: gradient steps, and for PPO passes over a rollout.

    Args:
        spec: the environment.
        algorithm: which one; ``tqc`` and ``crossq`` are sb3-contrib's.
        kwargs: constructor arguments of the algorithm, in plain values. ``learning_rate`` and ``clip_range`` take a
            number or ``{start, end, fraction}`` (linear over the run); ``action_noise`` takes ``{kind, std}`` with
            ``normal`` or ``ornstein-uhlenbeck``; ``train_freq`` a number or ``[1, episode]``; ``policy_kwargs`` takes
            ``net_arch`` as lists, ``activation_fn`` and ``optimizer_class`` by name.
        policy: the library's name of the network.
        log_every: env steps between records of losses and schedules; on-policy at least a rollout.
        device: where the networks are.
    """

    model: BaseAlgorithm

    def __init__(
        self,
        spec: EnvSpec,
        algorithm: AlgorithmName,
        kwargs: dict[str, Any] | None = None,
        policy: str = "MlpPolicy",
        log_every: int = 1000,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, device)
        if log_every < 1:
            raise UserError("agent.init_args.log_every", log_every, "give a whole number of at least 1")
        self.algorithm, self.policy, self.log_every = algorithm_class(algorithm, spec), policy, log_every
        self.arguments = dict(kwargs or {})
        constructor_arguments(self.algorithm, policy, self.arguments, spec)  # refused now rather than in the run
        self.metrics = MetricsLogger()

    def setup(self, num_envs: int, total_steps: int) -> None:
        self.env = LoopEnv(self.spec, num_envs)
        given = constructor_arguments(self.algorithm, self.policy, self.arguments, self.spec)
        if num_envs > 1 and given.get("train_freq", (1, "step"))[1] == "episode":
            raise UserError(f"{HERE}.train_freq", self.arguments["train_freq"], "this needs num_envs: 1; or give steps")
        if issubclass(self.algorithm, OffPolicyAlgorithm):
            given |= self._replay_arguments(given)
        try:
            self.model = self.algorithm(self.policy, self.env, device=self.device, **given)
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            fix = f"{self.algorithm.__name__} refuses these arguments: {error}"
            raise UserError(HERE, self.arguments, fix) from error
        if isinstance(self.model, OffPolicyAlgorithm):
            assert isinstance(self.model.replay_buffer, RingReplay)
            self.buffers["real"] = self.model.replay_buffer.ring
        self.model.set_logger(self.metrics)
        # Once for the whole run: every call would begin the schedules anew.
        _, self._callback = self.model._setup_learn(total_steps)

    def _replay_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        options = {"source": self.env, **given.get("replay_buffer_kwargs", {})}
        if given.get("n_steps", 1) == 1:
            return {"replay_buffer_class": RingReplay, "replay_buffer_kwargs": options}
        options |= {"n_steps": given.pop("n_steps"), "gamma": given.get("gamma", 0.99)}
        return {"replay_buffer_class": NStepRingReplay, "replay_buffer_kwargs": options}

    def seed(self, run_seed: int) -> None:
        """The library draws from the global random states, which are the run's, and warm-up actions from here."""
        self.model.action_space.seed(derive_seed(run_seed, "agent"))

    # -- acting ----------------------------------------------------------------------------------------------------

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        """The policy's mode when evaluating; a sample of it (with the library's ε, without its noise) else."""
        with seeded(generator):
            choice, _ = self.model.policy.predict(obs.cpu().numpy(), deterministic=mode == "evaluate")
        action = torch.as_tensor(choice, device=self.device)
        return self.spec.action.from_env(action) if self.spec.action.discrete else action, actor_state, {}

    # -- learning --------------------------------------------------------------------------------------------------

    def advance(self, environments: Environments) -> None:
        """One turn of the library's ``learn``: collect (a rollout, or ``train_freq``), then train."""
        model, self.env.environments = self.model, environments
        model._last_obs = self.env.observations()
        model._last_episode_starts = environments.current()[1].cpu().numpy()
        if isinstance(model, OnPolicyAlgorithm):
            self._advance_on_policy(model)
        else:
            assert isinstance(model, OffPolicyAlgorithm)
            self._advance_off_policy(model)

    def _advance_on_policy(self, model: OnPolicyAlgorithm) -> None:
        model.collect_rollouts(self.env, self._callback, model.rollout_buffer, model.n_steps)
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        model.train()

    def _advance_off_policy(self, model: OffPolicyAlgorithm) -> None:
        buffer, every = model.replay_buffer, model.train_freq
        assert isinstance(buffer, RingReplay)
        assert isinstance(every, TrainFreq)
        buffer.refresh()
        rollout = model.collect_rollouts(
            self.env, self._callback, every, buffer, model.action_noise, model.learning_starts, log_interval=None
        )
        steps = model.gradient_steps if model.gradient_steps >= 0 else rollout.episode_timesteps
        if model.num_timesteps > model.learning_starts and steps > 0:
            model.train(gradient_steps=steps, batch_size=model.batch_size)

    def update(self, clock: Clock) -> dict[str, dict[str, Any]]:
        clock.updates = self.model._n_updates
        values = self.metrics.take() if clock.due(self.log_every) else {}
        return {"update": values} if values else {}

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the replay buffer's rows; a rollout is used up before anyone asks."""
        model = self.model
        return {
            "counters": {name: vars(model)[name] for name in COUNTERS if name in vars(model)},
            "parameters": model.get_parameters(),
            "variables": {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]},
            "action_space": model.action_space.np_random.bit_generator.state,
            "noise": [torch.from_numpy(noise.noise_prev) for noise in self._noises()],
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        model = self.model
        model.set_parameters(state["parameters"])
        for name, value in state["variables"].items():
            getattr(model, name).data.copy_(value)  # in place: an optimiser holds it
        vars(model).update(state["counters"])
        model.action_space.np_random.bit_generator.state = state["action_space"]
        for noise, value in zip(self._noises(), state["noise"], strict=True):
            noise.noise_prev = value.numpy().copy()
        self.metrics.load_state_dict(state["metrics"])

    def _noises(self) -> list[OrnsteinUhlenbeckActionNoise]:
        """The action noises that have a memory."""
        noise = self.model.action_noise
        every = noise.noises if isinstance(noise, VectorizedActionNoise) else [noise]
        return [one for one in every if isinstance(one, OrnsteinUhlenbeckActionNoise)]
