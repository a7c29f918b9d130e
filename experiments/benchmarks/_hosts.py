"""Two hosts on one machine: network namespaces joined by a link that can be cut, with a Ray node in each."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from envs.errors import UserError
from experiments.compare.fleet import ONE_THREAD, ROOT

HEAD, FAR = "head", "far"
PORT = 6379
START_SECONDS = 120.0


class Hosts:
    """A head in one namespace and a node in the other, which see one file system and have a link between them.

    Args:
        cpus: of head and far node.
        settings: of Ray, for the whole cluster, such as ``health_check_period_ms``.

    Raises:
        UserError: namespaces cannot be made here.
    """

    def __init__(self, cpus: tuple[int, int] = (2, 2), settings: Mapping[str, int] | None = None) -> None:
        if shutil.which("ip") is None:
            raise UserError("two-hosts", "no `ip` command", "network namespaces are made with it: install iproute2")
        _clear()
        self.folder = Path(tempfile.mkdtemp(prefix="mbrl-"))
        mark = os.getpid()
        self.names = {HEAD: f"mbrl-{mark}-{HEAD}", FAR: f"mbrl-{mark}-{FAR}"}
        self.addresses = {HEAD: "10.97.0.1", FAR: "10.97.0.2"}
        self.settings = dict(settings or {})
        try:
            self._join(mark)
            self._start(HEAD, cpus[0], ["--head", f"--port={PORT}", "--include-dashboard=false"])
            self._start(FAR, cpus[1], [f"--address={self.address}"])
            self._await_nodes(2)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the head."""
        return f"{self.addresses[HEAD]}:{PORT}"

    def inside(self, host: str) -> list[str]:
        """Words before a command that run it on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def _join(self, mark: int) -> None:
        for name in self.names.values():
            _ip("netns", "add", name)
        ends = {HEAD: f"mh{mark}", FAR: f"mf{mark}"}
        _ip("link", "add", ends[HEAD], "type", "veth", "peer", "name", ends[FAR])
        for host, name in self.names.items():
            _ip("link", "set", ends[host], "netns", name, "name", "eth0")
            _ip("-n", name, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def cut(self) -> None:
        """Pull the plug at the far host."""
        _ip("-n", self.names[FAR], "link", "set", "eth0", "down")

    def restore(self) -> None:
        """Put it back."""
        _ip("-n", self.names[FAR], "link", "set", "eth0", "up")

    def _start(self, host: str, cpus: int, words: Sequence[str]) -> None:
        place = self.folder / host
        place.mkdir()
        settings = [f"--system-config={json.dumps(self.settings)}"] if self.settings and host == HEAD else []
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *settings]
        start += [f"--node-ip-address={self.addresses[host]}", f"--num-cpus={cpus}", f"--temp-dir={place}"]
        start += [f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
        with (place / "start.log").open("wb") as log:
            done = subprocess.run(
                [*self.inside(host), *start], env=self.environment, stdout=log, stderr=log, timeout=START_SECONDS
            )
        if done.returncode != 0:
            said = (place / "start.log").read_text(errors="replace").strip()[-500:]
            raise UserError("ray start", f"exit code {done.returncode} on the {host} host", f"it said: {said}")

    @property
    def environment(self) -> dict[str, str]:
        """Of processes on the hosts. Their network ends at them, so no token is asked of who comes in."""
        ours = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "disabled"}
        return os.environ | ONE_THREAD | ours

    def _await_nodes(self, count: int) -> None:
        code = (
            f"import ray, time; ray.init(address={self.address!r}, log_to_driver=False)\n"
            f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.2)"
        )
        command = [*self.inside(HEAD), sys.executable, "-c", code]
        subprocess.run(command, env=self.environment, capture_output=True, timeout=START_SECONDS, check=True)

    def close(self) -> None:
        """End what runs on the hosts, and take them away, with the link."""
        for name in self.names.values():
            _remove(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, host: str) -> list[int]:
        """All that runs on a host."""
        return _processes(self.names[host])


def _processes(name: str) -> list[int]:
    said = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    return [int(pid) for pid in said.stdout.split()]


def _remove(name: str) -> None:
    """A namespace, with all that runs in it."""
    deadline = time.monotonic() + 20.0
    while (left := _processes(name)) and time.monotonic() < deadline:
        for pid in left:
            _kill(pid)
        time.sleep(0.1)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _clear() -> None:
    """Remove what a process left that was killed."""
    said = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in re.findall(rf"^mbrl-\d+-(?:{HEAD}|{FAR})\b", said, re.MULTILINE):
        if not Path("/proc", name.split("-")[1]).exists():
            _remove(name)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ip(*words: str) -> None:
    """A command of iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fix = f"network namespaces need root on Linux, and this machine may forbid them: {done.stderr.strip()}"
        raise UserError("two-hosts", f"`ip {' '.join(words)}` refused", fix)


@contextmanager
def hosts(cpus: tuple[int, int] = (2, 2), settings: Mapping[str, int] | None = None) -> Iterator[Hosts]:
    """Inside, two hosts; SIGTERM ends them too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        there = Hosts(cpus, settings)
        try:
            yield there
        finally:
            there.close()
    finally:
        signal.signal(signal.SIGTERM, before)
