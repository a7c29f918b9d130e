"""Whole runs on a Ray cluster: the same as without it, whatever is lost; and clear words where that cannot be."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from experiments.benchmarks._cluster import FAULTS, Driver, Machines, difference, machines, suffer
from experiments.benchmarks.faults import training
from experiments.checkpoint import CheckpointStore
from experiments.cli import main
from mbrl.distributed import cluster as ray_cluster

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
SMALL = {"agent.fitter.max_epochs": 2, "evaluation.every": 200, "evaluation.episodes": 1}
RUN = training(STEPS, seed=1, changes=SMALL)
BROKEN = ["--trust", "broken_parts", "--steps=400", "--quiet", "--workers.environments=1"]
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
"""Of Ray: how soon a node's end is noticed"""
USABLE_SECONDS = 30.0


@pytest.fixture(scope="module")
def there() -> Iterator[Machines]:
    with machines(settings=QUICK) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without Ray."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main([*RUN, "--quiet", "--out", str(run)]) == 0
    return run


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(Path(__file__).with_name("broken_parts.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


# -- equality --------------------------------------------------------------------------------------------------------


def test_a_whole_run_is_the_same(there: Machines, alone: Path, tmp_path: Path) -> None:
    assert main([*RUN, "--quiet", "--out", str(tmp_path / "run"), "--ray", there.address]) == 0
    assert difference(tmp_path / "run", alone) is None


@pytest.mark.parametrize("what", ["records", "weights", "rows"])
def test_what_differs_is_noticed(alone: Path, tmp_path: Path, what: str) -> None:
    """The control of all the others."""
    other = shutil.copytree(alone, tmp_path / "run")
    if what == "records":
        text = (other / "metrics.jsonl").read_text()
        (other / "metrics.jsonl").write_text(text.replace('"updates": 300', '"updates": 301', 1))
    elif what == "weights":
        store = CheckpointStore(other / "checkpoints", keep=1)
        state = store.load_latest()
        assert state is not None
        weight = next(value for value in state["agent"]["model"].values() if value.is_floating_point())
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))
        store.save(STEPS, state, {})
    else:
        file = next((other / "checkpoints" / "buffers").rglob("*.bin"))
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    found = difference(other, alone)
    assert found is not None
    assert found.startswith(
        {"records": "metrics.jsonl:", "weights": "checkpoint.agent.model.", "rows": "buffers"}[what]
    )


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_lost_twice_changes_nothing(there: Machines, alone: Path, tmp_path: Path, kind: str) -> None:
    run = Driver(tmp_path / "run", RUN, ["--ray", there.address])
    try:
        faults = suffer(kind, 2, there, run, STEPS, random.Random(f"{kind} 3"))
        assert run.end(60.0) is None
    finally:
        if run.running:
            run.kill()
    assert len(faults) == 2
    assert all(fault.progress_seconds is not None for fault in faults)
    assert difference(run.run, alone) is None


# -- what the user did wrong -----------------------------------------------------------------------------------------


def test_what_an_environment_raises_is_shown_whole(
    there: Machines, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "random", "--env", "broken_parts:Raises", *BROKEN, "--ray", there.address, "--debug"]
    assert main(words) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "step 50 of an episode raised ZeroDivisionError: the motor of this user is broken" in last
    assert 'broken_parts.py", line' in said
    assert "in break_down" in said
    assert "lost" not in said  # it was not tried again


def test_what_a_filter_raises_is_shown_whole(there: Machines, workplace: Path) -> None:
    words = [*RUN, "--agent.filters=[{class_path: broken_parts.BrokenFilter}]", "--trust", "broken_parts", "--quiet"]
    with pytest.raises(ZeroDivisionError, match="the filter of this user is broken") as raised:
        main([*words, "--ray", there.address])
    assert 'broken_parts.py", line' in str(raised.value)


def test_an_environment_that_always_takes_its_process_with_it(
    there: Machines, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "random", "--env", "broken_parts:Dies", *BROKEN, "--ray", there.address]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "lost 3 workers in a row" in said


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where something takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a run is refused with, within half a minute and with nothing written."""
    began, before = time.monotonic(), sorted(Path.cwd().iterdir())
    assert main([*RUN, "--quiet", *words]) == 2
    assert time.monotonic() - began < USABLE_SECONDS
    assert sorted(Path.cwd().iterdir()) == before
    assert not ray.is_initialized()
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    return said


def test_nothing_listens(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "nothing answers there" in refuse(["--ray", f"127.0.0.1:{port}"], capsys)


def test_no_ray_listens(
    workplace: Path, silent: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_cluster.PROBE_SECONDS < USABLE_SECONDS
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 3.0)
    assert "it does not answer as a Ray cluster does within 3 s" in refuse(["--ray", f"127.0.0.1:{silent}"], capsys)


def test_no_cluster_of_this_machine(workplace: Path) -> None:
    """In a place of its own, where the clusters of others are not seen."""
    apart = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        pytest.skip("no process namespaces here")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(workplace / "none")}
    environment.pop("RAY_ADDRESS", None)
    words = [*apart, sys.executable, "-m", "experiments.cli", *RUN, "--ray", "auto", "--out", "run"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=USABLE_SECONDS)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "Could not find any running Ray instance" in done.stderr
    assert not (workplace / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers.num_gpus=1"], "the cluster has 0 GPUs"),
        (["--workers.imagination=100"], "workers with 0.3 CPUs each"),
        (["--workers.environments=4", "--workers.num_cpus=2"], "workers with 2 CPUs each"),
    ],
)
def test_more_than_there_is(
    there: Machines, workplace: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refuse([*words, "--ray", there.address], capsys)


def test_a_cluster_of_another_version(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head writes down its version when it starts; this one's is another then."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "__version__", "2.9.9")
            other = stack.enter_context(machines(nodes=0))
        said = refuse(["--ray", other.address], capsys)
    assert "2.9.9" in said
    assert ray.__version__ in said


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ray start --head` does on a machine where a token lies, which `ray.init` has put there."""
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 6.0)
    code = "from experiments.benchmarks._cluster import *\nwith machines(0) as m: print(m.address, flush=True); input()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0"}
    words, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(words, env=environment, text=True, stdin=pipe, stdout=pipe) as other:
        try:
            assert other.stdout is not None
            assert "set RAY_AUTH_MODE=token" in refuse(["--ray", other.stdout.readline().strip()], capsys)
        finally:
            other.communicate("\n")


def test_two_hosts_without_namespaces(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workplace))
    assert main(["bench", "two-hosts"]) == 2
    assert "install iproute2" in capsys.readouterr().err
    assert not (workplace / "runs").exists()
