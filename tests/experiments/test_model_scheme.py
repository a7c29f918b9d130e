"""``model:RUN_DIR``: a run's learned model, served with what is known of the run's own environment."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from envs.boundary import BoundaryEnv
from envs.check import check_env
from envs.errors import UserError
from envs.knowledge.verify import verify_knowledge
from envs.pool import EnvPool
from envs.registry import env_spec, make_env
from envs.spec import ActionSpec, EnvSpec
from experiments import model_scheme
from experiments.cli import main
from experiments.segments import BufferStore
from mbrl.data.buffer import ReplayBuffer
from mbrl.imagination.starts import Starts
from mbrl.models.base import DynamicsModel, State, Step

TINY = [
    "--agent.init_args.model.init_args.members=2",
    "--agent.init_args.model.init_args.hidden=8",
    "--agent.init_args.planner.init_args.particles=2",
    "--agent.init_args.planner.init_args.candidates=4",
    "--agent.init_args.planner.init_args.horizon=2",
    "--agent.init_args.fitter.init_args.first_updates=20",
    "--agent.init_args.planner.init_args.iterations=1",
    "--agent.init_args.warmup_steps=90",
    "--agent.init_args.fit_every=5",
    "--evaluation.episodes=1",
    "--evaluation.num_envs=1",
    "--env.max_episode_steps=20",
]
ONE = ["--evaluation.episodes=1", "--evaluation.num_envs=1"]


def train(out: Path, steps: int, *more: str) -> Path:
    command = ["train", "pets", "--env", "Pendulum-v1", f"--steps={steps}", f"--out={out}", "--quiet", *TINY, *more]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of 20 random steps and a bit of a fifth, fitted once."""
    return train(tmp_path_factory.mktemp("model") / "run", 95)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is trusted, nothing remembered, from one test to the next."""
    monkeypatch.setattr(model_scheme, "_admitted", set())
    model_scheme._serve.cache_clear()
    yield
    model_scheme._serve.cache_clear()


def test_what_is_known_is_what_the_runs_environment_knows(run: Path) -> None:
    own, served = env_spec("Pendulum-v1", max_episode_steps=20), env_spec(f"model:{run}")
    for name in ("obs_size", "action", "layout", "angles", "max_episode_steps", "dt", "reward_complete"):
        assert getattr(served, name) == getattr(own, name), name
    assert served.id == f"model:{run}"
    assert served.version.startswith("95-")
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, 50, 3, generator=generator)
    action = torch.rand(50, 1, generator=generator) * 2 - 1
    assert torch.equal(served.known_reward(obs, action, next_obs), own.known_reward(obs, action, next_obs))
    ends = served.known_termination(obs, action, next_obs)
    assert torch.equal(ends, own.known_termination(obs, action, next_obs))


class Slide(DynamicsModel):
    """Adds the chosen amount, -1, 0 or 1, to both entries; the reward is 0.25 beside what is known."""

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        obs = state.obs + (action.argmax(-1, keepdim=True) - 1.0)
        reward = self.spec.known_reward(state.obs, action, obs) + 0.25
        over = self.spec.known_termination(state.obs, action, obs)
        return Step(State(obs), reward, over, torch.zeros_like(over))


def reach(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:
    return params[1] * next_obs[:, 0] - 0.5 * action


def too_far(obs: Tensor, action: Tensor, next_obs: Tensor, params: Tensor) -> Tensor:
    return next_obs[:, 0].abs() > params[0]


def crowded(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[:, 1].square()


def test_known_pieces_keep_their_physics_parameters_and_can_be_checked() -> None:
    """A part of the reward, an end and a cost, two of them functions of physics parameters; discrete actions."""
    spec = EnvSpec(
        id="Slide-v0",
        version="0",
        fingerprint="0",
        obs_size=2,
        action=ActionSpec("discrete", 3),
        layout={"here": slice(0, 1), "there": slice(1, 2)},
        params={"wall": 4.0, "slope": 3.0},
        reward_terms={"reach": reach},
        termination=too_far,
        costs={"crowded": crowded},
        dt=0.1,
    )
    starts = Starts(torch.zeros(1, 2))
    served = model_scheme.Served(Slide(spec), spec, {"first": starts}, "7-abc")
    env = BoundaryEnv(model_scheme._class_for(spec)(served, starts), "model:slide")
    known = env.env_spec
    assert (known.layout, known.dt, known.version) == (spec.layout, 0.1, "7-abc")
    assert not known.params
    assert not known.reward_complete
    obs, action = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    for there in (torch.tensor([[3.0, 2.0]]), torch.tensor([[5.0, 2.0]])):
        assert torch.equal(known.known_reward(obs, action, there), spec.known_reward(obs, action, there))
        assert torch.equal(known.known_termination(obs, action, there), spec.known_termination(obs, action, there))
        assert known.known_cost("crowded", obs, action, there).tolist() == [4.0]
    assert not verify_knowledge(env, known, steps=300)
    assert pickle.loads(pickle.dumps(known)).fingerprint == known.fingerprint


def real_rows(run: Path) -> Any:
    """The run's real transitions, as its checkpoint counts them."""
    buffer = ReplayBuffer(1000, extra={"plan_value": ()})
    BufferStore(run / "checkpoints/buffers/real").read(buffer, 95)
    return buffer.all()


def test_episodes_start_where_the_runs_did(run: Path) -> None:
    rows = real_rows(run)
    first = {tuple(row) for row in rows.obs[rows.step == 0].tolist()}
    assert len(first) == 5
    env = make_env(f"model:{run}")
    assert {tuple(env.reset(seed=i)[0].tolist()) for i in range(50)} == first
    anywhere = make_env(f"model:{run}", starts="all")
    seen = {tuple(anywhere.reset(seed=i)[0].tolist()) for i in range(50)}
    assert seen <= {tuple(row) for row in rows.obs.tolist()}
    assert len(seen) > 20
    with pytest.raises(UserError, match="first or all"):
        make_env(f"model:{run}", starts="last")


def test_it_moves_as_the_model_does(run: Path) -> None:
    """In the environment's own units: half of the torque is half of it for the model too."""
    env: Any = make_env(f"model:{run}")
    served: Any = env.unwrapped
    obs, _ = env.reset(seed=0)
    state = served.get_state()
    next_obs, reward, _, _, _ = env.step(np.array([0.5], dtype=np.float32))
    served.set_state(state)
    again, _, _, _, _ = served.step(np.array([1.0], dtype=np.float32))
    assert again.tolist() == next_obs.tolist()
    spec = env_spec("Pendulum-v1")
    rows = [torch.tensor(x)[None] for x in (obs, [0.5], next_obs)]
    assert abs(float(spec.known_reward(*rows)) - reward) < 1e-5


def test_the_limit_is_the_runs_or_the_users(run: Path) -> None:
    for limit, expected in ((None, 20), (7, 7), (30, 30)):
        env = make_env(f"model:{run}", max_episode_steps=limit)
        env.reset(seed=0)
        steps = 1
        while not env.step(np.zeros(1, dtype=np.float32))[3]:
            steps += 1
        assert steps == expected == env.env_spec.max_episode_steps


def test_environments_of_one_process_share_the_model(run: Path) -> None:
    one, other = (make_env(f"model:{run}").unwrapped for _ in range(2))
    assert one._slots.model is other._slots.model  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_serving_changes_nothing_but_itself(run: Path, tmp_path: Path) -> None:
    """Not the run, which may be alive and have written rows that no checkpoint counts yet; no global random state."""
    live = tmp_path / "live"
    shutil.copytree(run, live)
    [segment] = (live / "checkpoints/buffers/real").glob("segment-*.bin")
    with segment.open("ab") as file:
        file.write(b"\0" * 500)
    before, states = contents(live), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    make_env(f"model:{live}").reset(seed=0)
    assert contents(live) == before
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_it_passes_every_check(run: Path) -> None:
    report = check_env(f"model:{run}", steps=200)
    assert report.restorability == "exact"
    assert {finding.status for finding in report.findings} <= {"ok", "warn"}, report.lines()
    verdicts = {finding.name: finding.status for finding in report.findings}
    assert verdicts["gymnasium"] == verdicts["stable-baselines3"] == verdicts["known pieces"] == "ok"


def test_a_pool_comes_back_exactly(run: Path) -> None:
    """Through a checkpoint's bytes, which hold tensors and plain values only."""

    def make_pool() -> EnvPool:
        return EnvPool(lambda: make_env(f"model:{run}"), 2, lambda slot, episode: 10 * slot + episode)

    pool, actions = make_pool(), np.random.default_rng(0).uniform(-1, 1, (30, 2, 1)).astype(np.float32)
    pool.reset()
    for action in actions[:10]:
        pool.step(action)
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    again = make_pool()
    again.load_state_dict(torch.load(file, weights_only=True))
    for action in actions[10:]:
        one, other = pool.step(action), again.step(action)
        assert one.next_obs.tolist() == other.next_obs.tolist()
        assert one.reward.tolist() == other.reward.tolist()
        assert pool.reset_ended().tolist() == again.reset_ended().tolist()


def test_the_command_line_trains_in_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "inner"
    command = ["train", "random", "--env", f"model:{run}", "--steps=30", f"--out={out}", "--quiet", *ONE]
    assert main([*command, "--env.kwargs.starts=all"]) == 0
    assert main(["resume", str(out)]) == 0
    assert "is complete" in capsys.readouterr().err
    monkeypatch.setattr("envs.check.check_env", functools.partial(check_env, steps=50))
    assert main(["check-env", f"model:{run}"]) == 0
    assert "0 fail; exact" in capsys.readouterr().out


def test_another_checkpoint_is_another_environment(run: Path, tmp_path: Path) -> None:
    grown = train(tmp_path / "grown", 100)
    one, other = env_spec(f"model:{run}"), env_spec(f"model:{grown}")
    assert other.version.startswith("100-")
    assert one.version.split("-")[1] != other.version.split("-")[1]
    shutil.rmtree(run.parent / "copy", ignore_errors=True)
    shutil.copytree(run, run.parent / "copy")
    assert env_spec(f"model:{run.parent / 'copy'}").version == one.version


# -- what cannot be served ----------------------------------------------------------------------------------------


def test_runs_that_cannot_be_served(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert main(["train", "random", "--env=Pendulum-v1", "--steps=5", f"--out={none}", "--quiet", *ONE]) == 0
    early = train(tmp_path / "early", 0)
    expected = {
        none: "RandomAgent.*no dynamics model",
        early: "no real transitions",
        tmp_path / "nowhere": "not a run directory",
    }
    for path, message in expected.items():
        with pytest.raises(UserError, match=message):
            make_env(f"model:{path}")
    shutil.rmtree(early / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        make_env(f"model:{early}")
    with pytest.raises(UserError, match="nothing to draw"):
        make_env(f"model:{early}", render_mode="rgb_array")


def test_code_of_others_runs_only_when_it_is_trusted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal comes before anything is imported, and says the whole command."""
    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    config = foreign / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("agents.MPCAgent", "someones_agent.Theirs"))
    assert config.read_text() != text
    (tmp_path / "someones_agent.py").write_text("from agents.mpc import MPCAgent\n\n\nclass Theirs(MPCAgent): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    train_there = ["train", "random", "--env", "model:foreign", "--steps=5", "--quiet", *ONE]
    for command in (train_there, ["check-env", "model:foreign"]):
        assert main(command) == 2
        assert f"mbrl {' '.join(command)} --trust someones_agent" in capsys.readouterr().err
    assert main(["train", "random", "--env.id=model:foreign"]) == 2
    assert "--trust someones_agent" in capsys.readouterr().err
    with pytest.raises(UserError, match="outside the project"):
        make_env("model:foreign")
    assert "someones_agent" not in sys.modules
    assert main([*train_there, "--out=inner", "--trust", "someones_agent"]) == 0
    model_scheme._admitted.clear()
    assert main(["resume", "inner"]) == 2
    assert "mbrl resume inner --trust someones_agent" in capsys.readouterr().err
    assert main(["resume", "inner", "--trust", "someones_agent"]) == 0
