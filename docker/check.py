"""Checks of the image that need no container engine.

``python docker/check.py`` reads docker/Dockerfile by the rules below and says what breaks them.
``python docker/check.py --install FOLDER`` also runs its pip and build steps, word for word, in a new virtual
environment under FOLDER, from copies of the files that it copies and nothing else, and then asks what is installed for
a run. Steps that need root (Debian's packages, the user) are named and left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
SMOKE = (
    "mbrl --help",
    "mbrl list envs",
    "mbrl train random --env Pendulum-v1 --steps 20 --evaluation.episodes=1 --out runs/smoke --quiet",
    "ray --version",
    "python -c 'import imageio_ffmpeg as f; print(f.get_ffmpeg_exe())'",
    "python -c 'import ray.dashboard.optional_deps'",
)
"""What has to work in the image; the last fails where Ray came without its dashboard."""


@dataclass(frozen=True)
class Step:
    """One instruction: its name, what follows it on one line."""

    name: str
    words: str


@dataclass
class Stage:
    """A part of the file from one FROM to the next: what it starts from, its name, its steps."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)


def instructions(text: str) -> list[Step]:
    """Every instruction of a Dockerfile, in order, without comments and line breaks."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"[ \t]*\\\n[ \t]*", " ", "\n".join(kept))
    found = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [Step(name.upper(), words.strip()) for name, _, words in found]


def stages(steps: list[Step]) -> list[Stage]:
    """The stages; what stands before the first FROM (global arguments) is in none."""
    found: list[Stage] = []
    for step in steps:
        if step.name == "FROM":
            base, _, name = re.sub(r"--\S+\s+", "", step.words).partition(" AS ")
            found.append(Stage(base.strip(), name.strip()))
        elif found:
            found[-1].steps.append(step)
    return found


def arguments(steps: list[Step]) -> dict[str, str]:
    """``{name: default}`` of every ARG."""
    pairs = (step.words.partition("=") for step in steps if step.name == "ARG")
    return {name: value for name, _, value in pairs}


def filled(words: str, values: dict[str, str]) -> str:
    """``words`` with ``${NAME}`` replaced where the name has a value."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), words)


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile, a line each; empty when nothing is."""
    steps = instructions(text)
    values, parts = arguments(steps), stages(steps)
    names = {part.name for part in parts}
    found = [line for part in parts for line in _base_problems(filled(part.base, values), names)]
    found += [line for step in steps for line in _step_problems(step)]
    users = [step.words for step in parts[-1].steps if step.name == "USER"] if parts else []
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        found.append("USER: the image ends as root; end it as another user")
    return found


def _base_problems(base: str, names: set[str]) -> list[str]:
    if base in names or base == "scratch":
        return []
    _, _, tag = base.rpartition("/")[2].partition(":")
    if "@sha256:" in base:
        return []
    if not tag or tag == "latest":
        return [f"FROM {base}: name a release, not the latest"]
    return [] if re.match(r"\d+\.\d+", tag) else [f"FROM {base}: the tag moves; name a release such as 3.11.14"]


def _step_problems(step: Step) -> list[str]:
    found = []
    if step.name == "ADD":
        found.append(f"ADD {step.words}: use COPY; ADD fetches and unpacks")
    if step.name == "ENV" and re.search(r"\b\w*(PASSWORD|SECRET|TOKEN|_KEY)\w*=", step.words):
        found.append(f"ENV {step.words}: a secret would stay in the image")
    if step.name != "RUN":
        return found
    if "apt-get install" in step.words:
        if "--no-install-recommends" not in step.words:
            found.append("apt-get install: give --no-install-recommends")
        if "apt-get update" not in step.words or "rm -rf /var/lib/apt/lists" not in step.words:
            found.append("apt-get install: update before and remove the lists after it, in the same step")
    for command in pip_installs(step.words):
        if "--no-deps" not in command and "--constraint constraints.txt" not in command:
            found.append(f"{command}: nothing pins it; give --constraint constraints.txt")
        if "--no-cache-dir" not in command:
            found.append(f"{command}: its cache would stay in the layer; give --no-cache-dir")
    if re.search(r"(curl|wget) [^|&]*\| *(ba)?sh", step.words):
        found.append(f"RUN {step.words}: runs what it has just fetched")
    return found


def pip_installs(words: str) -> list[str]:
    """The ``pip install`` commands of a RUN step."""
    parts = (part.strip() for part in re.split(r"&&|;", re.sub(r"--mount=\S+\s*", "", words)))
    return [part for part in parts if re.match(r"(python -m )?pip3? install\b", part)]


# -- running the steps -------------------------------------------------------------------------------------------------


def chain(text: str, device: str) -> list[Stage]:
    """The stages that make the image of one device, in the order of the file."""
    steps = instructions(text)
    values = arguments(steps) | {"DEVICE": device}
    parts = stages(steps)
    by_name = {part.name: part for part in parts}
    wanted, todo = set[str](), [parts[-1].name]
    while todo:
        name = todo.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            todo.append(filled(by_name[name].base, values))
            todo += re.findall(r"\bfrom=([\w-]+)", " ".join(step.words for step in by_name[name].steps))
    return [part for part in parts if part.name in wanted]


def runs_here(step: Step) -> bool:
    """Whether a RUN step can be run by anyone in a virtual environment."""
    return step.name == "RUN" and not re.search(r"apt-get|useradd", step.words)


def copy(words: str, source: Path, target: Path) -> None:
    """What COPY does with files and folders named one by one."""
    *names, where = shlex.split(words)
    for name in names:
        there = source / name
        if there.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "results", "*.pyc")
            shutil.copytree(there, target / where, ignore=skip, dirs_exist_ok=True)
        else:
            (target / where).mkdir(parents=True, exist_ok=True)
            shutil.copy2(there, target / where)


def install(folder: Path, device: str, build_args: dict[str, str]) -> int:
    """Run the steps of one image in a new virtual environment; the exit code of the first step that failed, or 0."""
    folder.mkdir(parents=True)
    source, home = folder / "src", folder / "venv"
    source.mkdir()
    venv.create(home, with_pip=True, symlinks=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = kept | build_args | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    started = time.perf_counter()
    for stage in chain(DOCKERFILE.read_text(encoding="utf-8"), device):
        for name, default in arguments(stage.steps).items():
            environment.setdefault(name, default)
        for step in stage.steps:
            if step.name == "COPY":
                copy(step.words, ROOT, source)
            elif step.name == "RUN" and not runs_here(step):
                say(f"left out ({stage.name}): {step.words}")
            elif step.name == "RUN" and (code := timed(re.sub(r"--mount=\S+\s*", "", step.words), source, environment)):
                return code
    empty = folder / "empty"
    empty.mkdir()
    for command in SMOKE:
        if code := timed(command, empty, environment):
            return code
    say(f"all steps and {len(SMOKE)} commands: {time.perf_counter() - started:.0f} s")
    return 0


def timed(command: str, folder: Path, environment: dict[str, str]) -> int:
    """Run one shell command as a RUN step would; say its seconds, and its output where it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    say(f"{time.perf_counter() - started:6.1f} s  exit {done.returncode}  {command}")
    if done.returncode:
        say((done.stdout + done.stderr)[-3000:])
    return done.returncode


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check docker/Dockerfile without a container engine.")
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as of docker build")
    options = parser.parse_args()
    found = problems(DOCKERFILE.read_text(encoding="utf-8"))
    say("\n".join(found) if found else "docker/Dockerfile: no rule is broken")
    if found or options.install is None:
        return 1 if found else 0
    if options.install.exists():
        parser.error(f"--install {options.install}: it is there already; name a new folder")
    pairs = (pair.partition("=") for pair in options.build_arg)
    return install(options.install.resolve(), options.device, {name: value for name, _, value in pairs})


if __name__ == "__main__":
    sys.exit(main())
