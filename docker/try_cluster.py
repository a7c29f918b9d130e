"""Compose's cluster as processes of this machine, without a container engine: the same commands and health checks.

``python docker/try_cluster.py FOLDER [--bin VENV/bin]``: a head and a worker are started with the words of compose.yaml
(only the head's name and one port that would clash become others), a comparison is run on them with ``--ray auto`` and
as a job, a worker is killed in the middle of another one, and the same command finishes it. Ray keeps its files under
FOLDER, which must be new, and its name short.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
HERE = "127.0.0.1"
SMALL = "--envs Pendulum-v1 --evaluation.episodes=1 --evaluation.every=100"


def words(service: dict[str, Any], key: str = "command") -> list[str]:
    """The command of a service, or its health check, with compose's defaults and this machine's address."""
    given = service["command"] if key == "command" else service["healthcheck"]["test"][1:]
    filled = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in given]
    return [word.replace("head:6379", f"{HERE}:6379") for word in filled]


class Node:
    """One ``ray start --block`` and what it started."""

    def __init__(self, name: str, service: dict[str, Any], environment: dict[str, str], more: list[str]) -> None:
        self.name, self.service, self.environment, self.more = name, service, environment, more
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its health check passes. Raises ``TimeoutError`` after three minutes."""
        begun = time.perf_counter()
        quiet = subprocess.DEVNULL
        command = words(self.service) + self.more
        self.process = subprocess.Popen(command, env=self.environment, stdout=quiet, stderr=quiet)
        check = words(self.service, "healthcheck")
        while subprocess.run(check, env=self.environment, capture_output=True, check=False).returncode:
            if time.perf_counter() - begun > 180 or self.process.poll() is not None:
                raise TimeoutError(f"{self.name}: its health check never passed")
            time.sleep(1)
        say(f"{time.perf_counter() - begun:6.1f} s  {self.name} is healthy")

    def end(self, number: int) -> None:
        """Send a signal to the processes it started and to itself, and wait for it."""
        if self.process is None:
            return
        started = descendants(self.process.pid) if number == signal.SIGKILL else []
        for pid in [self.process.pid, *started]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        self.process.wait(60)
        self.process = None


def descendants(pid: int) -> list[int]:
    """Every process below this one (Linux)."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def run(command: str, environment: dict[str, str], folder: Path, expected: int = 0) -> None:
    """Run a shell command. Raises ``RuntimeError`` with its output when it ends otherwise than expected."""
    begun = time.perf_counter()
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    say(f"{time.perf_counter() - begun:6.1f} s  exit {done.returncode}  {command}")
    if done.returncode != expected:
        raise RuntimeError((done.stdout + done.stderr)[-3000:])


def lose_the_worker(worker: Node, environment: dict[str, str], folder: Path) -> None:
    """Kill the worker under a comparison; it must end and say so, and the same command must finish it."""
    command = f"mbrl compare --agents random --seeds 1 {SMALL} --steps 40000 --out lost --ray auto"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.perf_counter() + 120
    while not list(folder.glob("lost/**/metrics.jsonl")) and time.perf_counter() < until:
        time.sleep(0.2)
    worker.end(signal.SIGKILL)
    said, _ = process.communicate(timeout=180)
    say(f"worker killed; exit {process.returncode}: {said.strip().splitlines()[-1]}")
    if process.returncode in (0, None) or "Traceback" in said:
        raise RuntimeError(said[-3000:])
    worker.start()
    run(command, environment, folder)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run compose.yaml's cluster as processes of this machine.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="where mbrl and ray are")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True)
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "RAY_"))}
    path = f"{options.bin.resolve()}{os.pathsep}{os.environ['PATH']}"
    environment = kept | {"PATH": path, "RAY_TMPDIR": str(folder / "r"), "RAY_USAGE_STATS_ENABLED": "0"}
    (folder / "r").mkdir()
    # On one machine head and worker share its ports: the head's agent gives way.
    head = Node("head", services["head"], environment, ["--dashboard-agent-listen-port=52399"])
    worker = Node("worker", services["worker"], environment, [])
    small = f"mbrl compare --agents random --seeds 2 {SMALL} --steps 200 --ray auto"
    try:
        head.start()
        worker.start()
        with urllib.request.urlopen(f"http://{HERE}:8265/api/version", timeout=30) as answer:
            say(f"dashboard: {answer.read().decode().strip()}")
        run(f"{small} --out plain", environment, folder)
        run(f"ray job submit --address http://{HERE}:8265 -- {small} --out {folder}/job", environment, folder)
        lose_the_worker(worker, environment, folder)
    finally:
        worker.end(signal.SIGTERM)
        head.end(signal.SIGTERM)
    say("all of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
