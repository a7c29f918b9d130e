"""Whole sweeps on Ray Tune: killed and called again, each trial ends once; the best one alone is the same run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from experiments.benchmarks import sweep as bench
from experiments.cli import main
from experiments.sweep.ledger import Ledger

TINY = (
    "sweep random --env CartPole-v1 --param env.max_episode_steps=[5,10,20] --mode min --steps 60 --grace 20"
    " --processes 1 --evaluation.episodes=1 --evaluation.num_envs=1"
)


@pytest.mark.timeout(300)
def test_a_sweep_that_is_killed_ends_each_trial_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "sweep"
    words = [*TINY.split(), "--trials", "2", "--out", str(root)]
    killed, problems = bench.sweep_and_kill(words, root, kills=1, seed=7)
    assert (len(killed), problems) == (1, [])
    told = capfd.readouterr()
    assert "pruned at 20 of 60 env steps" in told.err
    assert "trial-001" in told.out
    assert bench.audit(root, 2) == []
    found = json.loads((root / "summary.json").read_text())
    assert {entry["state"] for entry in found["trials"]} == {"finished", "pruned"}
    assert not (root / ".tune").exists()
    before = (root / "ledger.jsonl").read_bytes()
    assert main(["sweep", str(root)]) == 0  # nothing is left to do, and Ray is not started
    assert (root / "ledger.jsonl").read_bytes() == before
    assert "Best: `" in (root / "sweep.md").read_text()
    assert bench.alone(root, tmp_path / "alone", main)["equal"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_at_a_time_it_is_byte_for_byte_the_same_killed_or_not(tmp_path: Path) -> None:
    for name, kills in {"whole": 0, "killed": 2}.items():
        words = [*TINY.split(), "--trials", "4", "--out", str(tmp_path / name)]
        killed, problems = bench.sweep_and_kill(words, tmp_path / name, kills, seed=7)
        assert (len(killed), problems) == (kills, [])
    ledgers = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("whole", "killed")]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixteen_trials_killed_and_killed_again(tmp_path: Path) -> None:
    words = f"--work {tmp_path / 'work'} --out {tmp_path / 'out'} --steps 500 --kills 3"
    assert bench.main(shlex.split(words)) == 0
    root = tmp_path / "work" / "sweep"
    assert "| problems | 0 |" in (tmp_path / "out" / "summary.md").read_text()
    assert main(["report", str(root), "--out", str(tmp_path / "page")]) in (0, None)
    assert "trial-015" in (tmp_path / "page" / "index.html").read_text()
    # what an audit is worth: each of these must be found
    ledger = (root / "ledger.jsonl").read_text()
    last = ledger.splitlines()[-1]
    for changed, problem in {
        ledger.removesuffix(last + "\n"): "ended 0 times",
        ledger + last + "\n": "ended 2 times",
        ledger.replace('"value": -', '"value": -1', 1): "the run itself",
    }.items():
        (root / "ledger.jsonl").write_text(changed)
        assert any(problem in found for found in bench.audit(root, 16)), problem


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_gives_each_trial_its_share_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeing.py").write_text(
        "import os\nimport sys\n\nfrom gymnasium.envs.classic_control import CartPoleEnv\n\n\n"
        "class Seeing(CartPoleEnv):\n"
        "    def __init__(self, render_mode=None):\n"
        "        super().__init__(render_mode=render_mode)\n"
        "        print('sees', os.environ.get('CUDA_VISIBLE_DEVICES'), file=sys.stderr)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    size = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    words = "random --env seeing:Seeing --param env.max_episode_steps=[5,10] --trials 2 --steps 40 --grace 40 --out s"
    try:
        assert main(["sweep", *words.split(), "--ray", cluster.address, "--gpus", "2"]) == 2
        assert not (tmp_path / "s").exists()
        assert main(["sweep", *words.split(), "--ray", cluster.address, "--gpus", "0.5"]) == 0
    finally:
        cluster.shutdown()
    for log in (tmp_path / "s" / "logs").iterdir():
        assert "sees 0\n" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broken_environment_fails_its_trials_and_is_shown_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "thin_ice.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\n\n\n"
        "class Ice(CartPoleEnv):\n"
        "    def __init__(self, holds=True, render_mode=None):\n"
        "        super().__init__(render_mode=render_mode)\n"
        "        self.holds, self.count = holds, 0\n\n"
        "    def step(self, action):\n"
        "        self.count += 1\n"
        "        if not self.holds and self.count > 15:\n"
        "            raise ZeroDivisionError('the ice is thin')\n"
        "        return super().step(action)\n"
    )
    words = "random --env thin_ice:Ice --param env.kwargs.holds=[true,false] --trials 6 --steps 60 --grace 20"
    more = "--processes 2 --env.max_episode_steps=10 --evaluation.episodes=1 --evaluation.num_envs=1 --out s"
    assert main(["sweep", *words.split(), *more.split()]) == 1
    told = capsys.readouterr().err
    assert told.count("raise ZeroDivisionError('the ice is thin')") == 1  # whole once, then in a line
    trials = Ledger(tmp_path / "s" / "ledger.jsonl").trials.values()
    assert {(trial.params["env.kwargs.holds"], trial.state == "failed") for trial in trials} == {
        (True, False),
        (False, True),
    }
    assert all(f"failed: {trial.name}: " in told for trial in trials if trial.state == "failed")
