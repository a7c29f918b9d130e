"""A cluster that cannot be used is refused in words, within half a minute."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from envs.errors import UserError
from mbrl.distributed import cluster
from mbrl.distributed.cluster import connect


def refused(address: str) -> tuple[str, float]:
    began = time.monotonic()
    with pytest.raises(UserError) as caught, connect(address):
        pass
    assert not ray.is_initialized()
    return str(caught.value), time.monotonic() - began


def test_nothing_listens() -> None:
    said, seconds = refused("127.0.0.1:1")
    assert "--ray: '127.0.0.1:1': nothing answers there" in said
    assert seconds < 12.0


def test_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        said, seconds = refused(f"127.0.0.1:{server.getsockname()[1]}")
    assert "it does not answer as a Ray cluster does" in said or "no Ray cluster could be joined" in said
    assert seconds < 15.0


def test_a_cluster_inside_a_cluster_is_refused() -> None:
    with connect("local", num_cpus=1, object_store_bytes=100_000_000):
        with pytest.raises(UserError, match="is part of a Ray cluster already"), connect("local"):
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Traceback ...\nRuntimeError: Version mismatch: cluster was started with:\n    Ray: 2.50\nThis process",
            "2.50",
        ),
        ("x\nConnectionError: Could not find any running Ray instance.", "Could not find any running"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_is_found_in_what_was_said(said: str, reason: str) -> None:
    assert reason in cluster._reason(said)
    assert "\n" not in cluster._reason(said)
