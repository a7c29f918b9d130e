"""What sequence models learn, what they remember, and what they keep; each claim beside its control."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from envs.errors import UserError
from envs.spec import ActionSpec, Angle, EnvSpec
from mbrl.data.transitions import Transitions
from mbrl.fitting import Fitter
from mbrl.models.recurrent import Moves, SequenceModel, SequenceState, count_parameters, matched_width

LENGTH, EPISODES = 30, 50


def spec_of(shown: str) -> EnvSpec:
    """Without a known reward, so that it is learned; a pendulum's angle is shown as cos and sin."""
    size = {"both": 2, "position": 1, "angle": 3}[shown]
    angles = (Angle(cos=0, sin=1),) if shown == "angle" else ()
    return EnvSpec("oscillator", "0", "", size, ActionSpec("continuous", 1, (-1.0,), (1.0,)), angles=angles)


def oscillator(shown: str, seed: int = 0, episodes: int = EPISODES) -> Transitions:
    """Episodes of a driven spring or pendulum under random actions; ``position`` hides the velocity."""
    generator = Generator().manual_seed(seed)
    p, v = 2 * torch.rand(2, episodes, generator=generator) - 1
    action = 2 * torch.rand(LENGTH, episodes, 1, generator=generator) - 1
    path = [(p, v)]
    for push in action[..., 0]:
        force = -2.0 * p.sin() if shown == "angle" else -p
        v = v + 0.3 * (force + 0.5 * push)
        p = p + 0.3 * v
        path.append((p, v))
    p, v = (torch.stack(column) for column in zip(*path, strict=True))
    columns = {"both": (p, v), "position": (p,), "angle": (p.cos(), p.sin(), v)}[shown]
    obs = torch.stack(columns, -1)
    step = torch.arange(LENGTH)[:, None].expand(-1, episodes)
    episode, never = torch.arange(episodes).expand(LENGTH, -1), torch.zeros(LENGTH, episodes, dtype=torch.bool)
    rows = Transitions(obs[:-1], action, p[1:], obs[1:], p[1:] > 0.9, never, episode, step, step * 0)
    return rows.map(lambda x: x.transpose(0, 1).flatten(0, 1))


def fitted(data: Transitions, shown: str, updates: int = 200, **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(spec_of(shown), **{"hidden": 32, "window": 8} | options)
    fitter = Fitter(lr=5e-3, batch_size=64, holdout=0.0, max_updates=updates, max_epochs=1000)
    fitter.fit(model, data, Generator().manual_seed(0))
    return model


def windows(data: Transitions) -> Transitions:
    """``[LENGTH, episodes, ...]``"""
    return data.map(lambda x: x.view(-1, LENGTH, *x.shape[1:]).transpose(0, 1))


def error_after(model: SequenceModel, data: Transitions, seen: int, ahead: int, forget: bool = False) -> float:
    """Root mean square error ``ahead`` steps after filtering ``seen`` observations, in standard deviations."""
    lived, state = windows(data), None
    first = torch.ones(lived.reward.shape[1], dtype=torch.bool)
    for t in range(seen):
        state = model.observe(state, lived.action[t - 1], lived.obs[t], first if t == 0 or forget else ~first)
    assert state is not None
    path = model.rollout(state, lived.action[seen - 1 : seen - 1 + ahead], None)
    miss = model.decode(path.states[-1])[0] - lived.next_obs[seen + ahead - 2]
    return float((miss / data.obs.std(0)).square().mean().sqrt())


@pytest.mark.parametrize("shown", ["both", "angle"])
@pytest.mark.parametrize("cell", ["mlp", "gru"])
def test_a_small_system_is_learned(cell: Any, shown: str) -> None:
    data, test = oscillator(shown), oscillator(shown, seed=1)
    error = error_after(fitted(data, shown, cell=cell), test, 1, 8)
    shuffled = data.clone()
    order = torch.randperm(len(data), generator=Generator().manual_seed(2))
    shuffled.next_obs, shuffled.reward = data.next_obs[order], data.reward[order]
    control = error_after(fitted(shuffled, shown, cell=cell), test, 1, 8)
    assert error < 0.15
    assert control > 0.6


@pytest.fixture(scope="module")
def remembering() -> SequenceModel:
    """Shown six true positions of a window of twelve while it is trained."""
    return fitted(oscillator("position"), "position", cell="gru", window=12, burn_in=6)


def test_memory_sees_the_velocity_that_is_hidden(remembering: SequenceModel) -> None:
    """Four steps ahead: the memory's error is a part of the plain network's, and gone when it starts anew each step."""
    mlp, test = fitted(oscillator("position"), "position", cell="mlp", window=12), oscillator("position", seed=1)
    remembered, forgotten = (error_after(remembering, test, 10, 4, forget) for forget in (False, True))
    plain = error_after(mlp, test, 10, 4)
    assert remembered < 0.5 * plain
    assert forgotten > 0.7 * plain
    assert error_after(mlp, test, 10, 4, forget=True) == plain  # which remembers nothing


def test_burn_in_teaches_the_memory_to_use_what_it_is_shown(remembering: SequenceModel) -> None:
    """The control: windows that always start cold never show that true observations tell the velocity."""
    test, cold = oscillator("position", seed=1), fitted(oscillator("position"), "position", window=12)
    assert error_after(remembering, test, 10, 4) < 0.8 * error_after(cold, test, 10, 4)


def test_reward_and_end_are_learned() -> None:
    data, test = oscillator("both"), oscillator("both", seed=1)
    model = fitted(data, "both", 300, cell="mlp")
    path = model.rollout(model.encode(test.obs), test.action[None], None)
    assert (path.reward[0, 0] - test.reward).abs().mean() < 0.1 * test.reward.std()
    wrong = (path.terminated[0, 0] != test.terminated).float().mean()
    assert wrong < 0.3 * test.terminated.float().mean()  # what never predicting an end gets wrong
    assert not bool(path.truncated.any())
    sampled = model.rollout(model.encode(test.obs), test.action[None], Generator().manual_seed(0), particles=3)
    assert sampled.terminated.shape == (1, 3, len(test))
    assert bool((sampled.terminated[:, 0] != sampled.terminated[:, 1]).any())  # each particle has its own luck


def untrained(shown: str = "angle", **options: Any) -> SequenceModel:
    """With statistics of real data and outputs of some size."""
    torch.manual_seed(0)
    model = SequenceModel(spec_of(shown), **{"hidden": 8, "window": 6} | options)
    model.prepare(oscillator(shown))
    with torch.no_grad():
        for parameter in model.head[-1].parameters():
            parameter.normal_(0.0, 0.5)
    return model


def batch_of(model: SequenceModel, rows: int, steps: int) -> Moves:
    """Prepared windows ``[rows, steps, ...]``, each from an episode's beginning."""
    prepared = model.prepare(oscillator("angle"))
    batch: Moves = prepared.map(lambda x: x.view(-1, LENGTH, *x.shape[1:])[:rows, :steps])
    return batch


@pytest.mark.parametrize("cell", ["mlp", "gru"])
def test_the_loss_is_that_of_a_rollout(cell: Any) -> None:
    """Steps of the model itself, one by one, make the same errors."""
    model = untrained(cell=cell)
    batch = batch_of(model, 4, 6)
    obs, state = model.coordinates.to_obs(batch.z), model.encode(model.coordinates.to_obs(batch.z[:, 0]))
    path = model.rollout(state, batch.action.transpose(0, 1), None)
    miss = model.coordinates.difference(
        batch.next_z.transpose(0, 1), model.coordinates.from_obs(path.states.obs[1:, 0])
    )
    expected = (miss / model.state_norm.std.float()).square().mean()
    reward = model.reward_norm.normalize(path.reward[:, 0, :, None]) - batch.reward.transpose(0, 1)
    loss, _ = model.loss(batch.map(lambda x: x[None]))
    known = float(expected + reward.square().mean())
    logits = model._follow(batch)[1][..., -1:]
    ends = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.ends)
    assert float(loss.detach()) == pytest.approx(known + float(ends), rel=1e-4)
    assert obs.shape == (4, 6, 3)


def test_the_gradient_flows_through_the_window() -> None:
    model = untrained(cell="gru")
    batch = batch_of(model, 4, 6)
    batch.action.requires_grad_()
    z, _ = model._follow(batch)
    (gradient,) = torch.autograd.grad(z[:, -1].sum(), batch.action)
    assert bool((gradient.abs().sum(-1) > 0).all())  # of the first action too
    (early,) = torch.autograd.grad(model._follow(batch)[0][:, 1].sum(), batch.action)
    assert float(early[:, 2:].abs().sum()) == 0.0  # nothing looks ahead


def test_burn_in_shows_the_truth_to_every_second_window() -> None:
    model = untrained(cell="gru", burn_in=3)
    batch = batch_of(model, 4, 6)
    changed = batch.clone()
    changed.z[:, 1:3] += 0.5
    after = (model._follow(changed)[0] - model._follow(batch)[0]).abs().sum((1, 2))
    assert (after > 1e-3).tolist() == [False, True, False, True]
    changed = batch.clone()
    changed.z[:, 3:] += 0.5  # past the burn-in it is left alone
    torch.testing.assert_close(model._follow(changed)[0], model._follow(batch)[0])


@pytest.mark.parametrize("cell", ["mlp", "gru"])
def test_rows_do_not_know_of_each_other(cell: Any) -> None:
    model, data = untrained(cell=cell), oscillator("angle")[:16]
    actions = torch.rand(5, 16, 1, generator=Generator().manual_seed(0))
    memory = torch.rand(16, model.memory_size, generator=Generator().manual_seed(1))
    whole = model.rollout(SequenceState(data.obs, memory), actions, None, particles=2)
    part = model.rollout(SequenceState(data.obs[3:5], memory[3:5]), actions[:, 3:5], None, particles=2)
    torch.testing.assert_close(whole.states.obs[:, :, 3:5], part.states.obs)
    torch.testing.assert_close(whole.reward[:, :, 3:5], part.reward)


def test_an_episode_that_begins_forgets_the_last_one() -> None:
    model, data = untrained(), oscillator("angle")[:4]
    first = torch.tensor([True, False, True, False])
    past = SequenceState(data.obs, torch.ones(4, 8))
    now = model.observe(past, data.action, data.next_obs, first)
    assert torch.equal(now.obs, data.next_obs)
    assert float(now.memory[first].abs().sum()) == 0.0
    imagined = model.step(past, data.action, None).state
    assert isinstance(imagined, SequenceState)
    torch.testing.assert_close(now.memory[~first], imagined.memory[~first])


@pytest.mark.parametrize("cell", ["mlp", "gru"])
def test_saved_and_loaded_is_the_same_model(cell: Any) -> None:
    data, test = oscillator("angle"), oscillator("angle", seed=1)[:32]
    model = fitted(data, "angle", 5, cell=cell)
    torch.manual_seed(1)
    other = SequenceModel(spec_of("angle"), cell=cell, hidden=32, window=8)
    actions = test.action.expand(4, -1, -1)
    said = [m.rollout(m.encode(test.obs), actions, None).states.obs for m in (model, other)]
    assert not torch.allclose(said[0], said[1])
    other.load_state_dict(model.state_dict())
    again = other.rollout(other.encode(test.obs), actions, None).states.obs
    assert torch.equal(again, said[0])


def test_widths_are_matched() -> None:
    spec = spec_of("angle")
    for cell in ("mlp", "gru"):
        make = partial(SequenceModel, spec, cell)
        size = count_parameters(make(matched_width(make, 20_000)))
        assert abs(size - 20_000) < 0.02 * 20_000
    with pytest.raises(UserError, match="parameters"):
        matched_width(lambda w: SequenceModel(spec, "mlp", w), 20_000, most=16)


def test_a_single_step_is_a_window_of_one() -> None:
    data, test = oscillator("both"), oscillator("both", seed=1)
    assert error_after(fitted(data, "both", cell="mlp", window=1), test, 1, 1) < 0.05


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cell": "lstm"}, "cell"),
        ({"hidden": 0}, "hidden"),
        ({"burn_in": 10}, "burn_in"),
        ({"cell": "mlp", "burn_in": 2}, "burn_in"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SequenceModel(spec_of("both"), **options)


def test_a_state_of_another_model_is_refused() -> None:
    from mbrl.models.base import State

    with pytest.raises(UserError, match="encode"):
        untrained().step(State(torch.zeros(1, 3)), torch.zeros(1, 1), None)


def wrapped(angle: Tensor) -> Tensor:
    return torch.atan2(angle.sin(), angle.cos())


def test_angles_stay_on_their_circle() -> None:
    model = untrained(cell="gru")
    actions = torch.ones(30, 1, 1)
    path = model.rollout(model.encode(torch.tensor([[1.0, 0.0, 3.0]])), actions, None).states.obs[:, 0, 0]
    torch.testing.assert_close(path[:, :2].norm(dim=-1), torch.ones(31))
    turned = wrapped(torch.atan2(path[:, 1], path[:, 0]))
    assert float(turned.abs().max()) <= math.pi + 1e-6


def test_an_agent_plans_with_it(tmp_path: Path) -> None:
    """From the command line: its memory is the agent's, fitted and filtered as the run goes."""
    from experiments.cli import main
    from experiments.metrics import read_records

    model = ["class_path=SequenceModel", "init_args.cell=gru", "init_args.hidden=8", "init_args.window=4"]
    settings = [f"agent.init_args.model.{word}" for word in model]
    settings += ["steps=60", "agent.warmup_steps=30", "agent.fit_every=10", "agent.fitter.first_updates=5"]
    settings += ["agent.fitter.max_updates=5", "agent.planner.horizon=4", "evaluation.episodes=1"]
    settings += ["env.max_episode_steps=20"]
    command = ["train", "pets", "--env", "Pendulum-v1", "--quiet", "--out", str(tmp_path / "run")]
    assert main([*command, *(f"--{word}" for word in settings)]) == 0
    fits = [record for record in read_records(tmp_path / "run" / "metrics.jsonl") if record["event"] == "fit"]
    assert len(fits) == 4
    assert all(math.isfinite(fit["loss"]) for fit in fits)
