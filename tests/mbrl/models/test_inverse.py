"""Inverse dynamics: what a window is worth, who judges, and what happens at both ends of an episode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, EnvSpec
from mbrl.data.labels import without_actions
from mbrl.data.transitions import Transitions
from mbrl.models.inverse import Examples, WindowedInverse, previous_rows, r_squared
from tests.mbrl.models.swings import pendulum, swings

QUICK = {"hidden": 64, "steps": 1000, "lr": 2e-3}


def explained(window: int, hide_velocity: bool, shuffled: bool = False) -> float:
    """R² of the labels of ten fresh episodes."""
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(2)
    known, fresh, spec = swings(10, generator), swings(10, generator), pendulum()
    if hide_velocity:
        known, fresh = (replace(rows, obs=rows.obs[:, :2], next_obs=rows.next_obs[:, :2]) for rows in (known, fresh))
        spec = replace(spec, obs_size=2)
    if shuffled:
        known = replace(known, action=known.action[torch.randperm(len(known), generator=generator)])
    inverse = WindowedInverse(spec, window, **(QUICK | {"steps": 200} if shuffled else QUICK))  # type: ignore[arg-type]
    inverse.fit(known, generator)
    return r_squared(inverse.predict(fresh)[0], fresh.action)


def test_full_states_tell_the_action() -> None:
    assert explained(0, hide_velocity=False) > 0.9


def test_a_window_makes_up_for_hidden_velocities() -> None:
    assert explained(2, hide_velocity=True) - explained(0, hide_velocity=True) > 0.5


def test_unrelated_actions_are_not_told() -> None:
    assert explained(0, hide_velocity=False, shuffled=True) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2])
def test_a_window_does_no_harm_to_full_states(window: int) -> None:
    assert explained(window, hide_velocity=False) > 0.9


SPEC = EnvSpec(
    id="Line-v0", version="0", fingerprint="0", obs_size=1, action=ActionSpec("continuous", 1, (-1.0,), (1.0,))
)


def line(lengths: tuple[int, ...], generator: Generator) -> Transitions:
    """Each step adds half the action."""
    parts = []
    for episode, steps in enumerate(lengths):
        action = 1.9 * torch.rand(steps, 1, generator=generator) - 0.95
        path = torch.cat([torch.randn(1, 1, generator=generator), 0.5 * action]).cumsum(0) + 5.0
        step, never = torch.arange(steps), torch.zeros(steps, dtype=torch.bool)
        number = torch.full_like(step, episode)
        parts.append(Transitions(path[:-1], action, path[1:, 0], path[1:], never, never, number, step, step * 0))
    return Transitions.cat(parts)


def small(window: int = 1, **options: float) -> WindowedInverse:
    torch.manual_seed(0)
    chosen = {"hidden": 8, "steps": 40, "batch_size": 32, "judge_every": 10} | options
    return WindowedInverse(SPEC, window, **chosen)  # type: ignore[arg-type]


def test_windows_look_back_inside_an_episode_only(generator: Generator) -> None:
    data = line((3, 2), generator)[torch.tensor([4, 0, 2, 1, 3])]  # rows in any order
    assert previous_rows(data.episode, data.step, 2).tolist() == [[4, -1, 3, 1, -1], [-1, -1, 1, -1, -1]]


def test_padding_comes_after_standardisation(generator: Generator) -> None:
    data, inverse = line((6, 6), generator), small(window=2)
    inverse.fit(data, generator)
    window = inverse.windows(data)
    first = data.step == 0
    assert bool((window[first][:, 2:] == 0.0).all())  # no states before the first, although they lie around 5
    assert bool((window[data.step >= 2] != 0.0).all())
    assert window[:, 1].mean().abs() < 1e-5  # first differences are there for every row


def test_the_last_step_has_its_own_next_state(generator: Generator) -> None:
    data, inverse = line((5, 5), generator), small()
    inverse.fit(data, generator)
    moved = replace(data, next_obs=data.next_obs + (data.step == 4)[:, None])
    change = (inverse.predict(moved)[0] != inverse.predict(data)[0])[:, 0]
    assert torch.equal(change, data.step == 4)


def test_episodes_that_judge_are_not_learned_from(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def train(inverse: WindowedInverse, train: Examples, judges: Examples, generator: Generator) -> dict[str, float]:
        seen.extend([train.action[:, 0], judges.action[:, 0]])
        return {}

    monkeypatch.setattr(WindowedInverse, "_train", train)
    data = line((20, 20, 20), generator)
    small().fit(data, generator)
    learned, judged = (set(data.episode[torch.isin(data.action[:, 0], each)].tolist()) for each in seen)
    assert len(learned) == 2
    assert len(judged) == 1
    assert not learned & judged


def test_the_best_copy_is_kept(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged worse and worse, it ends as it was at the first judgement; a later one is another."""
    states: list[Tensor] = []

    def judged(inverse: WindowedInverse, judges: object) -> Tensor:
        states.append(inverse.mean_net.weights[0].detach().clone())
        return torch.tensor([float(len(states))])

    monkeypatch.setattr(WindowedInverse, "_judged", judged)
    inverse = small()
    inverse.fit(line((20, 20, 20), generator), generator)
    assert torch.equal(inverse.mean_net.weights[0], states[0])
    assert not torch.equal(states[0], states[-1])


def test_members_that_disagree_are_less_certain(generator: Generator) -> None:
    data, inverse = line((20, 20, 20), generator), small(members=3)
    inverse.fit(data, generator)
    with torch.no_grad():
        inverse.spread_net.biases[-1] -= 10.0  # each is certain
    _, before = inverse.predict(data)
    with torch.no_grad():
        inverse.mean_net.biases[-1][0] += 2.0
    _, after = inverse.predict(data)
    assert bool((after > before).all())


def test_rows_without_actions_are_not_learned_from(generator: Generator) -> None:
    data = line((20, 20, 20), generator)
    hidden = without_actions(data, data.episode < 2)
    report = small().fit(hidden, generator)
    assert report["labelled_rows"] == 40
    assert all(torch.tensor(list(report.values())).isfinite())
    with pytest.raises(UserError, match="two episodes"):
        small().fit(without_actions(data, data.episode < 1), generator)


def test_state_comes_back(generator: Generator) -> None:
    data, inverse, other = line((20, 20), generator), small(), small()
    inverse.fit(data, generator)
    with pytest.raises(UserError, match="not fitted"):
        other.predict(data)
    other.load_learned_state(inverse.learned_state())
    assert torch.equal(other.predict(data)[0], inverse.predict(data)[0])
