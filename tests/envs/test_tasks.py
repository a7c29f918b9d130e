"""Sequences of tasks: what they promise, what they refuse, and that their tasks really differ."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs import UserError
from envs.door import door_expert
from envs.pool import EnvPool
from envs.pushing import push_expert
from envs.registry import make_env
from envs.tasks import Task, TaskSequence, list_tasks, make_tasks, register_tasks
from envs.tasks.published import SEQUENCES

SIZES = {
    "pendulum-gravities": 5,
    "pendulum-five": 5,
    "cartpole-lengths": 10,
    "reacher-links": 10,
    "halfcheetah-bodies": 5,
    "halfcheetah-gravity": 11,
    "push-density": 5,
    "push-friction": 5,
    "door-handles": 5,
}
EXPERTS: dict[str, Callable[[Any], NDArray[np.float64]]] = {
    "mbrl/ArmPush-v0": push_expert,
    "mbrl/ArmDoor-v0": door_expert,
}


def path(task: Task, steps: int = 25) -> NDArray[np.float64]:
    """What a task shows, ``[steps, D + 1]``: observations and rewards under its expert, or under random actions."""
    env, rng, rows = task.make(), np.random.default_rng(0), []
    obs, _ = env.reset(seed=0)
    expert = EXPERTS.get(task.env)
    for _ in range(steps):
        action = expert(obs) if expert else rng.uniform(-1, 1, env.env_spec.action.size)
        obs, reward, *_ = env.step(action)
        rows.append(np.append(obs, reward))
    return np.array(rows)


def alike(sequence: TaskSequence) -> list[tuple[int, int]]:
    """Pairs of tasks that show the same."""
    paths = {task.id: path(task) for task in sequence}
    return [(i, j) for i, j in itertools.combinations(paths, 2) if np.abs(paths[i] - paths[j]).max() < 1e-6]


def three() -> TaskSequence:
    return TaskSequence.of_variants("three", "Pendulum-v1", {f"g{g}": {"gravity": float(g)} for g in (4, 10, 14)})


def test_the_named_sequences_are_listed_without_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "__post_init__", lambda self: pytest.fail("built a task"))
    lines = list_tasks()
    assert set(SIZES) <= set(lines)
    assert all(f"{size} tasks" in lines[name] and "\n" not in lines[name] for name, size in SIZES.items())


@pytest.mark.parametrize("name", SIZES)
def test_named_sequences_have_one_space_and_different_tasks(name: str) -> None:
    sequence = make_tasks(name)
    assert len(sequence) == SIZES[name]
    assert sequence.ids == tuple(range(SIZES[name]))
    assert len({task.spec.fingerprint for task in sequence}) == SIZES[name]
    assert alike(sequence) == []


def test_a_parameter_without_effect_is_noticed() -> None:
    """The control of the test above: a speed limit that is never reached makes no other task."""
    same = TaskSequence.of_variants("same", "Pendulum-v1", {"a": {"max_speed": 1e3}, "b": {"max_speed": 2e3}})
    assert alike(same) == [(0, 1)]


def test_tasks_survive_pickling_and_build_environments() -> None:
    sequence = pickle.loads(pickle.dumps(make_tasks("pendulum-five")))
    task = sequence.task(2)
    assert task == make_tasks("pendulum-five").task(2)
    env = pickle.loads(pickle.dumps(task.factory))()
    assert env.params["gravity"] == 4.0
    assert env.env_spec.fingerprint == task.spec.fingerprint
    pool = EnvPool(task.factory, 2, lambda slot, episode: slot)
    assert pool.reset().shape == (2, sequence.spec.obs_size)


def test_cutting_and_reordering_keep_ids() -> None:
    sequence = three()
    assert sequence[1:].ids == (1, 2)
    assert isinstance(sequence[:2], TaskSequence)
    assert sequence[1:][0] is sequence.task(1)
    turned = sequence.reordered([2, 0])
    assert (turned.ids, turned.names) == ((2, 0), ("g14", "g4"))
    assert [task.id for task in turned] == [2, 0]
    assert turned.name == "three"


def test_boundaries() -> None:
    assert three().boundaries(100) == (0, 100, 200, 300)
    assert three().boundaries([10, 20, 30]) == (0, 10, 30, 60)
    for wrong in (0, [1, 2], [1, 0, 3]):
        with pytest.raises(UserError, match="env_steps"):
            three().boundaries(wrong)


def test_sequences_of_any_environments() -> None:
    given: list[Any] = [
        "Pendulum-v1",
        {"id": "Pendulum-v1", "params": {"mass": 2.0}, "name": "heavy", "max_episode_steps": 50},
    ]
    sequence = TaskSequence.of_envs("mine", given)
    assert sequence.names == ("0: Pendulum-v1", "heavy")
    assert sequence[1].spec.max_episode_steps == 50
    assert sequence[1].make().params["mass"] == 2.0
    assert "id" in given[1]  # the caller's own mapping is left alone
    with pytest.raises(UserError, match="name an environment"):
        TaskSequence.of_envs("mine", [{"params": {}}])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("CartPole-v1", "observation size"),
        ("MountainCarContinuous-v0", "observation size"),
        ("mbrl/MassSpringDamper-v0", "observation size"),
    ],
)
def test_other_observations_are_refused_by_name(other: str, said: str) -> None:
    with pytest.raises(UserError, match=f"odd.*{said}"):
        TaskSequence.of_envs("mixed", ["Pendulum-v1", {"id": other, "name": "odd"}])


def test_other_actions_and_other_meanings_are_refused() -> None:
    """Observations of the same size are not enough."""
    slider = {"id": "sample_envs:Slider", "name": "odd"}
    with pytest.raises(UserError, match=r"odd.*observation layout"):
        TaskSequence.of_envs("mixed", ["mbrl/VanDerPol-v0", slider])
    box = gym.spaces.Box(-10.0, 10.0, (2,), np.float64)
    spaces = {
        "id": "sample_envs:Spaces",
        "name": "other",
        "observation_space": box,
        "action_space": gym.spaces.Discrete(3),
    }
    with pytest.raises(UserError, match=r"odd.*action space.*1 numbers.*3 choices"):
        TaskSequence.of_envs("mixed", [spaces, slider])


def test_empty_repeated_and_wrong_ids_are_refused() -> None:
    with pytest.raises(UserError, match="at least one task"):
        TaskSequence("none", [])
    with pytest.raises(UserError, match="at least one task"):
        three()[3:]
    with pytest.raises(UserError, match=r"task id.*1.*tasks 0 and 2"):
        TaskSequence("twice", [Task(i, f"{n}", "Pendulum-v1") for n, i in enumerate((1, 2, 1))])
    with pytest.raises(UserError, match="same name"):
        TaskSequence("twice", [Task(i, "a", "Pendulum-v1") for i in (0, 1)])
    with pytest.raises(UserError, match=r"task id.*7.*0, 1, 2"):
        three().task(7)
    with pytest.raises(UserError, match="task id"):
        three().reordered([0, 0])
    for id in (-1, True, "0"):
        with pytest.raises(UserError, match="whole number"):
            Task(id, "odd", "Pendulum-v1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gravty"):
        Task(0, "odd", "Pendulum-v1", {"gravty": 1.0})


def test_unknown_names_and_names_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.tasks.published.SEQUENCES", dict(SEQUENCES))
    with pytest.raises(UserError, match="Did you mean push-friction"):
        make_tasks("push-frictoin")

    def build() -> TaskSequence:
        """Three pendulums."""
        return three()

    register_tasks("mine", build)
    assert list_tasks()["mine"] == "Three pendulums."
    assert make_tasks("mine").names == three().names
    with pytest.raises(UserError, match="taken"):
        register_tasks("mine", build)


def test_the_cartpole_lengths_are_whole_poles() -> None:
    task = make_tasks("cartpole-lengths")[0]
    assert task.spec.params["half_length"] == 0.3
    hanging = torch.tensor([[0.0, 0.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    upright = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    aside = torch.tensor([[0.6, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    still, half = torch.zeros(1, 1).double(), torch.full((1, 1), 0.5).double()
    assert float(task.spec.known_reward(upright, still, upright)) == pytest.approx(1.0)
    assert float(task.spec.known_reward(upright, half, upright)) == pytest.approx(1.0 - 0.01 * 0.25)
    assert float(task.spec.known_reward(upright, still, aside)) == pytest.approx(np.exp(-1.0))
    assert float(task.spec.known_reward(upright, still, hanging)) == pytest.approx(np.exp(-4.0))


def test_reacher_reaches_as_far_as_its_links() -> None:
    for task in make_tasks("reacher-links"):
        env: Any = task.make().unwrapped
        env.reset(seed=0)
        env.set_state(np.zeros(4), np.zeros(4))
        reach = task.params["link_1"] + task.params["link_2"] + 0.01
        assert env.get_body_com("fingertip")[0] == pytest.approx(reach)


def test_cheetah_bodies_grow_at_the_same_total_mass() -> None:
    models = {task.name: task.make().unwrapped.model for task in make_tasks("halfcheetah-bodies")}  # type: ignore[attr-defined]
    base = models["base"]
    for name, grown in {"torso": ["torso"], "thigh": ["bthigh", "fthigh"], "foot": ["bfoot", "ffoot"]}.items():
        model = models[f"{name} x 1.25"]
        assert model.body_mass.sum() == pytest.approx(14.0)
        for geom in base.geom_bodyid.argsort():
            named = base.geom(geom).name
            factor = 1.25 if named in grown else 1.0
            assert model.geom(geom).size[0] == pytest.approx(factor * base.geom(geom).size[0]), named
        assert model.body(grown[0]).mass > base.body(grown[0]).mass


def test_gravity_is_turned_forward() -> None:
    task = make_tasks("halfcheetah-gravity").task(1)
    gravity = task.make().unwrapped.model.opt.gravity  # type: ignore[attr-defined]
    assert np.linalg.norm(gravity) == pytest.approx(9.81)
    assert np.degrees(np.arctan2(gravity[0], -gravity[2])) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("usual", "ours"), [("HalfCheetah-v5", "mbrl/HalfCheetahBodies-v0"), ("Reacher-v5", "mbrl/ReacherLinks-v0")]
)
def test_without_parameters_the_models_are_gymnasiums(usual: str, ours: str) -> None:
    theirs, mine = (make_env(id).unwrapped.model for id in (usual, ours))  # type: ignore[attr-defined]
    arrays = [name for name in dir(theirs) if isinstance(getattr(theirs, name), np.ndarray)]
    assert len(arrays) > 100
    for name in arrays:
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=0, atol=1e-12, err_msg=name)
