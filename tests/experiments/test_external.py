"""Learners that step the loop's environments themselves: what the loop does around them, and their exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Generator, Tensor

from agents.base import ActorState, Mode
from agents.external import Environments, ExternalLearner
from experiments.config import resolve
from experiments.metrics import comparable, read_records
from experiments.session import Session
from mbrl.clock import Clock


def records(run: Path) -> list[dict[str, object]]:
    return [comparable(record) for record in read_records(run / "metrics.jsonl")]


# -- the seam ------------------------------------------------------------------------------------------------------


class Counting(ExternalLearner):
    """Steps ``every`` times a round with an action of its own and notes what it sees."""

    def setup(self, num_envs: int, total_steps: int) -> None:
        self.told = (num_envs, total_steps)
        self.rounds: list[list[int]] = []
        self.saved_at: list[int] = []

    def advance(self, environments: Environments) -> None:
        action = self.spec.action.to_env(Tensor([[0.5]] * self.told[0])) / 2.0
        seen = []
        for _ in range(7):
            obs, is_first = environments.current()
            rows = environments.collect(action)
            assert rows.obs.equal(obs)
            assert rows.step.eq(0).equal(is_first)
            seen.append(int(rows.step[0]))
        self.rounds.append(seen)

    def act(
        self,
        obs: Tensor,
        actor_state: ActorState,
        is_first: Tensor,
        mode: Mode,
        generator: Generator,
        sim_state: Tensor | None = None,
    ) -> tuple[Tensor, ActorState, dict[str, Tensor]]:
        return obs[:, :1].clamp(-1, 1), actor_state, {}

    def update(self, clock: Clock) -> dict[str, dict[str, object]]:
        return {"update": {"round": len(self.rounds)}} if clock.due(20) else {}

    def state_dict(self) -> dict[str, object]:
        self.saved_at.append(sum(map(len, self.rounds)))
        return {}


def test_the_loop_counts_reports_evaluates_and_saves_around_a_learner(tmp_path: Path) -> None:
    overrides = [("steps", 50), ("num_envs", 2), ("env.max_episode_steps", 5), ("checkpoint.every", 10)]
    session = Session(resolve("random", [*overrides, ("evaluation", {"every": 30, "episodes": 1})], "Pendulum-v1"))
    learner = Counting(session.pool.spec)
    learner.setup(2, 50)
    session.agent = learner
    with session.loop(session.create(str(tmp_path / "run"), []), quiet=True) as loop:
        loop.run()
    session.close()
    seen = records(tmp_path / "run")
    assert [step for steps in learner.rounds for step in steps] == [i % 5 for i in range(28)]
    assert [r["env_steps"] for r in seen if r["event"] == "episode"] == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]
    # A round is 14 env steps, so what was due inside one (30, for example, at 28 + 2) comes at its end.
    assert [r["env_steps"] for r in seen if r["event"] == "evaluation"] == [42, 56]
    assert [(r["env_steps"], r["round"]) for r in seen if r["event"] == "update"] == [(28, 2), (42, 3)]
    assert set(learner.saved_at) == {0, 7, 14, 21, 28}


# -- exact resume --------------------------------------------------------------------------------------------------

OFF_POLICY = ["batch_size=16", "learning_starts=30", "learning_rate={start: 1e-3, end: 1e-4}", "buffer_size=90"]
NOISE = "action_noise={kind: ornstein-uhlenbeck, std: 0.2}"
CASES = {
    "sb3-sac": ("Pendulum-v1", [*OFF_POLICY, "train_freq=2"]),
    "sb3-ppo": ("InvertedPendulum-v5", ["n_steps=16", "batch_size=16", "clip_range={start: 0.3, end: 0.1}"]),
    "sb3-dqn": ("CartPole-v1", [*OFF_POLICY, "train_freq=2", "target_update_interval=14", "exploration_fraction=0.7"]),
    "sb3-td3": ("Pendulum-v1", [*OFF_POLICY, NOISE]),
    "sb3-ddpg": ("InvertedPendulum-v5", OFF_POLICY),
    "sb3-tqc": ("Pendulum-v1", [*OFF_POLICY, "n_steps=3"]),
    "sb3-crossq": ("Pendulum-v1", [*OFF_POLICY, "use_sde=true", "ent_coef=0.1"]),
}
QUICK = ("sb3-sac", "sb3-ppo", "sb3-dqn")


def train(recipe: str) -> list[str]:
    env, kwargs = CASES[recipe]
    settings = ["steps=200", "num_envs=2", "seed=3", "env.max_episode_steps=25", "checkpoint.every=60"]
    settings += ["evaluation={every: 70, episodes: 2}", "agent.init_args.log_every=40"]
    settings += [f"agent.init_args.kwargs.{word}" for word in [*kwargs, "policy_kwargs={net_arch: [16]}"]]
    return ["train", recipe, "--env", env, "--quiet", *(f"--{word}" for word in settings)]


@pytest.mark.parametrize(
    "recipes", [QUICK, pytest.param([name for name in CASES if name not in QUICK], marks=pytest.mark.slow)]
)
@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_uninterrupted(recipes: list[str], resume_is_exact: Callable[..., None]) -> None:
    """Killed at env step 134 or after, past the checkpoint at 120; the buffer has wrapped by then."""
    resume_is_exact({name: train(name) for name in recipes}, 133)
