"""The polynomial lift, the closed-form fit to demonstrations, and rollouts that diverge."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator, Tensor

from envs import UserError, env_spec
from mbrl.data.transitions import Transitions
from mbrl.models.koopman.demonstrations import Demonstrations, Entries, Path
from mbrl.models.koopman.kodex import DictionaryLift, KoopmanReference, LinearLift, PolynomialLift, RobotLift

ARM = "mbrl/TwoLinkReach-v0"


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def size(n: int, m: int) -> int:
    return 3 * n + 2 * m + m * m + n * (n - 1) // 2 + m * (m - 1) // 2


# -- the lift --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "p"), [(28, 8, 570), (2, 2, 16), (1, 0, 3), (3, 1, 15)])
def test_the_lift_has_the_published_size(n: int, m: int, p: int) -> None:
    assert PolynomialLift().size(n, m) == p == size(n, m)
    assert LinearLift().size(n, m) == n + m


def test_the_lift_has_the_published_order() -> None:
    lifted = PolynomialLift()(f64([2.0, 3.0]), f64([5.0, 7.0]))
    r, o, mixed = [2, 3, 4, 9], [5, 7, 25, 49, 35], [125, 175, 245, 343]
    assert lifted.tolist() == [*r, *o, 6, 8, 27, *mixed]


def test_the_lift_equals_one_written_entry_by_entry(generator: Generator) -> None:
    robot = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    object = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    for r, o, lifted in zip(robot.tolist(), object.tolist(), PolynomialLift()(robot, object), strict=True):
        expected = [*r, *(x**2 for x in r), *o, *(x**2 for x in o)]
        expected += [a * b for a, b in itertools.combinations(o, 2)] + [a * b for a, b in itertools.combinations(r, 2)]
        expected += [x**3 for x in r] + [a * a * b for a in o for b in o]
        torch.testing.assert_close(lifted, f64(expected))


def test_any_dictionary_can_be_the_lift() -> None:
    lift = DictionaryLift(lambda x: torch.exp(-x.square().sum(-1, keepdim=True)))
    model = KoopmanReference(2, 2, lift)
    assert model.operator.shape == (3, 3)
    assert lift(f64([[1.0, 0.0]]), f64([[0.0, 0.0]])).tolist() == [[1.0, 0.0, pytest.approx(0.36788, abs=1e-5)]]


def test_a_trained_dictionary_is_saved_with_the_model() -> None:
    torch.manual_seed(0)
    models = [KoopmanReference(2, 2, DictionaryLift(torch.nn.Linear(4, 3).double())) for _ in range(2)]
    state = torch.ones(1, 2, dtype=torch.float64)
    assert not torch.equal(*(model.lift(state, state) for model in models))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(*(model.lift(state, state) for model in models))


class Shuffled(RobotLift):
    def forward(self, robot: Tensor, object: Tensor) -> Tensor:
        return torch.cat([object, robot], -1)


def test_a_lift_that_does_not_begin_with_the_robot_is_refused() -> None:
    with pytest.raises(UserError, match=r"lift: 'Shuffled'.*robot's state"):
        KoopmanReference(2, 2, Shuffled())


# -- the fit ---------------------------------------------------------------------------------------------------------


def relaxing(paths: int, generator: Generator, steps: int = 20) -> Demonstrations:
    """Robots that go to the cube of their goal: linear in the polynomial lift, not without it."""
    shown = []
    for goal in torch.rand(paths, 1, generator=generator, dtype=torch.float64) * 2 - 1:
        robot = [torch.rand(1, generator=generator, dtype=torch.float64)]
        for _ in range(steps):
            robot.append(0.8 * robot[-1] + 0.2 * goal**3)
        shown.append(Path(torch.stack(robot), goal.expand(steps + 1, 1)))
    return Demonstrations(tuple(shown))


def worst(model: KoopmanReference, shown: Demonstrations, steps: int = 20) -> float:
    start = torch.stack([path.robot[0] for path in shown.paths])
    object = torch.stack([path.object[0] for path in shown.paths])
    reference, _ = model.rollout(start, object, steps)
    return float((reference[-1] - torch.stack([path.robot[-1] for path in shown.paths])).abs().max())


def test_what_is_linear_in_the_lift_is_found_and_without_it_is_not(generator: Generator) -> None:
    seen, unseen = relaxing(8, generator), relaxing(20, generator)
    polynomial, linear = KoopmanReference(1, 1), KoopmanReference(1, 1, LinearLift())
    report = polynomial.fit(seen)
    linear.fit(seen)
    assert (report["demonstrations"], report["pairs"], report["coordinates"]) == (8, 160, 6)
    assert worst(polynomial, unseen) < 1e-3
    assert worst(linear, unseen) > 0.05


def test_the_fit_is_the_published_formula(generator: Generator) -> None:
    shown, model = relaxing(8, generator), KoopmanReference(1, 1, cut_off=0.0)
    model.fit(shown)
    lifted = [PolynomialLift()(path.robot, path.object) for path in shown.paths]
    now, then = (torch.cat([x[part] for x in lifted]) for part in (slice(None, -1), slice(1, None)))
    torch.testing.assert_close(model.operator, then.T @ now @ torch.linalg.pinv(now.T @ now, hermitian=True))
    assert model.operator.dtype == torch.float64


def test_the_cut_off_and_the_ridge_do_what_they_say(generator: Generator) -> None:
    shown = relaxing(8, generator)
    ranks = [KoopmanReference(1, 1, cut_off=cut_off).fit(shown)["rank"] for cut_off in (0.0, 1e-2)]
    assert ranks[1] < ranks[0]
    free, tight = KoopmanReference(1, 1), KoopmanReference(1, 1, ridge=1.0)
    free.fit(shown)
    tight.fit(shown)
    assert tight.operator.norm() < 0.7 * free.operator.norm()


def test_before_a_fit_the_reference_stays() -> None:
    reference, diverged = KoopmanReference(2, 1).rollout(f64([[0.3, -0.2]]), f64([[1.0]]), 10)
    torch.testing.assert_close(reference, f64([[0.3, -0.2]]).expand(11, 1, 2))
    assert not diverged.any()


# -- rollouts --------------------------------------------------------------------------------------------------------


def test_a_goal_that_moves_is_heard_by_lifting_anew(generator: Generator) -> None:
    model = KoopmanReference(1, 1)
    model.fit(relaxing(12, generator))
    seen = torch.cat([f64([[[0.2]]]).expand(20, 1, 1), f64([[[-0.9]]]).expand(20, 1, 1)])
    start, goal = f64([[0.5]]), f64([[0.2]])
    deaf, _ = model.rollout(start, goal, 40, 0, seen)
    hears, _ = model.rollout(start, goal, 40, 10, seen)
    assert abs(float(deaf[-1]) - 0.2**3) < 0.01
    assert abs(float(hears[-1]) + 0.9**3) < 0.02


def exploding() -> KoopmanReference:
    """A reference that the cube of the robot feeds, after a fit whose range was [-1, 1]."""
    model = KoopmanReference(1, 0, bound=1.0)
    model.operator.copy_(f64([[0.9, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    model.box.copy_(f64([[-3.0], [3.0]]))
    return model


def test_a_rollout_that_explodes_is_counted_and_held() -> None:
    model, robot, nothing = exploding(), f64([[0.2], [2.0]]), torch.zeros(2, 0, dtype=torch.float64)
    path, diverged = model.rollout(robot, nothing, 200, relift_every=1)
    assert diverged.tolist() == [False, True]
    assert path.isfinite().all()
    assert float(path.abs().max()) <= 3.0
    model.box.copy_(f64([[-1e300], [1e300]]))  # without the bound it reaches the end of the numbers, and is held there
    path, diverged = model.rollout(robot, nothing, 200, relift_every=1)
    assert path.isfinite().all()
    assert diverged.tolist() == [False, True]
    assert float(path.abs().max()) > 1e50


def test_from_a_start_outside_a_rollout_may_come_back(generator: Generator) -> None:
    model = KoopmanReference(1, 1)
    model.fit(relaxing(12, generator))
    outside = model.box[1:].clone() + 1.0
    path, diverged = model.rollout(outside, f64([[0.0]]), 30)
    assert not diverged.any()
    assert float(path[-1, 0, 0]) < float(model.box[1, 0])


# -- what is refused -------------------------------------------------------------------------------------------------


def path(robot: Tensor, object: Tensor | None = None) -> Path:
    return Path(robot, torch.zeros(len(robot), 1, dtype=torch.float64) if object is None else object)


GOOD = torch.zeros(5, 2, dtype=torch.float64)
BAD: dict[str, tuple[list[Path], str]] = {
    "none": ([], "at least one"),
    "short": ([path(GOOD), path(GOOD[:1])], r"demonstration 1: '1 states.*at least two"),
    "uneven": ([path(GOOD, GOOD[:3, :1])], "3 of the object"),
    "other width": ([path(GOOD), path(GOOD[:, :1])], "as many entries"),
    "NaN": ([path(GOOD), path(f64([[0.0, 0.0], [0.0, torch.nan]]))], "demonstration 1, state 1: 'NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_demonstrations_are_refused(name: str) -> None:
    paths, said = BAD[name]
    with pytest.raises(UserError, match=said):
        Demonstrations(tuple(paths))


def test_too_few_are_refused_unless_a_ridge_makes_up_for_them(generator: Generator) -> None:
    few = relaxing(1, generator, steps=4)
    with pytest.raises(UserError, match=r"4 steps in 1 paths.*6 coordinates"):
        KoopmanReference(1, 1).fit(few)
    assert KoopmanReference(1, 1, ridge=1e-3).fit(few)["pairs"] == 4


def test_another_robot_and_numbers_too_large_are_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="2 entries of the robot"):
        KoopmanReference(2, 1).fit(relaxing(8, generator))
    huge = Demonstrations((path(1e200 * torch.ones(30, 1, dtype=torch.float64)),))
    with pytest.raises(UserError, match="too large to lift"):
        KoopmanReference(1, 1).fit(huge)


@pytest.mark.parametrize("wrong", [{"cut_off": 1.0}, {"ridge": -1.0}, {"bound": float("inf")}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="cut_off, ridge, bound"):
        KoopmanReference(1, 1, **wrong)  # type: ignore[arg-type]


# -- entries and paths -----------------------------------------------------------------------------------------------


def test_entries_are_named_by_the_layout() -> None:
    entries = Entries.named(env_spec(ARM), ["q2"], ["goal_x", "q1"])
    robot, object = entries.split(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert (robot.tolist(), object.tolist(), robot.dtype) == ([[1.0]], [[2.0, 0.0]], torch.float64)


@pytest.mark.parametrize(
    ("robot", "object", "said"),
    [
        (["q1", "q3"], [], "robot: 'q3': mbrl/TwoLinkReach-v0 observes q1, q2, goal_x, goal_y Did you mean"),
        (["q1"], ["gaol_x"], "object: 'gaol_x'.*goal_x"),
        (["q1"], ["q1"], "once"),
        ([], ["q1"], "name entries of"),
    ],
)
def test_unknown_entries_are_refused(robot: list[str], object: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Entries.named(env_spec(ARM), robot, object)


def rows(episode: list[int], step: list[int]) -> Transitions:
    """Of two entries; the first counts up with the step."""
    e, s = torch.tensor(episode), torch.tensor(step)
    obs, no = torch.stack([s.float(), e.float()], 1), torch.zeros(len(e), dtype=torch.bool)
    after = torch.stack([s.float() + 1, e.float()], 1)
    return Transitions(obs, torch.zeros(len(e), 1), torch.zeros(len(e)), after, no, no, e, s, torch.zeros_like(e))


def test_paths_follow_episodes_and_break_at_gaps() -> None:
    shown = Demonstrations.of_transitions(rows([1, 0, 1, 0, 0], [1, 0, 0, 1, 5]), Entries((0,), (1,)))
    assert [path.robot[:, 0].tolist() for path in shown.paths] == [[0, 1, 2], [5, 6], [0, 1, 2]]
    assert [path.object[0, 0].item() for path in shown.paths] == [0, 0, 1]
    assert shown.pairs == 5
