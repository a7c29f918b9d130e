"""Bad input of every kind: exit code 2, one message that names the fault, nothing left behind, no foreign code run."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli import main
from experiments.metrics import MetricsLog

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CANARY = "from pathlib import Path\nPath(__file__).with_name('CANARY').touch()\n"
TRAIN = ["train", "random", "--env=Pendulum-v1", "--steps=60", "--out=run", "--quiet"]
BRIEF = ["--evaluation.episodes=1", "--checkpoint.every=20"]


@dataclass
class Case:
    """``prepare`` may write files first; ``says`` must all be in the one message."""

    argv: list[str]
    says: tuple[str, ...]
    prepare: Callable[[Path], Any] = lambda place: None
    may_write: tuple[str, ...] = ()
    """files that existed before, or a whole and resumable run, may have changed"""


def recipe(text: str, name: str = "mine.yaml") -> Callable[[Path], Any]:
    return lambda place: (place / name).write_text(text)


def train(*more: str) -> list[str]:
    return [*TRAIN, *more]


def bad_env(name: str, *more: str) -> list[str]:
    return ["train", "random", f"--env=bad_envs:{name}", "--steps=20", "--out=run", "--quiet", *BRIEF, *more]


def config(
    agent: str = "{class_path: RandomAgent}", env: str = "{id: Pendulum-v1}", more: str = ""
) -> Callable[..., Any]:
    return recipe(f"agent: {agent}\nenv: {env}\nsteps: 10\n{more}\n")


MINE = ["train", "mine.yaml", "--out=run", "--quiet"]

COMMAND_LINE = {
    "no command": Case([], ("required", "COMMAND")),
    "unknown command": Case(["trian"], ("trian", "train")),
    "train without a recipe": Case(["train"], ("RECIPE",)),
    "unknown recipe": Case(["train", "randm", "--env=Pendulum-v1"], ("randm", "Did you mean random")),
    "recipe file is missing": Case(["train", "no/such.yaml"], ("no/such.yaml", "no such file")),
    "no environment": Case(["train", "random"], ("env.id", "--env")),
    "override without a value": Case(train("--agent.init_args.device"), ("agent.init_args.device", "value")),
    "override that is no option": Case(train("seed=4"), ("seed=4", "--agent.init_args.x")),
    "override with bad YAML": Case(train("--env.params={a: 1"), ("env.params", "{a: 1")),
    "override inside a plain value": Case(train("--steps.more=4"), ("steps.more", "plain value")),
    "unknown option of resume": Case(["resume", "run", "--fast"], ("--fast",)),
    "unknown kind to list": Case(["list", "planets"], ("planets", "planners")),
    "unknown benchmark": Case(["bench", "warp"], ("warp", "benchmark")),
    "unknown environment to check": Case(["check-env", "Pendulm-v1"], ("Pendulm-v1", "Pendulum-v1")),
}

VALUES = {
    "unknown key": Case(train("--stepz=5"), ("stepz", "steps")),
    "unknown argument of the agent": Case(
        train("--agent.init_args.devise=cpu"), ("agent.init_args.devise", "'device'")
    ),
    "unknown key of env": Case(train("--env.action_repeats=2"), ("env.action_repeats", "'action_repeat'")),
    "unknown key of evaluation": Case(train("--evaluation.episode=2"), ("evaluation.episode", "'episodes'")),
    "unknown key beside class_path": Case(train("--agent={args: 2}"), ("agent.args", "'init_args'")),
    "unknown argument by its short place": Case(train("--agent.args=2"), ("agent.init_args.args", "'args'", "device")),
    "text for steps": Case(train("--steps=many"), ("steps", "many", "whole number")),
    "fraction for steps": Case(train("--steps=1.5"), ("steps", "1.5", "whole number")),
    "truth value for seed": Case(train("--seed=true"), ("seed", "True", "whole number")),
    "list for seed": Case(train("--seed=[1, 2]"), ("seed", "[1, 2]", "whole number")),
    "number for the device": Case(train("--agent.init_args.device=3"), ("agent.init_args.device", "3")),
    "unknown device": Case(train("--agent.init_args.device=gpu"), ("device", "gpu")),
    "negative steps": Case(train("--steps=-1"), ("steps", "-1", "at least 0")),
    "no environments": Case(train("--num-envs=0"), ("num_envs", "0", "at least 1")),
    "no evaluation episodes": Case(train("--evaluation.episodes=0"), ("evaluation.episodes", "at least 1")),
    "no threads": Case(train("--threads=0"), ("threads", "at least 1")),
    "no checkpoint kept": Case(train("--checkpoint.keep=0"), ("checkpoint.keep", "at least 1")),
    "text for a mapping": Case(train("--evaluation=often"), ("evaluation", "often", "mapping")),
    "text for init_args": Case(train("--agent.init_args=fast"), ("agent.init_args", "fast", "mapping")),
    "list for the agent": Case(train("--agent=[1]"), ("agent", "class_path")),
}

CLASSES = {
    "short name unknown": Case(train("--agent.class_path=RandmAgent"), ("agent.class_path", "RandomAgent")),
    "module unknown": Case(train("--agent.class_path=agents.rnd.RandomAgent"), ("agents.rnd",)),
    "class unknown": Case(train("--agent.class_path=agents.random_agent.Random"), ("agents.random_agent.RandomAgent",)),
    "class of the wrong kind": Case(train("--agent.class_path=torch.nn.Linear"), ("torch.nn.Linear", "no Agent")),
    "abstract class": Case(train("--agent.class_path=agents.base.Agent"), ("agents.base.Agent", "abstract")),
    "a function": Case(train("--agent.class_path=mbrl.seeding.derive_seed"), ("derive_seed", "classes only")),
    "class_path is a number": Case(train("--agent.class_path=3"), ("agent", "class_path")),
    "module typed but missing": Case(train("--agent.class_path=nowhere_at_all.Agent"), ("nowhere_at_all",)),
}

FILES = {
    "recipe with bad YAML": Case(MINE, ("mine.yaml", "mapping values"), recipe("steps: 1\nseed: 2: 3\n")),
    "recipe is a list": Case(MINE, ("mine.yaml", "list"), recipe("- 1\n")),
    "recipe is empty": Case(MINE, ("mine.yaml", "mapping"), recipe("")),
    "key given twice": Case(MINE, ("mine.yaml:", "twice", "steps"), config(more="steps: 20")),
    "recipe is binary": Case(MINE, ("mine.yaml",), lambda place: (place / "mine.yaml").write_bytes(b"\xff\x81")),
    "YAML tag that makes objects": Case(MINE, ("mine.yaml",), config(more="seed: !!python/object/apply:os.getpid []")),
    "no agent": Case(MINE, ("agent", "missing"), recipe("env: {id: Pendulum-v1}\nsteps: 3\n")),
    "foreign class": Case(
        MINE, ("agent.class_path", "canary.Agent", "--trust canary"), config("{class_path: canary.Agent}")
    ),
    "foreign class as text": Case(MINE, ("agent", "canary.Agent"), config("canary.Agent")),
    "foreign function inside a part": Case(
        MINE, ("canary.f",), config("{class_path: RandomAgent, init_args: {device: canary.f}}")
    ),
    "function of the system": Case(MINE, ("os.system",), config("{class_path: os.system}")),
    "function of torch": Case(MINE, ("torch.hub.load",), config("{class_path: torch.hub.load}")),
    "foreign environment": Case(MINE, ("env.id", "canary", "--trust canary"), config(env="{id: 'canary:Env'}")),
    "environment of the system": Case(MINE, ("env.id", "os"), config(env="{id: 'os:environ'}")),
    "class among the environment's arguments": Case(
        MINE, ("class_path",), config(env="{id: Pendulum-v1, kwargs: {g: {class_path: canary.G}}}")
    ),
    "foreign name among the environment's arguments": Case(
        MINE, ("canary.G", "number"), config(env="{id: Pendulum-v1, kwargs: {g: canary.G}}")
    ),
}

MADE: dict[str, Any] = {"may_write": ("run",)}
ENVIRONMENTS = {
    "unknown id": Case([*TRAIN, "--env=Pendulm-v1"], ("Pendulm-v1", "Pendulum-v1")),
    "module missing": Case([*TRAIN, "--env=my_missing_env:Env"], ("my_missing_env",)),
    "class missing": Case(bad_env("God"), ("God", "bad_envs:Good")),
    "not an environment": Case(bad_env("NotAnEnv"), ("NotAnEnv", "gymnasium.Env")),
    "constructor fails": Case(bad_env("Refuses"), ("Refuses", "no licence found")),
    "MultiDiscrete actions": Case(bad_env("MultiDiscrete"), ("MultiDiscrete",)),
    "unbounded actions": Case(bad_env("Unbounded"), ("Unbounded", "bound")),
    "image observations": Case(bad_env("Image"), ("Image",)),
    "reward function that is no static method": Case(bad_env("InstanceReward"), ("reward_fn", "staticmethod")),
    "reward function of all rows together": Case(bad_env("ScalarReward"), ("ScalarReward.reward_fn", "(3,)")),
    "termination function that keeps a column": Case(bad_env("ColumnEnd"), ("ColumnEnd.termination_fn", "(3, 1)")),
    "NaN reward": Case(bad_env("NanReward"), ("reward", "nan", "finite"), may_write=("run",)),
    "NaN observation": Case(bad_env("NanObservation"), ("NanObservation", "nan", "finite"), may_write=("run",)),
    "observation of another shape": Case(bad_env("WrongShape"), ("WrongShape", "shape"), may_write=("run",)),
    "four values from step": Case(bad_env("FourValues"), ("FourValues", "step 1", "terminated, truncated"), **MADE),
    "no reward": Case(bad_env("NoReward"), ("NoReward", "reward", "None", "step 1"), **MADE),
    "text for a reward": Case(bad_env("TextReward"), ("reward", "'1.0'", "step 1"), **MADE),
    "two rewards": Case(bad_env("TwoRewards"), ("TwoRewards: reward", "one number", "step 1"), **MADE),
    "reward beyond float32": Case(bad_env("HugeReward"), ("reward", "1e+39", "float32"), **MADE),
    "text for an observation": Case(bad_env("TextObservation"), ("'hello'", "(observation, info)"), **MADE),
    "None for an observation": Case(bad_env("NoObservation"), ("observation: None", "(observation, info)"), **MADE),
    "observation beyond float32": Case(
        bad_env("HugeFloat64Observation"), ("observation[1]", "1e+39", "float32"), **MADE
    ),
    "reset without an info": Case(bad_env("BareReset"), ("reset returned a ndarray", "(observation, info)"), **MADE),
    "reset of old style": Case(bad_env("OldReset"), ("OldReset", "seed=None, options=None"), **MADE),
    "step without an action": Case(bad_env("OldStep"), ("OldStep", "step(self, action)"), **MADE),
    "reset raises": Case(bad_env("RaisesInReset"), ("reset raised KeyError", "goal"), **MADE),
    "step raises": Case(bad_env("RaisesLater"), ("RaisesLater", "step 3", "ZeroDivisionError"), **MADE),
    "step raises in a worker": Case(
        bad_env("RaisesLater", "--env.asynchronous=true"), ("RaisesLater", "step 3", "ZeroDivisionError"), **MADE
    ),
    "no mass": Case(
        bad_env("Weighted", "--env.params.mass=0"), ("step 1", "ZeroDivisionError", "{'mass': 0.0}"), **MADE
    ),
    "negative limit of the class": Case(bad_env("NegativeLimit"), ("max_episode_steps", "-3", "at least 1")),
    "text for the limit of the class": Case(bad_env("TextLimit"), ("max_episode_steps", "'20'", "whole number")),
    "our package's name": Case([*TRAIN, "--env=envs.mine:Foo"], ("envs.mine", "platform's own package", "rename")),
    "class missing in Python's module": Case([*TRAIN, "--env=code:Foo"], ("code.py", "Python's own", "rename")),
    "unknown physics parameter": Case([*TRAIN, "--env.params={wingspan: 2}"], ("wingspan",)),
    "unknown constructor argument": Case([*TRAIN, "--env.kwargs={speed: 2}"], ("speed",)),
    "nothing of that name to learn": Case([*TRAIN, "--env.learn=[rewards]"], ("learn", "reward")),
    "no action repeat": Case([*TRAIN, "--env.action_repeat=0"], ("action_repeat", "at least 1")),
    "no episode steps": Case([*TRAIN, "--env.max_episode_steps=0"], ("max_episode_steps", "at least 1")),
}


def taken(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "thesis.txt").write_text("precious")


def finished_run(place: Path) -> Path:
    """A small whole run, made once and copied for each case."""
    made = place.parent / "finished-run"
    if not made.exists():
        assert main([*TRAIN, *BRIEF, f"--out={made}", "--agent.class_path=toy_agent.ToyAgent"]) == 0
    shutil.copytree(made, place / "run")
    return place / "run"


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*.pt"))[-1]


def replace_newest(run: Path, data: bytes) -> None:
    """A checkpoint whose digest is right, so that only its content can be refused."""
    old = newest(run)
    old.unlink()
    old.with_name(f"step-000000000060-{hashlib.blake2b(data, digest_size=8).hexdigest()}.pt").write_bytes(data)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("CANARY"),)


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def damaged(how: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda place: how(finished_run(place))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def fewer_columns(run: Path) -> None:
    path = run / "checkpoints" / "buffers" / "real" / "schema.json"
    path.write_text(path.read_text().replace('"obs"', '"observation"', 1))


RESUME = ["resume", "run", "--trust", "toy_agent", "--quiet"]
RUNS = {
    "run directory is taken": Case([*TRAIN], ("run", "not empty"), taken),
    "run directory holds a run": Case([*TRAIN], ("mbrl resume run",), finished_run),
    "run directory is a file": Case([*TRAIN], ("run",), lambda place: (place / "run").write_text("")),
    "run directory below a file": Case(
        [*TRAIN, "--out=file/run"], ("file/run",), lambda place: (place / "file").write_text("")
    ),
    "resume what is no run": Case(["resume", "nothing"], ("nothing", "config.yaml")),
    "resume without trust": Case(["resume", "run"], ("mbrl resume run --trust toy_agent",), finished_run),
    "evaluate without trust": Case(["evaluate", "run"], ("mbrl evaluate run --trust toy_agent",), finished_run),
    "truncated checkpoint": Case(RESUME, ("damaged",), damaged(lambda run: os.truncate(newest(run), 900))),
    "empty checkpoint": Case(RESUME, ("damaged",), damaged(lambda run: os.truncate(newest(run), 0))),
    "one flipped bit": Case(RESUME, ("damaged",), damaged(lambda run: flip(newest(run)))),
    "checkpoint that would run code": Case(
        RESUME, ("not a checkpoint",), damaged(lambda run: replace_newest(run, saved({"agent": Evil()})))
    ),
    "checkpoint that is no checkpoint": Case(
        RESUME, ("not a checkpoint",), damaged(lambda run: replace_newest(run, b"hello"))
    ),
    "checkpoint of another format": Case(
        RESUME, ("format",), damaged(lambda run: replace_newest(run, saved({"format": 99})))
    ),
    "checkpoint with parts missing": Case(
        RESUME, ("does not fit",), damaged(lambda run: replace_newest(run, saved({"format": 1})))
    ),
    "lost buffer rows": Case(
        RESUME, ("schema.json", "damaged"), damaged(lambda run: shutil.rmtree(run / "checkpoints" / "buffers"))
    ),
    "lost buffer segment": Case(
        RESUME, ("rows 0..", "damaged"), damaged(lambda run: next((run / "checkpoints").rglob("segment-*")).unlink())
    ),
    "damaged buffer schema": Case(RESUME, ("does not fit",), damaged(fewer_columns)),
    "evaluation of no episodes": Case(
        ["evaluate", "run", "--trust", "toy_agent", "--episodes=0"], ("evaluation.episodes",), finished_run
    ),
    "weights of another agent": Case(
        ["evaluate", "run", "--trust", "toy_agent"],
        ("does not fit",),
        damaged(lambda run: replace_newest(run, saved({"format": 1, "agent": {}, "clock": {"env_steps": 3}}))),
    ),
    "configuration lost": Case(RESUME, ("config.yaml",), damaged(lambda run: (run / "config.yaml").unlink())),
}

PART = "agent.init_args."
FITTER = f"{PART}fitter.init_args."
PLANNER = f"{PART}planner.init_args."
PARTICLES = f"{PLANNER}particles"


def pets(key: str, value: str, *says: str) -> Case:
    """A value that the PETS recipe must refuse before it collects anything; the message has the name and the value."""
    argv = ["train", "pets", "--env=Pendulum-v1", "--steps=60", "--out=run", "--quiet", f"--{key}={value}"]
    return Case(argv, (key.rsplit(".", 1)[-1], *says))


def mppi(key: str, value: str) -> Case:
    case = pets(f"{PLANNER}{key}", value, "finite")
    return Case(["train", "mppi", *case.argv[2:]], case.says)


HYPERPARAMETERS = {
    "particles that elites cannot share": pets(PARTICLES, "7", PARTICLES, "7", "multiple of the 5", "such as 5"),
    "NaN for lr": pets(f"{FITTER}lr", ".nan", "nan", "finite"),
    "no lr": pets(f"{FITTER}lr", "0.0", "0.0", "above 0"),
    "infinite lr": pets(f"{FITTER}lr", ".inf", "inf", "finite"),
    "NaN for weight_decay": pets(f"{FITTER}weight_decay", ".nan", "nan", "finite"),
    "negative weight_decay": pets(f"{FITTER}weight_decay", "-0.1", "-0.1", "at least 0"),
    "no batch": pets(f"{FITTER}batch_size", "0", "at least 1"),
    "no updates": pets(f"{FITTER}max_updates", "0", "at least 1"),
    "no first updates": pets(f"{FITTER}first_updates", "0", "at least 1"),
    "no patience": pets(f"{FITTER}patience", "0", "at least 1"),
    "no epochs": pets(f"{FITTER}max_epochs", "0", "at least 1"),
    "whole improvement": pets(f"{FITTER}improvement", "1.0", "[0, 1)"),
    "NaN for holdout": pets(f"{FITTER}holdout", ".nan", "error: holdout: nan: give a share"),
    "NaN for exploration_std": pets(f"{PART}exploration_std", ".nan", "nan", "finite"),
    "negative exploration_std": pets(f"{PART}exploration_std", "-1.0", "-1.0", "at least 0"),
    "capacity without bound": pets(f"{PART}capacity", "1000000001", "1,000,000,000 rows"),
    "infinite beta": pets(f"{PLANNER}beta", ".inf", "inf", "finite"),
    "NaN for decay": pets(f"{PLANNER}decay", ".nan", "nan", "finite"),
    "infinite sigma": mppi("sigma", ".inf"),
    "NaN for gamma": mppi("gamma", ".nan"),
    "null for a whole number": pets(f"{PART}warmup_steps", "null", "whole number"),
    "null for init_args": pets(f"{PART}fitter.init_args", "null", "fitter.init_args: None: give a mapping"),
    "device of another kind": Case(train(f"--{PART}device=meta"), ("device", "meta", "cannot be used")),
}

LIMITS = {
    "too many threads": Case(train("--threads=1025"), ("threads", "at most 1024")),
    "seed of 64 bits": Case(train(f"--seed={2**63}"), ("seed", "at most 9223372036854775807")),
    "steps of 64 bits": Case(train(f"--steps={2**63}"), ("steps", "at most 9223372036854775807")),
    "null for seed": Case(train("--seed=null"), ("seed", "whole number")),
    "null for threads": Case(train("--threads=null"), ("threads", "whole number")),
    "null for kept checkpoints": Case(train("--checkpoint.keep=null"), ("checkpoint.keep", "whole number")),
    "null for evaluation episodes": Case(train("--evaluation.episodes=null"), ("evaluation.episodes", "whole")),
    "null for the evaluation": Case(train("--evaluation=null"), ("evaluation", "mapping")),
}

PLACES = {
    "episode limit among the arguments": Case(train("--env.kwargs.max_episode_steps=5"), ("env.max_episode_steps",)),
    "render mode among the arguments": Case(train("--env.kwargs.render_mode=human"), ("render_mode", "video")),
    "id among the arguments": Case(train("--env.kwargs.id=Hopper-v5"), ("env.kwargs.id", "set as env.id")),
    "checker among the arguments": Case(train("--env.kwargs.disable_env_checker=true"), ("env.kwargs.disable",)),
    "number as an argument's name": Case(train("--env.kwargs={1: 2}"), ("env.kwargs", "text")),
    "option before the recipe": Case(["train", "--agent.init_args.x", "3", "random"], ("the recipe comes first",)),
    "recipe with a very long name": Case(["train", "x" * 300], ("RECIPE",)),
    "run directory here": Case(train("--out=."), ("--out", "where you stand")),
    "run directory above": Case(train("--out=.."), ("--out", "where you stand")),
    "run directory without a name": Case(train("--out="), ("--out", "name a directory")),
    "run directory with a long name": Case(train("--out=" + "a" * 300), ("--out", "too long")),
    "run directory with a name near the limit": Case(train("--out=" + "a" * 250), ("too long",)),
    "run directory with a zero byte": Case(train("--out=a\0b"), ("--out", "name a directory")),
    "run directory in a circle": Case(train("--out=o"), ("o",), lambda place: (place / "o").symlink_to("o")),
    "number as a key": Case(MINE, ("1", "no argument of this name"), config(more="1: 2")),
    "brackets without end": Case(MINE, ("mine.yaml", "100 levels"), recipe("[" * 20_000)),
    "lists without end": Case(MINE, ("mine.yaml", "100 levels"), recipe("- " * 20_000)),
    "text without end": Case(MINE, ("mine.yaml", "200,000"), recipe("# " + "x" * 300_000)),
    "aliases that multiply": Case(
        MINE,
        ("mine.yaml", "aliases"),
        recipe(
            "a: &a [1, 1]\n"
            + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 9)).replace("*b0", "*a")
        ),
    ),
    "class in a quoted text": Case(
        MINE, ("env.kwargs.g", "class_path"), config(env="{id: Pendulum-v1, kwargs: {g: '{class_path: canary.G}'}}")
    ),
    "class in an escaped text": Case(
        MINE,
        ("env.kwargs.g", "class_path"),
        config(env="{id: Pendulum-v1, kwargs: {g: '{\"class\\x5fpath\": canary.G}'}}"),
    ),
    "class that a trusted module passes on": Case(
        train("--agent.class_path=experiments.run.Path"), ("experiments.run.Path", "pathlib.Path")
    ),
}

CASES = COMMAND_LINE | VALUES | CLASSES | FILES | ENVIRONMENTS | RUNS | HYPERPARAMETERS | LIMITS | PLACES


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with outside modules, one of which must never be imported."""
    path = tmp_path_factory.mktemp("place")
    for name in ("bad_envs.py", "toy_agent.py"):
        shutil.copy(HERE / name, path)
    (path / "canary.py").write_text(CANARY)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(path)
    return path


def contents(place: Path) -> dict[str, bytes]:
    files = (path for path in place.rglob("*") if "__pycache__" not in path.parts)
    return {str(p.relative_to(place)): p.read_bytes() if p.is_file() else b"" for p in files}


def outside(names: dict[str, bytes], but: tuple[str, ...]) -> dict[str, bytes]:
    return {name: data for name, data in names.items() if name.split("/")[0] not in but}


def test_there_are_at_least_fifty() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize("name", CASES)
def test_one_clear_message(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    case.prepare(place)
    before = contents(place)
    capsys.readouterr()
    code = main(case.argv)
    said = capsys.readouterr().err
    messages = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2, said
    assert len(messages) == 1, said
    assert "Traceback" not in said
    assert all(part in messages[0] for part in case.says), messages[0]
    assert outside(contents(place), case.may_write) == outside(before, case.may_write)
    assert not (place / "CANARY").exists()
    assert "canary" not in sys.modules


def test_a_foreign_package_of_our_name_is_refused(place: Path) -> None:
    foreign = place / "elsewhere" / "agents"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text(CANARY)
    environment = os.environ | {"PYTHONPATH": f"{foreign.parent}:{ROOT}"}
    command = [sys.executable, "-m", "experiments.cli", "list", "agents"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert str(foreign) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(place.rglob("CANARY"))


def test_a_package_of_our_name_in_the_working_directory_does_not_stand_before_ours(place: Path) -> None:
    (place / "agents").mkdir()
    (place / "agents" / "__init__.py").write_text(CANARY)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.cli", "list", "agents"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "RandomAgent" in done.stdout
    assert not list(place.rglob("CANARY"))


def test_two_processes_cannot_write_one_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(place)
    log = MetricsLog(run / "metrics.jsonl")
    assert main(RESUME) == 2
    assert "in use" in capsys.readouterr().err
    log.close()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write of the run after some point fails as a full disk does."""
    real, allowed = os.fsync, [6]

    def fsync(handle: int) -> None:
        allowed[0] -= 1
        if allowed[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    command = ["train", "random", "--env=bad_envs:Good", "--steps=300", "--out=run", "--quiet", *BRIEF]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "No space left" in said
    monkeypatch.setattr(os, "fsync", real)
    assert not list((place / "run").rglob("*.part"))
    assert main(["resume", "run", "--trust=bad_envs", "--quiet"]) == 0


def test_a_full_disk_at_the_start_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    before = contents(place)
    monkeypatch.setattr(os, "replace", replace)
    assert main(TRAIN) == 2
    assert "No space left" in capsys.readouterr().err
    assert contents(place) == before


def test_a_failing_close_does_not_spoil_a_run(
    place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(bad_env("RaisesInClose")) == 0
    assert "close raised OSError: no device" in caplog.text
    assert "Traceback" not in capsys.readouterr().err


def test_an_episode_without_an_end_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.evaluation.LONGEST_EPISODE", 30)
    assert main(bad_env("Endless")) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in ("within 30 steps", "bad_envs:Endless", "--env.max_episode_steps="))
    assert main([*bad_env("Endless", "--env.max_episode_steps=40"), "--out=other"]) == 0


@pytest.mark.parametrize(("name", "says"), [("Good", "metadata['render_modes']"), ("RenderModeOnly", "render_mode (")])
def test_no_video_of_what_offers_no_rendering(
    name: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(bad_env(name)) == 0
    assert main(["evaluate", "run", "--trust=bad_envs", "--video"]) == 0
    said = capsys.readouterr().err
    assert "no video: the environment offers no rgb_array rendering" in said
    assert says in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(f"--{PART}device=cuda")) == 2
    assert "CUDA is not available" in capsys.readouterr().err


def test_a_file_name_is_no_code_even_beside_a_module_of_its_stem(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train("--env.kwargs.file=canary.xml")) == 2
    assert "unexpected keyword argument 'file'" in capsys.readouterr().err  # it reached the environment
    assert "canary" not in sys.modules


def test_a_run_goes_where_a_link_points(place: Path) -> None:
    (place / "disk").mkdir()
    (place / "link").symlink_to("disk")
    assert main(train("--steps=5", "--out=link", *BRIEF)) == 0
    assert (place / "disk" / "config.yaml").is_file()
    assert (place / "link").is_symlink()
