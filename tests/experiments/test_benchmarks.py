"""The benchmarks run, write what is needed to judge them, and compare like with like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from experiments.benchmarks import _floor, _timing, fit, imagine, offline_update, update
from experiments.benchmarks._mbpo_step import PARTS
from experiments.benchmarks._reference import PlainEnsemble
from experiments.cli import main
from mbrl.fitting import Fitter
from mbrl.models.base import State
from mbrl.models.bound_ensemble import CHUNK_ROWS

MODEL_BASED = {"mopo", "mobile", "ravl", "combo", "rambo"}
SIZES = fit.Sizes("Pendulum-v1", members=3, layers=2, hidden=16, batch=32, updates=5)


def written(directory: Path, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    command = ["bench", name, "--quick", "--no-compile", "--repeats=1", f"--out={directory}"]
    assert main(command) == 0
    record: dict[str, Any] = json.loads((directory / f"{name}.json").read_text())
    assert record["command"] == " ".join(["mbrl", *command])
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["packages"]["torch"] == torch.__version__
    return record, capsys.readouterr().out


def test_bench_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = written(tmp_path, "fit", capsys)
    assert "of its products" in text
    assert "figures mean nothing" in text
    assert {len(turns) for turns in record["found"]["seconds"].values()} == {1}
    assert record["found"]["ratios"]["eager"]["of_reference"] > 0


def test_bench_imagine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = written(tmp_path, "imagine", capsys)
    assert "bfloat16 instructions" in text
    assert set(record["found"]["ratios"]) == {"plain reference", "eager", "bfloat16", "its matrix products alone"}


def test_bench_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = written(tmp_path, "plan", capsys)
    assert "16 environments" in text
    assert {len(returns) for returns in record["found"]["learned model"]["returns"].values()} == {2}
    assert record["found"]["together"]["largest_difference"] < 1e-3


def test_bench_update(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = written(tmp_path, "update", capsys)
    (size,) = record["found"]["sizes"]
    assert set(size["cases"]) == {update.REFERENCE, "eager"}
    assert size["cases"][update.REFERENCE]["of_reference"] == 1.0
    step = record["found"]["mbpo_step_ms"]
    assert set(step) == {*PARTS, "acting", "environment", "whole"}
    assert 0.8 * step["whole"] < sum(step.values()) - step["whole"] <= 1.001 * step["whole"]
    assert size["cases"]["eager"]["updates_per_second"] > 0
    assert "2x8, batch 16: eager" in text


def test_bench_offline_update(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every learner is there, at the online one's sizes; what is done between rounds counts where there is any."""
    record, text = written(tmp_path, "offline-update", capsys)
    found = record["found"]["learners"]
    assert set(found) == {offline_update.ONLINE, *offline_update.RECIPES}
    assert found[offline_update.ONLINE]["of_online"] == 1.0
    assert {name for name, case in found.items() if case["whole_ms"] > case["update_ms"]} == MODEL_BASED
    assert "Pendulum-v1, 2x8, batch 16" in text


def test_offline_learners_are_as_wide_as_the_online_one() -> None:
    sizes, spec = offline_update.QUICK, offline_update.env_spec("Pendulum-v1")
    data = offline_update.dataset(spec, sizes, 0)
    wide = len(offline_update.ActorCritic(spec, hidden=8).vectors["policy"])
    for name in ("cql", "edac", "mopo"):
        agent = offline_update.offline(name, spec, data, sizes, True, 0)
        assert (len(agent.learner.vectors["policy"]), agent.batch_size) == (wide, 16)  # type: ignore[attr-defined]


def test_what_is_no_offline_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "offline-update", "--quick", "--recipes", "mopp"]) == 2
    assert "Did you mean mopo" in capsys.readouterr().err


def test_both_learners_have_as_many_parameters() -> None:
    from stable_baselines3 import SAC

    spec = update.env_spec("Pendulum-v1")
    theirs = SAC("MlpPolicy", update.Spaces(spec), policy_kwargs={"net_arch": [8, 8]}, device="cpu")
    ours = update.ActorCritic(spec, hidden=8)
    assert len(ours.vectors["policy"]) == sum(p.numel() for p in theirs.actor.parameters()) + 1  # log alpha
    assert len(ours.vectors["critic"]) == sum(p.numel() for p in theirs.critic.parameters())


def test_repeats_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "fit", "--repeats=0"]) == 2
    assert "--repeats" in capsys.readouterr().err


def test_the_reference_is_the_same_mathematics(generator: Generator) -> None:
    model = fit.make_model(SIZES, seed=0)
    data = fit.random_rows(model.spec, 64, generator)
    plain, rows = PlainEnsemble(model), model.prepare(data)
    batch = rows.map(lambda x: x.expand(SIZES.members, *x.shape))
    torch.testing.assert_close(plain.loss(batch), model.loss(batch)[0])
    ours = model.predict(State(data.obs), data.action)
    mean, log_var = plain.predict(1, rows.inputs)
    torch.testing.assert_close(mean, ours.target_mean[1])
    torch.testing.assert_close(log_var, ours.log_var[1])


def test_the_reference_steps_to_the_same_distribution(generator: Generator) -> None:
    sizes = imagine.Sizes("Pendulum-v1", members=3, layers=2, hidden=16)
    model = imagine.make_model(sizes, seed=0)
    state, action = State(torch.tensor([[1.0, 0.0, 0.5]]).expand(60_000, 3)), torch.zeros(60_000, 1)
    models = (PlainEnsemble(model), model.bind())
    speed = [m.step(state, action, generator).state.obs[:, 2] for m in models]
    assert speed[0].mean() == pytest.approx(speed[1].mean().item(), abs=0.03)
    assert speed[0].std() == pytest.approx(speed[1].std().item(), rel=0.02)


def test_flops_are_those_of_the_products() -> None:
    model = fit.make_model(SIZES, seed=0)
    first, second, last = (weight.numel() for weight in model.weights)
    assert _floor.forward_flops(model, 32) == 64 * (first + second + last)
    assert _floor.training_flops(model, 32) == 64 * (2 * first + 3 * second + 3 * last)


def test_neighbouring_turns_are_compared() -> None:
    assert _timing.ratio({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0


@pytest.fixture
def fitted(generator: Generator) -> Callable[[bool], tuple[dict[str, float], list[Tensor]]]:
    def run(compiled: bool) -> tuple[dict[str, float], list[Tensor]]:
        model = fit.make_model(SIZES, seed=0)
        data = fit.random_rows(model.spec, 160, torch.Generator().manual_seed(1))
        fitter = Fitter(batch_size=32, holdout=0.0, max_updates=5, compile=compiled)
        report = fitter.fit(model, data, torch.Generator().manual_seed(2))
        return report, [p.detach() for p in model.parameters()]

    return run


def test_compiled_fit_equals_eager(fitted: Callable[[bool], tuple[dict[str, float], list[Tensor]]]) -> None:
    (eager, weights), (compiled, others) = fitted(False), fitted(True)
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-5)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other, atol=2e-4, rtol=1e-3)


def test_one_step_in_blocks_equals_one_step_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = imagine.make_model(imagine.Sizes("Pendulum-v1", members=3, layers=2, hidden=16), seed=0).bind()
    rows = 3 * CHUNK_ROWS["cpu"] + 100
    state, action = State(torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))), torch.zeros(rows, 1)
    whole = bound.step(state, action, torch.Generator().manual_seed(5))
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 37)
    blocks = bound.step(state, action, torch.Generator().manual_seed(5))
    torch.testing.assert_close(whole.state.obs, blocks.state.obs)
    torch.testing.assert_close(whole.reward, blocks.reward)


KOOPMAN = ("reencoding", "diagonal", "speed", "control", "modes", "horizon", "imitation")
OTHERS = ("continual-offline", "continual-bodies", "dataset-read")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"koopman-{name}" for name in KOOPMAN), *OTHERS])
def test_benchmarks_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = written(tmp_path, name, capsys)
    assert record.get("found") or record.get("seconds")
    assert len(text.splitlines()) > 2
