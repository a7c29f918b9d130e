"""How many workers a run gets, and what is refused before anything is written."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from envs.errors import UserError
from envs.registry import EnvMaker
from experiments.cli import main
from experiments.config import RunConfig, resolve
from experiments.workers import Workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs and a GPU that is not there."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def config(**workers: Any) -> RunConfig:
    return resolve("mbpo-fast", [("num_envs", 4), ("workers", workers)], "Pendulum-v1").config


@pytest.mark.parametrize(
    ("asked", "imagination", "environments"),
    [
        ({}, 2, 0),  # one a CPU
        ({"fitting": 2, "environments": 3}, 1, 3),  # what is left of six places
        ({"fitting": 6}, 0, 0),
        ({"num_cpus": 0, "fitting": 3}, 2, 0),
        ({"num_gpus": 0.5}, 2, 0),  # what the GPU holds
        ({"num_gpus": 0.5, "fitting": 2}, 0, 0),
        ({"num_gpus": 0.25, "num_cpus": 0.1}, 4, 0),
        ({"environments": 9, "num_cpus": 0.1}, 2, 4),  # no more than there are environments
        ({"asynchronous": True}, 2, 2),
    ],
)
def test_workers_fit_beside_one_another(
    cluster: None, asked: dict[str, Any], imagination: int, environments: int
) -> None:
    workers = Workers(config(**asked))
    assert (workers.imagination, workers.environments) == (imagination, environments)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"imagination": 2, "environments": 3, "fitting": 2}, "7 workers with 0.3 CPUs each.*room for 6"),
        ({"imagination": 2, "fitting": 1, "num_gpus": 0.5}, "3 workers with 0.5 GPUs each.*room for 2"),
        ({"num_gpus": 1.5, "imagination": 1}, "share of one, or a whole number"),
        ({"num_cpus": 0.00001, "imagination": 1}, "at least 0.0001"),
    ],
)
def test_more_than_there_is_together_is_refused(cluster: None, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Workers(config(**asked))


def test_a_run_goes_on_with_other_workers_but_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "random", "--env", "Pendulum-v1", "--steps=20", "--quiet", f"--out={run}"]) == 0
    assert main(["resume", run, "--workers.imagination=1"]) == 0
    assert main(["resume", run, "--steps=30"]) == 2
    assert "--steps: 30: a run goes on as it was configured" in capsys.readouterr().err


def test_a_process_from_elsewhere_finds_the_same_environments(tmp_path: Path) -> None:
    """A learned model's scheme is known to nobody who has not imported it."""
    run = tmp_path / "run"
    less = ["--agent.warmup_steps=30", "--agent.fitter.max_updates=2", "--agent.planner.iterations=1"]
    words = ["train", "pets", "--env", "Pendulum-v1", "--steps=60", "--evaluation.episodes=1", *less]
    assert main([*words, "--env.max_episode_steps=20", "--quiet", f"--out={run}"]) == 0
    maker = tmp_path / "maker"
    maker.write_bytes(pickle.dumps(EnvMaker({"id": f"model:{run}"})))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))().env_spec.id)"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, maker], capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.strip() == f"model:{run}", done.stderr
    control = "from envs.registry import make_env; import sys; make_env('model:' + sys.argv[1])"
    alone = subprocess.run([sys.executable, "-c", control, run], capture_output=True, text=True, check=False, cwd=root)
    assert "there is no module 'model'" in alone.stderr


def test_a_run_without_workers_does_not_wait_for_ray() -> None:
    """Its import takes longer than many a run's first episode."""
    code = "import sys; from experiments.config import resolve; import experiments.session, experiments.commands\n"
    code += "resolve('mbpo-fast', [], 'Pendulum-v1'); print([x for x in ('ray', 'optuna') if x in sys.modules])"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
