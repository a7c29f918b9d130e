"""What the README shows is run: its files are written down, its commands are typed, only with less to do."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from experiments.cli import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SNIPPETS = {
    block.splitlines()[0].removeprefix("# "): block for block in re.findall(r"```python\n(.*?)```", README, re.S)
}
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
QUICK = ["--steps", "215", "--evaluation.episodes=1", "--env.max_episode_steps=25", "--quiet"]
LESS_FITTING = "--agent.init_args.fitter.init_args.first_updates=20"


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_are_short(name: str) -> None:
    assert name.endswith(".py"), "a snippet's first line names its file"
    assert len(SNIPPETS[name].splitlines()) < 30


@pytest.mark.timeout(300)
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, block in SNIPPETS.items():
        (tmp_path / name).write_text(block)
    assert len(COMMANDS) > 8
    for command in COMMANDS:
        program, verb, *words = shlex.split(command)
        assert program == "mbrl"
        if verb == "train":
            words += QUICK + ([LESS_FITTING] if "pets" in words else [])
        if verb == "evaluate":
            words = [word if word != "5" else "1" for word in words]
        assert main([verb, *words]) in (0, None), f"{command}\n{capsys.readouterr()}"
