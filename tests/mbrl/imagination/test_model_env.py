"""A model as an environment: the checkers' rules, and a row among many is what it is alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import walks
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check
from torch import Generator, Tensor

from envs.errors import UserError
from envs.registry import env_spec
from mbrl.data.buffer import ReplayBuffer
from mbrl.data.transitions import Transitions
from mbrl.imagination.model_env import LEAST_ROWS, NOISE_BLOCK, ModelEnv, ModelVectorEnv
from mbrl.imagination.starts import BufferStarts, StartSampler
from mbrl.models.base import DynamicsModel, State, Step
from mbrl.models.ensemble import ProbabilisticEnsemble
from mbrl.models.simulator import Simulator

STARTS = torch.tensor([[0.0, 0.0], [0.5, 1.0], [-0.5, 2.0]])


def ensemble(**options: Any) -> ProbabilisticEnsemble:
    """Learned reward and learned ends (of about a twentieth of the steps), and a validity box."""
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(walks.spec_of(**options), members=3, hidden=8, elites=2, validity=1.0)
    with torch.no_grad():
        model.biases[-1][..., -1] = -3.0
        model.max_log_var.fill_(-1.0)
    model.get_buffer("elites").copy_(torch.tensor([0, 2]))
    model.get_buffer("box").copy_(torch.tensor([[-8.0, -8.0], [8.0, 8.0]]))
    return model


def pendulum() -> Simulator:
    return Simulator(env_spec("Pendulum-v1"))


def cartpole() -> Simulator:
    return Simulator(env_spec("CartPole-v1"))


def cartpole_starts() -> Tensor:
    return 0.05 * torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


PENDULUM_STARTS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
CASES: dict[str, Callable[[], tuple[DynamicsModel, Tensor]]] = {
    "ensemble": lambda: (ensemble(), STARTS),
    "discrete ensemble": lambda: (ensemble(discrete=True), STARTS),
    "simulator": lambda: (pendulum(), PENDULUM_STARTS),
    "discrete simulator": lambda: (cartpole(), cartpole_starts()),
}


# -- one environment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_checkers_are_content(case: str) -> None:
    """What they may still say is what every environment with unbounded observations hears."""
    env = ModelEnv(*CASES[case](), max_episode_steps=50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)
    said = [str(w.message) for w in caught]
    harmless = ("infinity", "not having a spec")
    assert not [text for text in said if not any(part in text for part in harmless)]


def episode(env: ModelEnv, seed: int, steps: int = 25) -> list[Any]:
    """All that is seen in an episode under actions that do not depend on it, and in what follows an end."""
    obs, _ = env.reset(seed=seed)
    seen: list[Any] = [obs.tolist()]
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(_random_action(env.action_space, rng))
        seen.append((obs.tolist(), reward, terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset()[0].tolist())
    return seen


def _random_action(space: gym.Space[Any], rng: np.random.Generator) -> Any:
    if isinstance(space, gym.spaces.Discrete):
        return int(rng.integers(space.n))
    return rng.uniform(-1, 1, space.shape).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_a_seed_fixes_everything(case: str) -> None:
    model, starts = CASES[case]()
    env, other = ModelEnv(model, starts, 10), ModelEnv(model, starts, 10)
    first = episode(env, 5)
    torch.manual_seed(1)
    assert episode(env, 5) == first
    assert episode(other, 5) == first
    assert episode(other, 6) != first


def test_an_unseeded_environment_is_random() -> None:
    starts = torch.arange(10_000.0)[:, None].repeat(1, 2)
    seen = {float(ModelEnv(walks.Walk(), starts).reset()[0][0]) for _ in range(4)}
    assert len(seen) > 1
    env = ModelEnv(walks.Walk(), starts)
    assert len({float(env.reset(seed=1 if i == 0 else None)[0][0]) for i in range(4)}) > 1


def test_starts_come_from_a_buffer_by_weight() -> None:
    rows = 4
    never, zero = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.long)
    obs = torch.stack([torch.arange(4.0), torch.zeros(4)], 1)
    buffer = ReplayBuffer(10)
    buffer.extend(Transitions(obs, torch.zeros(4, 1), zero.float(), obs, never, never, zero, zero, zero))
    buffer.set_weights(buffer.ids, torch.tensor([0.0, 0.0, 1.0, 0.0]))
    env = ModelEnv(walks.Walk(), BufferStarts(buffer, StartSampler(weighted=True)))
    assert {float(env.reset(seed=i)[0][0]) for i in range(10)} == {2.0}


def test_ends_are_the_models_the_box_and_the_limit() -> None:
    def ends(model: walks.Walk, limit: int | None) -> list[tuple[bool, bool]]:
        env, seen = ModelEnv(model, torch.zeros(1, 2), limit), []
        env.reset(seed=0)
        for _ in range(5):
            _, _, terminated, truncated, _ = env.step(np.ones(1, dtype=np.float32))
            seen.append((terminated, truncated))
        return seen

    assert ends(walks.Walk(), None) == [(False, False)] * 5
    assert ends(walks.Walk(end_at=1.5), None) == [(False, False)] + [(True, False)] * 4
    assert ends(walks.Walk(box=1.5), None) == [(False, False)] + [(False, True)] * 4
    assert ends(walks.Walk(), 3) == [(False, False)] * 2 + [(False, True)] * 3


def test_the_limit_counts_anew_in_every_episode() -> None:
    env = ModelEnv(walks.Walk(), torch.zeros(1, 2), 3)
    for _ in range(3):
        env.reset()
        assert [env.step(np.ones(1))[3] for _ in range(3)] == [False, False, True]


def test_actions_are_clipped_to_the_platforms_range() -> None:
    env = ModelEnv(walks.Walk(), torch.zeros(1, 2))
    env.reset(seed=0)
    assert env.step(np.array([7.0]))[1] == 1.0


def test_what_is_no_number_is_not_shown() -> None:
    class Explosive(walks.Walk):
        def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
            step = super().step(state, action, generator)
            return Step(State(step.state.obs / 0.0), step.reward, step.terminated | True, step.truncated)

    env = ModelEnv(Explosive(), torch.ones(1, 2))
    env.reset(seed=0)
    obs, reward, terminated, truncated, _ = env.step(np.ones(1))
    assert (obs.tolist(), reward, terminated, truncated) == ([1.0, 1.0], 0.0, False, True)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_state_brings_everything_back(case: str) -> None:
    model, starts = CASES[case]()
    env = ModelEnv(model, starts, 100)
    env.reset(seed=3)
    actions = [_random_action(env.action_space, np.random.default_rng(i)) for i in range(NOISE_BLOCK + 20)]
    for action in actions[:5]:
        env.step(action)
    saved = env.get_state()
    first = [env.step(action) for action in actions[5:]]
    env.reset(seed=4)
    assert env.set_state(saved).tolist() != first[0][0].tolist()
    for action, (obs, *rest) in zip(actions[5:], first, strict=True):
        again = env.step(action)
        assert again[0].tolist() == obs.tolist()
        assert list(again[1:]) == rest


# -- many ---------------------------------------------------------------------------------------------------------


Seen = dict[str, list[Any]]
LIMIT = 6


def record(env: gym.vector.VectorEnv[Any, Any, Any], steps: int, seed: int) -> Seen:
    """All that a vector environment shows; where nothing resets itself, masked resets where something ended."""
    obs, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    seen: Seen = {"obs": [obs], "reward": [], "ends": [], "last": []}
    for _ in range(steps):
        actions = np.stack([_random_action(env.single_action_space, rng) for _ in range(env.num_envs)])
        obs, reward, terminated, truncated, infos = env.step(actions)
        over = terminated | truncated
        last = [x for x in infos.get("final_obs", []) if x is not None]
        if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED and over.any():
            last, (obs, _) = [*obs[over]], env.reset(options={"reset_mask": over})
        for name, value in (("obs", obs), ("reward", reward), ("ends", [terminated, truncated]), ("last", last)):
            seen[name].append(np.array(value))
    return seen


def check_equal(one: Seen, other: Seen, tolerance: float) -> None:
    for name in one:
        for mine, theirs in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def pair(model: DynamicsModel, starts: Tensor, num_envs: int, mode: AutoresetMode, steps: int) -> tuple[Seen, Seen]:
    """The same seeds and actions in many rows of one call, and in as many environments."""
    many = ModelVectorEnv(model, starts, num_envs, LIMIT, mode)
    alone = SyncVectorEnv([lambda: ModelEnv(model, starts, LIMIT)] * num_envs, autoreset_mode=mode)
    return record(many, steps, 7), record(alone, steps, 7)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("case", CASES)
def test_many_are_what_each_is_alone(case: str, mode: AutoresetMode) -> None:
    """Through the ends of episodes, in each of Gymnasium's ways to go on; simulators to the bit."""
    many, alone = pair(*CASES[case](), LEAST_ROWS + 3, mode, 2 * LIMIT)
    check_equal(many, alone, 0.0 if "simulator" in case else 1e-5)
    assert np.array(many["ends"]).any()
    assert any(len(obs) for obs in many["last"]) == (mode != AutoresetMode.NEXT_STEP)


def test_blocks_of_noise_are_renewed_alike() -> None:
    """A stream goes on through more steps than its block of numbers holds, in episodes without a limit."""
    model = ensemble()
    with torch.no_grad():
        model.biases[-1][..., -1] = -50.0
    model.get_buffer("box").copy_(torch.tensor([[-1e9], [1e9]]).expand(2, 2))
    many, one = ModelVectorEnv(model, STARTS, 2), ModelEnv(model, STARTS)
    many.reset(seed=[8, 9])
    one.reset(seed=9)
    for _ in range(NOISE_BLOCK + 5):
        rows, row = many.step(np.zeros((2, 1))), one.step(np.zeros(1))
        np.testing.assert_allclose(rows[0][1], row[0], rtol=1e-4, atol=1e-4)
        assert row[2:4] == (False, False)


def test_rows_of_one_shared_stream_differ() -> None:
    """Without a step that takes its noise, the test above must fail."""
    with pytest.raises(AssertionError):
        check_equal(*pair(ensemble().bind(), STARTS, 3, AutoresetMode.SAME_STEP, 5), 1e-5)


def test_rows_of_a_shared_stream_are_alike_in_distribution() -> None:
    """A walk of 20 steps with noise 1 has variance 20, and rows do not move together."""
    env = ModelVectorEnv(walks.Walk(noise=1.0), torch.zeros(1, 2), 4000)
    env.reset(seed=0)
    for _ in range(20):
        obs = env.step(np.zeros((4000, 1), dtype=np.float32))[0]
    assert abs(obs[:, 0].var() - 20.0) < 1.5
    assert abs(obs[:, 0].mean()) < 0.3


def test_a_step_with_given_noise_is_the_models_step() -> None:
    """Same elites, spread, rewards and ends as ``step``, over many rows."""
    model, rows = ensemble(), 40_000
    state, action = State(torch.zeros(rows, 2)), torch.full((rows, 1), 0.5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, model.noise_size, generator=generator)
    one, other = model.step_with_noise(state, action, noise), model.step(state, action, generator)
    assert one.member is not None
    assert one.member.unique().tolist() == [0, 2]
    assert abs(float((one.member == 0).float().mean()) - 0.5) < 0.02
    for value in (lambda s: s.state.obs[:, 0], lambda s: s.state.obs[:, 1], lambda s: s.reward):
        mine, theirs = value(one), value(other)
        assert abs(float(mine.mean() - theirs.mean())) < 0.03 * float(theirs.std())
        assert abs(float(mine.std() / theirs.std()) - 1) < 0.02
    assert abs(float(one.terminated.float().mean() - other.terminated.float().mean())) < 0.005
    assert bool(one.terminated.any())
    still = model.step_with_noise(state, action, noise * 0)
    # Not to the bit: on some processors a row's last bit depends on its place in a matrix product.
    torch.testing.assert_close(still.state.obs, still.state.obs[:1].expand(rows, -1), rtol=0.0, atol=1e-6)


def test_given_noise_keeps_the_validity_box() -> None:
    model = ensemble()
    model.get_buffer("box").copy_(torch.tensor([[-0.1, -9.0], [0.1, 9.0]]))
    noise = torch.randn(500, model.noise_size, generator=torch.Generator().manual_seed(0))
    step = model.step_with_noise(State(torch.zeros(500, 2)), torch.zeros(500, 1), noise)
    assert torch.equal(step.truncated, step.state.obs[:, 0].abs() > 0.1)
    assert 0 < int(step.truncated.sum()) < 500


def test_rows_have_streams_of_their_own() -> None:
    env = ModelVectorEnv(ensemble(), STARTS[:1], 8)
    env.reset(seed=0)
    assert len({row.tobytes() for row in env.step(np.zeros((8, 1), dtype=np.float32))[0]}) == 8
    env.reset(seed=[3] * 8)
    assert len({row.tobytes() for row in env.step(np.zeros((8, 1), dtype=np.float32))[0]}) == 1


def test_a_masked_reset_leaves_the_others_alone() -> None:
    env = ModelVectorEnv(walks.Walk(), torch.zeros(1, 2), 3, 2, AutoresetMode.DISABLED)
    env.reset(seed=0)
    env.step(np.array([[1.0], [0.5], [0.25]]))
    obs, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert obs[:, 0].tolist() == [0.0, 0.5, 0.25]
    truncated = env.step(np.zeros((3, 1)))[3]
    assert truncated.tolist() == [False, True, True]
    with pytest.raises(RuntimeError, match="reset_mask"):
        env.step(np.zeros((3, 1)))


def test_the_episode_that_ends_says_where() -> None:
    env = ModelVectorEnv(walks.Walk(end_at=1.5), torch.zeros(1, 2), 2)
    env.reset(seed=0)
    env.step(np.array([[1.0], [0.1]]))
    obs, _, terminated, truncated, infos = env.step(np.array([[1.0], [0.1]]))
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    assert obs[0].tolist() == [0.0, 0.0]
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos["final_obs"][0].tolist() == [2.0, 0.0]
    assert infos["final_obs"][1] is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ModelEnv(walks.Walk(), torch.zeros(0, 2)),
        lambda: ModelEnv(walks.Walk(), STARTS, 0),
        lambda: ModelVectorEnv(walks.Walk(), STARTS, 0),
        lambda: ModelVectorEnv(walks.Walk(), STARTS, 2).reset(seed=[1]),
        lambda: ModelVectorEnv(walks.Walk(), STARTS, 2).reset(options={"reset_mask": np.zeros(2, dtype=np.bool_)}),
    ],
)
def test_bad_arguments_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        wrong()


@pytest.mark.parametrize("action", [-1, 3, 0.5, None, "left", np.nan, [0, 1]])
def test_what_is_no_choice_is_refused_by_name(action: Any) -> None:
    model = ensemble(discrete=True)
    single, many = ModelEnv(model, STARTS), ModelVectorEnv(model, STARTS, 2)
    for env, actions in ((single, action), (many, [1, action] if not isinstance(action, list) else [0.5, 1])):
        env.reset(seed=0)
        with pytest.raises(UserError, match=r"action: .*whole number from 0 to 2"):
            env.step(actions)
    for good in (1, np.int64(1), np.array(1), 1.0):
        single.step(good)
    many.step(np.array([0, 1]))


def test_stepping_before_a_reset_is_refused() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        ModelEnv(walks.Walk(), STARTS).step(np.zeros(1))
